"""Numbers from logits: per-class measures, calibration, intervals. Everything is computed from the stored float16 logits.

    measures(logits, labels)                    # accuracy, macro accuracy, macro F1, ECE, NLL, Brier
    per_class(logits, labels)                   # recall, precision, F1, support of each emotion
    interval(logits, labels, "macro_accuracy")  # 95 % bootstrap over the faces
    over_seeds(values)                          # mean, standard deviation, n, 95 % t interval
"""
import numpy as np
import pandas as pd
from scipy.special import log_softmax
from scipy.stats import t as student

from .faces import EMOTIONS

HEADLINE = ("accuracy", "macro_accuracy", "macro_f1")


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
    confidence, right = p.max(1), (p.argmax(1) == labels).astype(float)
    bin_ = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.abs(np.bincount(bin_, confidence - right, bins))
    onehot = np.eye(p.shape[1])[labels]
    return {**{name: float(found[name]) for name in HEADLINE}, "ece": float(gap.sum() / len(labels)),
            "nll": float(-logp[np.arange(len(labels)), labels].mean()), "brier": float(((p - onehot) ** 2).sum(1).mean()),
            "n": int(len(labels))}


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


def over_seeds(values, level: float = 0.95) -> dict[str, float]:
    """mean, sd, n and the t interval of runs that differ in their seed; one run has neither sd nor interval (NaN)."""
    values = np.asarray(values, float)
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return {"mean": mean, "sd": np.nan, "n": n, "low": np.nan, "high": np.nan}
    sd = float(np.std(values, ddof=1))
    half = student.ppf(0.5 + level / 2, n - 1) * sd / np.sqrt(n)
    return {"mean": mean, "sd": sd, "n": n, "low": mean - half, "high": mean + half}
