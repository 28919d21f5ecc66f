"""Numbers from logits: per-class measures, calibration, intervals. Everything is computed from the stored float16 logits.

    measures(logits, labels)                    # accuracy, macro accuracy, macro F1, ECE, NLL, Brier
    per_class(logits, labels)                   # recall, precision, F1, support of each emotion
    interval(logits, labels, "macro_accuracy")  # 95 % bootstrap over the faces
    over_seeds(values)                          # mean, standard deviation, n, 95 % t interval
    paired(baseline, perturb)                   # change between two arms, seed by seed
    two_level(right_a, right_b, labels)         # the same over seeds and faces
"""
import numpy as np
import pandas as pd
from scipy.special import log_softmax
from scipy.stats import norm
from scipy.stats import t as student

from .faces import EMOTIONS

HEADLINE = ("accuracy", "macro_accuracy", "macro_f1")
EQUIVALENT = 0.015  # differences that count as no change: what the test split's 3,589 faces resolve


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Faces of each label (rows) given each prediction (columns): int64 [7, 7]."""
    table = np.zeros((len(EMOTIONS), len(EMOTIONS)), np.int64)
    np.add.at(table, (labels, logits.argmax(1)), 1)
    return table


def _from_confusion(table: np.ndarray) -> dict[str, np.ndarray]:
    """Measures of confusion matrices [..., 7, 7]; an emotion without faces counts in no mean."""
    hits = np.diagonal(table, axis1=-2, axis2=-1).astype(float)
    support, predicted = table.sum(-1), table.sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / support
        f1 = np.where(support + predicted > 0, 2 * hits / (support + predicted), np.nan)
        f1 = np.where(support > 0, f1, np.nan)
        precision = np.where(predicted > 0, hits / predicted, 0.0)
    return {"accuracy": hits.sum(-1) / support.sum(-1), "macro_accuracy": np.nanmean(recall, -1), "macro_f1": np.nanmean(f1, -1),
            "recall": recall, "precision": precision, "f1": f1, "support": support}


def per_class(logits: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """One row an emotion: recall, precision, f1 (fractions) and support (faces)."""
    found = _from_confusion(confusion(logits, labels))
    return pd.DataFrame({"emotion": EMOTIONS, **{name: found[name] for name in ("recall", "precision", "f1", "support")}})


def measures(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> dict[str, float]:
    """accuracy, macro_accuracy (the paper's "accuracy"), macro_f1, ece (15 equal bins of confidence), nll (nats), brier, n.

    logits [n, 7] of any float type, labels [n]. Fractions. ValueError when there are no faces.
    """
    if len(labels) == 0:
        raise ValueError("No faces to measure: the subset is empty.")
    logp = log_softmax(logits.astype(np.float64), axis=1)
    p = np.exp(logp)
    found = _from_confusion(confusion(logits, labels))
    bin_, confidence, right = _bins(p, labels, bins)
    gap = np.abs(np.bincount(bin_, confidence - right, bins))
    onehot = np.eye(p.shape[1])[labels]
    return {**{name: float(found[name]) for name in HEADLINE}, "ece": float(gap.sum() / len(labels)),
            "nll": float(-logp[np.arange(len(labels)), labels].mean()), "brier": float(((p - onehot) ** 2).sum(1).mean()),
            "n": int(len(labels))}


def _bins(p: np.ndarray, labels: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of probabilities [n, 7]: the bin (of equal width) of each face's confidence, the confidence, and whether the prediction is right."""
    confidence, right = p.max(1), (p.argmax(1) == labels).astype(float)
    return np.minimum((confidence * bins).astype(int), bins - 1), confidence, right


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> pd.DataFrame:
    """Confidence against accuracy, the bins of `measures`' ece: one row a bin that holds faces.

    logits [n, 7], labels [n] -> bin, n (faces), confidence (mean), accuracy, low and high (its 95 % Wilson interval); fractions.
    """
    bin_, confidence, right = _bins(np.exp(log_softmax(logits.astype(np.float64), axis=1)), labels, bins)
    faces = pd.DataFrame({"bin": bin_, "confidence": confidence, "accuracy": right}).groupby("bin")
    frame = faces.mean().assign(n=faces.size()).reset_index()[["bin", "n", "confidence", "accuracy"]]
    low, high = wilson(frame["accuracy"], frame["n"])
    return frame.assign(low=low, high=high)


def wilson(share, n) -> tuple:
    """Wilson's 95 % interval (low, high) of shares of n faces (numbers or arrays); rounded, so that an end at 0 or 1 is exactly that."""
    from statsmodels.stats.proportion import proportion_confint

    return tuple(np.round(proportion_confint(np.multiply(share, n), n, method="wilson"), 12))


def batched_macro_f1(logits: np.ndarray, labels: np.ndarray, batch: int = 16, seed: int = 0) -> float:
    """The first paper's own evaluation: the mean of macro F1 over shuffled batches, the last incomplete one dropped.

    As scikit-learn's f1_score has it, a class that a batch neither shows nor predicts counts in no mean, one without a hit counts 0.
    Raises ValueError when there are fewer faces than a batch holds.
    """
    batches = len(labels) // batch
    if not batches:
        raise ValueError(f"{len(labels)} faces fill no batch of {batch}: take a smaller batch.")
    drawn = np.random.default_rng(seed).permutation(len(labels))[:batches * batch].reshape(batches, batch)
    own, predicted = (np.eye(len(EMOTIONS))[classes[drawn]] for classes in (labels, logits.argmax(1)))  # (batches, batch, 7)
    shown = (own + predicted).sum(1)  # (batches, 7)
    f1 = 2 * (own * predicted).sum(1) / np.maximum(shown, 1)
    return float((f1.sum(1) / (shown > 0).sum(1)).mean())


def resampled(logits: np.ndarray, labels: np.ndarray, n_resamples: int = 2000, seed: int = 0) -> dict[str, np.ndarray]:
    """Measures of bootstrap samples of the faces, each an array of n_resamples (recall [n_resamples, 7]).

    Labels and predictions decide them, so cells of the confusion matrix are drawn (multinomial), not faces: exact and fast.
    """
    table = confusion(logits, labels)
    draws = np.random.default_rng(seed).multinomial(len(labels), table.ravel() / table.sum(), n_resamples)
    return _from_confusion(draws.reshape(-1, *table.shape))


def interval(logits: np.ndarray, labels: np.ndarray, measure: str = "accuracy", level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval over the faces for one run's accuracy, macro_accuracy or macro_f1."""
    low, high = np.nanpercentile(resampled(logits, labels, seed=seed)[measure], [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def t_interval(mean, sd, n, level: float = 0.95):
    """Ends of the t interval of means of n values with standard deviation sd (arrays or numbers); NaN where n is 1."""
    with np.errstate(invalid="ignore"):
        half = student.ppf(0.5 + level / 2, np.asarray(n) - 1.0) * sd / np.sqrt(n)
    return mean - half, mean + half


def t_test(mean, sd, n):
    """p of the two-sided t test that means of n values with standard deviation sd differ from 0 (arrays or numbers); without spread 0, NaN
    where the mean is 0 too or n is 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return 2 * student.sf(np.abs(mean) / (np.asarray(sd) / np.sqrt(n)), np.asarray(n) - 1.0)


def over_seeds(values, level: float = 0.95) -> dict[str, float]:
    """mean, sd, n and the t interval of runs that differ in their seed; one run has neither sd nor interval (NaN)."""
    values = np.asarray(values, float)
    n, mean = len(values), float(np.mean(values))
    sd = float(np.std(values, ddof=1)) if n > 1 else np.nan
    low, high = t_interval(mean, sd, n, level)
    return {"mean": mean, "sd": sd, "n": n, "low": float(low), "high": float(high)}


def paired(a, b, level: float = 0.95) -> dict[str, float]:
    """From arm a to arm b, values of the same seeds in the same order: change (mean of b - a), sd, n, the t interval, p of the paired t test.

    The faces are taken as they are: what is uncertain is the training, not the test split. One pair has change and n only (else NaN).
    Raises ValueError when the arms differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"Arms of {len(a)} and {len(b)} seeds cannot be paired: give both the same seeds in the same order.")
    found = over_seeds(np.asarray(b, float) - np.asarray(a, float), level)
    p = float(t_test(found["mean"], found["sd"], found["n"]))
    return {"change": found.pop("mean"), **found, "p": p}


def two_level(right_a: np.ndarray, right_b: np.ndarray, labels: np.ndarray, measure: str = "macro_accuracy", level: float = 0.95,
              n_resamples: int = 2000, seed: int = 0) -> dict:
    """Change from arm a to arm b with a bootstrap interval over seeds and faces, both arms on the same draws.

    right_a, right_b   bool [S, n], one row a seed (the same seeds in the same order): is the prediction right? Or float, a value a face that takes
                       few values: the share right of two pictures of it.   labels   [n]
    measure            accuracy, macro_accuracy, or recall (change, low and high are then arrays [7], NaN for an emotion without faces)
    Returns change, low, high, n_seeds, n. A score's own interval is its change from an arm that is never right.

    Drawn are cells of faces alike in label and in every prediction (multinomial, exact), and seeds. A plain bootstrap of few seeds
    covers too little (they vary by (S-1)/S too little, and their spread itself is a guess): a draw's deviation by its seeds is
    stretched by sqrt(S/(S-1)) * t/z, with the t quantile of S-1 degrees of freedom. Chance that belongs to one net on one face is in the
    seeds' spread already, and a bootstrap of rows and columns counts it three times (Owen 2007, The pigeonhole bootstrap): the deviation
    by the faces is shrunk to the part that the seeds share, their mean covariance over the draws. With one seed the faces alone are drawn.
    Raises ValueError for shapes that do not fit and for an unknown measure.
    """
    right_a, right_b, labels = np.atleast_2d(right_a), np.atleast_2d(right_b), np.asarray(labels)
    if right_a.shape != right_b.shape or right_a.shape[1] != len(labels):
        raise ValueError(f"Arms {right_a.shape} and {right_b.shape} with {len(labels)} labels do not fit: give [seeds, faces] twice, and [faces].")
    known = ("accuracy", "macro_accuracy", "recall")
    if measure not in known:
        raise ValueError(f"Unknown measure {measure!r}: use one of {', '.join(known)}.")
    (n_seeds, n), rng = right_a.shape, np.random.default_rng(seed)
    stack = np.vstack([labels, right_a, right_b]).astype(np.uint8 if right_a.dtype == bool else np.float32)
    cells, counts = np.unique(stack, axis=1, return_counts=True)  # (1 + 2S, K), (K,)
    weights = np.vstack([counts, rng.multinomial(n, counts / n, n_resamples)]).astype(float)  # (1 + R, K), the data first
    own, (_, a, b) = np.eye(len(EMOTIONS))[cells[0].astype(int)], np.split(cells.astype(float), (1, 1 + n_seeds))
    support = (weights @ own)[:, None]  # (1 + R, 1, 7)
    gain = np.stack([weights @ ((b - a)[s][:, None] * own) for s in range(n_seeds)], 1)  # (1 + R, S, 7)
    recall = gain / np.maximum(support, 1)
    changes = {"accuracy": gain.sum(-1, keepdims=True) / n, "recall": recall,
               "macro_accuracy": recall.sum(-1, keepdims=True) / (support > 0).sum(-1, keepdims=True)}[measure]  # (1 + R, S, 1 or 7)
    seen, drawn = changes[0], changes[1:]
    change = seen.mean(0)
    draws = drawn.mean(1) - change  # (R, 1 or 7)
    if n_seeds > 1:
        shared = (n_seeds * draws.var(0) - drawn.var(0).mean(0)) / (n_seeds - 1)  # mean covariance of two seeds
        draws *= np.sqrt(np.maximum(shared, 0) / np.maximum(draws.var(0), 1e-12))
        stretch = np.sqrt(n_seeds / (n_seeds - 1)) * student.ppf(0.5 + level / 2, n_seeds - 1) / norm.ppf(0.5 + level / 2)
        draws += stretch * (rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), n_resamples) / n_seeds @ seen - change)
    low, high = change + np.percentile(draws, [50 * (1 - level), 50 * (1 + level)], axis=0)
    found = {"change": change, "low": low, "high": high}
    found = {name: np.where(support[0, 0] > 0, value, np.nan) if measure == "recall" else float(value[0]) for name, value in found.items()}
    return {**found, "n_seeds": n_seeds, "n": n}


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> dict[str, float]:
    """Exact McNemar test of ONE net against one other on the same faces: faces that a alone and b alone gets right, and p.

    right_a, right_b bool [n]. It says nothing about recipes: two trainings of one recipe are found to differ too often, use `paired`.
    """
    a_only, b_only = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    from statsmodels.stats import contingency_tables

    found = contingency_tables.mcnemar([[0, a_only], [b_only, 0]], exact=True)
    return {"a_only": a_only, "b_only": b_only, "p": float(found.pvalue)}


def holm(p) -> np.ndarray:
    """Holm's adjusted p values [m], in their order; NaN (nothing was tested) stays NaN and counts in no family.

    Written here since statsmodels' multipletests runs the garbage collector on every call (0.2 s); a test holds it to that.
    """
    p = np.asarray(p, float)
    adjusted, tested = p.copy(), ~np.isnan(p)
    order, m = np.argsort(p[tested]), tested.sum()
    steps = np.minimum(np.maximum.accumulate(p[tested][order] * (m - np.arange(m))), 1)
    adjusted[tested] = steps[np.argsort(order)]
    return adjusted


def verdict(low: float, high: float, n: int | None, direction: str, published: float | None = None) -> str:
    """A claim's verdict by the rule of STUDY.md section 6, from the 95 % t interval over n seed pairs.

    direction    "+" or "-": reproduced when the interval excludes 0 on that side; not reproduced when it excludes that sign, or includes 0
                 and excludes the `published` value. "0", a claim of no change: reproduced when it lies within EQUIVALENT (1.5 points, what
                 the test split resolves) of 0; not reproduced when it lies beyond. "keep", of no loss: the same of its lower side alone.
    Else, and with fewer than three seeds, inconclusive; without runs (n 0 or None) not testable. ValueError for another direction.
    """
    if direction not in ("+", "-", "0", "keep"):
        raise ValueError(f"Unknown direction {direction!r}: use one of +, -, 0, keep.")
    if not n:
        return "not testable"
    if n < 3 or np.isnan(low) or np.isnan(high):
        return "inconclusive"
    if direction == "0":
        reproduced, refuted = -EQUIVALENT < low and high < EQUIVALENT, high <= -EQUIVALENT or low >= EQUIVALENT
    elif direction == "keep":
        reproduced, refuted = low > -EQUIVALENT, high <= -EQUIVALENT
    else:
        reproduced, against = (low > 0, high <= 0) if direction == "+" else (high < 0, low >= 0)
        has_zero, known = low <= 0 <= high, published is not None and not np.isnan(published)
        refuted = against or (has_zero and known and not low <= published <= high)
    return "reproduced" if reproduced else "not reproduced" if refuted else "inconclusive"
