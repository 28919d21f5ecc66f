"""Tables: from runs to tidy frames, one function a table. `verify` rebuilds every committed table with them, without Jupyter.

    frame = TABLES["02_baselines"].build(runs, data)       # runs: {name: one Run a seed}

Columns hold fractions; a row says which model, scheme, split view and seed it belongs to, with n and a 95 % interval where there is one.
"""
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import adjusted_rand_score

from . import fer2013
from .augment import CROP
from .clustering import cluster_maps
from .dataset import VARIANTS, Dataset
from .faces import EMOTIONS, SIZE
from .landmarks import HOW, REGIONS
from .masking import coverage
from .measures import CASCADE_METHODS, CASCADE_ROWS, REGION_FILLS, ROBUST, fixed_faces, unpack
from .metrics import (HEADLINE, batched_macro_f1, confusion, holm, mcnemar, measures, over_seeds, paired, per_class, reliability, resampled, t_interval,
                      t_test, two_level, wilson)
from .models import ensemble
from .runs import Run
from .saliency import FEATURES, agreement_with_truth, similarity
from .synthetic import hidden_truth
from .training import kept_epoch

REFERENCE = Path(__file__).parent / "reference"  # the papers' published numbers
Runs = dict[str, list[Run]]                      # {name in the grid: one run a seed}


class Table(NamedTuple):
    """How a committed table is built: from which grid of runs ("" for none), by which function."""

    grid: str
    build: Callable[[Runs, Dataset], pd.DataFrame]


TABLES: dict[str, Table] = {}


def table(name: str, grid: str):
    """Register the function that builds tables/<name>.csv from the runs of `grid`."""
    def register(build):
        TABLES[name] = Table(grid, build)
        return build
    return register


def scores(logits: np.ndarray, data: Dataset, split: str = "test", views: tuple[str, ...] = ("all", "clean", "agree", "author")) -> list[dict]:
    """One dictionary a view of the split that there is: n, headline measures with 95 % bootstrap intervals, calibration."""
    rows, labels = [], data.labels(split)
    for view, mask in data.subsets(split).items():
        if view not in views:
            continue
        found = measures(logits[mask], labels[mask])
        drawn = resampled(logits[mask], labels[mask])
        ends = {name: np.nanpercentile(drawn[name], [2.5, 97.5]) for name in HEADLINE}
        row = {"faces": view, "n": found["n"]}
        for name in HEADLINE:
            row |= {name: found[name], f"{name}_low": ends[name][0], f"{name}_high": ends[name][1]}
        rows.append(row | {name: found[name] for name in ("ece", "nll", "brier")})
    return rows


def published(file: str) -> pd.DataFrame:
    """A published table from fer_lib/reference."""
    return pd.read_csv(REFERENCE / file, comment="#")


Predictions = str | dict[str, float]  # the name of stored logits; or of several, each with its weight


def _gain(a: list[Run], b: list[Run], name_a: Predictions, name_b: Predictions, data: Dataset, measure: str = "macro_accuracy",
          rows: np.ndarray | None = None) -> dict:
    """From arm a to arm b, runs of the same seeds: `change` with its seed-paired t interval (`low`, `high`; none with one seed) and the
    two-level bootstrap interval over seeds and faces (over the faces alone with one seed); name_* are logits, `rows` bool [n] the test
    faces (None: all). For recall arrays [7]."""
    rows = np.ones(len(data.labels("test")), bool) if rows is None else rows
    labels = data.labels("test")[rows]
    pairs = [(one, other) for one in a for other in b if one.spec.seed == other.spec.seed]
    right = [np.stack([_right(pair[i], name, rows, labels) for pair in pairs]) for i, name in enumerate((name_a, name_b))]  # [S, n]
    both = two_level(*right, labels, measure)
    found = {"change": both["change"], "two_level_low": both["low"], "two_level_high": both["high"], "seeds": both["n_seeds"], "n": both["n"]}
    if measure == "recall":
        return found
    values = [[_from_right(one, labels)[measure] for one in arm] for arm in right]
    over = paired(*values)
    return {"from": np.mean(values[0]), "to": np.mean(values[1]), **found, **{name: over[name] for name in ("sd", "low", "high")}}


def _right(run: Run, name: Predictions, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which of the faces a run gets right, bool [n]; of several predictions their weighted sum, float [n]."""
    if isinstance(name, str):
        return run.logits(name)[rows].argmax(1) == labels
    return sum(weight * _right(run, one, rows, labels) for one, weight in name.items())


def _from_right(right: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy and macro accuracy of one run, from what `_right` gives [n]."""
    return {"accuracy": right.mean(), "macro_accuracy": np.mean([right[labels == c].mean() for c in np.unique(labels)])}


# -------------------------------------------------------------------------------------------------------------------- 01 the faces

@table("01_integrity", "")
def integrity(runs: Runs, data: Dataset) -> pd.DataFrame:
    """What the data set holds against what FER2013 holds: one line a check, split and emotion (`fer2013.integrity`), with the faces' fingerprint."""
    return fer2013.integrity(data.faces, data.votes).assign(fingerprint=data.faces.fingerprint, source=data.faces.source)


@table("01_masks", "")
def masks(runs: Runs, data: Dataset) -> pd.DataFrame:
    """What the masks hide and where their landmarks came from, per emotion (and "all") and origin of the landmarks (and "all").

    n faces, their `share` of the emotion's; mean share of the feature's pixels hidden (mouth, nose, eyes, brows) and of the picture
    (overall); `author`, the share of these faces that the first paper masked, where its rows are given.
    """
    faces = coverage(data.mask_region, data.landmarks.points, data.landmarks.how)
    faces = faces.assign(emotion=np.array(EMOTIONS, object)[data.faces.labels],
                         author=np.nan if data.author is None else data.author.astype(float))
    rows = []
    for emotion in (*EMOTIONS, "all"):
        of_emotion = faces if emotion == "all" else faces[faces["emotion"] == emotion]
        for how in ("all", *(how for how in HOW if (faces["how"] == how).any())):
            some = of_emotion if how == "all" else of_emotion[of_emotion["how"] == how]
            rows.append({"emotion": emotion, "how": how, "n": len(some), "share": len(some) / max(len(of_emotion), 1),
                         **some[["mouth", "nose", "eyes", "brows", "overall", "author"]].mean()})
    return pd.DataFrame(rows).assign(fingerprint=data.fingerprint, source=data.faces.source)


@table("01_truth", "")
def truth(runs: Runs, data: Dataset) -> pd.DataFrame:
    """What each emotion of synthetic faces loses when the action units of a region go neutral. Raises ValueError for other faces."""
    if data.synthetic is None:
        raise ValueError(f"The truth is known of synthetic faces only, not of {data.faces.source!r}: leave 01_truth out.")
    return data.synthetic.truth.assign(source=data.faces.source)


def _tidy(frame: pd.DataFrame, data: Dataset) -> pd.DataFrame:
    """Add the faces' source; published numbers are FER2013's and have no place beside other faces."""
    if data.faces.source == "synthetic":
        frame[[c for c in frame if c.startswith(("published", "draft"))]] = np.nan
    return frame.assign(source=data.faces.source)


# ------------------------------------------------------------------------------------------------------------------- 02 baselines

def _logits(runs: Runs, train: str = "unmasked", test: str = "unmasked") -> dict[str, dict[int, np.ndarray]]:
    """Test logits [n, 7] of every network trained on a variant, {model: {seed: logits}}, and of the ensemble at the seeds that all have."""
    found = {several[0].spec.model: {run.spec.seed: run.logits(f"test_{test}") for run in several}
             for name, several in runs.items() if name.endswith(f" {train}")}
    seeds = [seed for seed in next(iter(found.values()), {}) if all(seed in by_seed for by_seed in found.values())]
    joint = {seed: ensemble([by_seed[seed] for by_seed in found.values()]).numpy() for seed in seeds}
    return {**found, "ensemble": joint} if joint and len(found) > 1 else found


def _scored(runs: Runs, data: Dataset, train: str = "unmasked", test: str = "unmasked", **views) -> list[dict]:
    """`scores` of every network and the ensemble."""
    return [{"model": model, "train": train, "test": test, "seed": seed, **row}
            for model, by_seed in _logits(runs, train, test).items() for seed, logits in by_seed.items() for row in scores(logits, data, **views)]


@table("02_baselines", "02")
def baselines(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Every network (and the ensemble of a seed's networks), trained on unmasked or masked faces, tested on both, on every view of the test split."""
    rows = [row for train in VARIANTS for test in VARIANTS for row in _scored(runs, data, train, test)]
    return _tidy(pd.DataFrame(rows), data)


@table("02_table2_1", "02")
def table2_1(runs: Runs, data: Dataset) -> pd.DataFrame:
    """The paper's Table 2.1 beside ours: trained and tested on unmasked faces; its "accuracy" is macro accuracy."""
    ours = pd.DataFrame(_scored(runs, data, views=("all", "clean"))).assign(source=data.faces.source)
    paper = published("table2_accuracy_and_f1.csv")[["model", "baseline_accuracy", "baseline_f1"]]
    paper.columns = ["model", "published_macro_accuracy", "published_macro_f1"]
    keep = ["model", "seed", "faces", "n", "accuracy", "macro_accuracy", "macro_accuracy_low", "macro_accuracy_high", "macro_f1", "source"]
    return _tidy(ours[keep].merge(paper, "left", "model"), data)


@table("02_table1", "02")
def table1(runs: Runs, data: Dataset) -> pd.DataFrame:
    """The paper's Table 1 as the whole train x test matrix: recall of each emotion and its change from train and test on unmasked faces.

    On the same faces throughout (the author's MaskFer rows where they are given). `low` and `high` are the 95 % interval of the change
    over the faces (paired, normal). The published and draft values stand beside train unmasked, test masked.
    """
    views, labels = data.subsets("test"), data.labels("test")
    faces = "author" if "author" in views else "all"
    here, rows = views[faces], []
    versions = published("table1_models_trained_or_tested_on_maskfer.csv").set_index(["version", "model"]) / 100
    for name, several in runs.items():
        model, train = name.split(" ")
        for i, run in enumerate(several):
            base = runs[f"{model} unmasked"][i].logits("test_unmasked").argmax(1) == labels
            for test in ("unmasked", "masked"):
                right = run.logits(f"test_{test}").argmax(1) == labels
                for c, emotion in enumerate(EMOTIONS):
                    some = here & (labels == c)
                    change, n = right[some].astype(float) - base[some], int(some.sum())
                    half = 1.96 * change.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
                    row = {"model": model, "train": train, "test": test, "emotion": emotion, "seed": run.spec.seed, "faces": faces, "n": n,
                           "recall": right[some].mean(), "change": change.mean(), "low": change.mean() - half, "high": change.mean() + half}
                    if (train, test) == ("unmasked", "masked"):
                        row |= {version: versions.loc[(version, model), emotion] for version in ("published", "draft")}
                    rows.append(row)
    return _tidy(pd.DataFrame(rows), data)


@table("02_confusion", "02")
def confusions(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Shares of each label's test faces that get each prediction, trained and tested on unmasked faces; one row a cell."""
    rows = []
    for name, several in runs.items():
        if name.endswith(" unmasked"):
            for run in several:
                counts = confusion(run.logits("test_unmasked"), data.labels("test"))
                rows += [{"model": run.spec.model, "seed": run.spec.seed, "label": EMOTIONS[i], "prediction": EMOTIONS[j],
                          "share": counts[i, j] / max(counts[i].sum(), 1), "n": counts[i].sum()} for i in range(7) for j in range(7)]
    return _tidy(pd.DataFrame(rows), data)


@table("02_rankings", "02")
def rankings(runs: Runs, data: Dataset) -> pd.DataFrame:
    """The models trained on unmasked faces in the order of their macro accuracy, on every view of the test split, the author's MaskFer rows
    without and with the mask.

    Means over `seeds`; `low` and `high` are the 95 % interval over seeds and faces. `behind` is what a model lacks to the view's first one,
    on the same faces and seeds, with its own interval: only where that excludes 0 do the two ranks differ by more than chance.
    """
    rows, labels, views = [], data.labels("test"), data.subsets("test")
    cells = [(view, "unmasked", view) for view in views] + [("author, masked", "masked", "author")] * ("author" in views)
    logits = {test: _logits(runs, test=test) for test in {test for _, test, _ in cells}}
    for view, test, faces in cells:
        here = views[faces]
        right = {model: {seed: (one.argmax(1) == labels)[here] for seed, one in by_seed.items()} for model, by_seed in logits[test].items()}
        scored = {model: _score(list(by_seed.values()), labels[here]) for model, by_seed in right.items()}
        order = sorted(scored, key=lambda model: -scored[model]["change"])
        for model in right:
            both = [seed for seed in right[model] if seed in right[order[0]]]
            behind = _score([right[order[0]][s] for s in both], labels[here], [right[model][s] for s in both])
            score = scored[model]
            rows.append({"model": model, "view": view, "n": score["n"], "seeds": score["n_seeds"], "rank": order.index(model) + 1,
                         "accuracy": np.mean(list(right[model].values())), "macro_accuracy": score["change"], "low": score["low"],
                         "high": score["high"], **{f"behind{end}": behind[name] for end, name in (("", "change"), ("_low", "low"), ("_high", "high"))}})
    return _tidy(pd.DataFrame(rows), data)


def _score(right: list[np.ndarray], labels: np.ndarray, less: list[np.ndarray] | None = None) -> dict:
    """Macro accuracy of one model's seeds, right [S][n], with its interval over seeds and faces; `less` that of another model."""
    right = np.stack(right)
    return two_level(np.zeros_like(right) if less is None else np.stack(less), right, labels)


@table("02_leaked", "02")
def leaked(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Recall on test faces with a pixel copy in training or validation (`leaked`) and on the others (`clean`), per emotion and over all
    faces ("all": accuracy), every model trained on unmasked faces, and "mean", that of the single networks.

    n of both; means over `seeds`, 95 % Wilson intervals over the faces. `gain` is what the leak adds: recall on every face less that on the
    clean ones. Emotions without leaked faces have no recall on them.
    """
    rows, labels, clean = [], data.labels("test"), data.subsets("test")["clean"]
    for model, by_seed in _logits(runs).items():
        right = np.mean([logits.argmax(1) == labels for logits in by_seed.values()], 0)  # (n,): share of the seeds
        for emotion in (*EMOTIONS, "all"):
            own = (labels == EMOTIONS.index(emotion)) if emotion != "all" else np.ones(len(labels), bool)
            row = {"model": model, "emotion": emotion, "seeds": len(by_seed)}
            for name, some in (("leaked", own & ~clean), ("clean", own & clean)):
                n = int(some.sum())
                recall = right[some].mean() if n else np.nan
                low, high = wilson(recall, n) if n else (np.nan, np.nan)
                row |= {f"n_{name}": n, name: recall, f"{name}_low": low, f"{name}_high": high}
            rows.append(row | {"gain": right[own].mean() - row["clean"]})
    frame = pd.DataFrame(rows)
    single = frame[frame["model"] != "ensemble"]
    mean = single.groupby("emotion", sort=False)[["seeds", "n_leaked", "leaked", "n_clean", "clean", "gain"]].mean().reset_index()
    mean = mean.astype({"n_leaked": int, "n_clean": int, "seeds": int}).assign(model="mean")
    return _tidy(pd.concat([frame, mean], ignore_index=True), data)


@table("02_leak", "02_leak")
def leak(runs: Runs, data: Dataset) -> pd.DataFrame:
    """What the copies are worth: the small VGG trained on all faces (`to`) against one trained without those that have a copy in validation or
    test (`from`). `change` with the seed-paired t interval and the two-level bootstrap interval; on all, on leaked and on clean test faces."""
    clean, rows = data.subsets("test")["clean"], []
    for faces, some in (("all", clean | True), ("leaked", ~clean), ("clean", clean)):
        rows += [{"faces": faces, "measure": measure,
                  **_gain(runs["without copies"], runs["with copies"], "test_unmasked", "test_unmasked", data, measure, some)}
                 for measure in ("accuracy", "macro_accuracy") if some.any()]
    return _tidy(pd.DataFrame(rows), data)


@table("02_recipes", "02_recipes")
def recipes(runs: Runs, data: Dataset) -> pd.DataFrame:
    """The recipe `fast` beside the author's, on equal networks. `compute` is the pixels seen in training as a multiple of `fast`'s (an epoch of the
    author's shows five crops of every face), `kept` the epoch whose weights are kept, `lr_last` the last epoch's learning rate, `val_accuracy` that
    of the kept weights (averaged over the recipe's own test views); scores on all test faces."""
    rows = []
    for name, several in runs.items():
        fast = runs[f"{name.split(' ')[0]} fast"][0].spec.recipe
        for run in several:
            recipe = run.spec.recipe
            rows.append({"model": run.spec.model, "recipe": recipe.name, "seed": run.spec.seed, "epochs": recipe.epochs,
                         "compute": _pixels(recipe) / _pixels(fast), "kept": kept_epoch(recipe, run.history),
                         "lr_last": run.history["lr"].iloc[-1], "val_n": len(data.labels("val")),
                         **{f"val_{measure}": run.metrics["val_unmasked"]["all"][measure] for measure in ("accuracy", "macro_accuracy")},
                         **scores(run.logits("test_unmasked"), data, views=("all",))[0]})
    return _tidy(pd.DataFrame(rows).drop(columns=["faces", "nll", "brier"]), data)


@table("02_reliability", "02")
def calibration(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Confidence against accuracy in 15 bins, every model trained and tested on unmasked faces, all test faces; `ece` is the model's
    calibration error, the mean gap over faces."""
    labels = data.labels("test")
    frames = [reliability(logits, labels).assign(model=model, seed=seed, ece=measures(logits, labels)["ece"])
              for model, by_seed in _logits(runs).items() for seed, logits in by_seed.items()]
    frame = pd.concat(frames, ignore_index=True)
    return _tidy(frame[["model", "seed", *frame.columns.drop(["model", "seed"])]], data)


@table("02_batched_f1", "02")
def batched_f1(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Macro F1 over all test faces beside the author's, the mean over shuffled batches of 16: `batched` (mean, low and high of 20 shuffles of
    the same predictions) and its `change`."""
    rows, labels = [], data.labels("test")
    for model, by_seed in _logits(runs).items():
        for seed, logits in by_seed.items():
            whole, batched = measures(logits, labels)["macro_f1"], [batched_macro_f1(logits, labels, seed=shuffle) for shuffle in range(20)]
            rows.append({"model": model, "seed": seed, "n": len(labels), "shuffles": len(batched), "macro_f1": whole,
                         "batched": np.mean(batched), "batched_lowest": min(batched), "batched_highest": max(batched),
                         "change": np.mean(batched) - whole})
    return _tidy(pd.DataFrame(rows), data)


# ------------------------------------------------------------------------------------------------------------------- 03 attention

def enrichment(run: Run, data: Dataset, names: tuple[str, ...]) -> np.ndarray:
    """A gate's share of mean attention on each region over the region's share of the picture [R]; 1 is no preference. Attention is scaled to [0, 1]
    over the picture, as it is before it is clustered: the sigmoids themselves lie so close together that no share of theirs could be far from 1."""
    overall, area = run.measured("attention")["overall"], np.stack([data.region_shares[name] for name in names])  # [48, 48], [R, 48, 48]
    overall = (overall - overall.min()) / np.ptp(overall)
    return (overall * area).sum((1, 2)) / (overall.mean() * area.sum((1, 2)))


@table("03_attention", "03")
@table("03_seeds", "03_seeds")
def attention(runs: Runs, data: Dataset) -> pd.DataFrame:
    """The attention classifiers: accuracy, how far attention follows brightness, and its share on each region against the region's area.

    `brightness_correlation` is the mean over test faces of the rank correlation of attention and pixel value; `enrichment_<region>`
    is the share of mean attention, scaled to [0, 1], on the region divided by the region's share of the picture (1: no preference).
    """
    names = ("brows", "eyes", "nose", "mouth", "cheeks", "forehead")
    rows = []
    for placement, several in runs.items():
        for run in several:
            found, score = run.measured("attention"), scores(run.logits("test_unmasked"), data)[0]
            share = enrichment(run, data, names)
            rows.append({"placement": placement, "model": run.spec.model, "seed": run.spec.seed, "n": score["n"], "accuracy": score["accuracy"],
                         "macro_accuracy": score["macro_accuracy"], "attention_low": found["overall"].min(), "attention_high": found["overall"].max(),
                         "brightness_correlation": found["brightness"].mean(),
                         **{f"enrichment_{name}": value for name, value in zip(names, share)}})
    return _tidy(pd.DataFrame(rows), data)


# ---------------------------------------------------------------------------------------------------------------- 04 cluster sweep

EVALUATIONS = {"clean": "", "views": "_views"}  # the whole face | the mean over it and each of its cuts; with the logits' suffix


def _arms(runs: Runs, data: Dataset, tests: tuple[str, ...] = ("unmasked",)) -> list[dict]:
    """Scores of every run: `clean` and, where it has views, `views`; on all test rows and on the clean ones."""
    return [{"arm": name, "model": run.spec.model, "n_clusters": run.spec.perturb.n_clusters if run.spec.perturb else np.nan,
             "seed": run.spec.seed, "test": test, "evaluation": evaluation, **row}
            for name, several in runs.items() for run in several for test in tests
            for evaluation, suffix in EVALUATIONS.items() if run.spec.perturb is not None or not suffix
            for row in scores(run.logits(f"test_{test}{suffix}"), data, views=("all", "clean"))]


@table("04_accuracy_by_clusters", "04")
def accuracy_by_clusters(runs: Runs, data: Dataset) -> pd.DataFrame:
    """The paper's Figure 5: the scheme over K, and alpha = 0 and the other ablations beside the baseline. Published: macro accuracy of a VGG16."""
    frame = pd.DataFrame(_arms(runs, data))
    paper = published("figure5_accuracy_by_clusters.csv").rename(columns={"accuracy": "published_macro_accuracy"})
    frame = frame.merge(paper, "left", "n_clusters")
    frame.loc[~frame["arm"].str.startswith("K="), "published_macro_accuracy"] = np.nan
    return _tidy(frame, data)


@table("04_partitions", "04")
def partitions(runs: Runs, data: Dataset) -> pd.DataFrame:
    """What the clusters are: area, mean place, and how much of each feature a cluster covers. `rand_coordinates` is the adjusted Rand
    index between the partition and k-means on the coordinates alone (1: the attention changed nothing), the best of the four quarter
    turns of the latter, which are equally good partitions of a square."""
    names = ("brows", "eyes", "nose", "mouth")
    area = [data.region_shares[name] for name in names]
    y, x = np.mgrid[:48, :48]
    rows = []
    for arm, several in runs.items():
        for run in several:
            parts = run.measured("clusters").get("parts")
            if parts is None or len(parts) != 1:
                continue
            k, parts = run.spec.perturb.n_clusters, parts[0]
            plain = cluster_maps(torch.zeros(1, 48, 48, dtype=torch.float64), k, alpha=0.0)[0].numpy()  # float32 breaks its ties by the number of threads
            rand = max(adjusted_rand_score(np.rot90(plain, turn).ravel(), parts.ravel()) for turn in range(4))
            for c in range(k):
                part = parts == c
                rows.append({"arm": arm, "seed": run.spec.seed, "n_clusters": k, "cluster": c, "area": part.mean(),
                             "x": x[part].mean() if part.any() else np.nan, "y": y[part].mean() if part.any() else np.nan,
                             **{f"covers_{n}": (area[i] * part).sum() / area[i].sum() for i, n in enumerate(names)}, "rand_coordinates": rand})
    return _tidy(pd.DataFrame(rows), data)


# ---------------------------------------------------------------------------------------------------------------------- 05 perturb

def _pairs_of_schemes(runs: Runs):
    """(network, evaluation, suffix of the logits, its baseline's runs, its scheme's runs) of grid 05."""
    for model in dict.fromkeys(name.split(" ")[0] for name in runs):
        yield model, "clean", "", runs[f"{model} baseline"], runs[f"{model} perturb"]
        yield model, "views", "_views", runs[f"{model} baseline, views"], runs[f"{model} perturb"]


@table("05_table2_2", "05")
def table2_2(runs: Runs, data: Dataset) -> pd.DataFrame:
    """The paper's Table 2.2: each network with and without the scheme, evaluated `clean` and on K+1 `views`; the baseline shown the same
    views is control C0. `gain` is perturb minus baseline at the same evaluation, in macro accuracy, with the bootstrap interval over seeds and
    faces (over the faces alone with one seed). With one seed `mcnemar_p` is the exact McNemar test of this one pair of networks: it says nothing
    about another training."""
    paper, rows = published("table2_accuracy_and_f1.csv").set_index("model"), []
    for model, evaluation, suffix, base, perturb in _pairs_of_schemes(runs):
        gain = _gain(base, perturb, f"test_unmasked{suffix}", f"test_unmasked{suffix}", data)
        for scheme, several in (("baseline", base), ("perturb", perturb)):
            for run in several:
                for one in scores(run.logits(f"test_unmasked{suffix}"), data, views=("all", "clean")):
                    rows.append({"model": model, "scheme": scheme, "evaluation": evaluation, "seed": run.spec.seed, **one})
                    if scheme == "perturb" and one["faces"] == "all":
                        rows[-1] |= {"gain": gain["change"], "gain_low": gain["two_level_low"], "gain_high": gain["two_level_high"],
                                     "gain_seeds": gain["seeds"]}
                        if len(several) == 1:
                            right = [one.logits(f"test_unmasked{suffix}").argmax(1) == data.labels("test") for one in (base[0], run)]
                            rows[-1]["mcnemar_p"] = mcnemar(*right)["p"]
                    if one["faces"] == "all" and evaluation == "clean":
                        rows[-1] |= {"published_macro_accuracy": paper.loc[model, f"{scheme}_accuracy"],
                                     "published_macro_f1": paper.loc[model, f"{scheme}_f1"]}
    return _tidy(pd.DataFrame(rows), data)


@table("05_table3", "05")
def table3(runs: Runs, data: Dataset) -> pd.DataFrame:
    """The paper's Table 3: change of each emotion's recall, perturb minus baseline, with its paired 95 % interval (bootstrap over seeds and
    faces, over the faces alone with one seed)."""
    paper = published("table3_perturb_change_by_emotion.csv").set_index(["version", "model"]) / 100
    rows = []
    for model, evaluation, suffix, base, perturb in _pairs_of_schemes(runs):
        gain = _gain(base, perturb, f"test_unmasked{suffix}", f"test_unmasked{suffix}", data, "recall")
        rows += [{"model": model, "evaluation": evaluation, "emotion": emotion, "seeds": gain["seeds"], "n": int((data.labels("test") == c).sum()),
                  "change": gain["change"][c], "low": gain["two_level_low"][c], "high": gain["two_level_high"][c],
                  "published": paper.loc[("published", model), emotion] if ("published", model) in paper.index else np.nan}
                 for c, emotion in enumerate(EMOTIONS)]
    return _tidy(pd.DataFrame(rows), data)


@table("05_under_mask", "05")
def under_mask(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Baseline and scheme, trained on unmasked faces, tested on masked ones (whole faces, no views), on every view of the test split."""
    rows = []
    for name, several in runs.items():
        model, scheme = name.split(" ", 1)
        if scheme in ("baseline", "perturb"):
            for run in several:
                rows += [{"model": model, "scheme": scheme, "seed": run.spec.seed, **row} for row in scores(run.logits("test_masked"), data)]
    return _tidy(pd.DataFrame(rows), data)


@table("05_arms", "05_controls")
@table("05_arms_second", "05_second")
def arms(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Every seed of the scheme and of its controls, on unmasked and on masked test faces (`test`), `clean` and on `views`."""
    return _tidy(pd.DataFrame(_arms(runs, data, ("unmasked", "masked"))), data)


@table("05_controls", "05_controls")
@table("05_controls_second", "05_second")
def against_controls(runs: Runs, data: Dataset) -> pd.DataFrame:
    """What the scheme gains over the baseline and each control at equal images, updates and views: `change` of accuracy and macro accuracy
    with the seed-paired t interval (`low`, `high`) and the two-level bootstrap interval; on unmasked and on masked test faces, on all and on those
    without a copy in training or validation (`faces`)."""
    rows, several, views = [], runs["perturb"], {faces: rows for faces, rows in data.subsets("test").items() if faces in ("all", "clean")}
    for against in (name for name in runs if name != "perturb"):
        for evaluation, suffix in EVALUATIONS.items():
            if (against == "baseline" and suffix) or (against.startswith("C0") and not suffix):
                continue  # the baseline has no views, and C0 without them is the baseline
            for test, measure, (faces, some) in product(VARIANTS, ("accuracy", "macro_accuracy"), views.items()):
                rows.append({"model": several[0].spec.model, "against": against, "test": test, "evaluation": evaluation, "faces": faces,
                             "measure": measure, **_gain(runs[against], several, f"test_{test}{suffix}", f"test_{test}{suffix}", data, measure, some)})
    return _tidy(pd.DataFrame(rows), data)


@table("05_ablations", "05_ablations")
def ablations(runs: Runs, data: Dataset) -> pd.DataFrame:
    """The scheme with one thing changed, and its other controls: scores, and the change of macro accuracy from the scheme as it is, with the
    bootstrap interval over the test faces (and over seeds, where there are several)."""
    rows = _arms(runs, data)
    for row in rows:
        if row["arm"] != "perturb" and row["faces"] == "all":
            name = f"test_unmasked{EVALUATIONS[row['evaluation']]}"
            gain = _gain(runs["perturb"], runs[row["arm"]], name, name, data)
            row |= {"change": gain["change"], "change_low": gain["two_level_low"], "change_high": gain["two_level_high"], "seeds": gain["seeds"]}
    return _tidy(pd.DataFrame(rows), data)


@table("05_longer", "05")
@table("05_costs", "05_costs")
def costs(runs: Runs, data: Dataset) -> pd.DataFrame:
    """What a point costs: the first network's baseline, the scheme, and other ways to spend compute. `compute` is the pixels seen in training,
    those of the scheme's attention classifier too, as a multiple of the baseline's; `change` is in macro accuracy over the baseline, with the
    bootstrap interval over seeds and faces (over the faces alone with one seed). On every view of the test split: `agree` are the faces whose
    label FER+ confirms."""
    first = next(name for name in runs if name.endswith("baseline"))
    prefix, base, rows = first.removesuffix("baseline"), runs[first], []
    for name, several in runs.items():
        if name.startswith(prefix) and not name.endswith(", views"):
            gain = _gain(base, several, "test_unmasked", "test_unmasked", data)
            rows += [{"model": run.spec.model, "scheme": name.removeprefix(prefix), "seed": run.spec.seed, "epochs": run.spec.recipe.epochs,
                      "compute": sum(_pixels(one.recipe) for one in (run.spec, run.spec.gate) if one) / _pixels(base[0].spec.recipe), **row,
                      **({"change": gain["change"], "change_low": gain["two_level_low"], "change_high": gain["two_level_high"], "seeds": gain["seeds"]}
                         if row["faces"] == "all" and name != first else {})}
                     for run in several for row in scores(run.logits("test_unmasked"), data)]
    return _tidy(pd.DataFrame(rows), data)


def _pixels(recipe) -> float:
    """Pixels that a face is shown as over a whole training; the author's augmentation makes five crops of it."""
    return recipe.epochs * 5 * CROP**2 if recipe.augment == "paper" else sum((recipe.side(epoch) or SIZE) ** 2 for epoch in range(recipe.epochs))


# -------------------------------------------------------------------------------------------------------------------- 06 saliency

WHO = ["model", "train", "scheme"]  # a recipe of 06: what its runs share


def _who(run: Run) -> dict:
    """The first columns of 06's tables: network, what it was trained on and how, seed."""
    return {"model": run.spec.model, "train": run.spec.variant, "scheme": "perturb" if run.spec.perturb else "baseline", "seed": run.spec.seed}


def _measured(runs: Runs, measure: str, name: str, keys: tuple[str, ...]) -> pd.DataFrame:
    """One packed frame of every run that has it, under each other, with the columns of `_who`."""
    frames = []
    for run in dict.fromkeys(run for several in runs.values() for run in several):
        arrays = run.measured(measure)
        if name in arrays:
            frame = unpack(name, arrays, keys)
            frames.append(pd.concat([pd.DataFrame([_who(run)] * len(frame), index=frame.index), frame], axis=1))
    return pd.concat(frames, ignore_index=True)


@table("06_region_ablation", "06")
def region_ablation(runs: Runs, data: Dataset) -> pd.DataFrame:
    """The primary endpoint: what a network loses when a region of the face goes (`drop`), when the same mask goes to a random place
    (`control`), and the `difference`, with its 95 % interval over the n fixed test faces; of p(label), of accuracy, and of `separation`:
    p(emotion) of the emotion's faces less that of all others (`saliency.ablation_frame`).

    `faces`: unmasked for every network, also masked for networks trained on them. `fill`: mean grey, blur, black, or for synthetic faces
    neutral: drawn again with the region's action units at rest (no control, nothing is hidden).
    """
    frames = []
    for faces, fill in [(faces, fill) for faces, fills in REGION_FILLS.items() for fill in fills] + [("unmasked", "neutral")]:
        some = {name: [run for run in several if f"{faces}_{fill}" in run.measured("regions")] for name, several in runs.items()}
        if any(some.values()):
            frame = _measured(some, "regions", f"{faces}_{fill}", ("emotion", "region"))
            frame.insert(4, "faces", faces)
            frame.insert(5, "fill", fill)
            frames.append(frame.drop(columns=[c for c in frame if c.startswith("drop_") and c.endswith(("_low", "_high"))]))
    return pd.concat(frames, ignore_index=True).assign(source=data.faces.source)


@table("06_fills", "06")
def fills(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Do two fills tell the same? `rank`, Spearman correlation of their (drop - control) over the `cells`, emotions x regions, and `same_top`,
    the share of emotions for which brows+eyes, nose or mouth is the costliest in both; by p(label) and by separation, unmasked faces."""
    frame, rows = region_ablation(runs, data).query("faces == 'unmasked' and emotion != 'all' and fill != 'neutral'"), []
    for measure in ("p", "separation"):
        for who, part in frame.groupby([*WHO, "seed"], sort=False):
            cells = part.pivot_table(index=["emotion", "region"], columns="fill", values=f"difference_{measure}", sort=False)
            single = cells[cells.index.isin(REGIONS, level="region")]
            top = cells[cells.index.isin(FEATURES, level="region")].groupby(level="emotion").idxmax()
            rows += [{**dict(zip((*WHO, "seed"), who)), "measure": measure, "fill": one, "other_fill": other,
                      "n": int(part.drop_duplicates("emotion")["n"].sum()), "cells": len(single),
                      "rank": single[one].corr(single[other], method="spearman"), "same_top": (top[one] == top[other]).mean()}
                     for one, other in combinations(cells, 2)]
    return pd.DataFrame(rows).assign(source=data.faces.source)


@table("06_robustness", "06")
def robustness(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Accuracy (95 % Wilson interval) and mean p(label) of the n fixed test faces as light (`kind` darkening) or contrast is taken to a share
    `level` of what it was, and as a square hides a share `level` (area) of unmasked or masked faces, filled black or mean grey."""
    frames = []
    for name, about in ROBUST.items():
        frame = _measured(runs, "robustness", name, ("level", "emotion")).astype({"level": float})
        for place, (column, value) in enumerate(zip(("kind", "fill", "faces"), about), 4):
            frame.insert(place, column, value)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True).assign(source=data.faces.source)


@table("06_occluded", "06_occluded")
def occluded(runs: Runs, data: Dataset) -> pd.DataFrame:
    """What no training makes up for: the small VGG trained and tested without a region, and without the same shape at a random place.

    Columns as in 06_region_ablation, on all n test faces: `accuracy` of the network of whole faces ("all": macro accuracy, an emotion: its recall),
    `drop` without the region, `control` without the shape elsewhere, and their `difference` with its 95 % interval over the faces (and over seeds,
    where there are several).
    """
    rows, labels, whole = [], data.labels("test"), runs["whole"]
    recall = np.mean([per_class(run.logits("test_unmasked"), labels)["recall"] for run in whole], 0)
    found = {"recall": recall, "macro_accuracy": np.nanmean(recall)}
    for region in (name.removeprefix("no_") for name in runs if name.startswith("no_")):
        arms = {"whole": (whole, "test_unmasked"), **{kind: (runs[f"{kind}_{region}"], f"test_{kind}_{region}") for kind in ("no", "rolled")}}
        for measure, emotions in (("macro_accuracy", ("all",)), ("recall", EMOTIONS)):
            drop, control, difference = (_gain(arms[a][0], arms[b][0], arms[a][1], arms[b][1], data, measure)
                                         for a, b in (("no", "whole"), ("rolled", "whole"), ("no", "rolled")))
            values = {"accuracy": found[measure], "drop_accuracy": drop["change"], "control_accuracy": control["change"],
                      "difference_accuracy": difference["change"], "difference_accuracy_low": difference["two_level_low"],
                      "difference_accuracy_high": difference["two_level_high"]}
            rows += [{"model": whole[0].spec.model, "seeds": difference["seeds"], "emotion": emotion, "region": region,
                      "n": int((labels == EMOTIONS.index(emotion)).sum()) if emotion != "all" else len(labels),
                      **{name: np.atleast_1d(value)[c] for name, value in values.items()}} for c, emotion in enumerate(emotions)]
    return _tidy(pd.DataFrame(rows), data)


QUESTIONS = (  # what the paper reads off its saliency maps: (question, emotion, region, from, to), each arm (train, scheme, faces)
    ("the scheme relies more on the mouth for fear", "fear", "mouth", ("unmasked", "baseline", "unmasked"), ("unmasked", "perturb", "unmasked")),
    ("the scheme relies less on the nose for fear", "fear", "nose", ("unmasked", "baseline", "unmasked"), ("unmasked", "perturb", "unmasked")),
    ("trained on masks brows count more for angry (unmasked faces)", "angry", "brows", ("unmasked", "baseline", "unmasked"),
     ("masked", "baseline", "unmasked")),
    ("trained on masks brows count more for angry (own masked faces)", "angry", "brows", ("unmasked", "baseline", "unmasked"),
     ("masked", "baseline", "masked")),
)


@table("06_questions", "06_seeds")
def questions(runs: Runs, data: Dataset) -> pd.DataFrame:
    """What the paper says of its maps, asked of region ablation with each fill: `change` from one arm to the other of (drop - control) of
    p(label), and of separation.

    With several seeds `low` and `high` are the seed-paired 95 % t interval and p its test (`interval` = "seeds"); with one seed the interval of
    the faces, the arms taken as independent, so that it is wide ("faces": it says nothing about other trainings).
    """
    frame, rows = region_ablation(runs, data).query("fill != 'neutral'"), []
    for question, emotion, region, *arms in QUESTIONS:
        cell = frame[(frame["emotion"] == emotion) & (frame["region"] == region)]
        a, b = (cell[(cell["train"] == t) & (cell["scheme"] == s) & (cell["faces"] == f)] for t, s, f in arms)
        for (model, fill), pair in a.merge(b, on=["model", "seed", "fill"], suffixes=("_from", "_to")).groupby(["model", "fill"], sort=False):
            for measure in ("p", "separation"):
                ends = [pair[f"difference_{measure}_{arm}"] for arm in ("from", "to")]
                change = paired(*ends)
                if change["n"] == 1:
                    half = float(np.hypot(*(pair[f"difference_{measure}_high_{arm}"] - end for arm, end in zip(("from", "to"), ends))).iloc[0])
                    change |= {"low": change["change"] - half, "high": change["change"] + half}
                rows.append({"question": question, "model": model, "emotion": emotion, "region": region, "fill": fill, "measure": measure,
                             "seeds": change["n"], "n": int(pair["n_to"].iloc[0]), "from": ends[0].mean(), "to": ends[1].mean(),
                             **{name: change[name] for name in ("change", "low", "high", "p")}, "interval": "seeds" if change["n"] > 1 else "faces"})
    return pd.DataFrame(rows).assign(source=data.faces.source)


@table("06_seeds_ablation", "06_seeds")
def seeds_ablation(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Region ablation over seeds: the mean `difference` (drop - control) of p(label) and of separation over so many `seeds`, each on the same n
    faces, with its 95 % t interval over the runs.

    `change` is that to the network trained on unmasked faces without the scheme, on the same faces, seed by seed, with its t interval, the p of
    its test, and `p_holm`: p adjusted over the seven emotions of the same region.
    """
    frame = region_ablation(runs, data)
    table = _over_runs(pd.concat([frame.assign(measure=measure, difference=frame[f"difference_{measure}"]) for measure in ("p", "separation")]),
                       ["measure", "faces", "fill", "region", "emotion"], "difference")
    emotions = table[table["emotion"] != "all"]
    table["p_holm"] = emotions.groupby([*WHO, "measure", "faces", "fill", "region"])["p"].transform(holm)
    return table.assign(source=data.faces.source)


def _over_runs(frame: pd.DataFrame, cell: list[str], value: str) -> pd.DataFrame:
    """One number a run and cell (columns of `_who`, `cell`, n and `value`) -> its mean over the runs of a recipe with `sd` and 95 % t interval, on at
    least n faces (a map that is empty for a face leaves it out), and the `change` from the network trained on unmasked faces without the scheme,
    paired by seed over so many `pairs`, with t interval and p."""
    frame = frame[[*WHO, "seed", *cell, "n", value]].reset_index(drop=True)
    plain = (frame["train"] == "unmasked") & (frame["scheme"] == "baseline")
    base = frame[plain].set_index(["model", *cell, "seed"])[value].rename("base")
    frame = frame.join(base, on=["model", *cell, "seed"])
    frame["change"] = (frame[value] - frame["base"]).where(~plain)
    cells = frame.groupby([*WHO, *cell], sort=False)
    over, pairs = (cells[name].agg(["mean", "std", "count"]) for name in (value, "change"))
    table = pd.DataFrame({"seeds": over["count"], "n": cells["n"].min(), value: over["mean"], "sd": over["std"]})
    table["low"], table["high"] = t_interval(over["mean"], over["std"], over["count"])
    table["pairs"], table["change"] = pairs["count"].where(pairs["count"] > 0), pairs["mean"]
    table["change_low"], table["change_high"] = t_interval(pairs["mean"], pairs["std"], pairs["count"])
    table["p"] = t_test(pairs["mean"], pairs["std"], pairs["count"])
    return table.reset_index()


@table("06_seeds_saliency", "06_seeds")
def seeds_saliency(runs: Runs, data: Dataset) -> pd.DataFrame:
    """The maps in numbers over several trainings, one `value` a run: by method, region and `measure` the positive mass on a region (share, enrichment,
    pointing, rank accuracy) less that of the untrained network, the edge map and the centre prior (`beyond`); by kind of curve its area less that of
    edge map, centre prior and random order; and the similarity that is left with all weights drawn anew. Intervals and changes as in
    06_seeds_ablation, nothing adjusted for their number."""
    frames = []
    for frame in (saliency_shares(runs, data).query("emotion == 'all'"),
                  curves(runs, data).rename(columns={"map": "method", "kind": "measure"}).assign(region="")):
        for beyond in (name.removeprefix("minus_") for name in frame if name.startswith("minus_") and not name.endswith(("_low", "_high"))):
            some = frame[frame["method"] != beyond]  # none beyond itself
            frames.append(some.assign(beyond=beyond, value=some[f"minus_{beyond}"]))
    frames.append(randomised(runs, data).query("share == 1").assign(region="", measure="similarity, all weights drawn anew", beyond="")
                  .rename(columns={"similarity": "value"}))
    return _over_runs(pd.concat(frames), ["method", "region", "measure", "beyond"], "value").assign(source=data.faces.source)


@table("06_seeds_robustness", "06_seeds")
def seeds_robustness(runs: Runs, data: Dataset) -> pd.DataFrame:
    """06_robustness over several trainings: accuracy on the n fixed faces (equal in number for each emotion), intervals and changes as in
    06_seeds_ablation."""
    frame = robustness(runs, data).query("emotion == 'all'").drop(columns=["low", "high"])
    return _over_runs(frame, ["kind", "fill", "faces", "level"], "accuracy").assign(source=data.faces.source)


@table("06_saliency_shares", "06")
def saliency_shares(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Where the positive part of each attribution lies, always with its difference to the untrained net, the edge map and the centre prior.

    Every measure over all emotions, enrichment for each emotion too; 95 % intervals over the n fixed test faces, paired.
    """
    frame = _measured(runs, "saliency", "shares", ("method", "emotion", "region", "measure"))
    keep = (frame["emotion"] == "all") | (frame["measure"] == "enrichment")
    return frame[keep].reset_index(drop=True).assign(source=data.faces.source)


@table("06_curves", "06")
def curves(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Area under the deletion and insertion curve of each map (24 steps, blurred pixels, as a share of the network's own p), with its
    difference to edge map, centre prior and random order; 95 % intervals over the n fixed test faces. Deletion: low is good."""
    return _measured(runs, "saliency", "areas", ("map", "kind")).assign(source=data.faces.source)


@table("06_randomised", "06")
def randomised(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Rank similarity (of absolute values) of maps to the intact network's as its layers are drawn anew from the logits down, `share` of
    them drawn, over the same n faces; a map that stays alike does not show what was learnt."""
    n = len(fixed_faces(data, CASCADE_ROWS))
    rows = [{**_who(run), "method": method, "n": n, "share": step / (len(likeness) - 1), "similarity": value}
            for several in runs.values() for run in several
            for method, likeness in zip(CASCADE_METHODS, run.measured("saliency")["cascade"]) for step, value in enumerate(likeness)]
    return pd.DataFrame(rows).assign(source=data.faces.source)


@table("06_seeds_similarity", "06_seeds")
def map_similarity(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Spearman correlation of two networks' mean maps, per method and emotion ("all": the mean over emotions).

    `comparison`: baseline and perturb, trained on unmasked and on masked faces (each of one seed, and of two seeds), and two seeds of the
    baseline. `floor` is the mean over the last kind for the same network, method and emotion: only a similarity of two seeds below it says that
    the recipe, not the chance of training, moved the map (two arms of one seed share their first weights). NaN with one seed.
    """
    pairs = []
    for model in dict.fromkeys(name.split(" ")[0] for name in runs):
        base = runs.get(f"{model} unmasked", [])
        for comparison, other in (("perturb", f"{model} perturb"), ("masked", f"{model} masked")):
            pairs += [(comparison, model, a, b) for a in base for b in runs.get(other, []) if a.spec.seed <= b.spec.seed]
        pairs += [("seed", model, a, b) for a, b in combinations(base, 2)]
    rows = []
    for comparison, model, a, b in pairs:
        a_maps, b_maps = (run.measured("saliency")["maps"].astype(np.float32) for run in (a, b))  # [M, 7, 48, 48]
        n = a.measured("saliency")["n"]
        for method, one, other in zip(a.measured("saliency")["methods"], a_maps, b_maps):
            known = ~np.isnan(one + other).any((1, 2))
            values = np.where(known, similarity(np.nan_to_num(one), np.nan_to_num(other)), np.nan)
            rows += [{"comparison": comparison, "model": model, "seed": a.spec.seed, "other_seed": b.spec.seed, "method": str(method),
                      "emotion": emotion, "n": faces, "similarity": value}
                     for emotion, faces, value in zip(("all", *EMOTIONS), (n.sum(), *n), (np.nanmean(values), *values))]
    frame = pd.DataFrame(rows)
    floor = frame[frame["comparison"] == "seed"].groupby(["model", "method", "emotion"])["similarity"].mean().rename("floor").reset_index()
    return frame.merge(floor, "left", ["model", "method", "emotion"]).assign(source=data.faces.source)


@table("06_seeds_floor", "06_seeds")
def beyond_floor(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Do the scheme or masked training move the maps further than another seed does? `change` is the mean similarity of two arms, each pair of
    runs of two seeds, less that of two seeds of the baseline (`floor`), with its 95 % interval over `seeds` (jackknife: a seed left out at a time)."""
    frame, rows = map_similarity(runs, data), []
    frame = frame[(frame["seed"] != frame["other_seed"]) & frame["comparison"].isin(["perturb", "masked", "seed"])]
    keys = ["model", "method", "emotion"]
    floors = {key: part for key, part in frame[frame["comparison"] == "seed"].groupby(keys)}
    for (comparison, *key), part in frame[frame["comparison"] != "seed"].groupby(["comparison", *keys], sort=False):
        both = pd.concat([part.assign(sign=1.0), floors[tuple(key)].assign(sign=-1.0)])
        seeds = sorted({*both["seed"], *both["other_seed"]})
        change = [both[~both[["seed", "other_seed"]].isin([out]).any(axis=1)].groupby("sign")["similarity"].mean() for out in (None, *seeds)]
        change = np.array([one.get(1.0, np.nan) - one.get(-1.0, np.nan) for one in change])
        over = over_seeds(len(seeds) * change[0] - (len(seeds) - 1) * change[1:])  # pseudo-values
        rows.append({"comparison": comparison, **dict(zip(keys, key)), "seeds": len(seeds), "n": part["n"].iloc[0],
                     "similarity": part["similarity"].mean(),
                     "floor": floors[tuple(key)]["similarity"].mean(), "change": change[0], "low": over["low"], "high": over["high"]})
    return pd.DataFrame(rows, columns=["comparison", *keys, "seeds", "n", "similarity", "floor", "change", "low", "high"]).assign(source=data.faces.source)


@table("06_truth", "06")
def found_truth(runs: Runs, data: Dataset) -> pd.DataFrame:
    """How well each `fill` finds the regions that carry each synthetic emotion: Spearman correlation of (drop - control) of p(label) and of
    separation with the generator's loss over its regions, and whether the first region is the same. Two truths, since a region that rests
    misleads and one that is hidden is silent: `rest` (the unit classifier sees the region's units at rest) and `hidden` (it never sees them).

    Raises ValueError for other faces.
    """
    if data.synthetic is None:
        raise ValueError(f"The truth is known of synthetic faces only, not of {data.faces.source!r}: leave 06_truth out.")
    frame, found = region_ablation(runs, data).query("faces == 'unmasked'"), []
    who = [*WHO, "seed", "fill"]
    for name, truth in (("rest", data.synthetic.truth), ("hidden", hidden_truth(data.synthetic))):
        for key, part in frame.groupby(who, sort=False):
            found += [agreement_with_truth(part, truth, f"difference_{measure}").assign(**dict(zip(who, key)), truth=name, measure=measure)
                      for measure in ("p", "separation")]
    frame, first = pd.concat(found, ignore_index=True), [*who, "truth", "measure"]
    return frame[first + [column for column in frame if column not in first]].assign(source=data.faces.source)


# ------------------------------------------------------------------------------------------------- 07 faces with and without a mask

def _paradigm_scores(run: Run, data: Dataset, split: str = "test") -> dict[str, dict[str, float]]:
    """{unmasked, masked, mean, gap: {accuracy, macro_accuracy}} of one run."""
    labels = data.labels(split)
    found = {test: measures(run.logits(f"{split}_{test}"), labels) for test in VARIANTS}
    found = {test: {name: one[name] for name in ("accuracy", "macro_accuracy")} for test, one in found.items()}
    whole, masked = found["unmasked"], found["masked"]
    return found | {"mean": {name: (whole[name] + masked[name]) / 2 for name in whole}, "gap": {name: whole[name] - masked[name] for name in whole}}


@table("07_paradigms", "07")
def paradigms(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Every row and seed on unmasked and on masked test faces (95 % bootstrap interval over the faces), their mean, and the gap between them."""
    rows = []
    for name, several in runs.items():
        for run in several:
            found, who = _paradigm_scores(run, data), {"row": name, "model": run.spec.model, "seed": run.spec.seed}
            rows += [{**who, "test": test, **row} for test in VARIANTS for row in scores(run.logits(f"test_{test}"), data, views=("all", "clean", "author"))]
            rows += [{**who, "test": test, "faces": "all", "n": len(data.labels("test")), **found[test]} for test in ("mean", "gap")]
    return _tidy(pd.DataFrame(rows), data)


KINDS = {"unmasked": "test_unmasked", "masked": "test_masked", "mean": {"test_unmasked": 0.5, "test_masked": 0.5},
         "gap": {"test_unmasked": 1.0, "test_masked": -1.0}}


@table("07_against_mixed", "07")
def against_mixed(runs: Runs, data: Dataset) -> pd.DataFrame:
    """What each row gains over B4, plain training on mixed faces, and over B4 started from B1: `change` with the seed-paired 95 % t interval (`low`,
    `high`) and the two-level bootstrap interval over seeds and faces. `faces`: all and clean test faces; of the mean also the author's, and all but
    disgust, which has few faces and a seventh of the weight."""
    views = {**data.subsets("test"), "without disgust": data.labels("test") != EMOTIONS.index("disgust")}
    tested = {"all": tuple(KINDS), "clean": ("unmasked", "masked", "mean"), "author": ("mean",), "without disgust": ("mean",)}
    cells = [(faces, test) for faces, tests in tested.items() if faces in views for test in tests]
    seeds, rows = {name: {run.spec.seed for run in several} for name, several in runs.items()}, []
    for against, name in product(("B4 mixed", "B4 mixed, from B1"), runs):
        if against in runs and against != name and seeds[against] & seeds[name]:
            rows += [{"against": against, "row": name, "faces": faces, "test": test, "measure": measure,
                      **_gain(runs[against], runs[name], KINDS[test], KINDS[test], data, measure, views[faces])}
                     for (faces, test), measure in product(cells, ("accuracy", "macro_accuracy"))]
    return _tidy(pd.DataFrame(rows), data)


@table("07_features", "07")
def features(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Features of the same n clean test faces without and with a mask: silhouette of the emotions within each kind and over both, the mean cosine
    of a face's two features with its 95 % interval over the faces, and that of an unmasked face's and another's of its emotion, masked."""
    rows = []
    for name, several in runs.items():
        for run in several:
            found = run.measured("pairs")
            alike = unpack("cosine", found, ("faces", "emotion")).query("emotion == 'all'").set_index("faces")
            cosine = alike.loc["both"]
            rows.append({"row": name, "model": run.spec.model, "seed": run.spec.seed, "n": len(found["index"]),
                         **{f"silhouette_{kind}": value for kind, value in zip((*VARIANTS, "both"), found["silhouette"].astype(float))},
                         "cosine": cosine["value"], "cosine_low": cosine["low"], "cosine_high": cosine["high"],
                         "cosine_others": alike.loc["others", "value"]})
    return _tidy(pd.DataFrame(rows), data)


@table("07_skin", "07")
def skin(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Share of Grad-CAM's mass on the pixels that the mask leaves free, over every test face, unmasked and masked (`faces`), with its 95 % interval
    over the faces, beside the share of the picture that they are (`area`)."""
    frames = [unpack("skin", run.measured("pairs"), ("faces", "emotion")).rename(columns={"value": "share"})
              .assign(row=name, model=run.spec.model, seed=run.spec.seed) for name, several in runs.items() for run in several]
    frame = pd.concat(frames, ignore_index=True)
    return _tidy(frame[["row", "model", "seed", "faces", "emotion", "n", "share", "low", "high", "area"]], data)


@table("07_sweeps", "07_sweeps")
def paradigm_sweeps(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Weight of the second term and share of masked faces, one network each: validation (what is chosen on) and test, unmasked and masked (with 95 %
    bootstrap intervals over the faces) and the mean of both."""
    rows = []
    for name, several in runs.items():
        sweep, value = name.rsplit(" ", 1)
        for run, split in ((run, split) for run in several for split in ("val", "test")):
            who = {"sweep": sweep, "value": float(value), "seed": run.spec.seed, "split": split}
            rows += [{**who, "test": test, **scores(run.logits(f"{split}_{test}"), data, split, views=("all",))[0]} for test in VARIANTS]
            rows.append({**who, "test": "mean", "n": len(data.labels(split)), **_paradigm_scores(run, data, split)["mean"]})
    return _tidy(pd.DataFrame(rows).drop(columns="faces"), data)


# ------------------------------------------------------------------------------------------------------- 08 privileged attribution

@table("08_scores", "08")
def privileged(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Every network, way of holding the attributions and seed on unmasked test faces, with 95 % intervals over the faces."""
    rows = [{"model": run.spec.model, "arm": name.split(" ", 1)[1], "seed": run.spec.seed, **row} for name, several in runs.items() for run in several
            for row in scores(run.logits("test_unmasked"), data, views=("all", "clean"))]
    return _tidy(pd.DataFrame(rows), data)


@table("08_gains", "08")
def privileged_gains(runs: Runs, data: Dataset) -> pd.DataFrame:
    """What each way gains over cross-entropy: `change` with the seed-paired t interval and the two-level bootstrap interval over seeds and faces."""
    rows = []
    for name in runs:
        model, arm = name.split(" ", 1)
        if arm != "cross-entropy":
            rows += [{"model": model, "arm": arm, "faces": faces, "measure": measure,
                      **_gain(runs[f"{model} cross-entropy"], runs[name], "test_unmasked", "test_unmasked", data, measure, some)}
                     for faces, some in data.subsets("test").items() if faces in ("all", "clean") for measure in ("accuracy", "macro_accuracy")]
    return _tidy(pd.DataFrame(rows), data)


@table("08_alignment", "08")
@table("08_ablations_alignment", "08_ablations")
def alignment(runs: Runs, data: Dataset) -> pd.DataFrame:
    """How far attributions of the label lie on the landmarks (`measures.alignment`): cosine of the positive part and the prior, and correlation, by
    prior (a face's own, or another's of its emotion), method and emotion, with 95 % intervals over the n faces."""
    frames = [unpack(measure, run.measured("alignment"), ("prior", "method", "emotion")).assign(model=run.spec.model, measure=measure, seed=run.spec.seed,
              arm=name.removeprefix(f"{run.spec.model} ")) for name, several in runs.items() for run in several for measure in ("cosine", "correlation")]
    frame = pd.concat(frames, ignore_index=True)
    return _tidy(frame[["model", "arm", "seed", "prior", "method", "measure", "emotion", "n", "value", "low", "high"]], data)


@table("08_ablations", "08_ablations")
def privileged_ablations(runs: Runs, data: Dataset) -> pd.DataFrame:
    """One thing of the privileged loss changed at a time: scores on validation, on which it is chosen, and on test; unmasked and masked faces."""
    rows = [{"arm": name, "seed": run.spec.seed, "split": split, "test": test, **row} for name, several in runs.items() for run in several
            for split in ("val", "test") for test in VARIANTS for row in scores(run.logits(f"{split}_{test}"), data, split, views=("all",))]
    return _tidy(pd.DataFrame(rows), data)
