"""Tables: from runs to tidy frames, one function a table. `verify` rebuilds every committed table with them, without Jupyter.

    frame = TABLES["02_baselines"].build(runs, data)       # runs: {name: one Run a seed}

Columns hold fractions; a row says which model, scheme, split view and seed it belongs to, with n and a 95 % interval where there is one.
"""
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import adjusted_rand_score

from . import fer2013
from .clustering import cluster_maps
from .dataset import Dataset
from .faces import EMOTIONS, SIZE
from .landmarks import HOW
from .masking import coverage
from .measures import unpack
from .metrics import HEADLINE, confusion, measures, over_seeds, resampled
from .models import ensemble
from .runs import Run
from .saliency import agreement_with_truth, similarity

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


def scores(logits: np.ndarray, data: Dataset, split: str = "test") -> list[dict]:
    """One dictionary a view of the split (all, clean, agree, author): n, headline measures with 95 % bootstrap intervals, calibration."""
    rows, labels = [], data.labels(split)
    for view, mask in data.subsets(split).items():
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


def _ensembles(runs: Runs, variant: str) -> list[list[Run]]:
    """The networks trained on a variant, one list a seed: the members of the ensemble."""
    return [list(members) for members in zip(*(several for name, several in runs.items() if name.endswith(f" {variant}")))]


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

@table("02_baselines", "02")
def baselines(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Every network (and the ensemble of a seed's networks), trained on unmasked or masked faces, tested on both, on every view of the test split."""
    rows = []
    for train in ("unmasked", "masked"):
        for test in ("unmasked", "masked"):
            for name, several in runs.items():
                if name.endswith(f" {train}"):
                    for run in several:
                        rows += [{"model": run.spec.model, "train": train, "test": test, "seed": run.spec.seed, **row}
                                 for row in scores(run.logits(f"test_{test}"), data)]
            for members in _ensembles(runs, train):
                if len(members) > 1:
                    joint = ensemble([run.logits(f"test_{test}") for run in members]).numpy()
                    rows += [{"model": "ensemble", "train": train, "test": test, "seed": members[0].spec.seed, **row} for row in scores(joint, data)]
    return _tidy(pd.DataFrame(rows), data)


@table("02_table2_1", "02")
def table2_1(runs: Runs, data: Dataset) -> pd.DataFrame:
    """The paper's Table 2.1 beside ours: trained and tested on unmasked faces; its "accuracy" is macro accuracy."""
    ours = baselines(runs, data).query("train == 'unmasked' and test == 'unmasked' and faces in ['all', 'clean']")
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


# ------------------------------------------------------------------------------------------------------------------- 03 attention

@table("03_attention", "03")
def attention(runs: Runs, data: Dataset) -> pd.DataFrame:
    """The attention classifiers: accuracy, how far attention follows brightness, and its share on each region against the region's area.

    `brightness_correlation` is the mean over test faces of the rank correlation of attention and pixel value; `enrichment_<region>`
    is the share of mean attention on the region divided by the region's share of the picture (1: no preference).
    """
    index = data.faces.where("test")
    names = ("brows", "eyes", "nose", "mouth", "cheeks", "forehead")
    area = data.regions(index, names).mean(0)  # [R, 48, 48]
    rows = []
    for placement, several in runs.items():
        for run in several:
            found, score = run.measured("attention"), scores(run.logits("test_unmasked"), data)[0]
            share = (found["overall"] * area).sum((1, 2)) / (found["overall"].mean() * area.sum((1, 2)))
            rows.append({"placement": placement, "model": run.spec.model, "seed": run.spec.seed, "n": score["n"], "accuracy": score["accuracy"],
                         "macro_accuracy": score["macro_accuracy"], "attention_low": found["overall"].min(), "attention_high": found["overall"].max(),
                         "brightness_correlation": found["brightness"].mean(),
                         **{f"enrichment_{name}": value for name, value in zip(names, share)}})
    return _tidy(pd.DataFrame(rows), data)


# ---------------------------------------------------------------------------------------------------------------- 04 cluster sweep

def _arms(runs: Runs, data: Dataset) -> list[dict]:
    """Scores of runs with views, `clean` and `views`, all test rows and clean rows."""
    rows = []
    for name, several in runs.items():
        for run in several:
            for evaluation, suffix in (("clean", ""), ("views", "_views")):
                if run.spec.perturb is not None or not suffix:
                    rows += [{"arm": name, "model": run.spec.model, "n_clusters": run.spec.perturb.n_clusters if run.spec.perturb else np.nan,
                              "seed": run.spec.seed, "evaluation": evaluation, **row}
                             for row in scores(run.logits(f"test_unmasked{suffix}"), data) if row["faces"] in ("all", "clean")]
    return rows


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
    index = data.faces.where("test")
    names = ("brows", "eyes", "nose", "mouth")
    area = data.regions(index, names).mean(0)
    y, x = np.mgrid[:48, :48]
    rows = []
    for arm, several in runs.items():
        for run in several:
            parts = run.measured("clusters").get("parts")
            if parts is None or len(parts) != 1:
                continue
            k, parts = run.spec.perturb.n_clusters, parts[0]
            plain = cluster_maps(torch.zeros(1, 48, 48), k, alpha=0.0)[0].numpy()
            rand = max(adjusted_rand_score(np.rot90(plain, turn).ravel(), parts.ravel()) for turn in range(4))
            for c in range(k):
                part = parts == c
                rows.append({"arm": arm, "seed": run.spec.seed, "n_clusters": k, "cluster": c, "area": part.mean(),
                             "x": x[part].mean() if part.any() else np.nan, "y": y[part].mean() if part.any() else np.nan,
                             **{f"covers_{n}": (area[i] * part).sum() / area[i].sum() for i, n in enumerate(names)}, "rand_coordinates": rand})
    return _tidy(pd.DataFrame(rows), data)


# ---------------------------------------------------------------------------------------------------------------------- 05 perturb

def _paired(a: Run, b: Run, suffix_a: str, suffix_b: str, data: Dataset, n_resamples: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bootstrap over the test faces, both runs on the same draw: differences b - a of (accuracy, macro accuracy), and of recalls [7]."""
    labels = data.labels("test")
    right = [run.logits(f"test_unmasked{s}").argmax(1) == labels for run, s in ((a, suffix_a), (b, suffix_b))]
    cell = labels * 4 + right[0] * 2 + right[1]  # label x (a right) x (b right)
    counts = np.bincount(cell, minlength=28)
    draws = np.random.default_rng(0).multinomial(len(labels), counts / counts.sum(), n_resamples)
    draws = np.concatenate([counts[None], draws]).reshape(-1, 7, 2, 2)  # the first row is the data itself
    support = draws.sum((2, 3))
    gain = draws[:, :, 0, 1] - draws[:, :, 1, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = gain / support
    return gain.sum(1) / support.sum(1), np.nanmean(recall, 1), recall


@table("05_table2_2", "05")
def table2_2(runs: Runs, data: Dataset) -> pd.DataFrame:
    """The paper's Table 2.2: each network with and without the scheme, evaluated `clean` and on K+1 `views`; the baseline shown the same
    views is control C0. `gain` is perturb minus baseline at the same evaluation, in macro accuracy, with its paired interval over faces."""
    paper, rows = published("table2_accuracy_and_f1.csv").set_index("model"), []
    for model in dict.fromkeys(name.split(" ")[0] for name in runs):
        for evaluation, suffix, base in (("clean", "", f"{model} baseline"), ("views", "_views", f"{model} baseline, views")):
            for a, b in zip(runs[base], runs[f"{model} perturb"]):
                _, macro, _ = _paired(a, b, suffix, suffix, data)
                for scheme, run in (("baseline", a), ("perturb", b)):
                    row = scores(run.logits(f"test_unmasked{suffix}"), data)
                    for one in row[:2]:
                        rows.append({"model": model, "scheme": scheme, "evaluation": evaluation, "seed": run.spec.seed, **one})
                        if scheme == "perturb" and one["faces"] == "all":
                            rows[-1] |= {"gain": macro[0], "gain_low": np.percentile(macro[1:], 2.5), "gain_high": np.percentile(macro[1:], 97.5)}
                        if one["faces"] == "all" and evaluation == "clean":
                            rows[-1] |= {"published_macro_accuracy": paper.loc[model, f"{scheme}_accuracy"],
                                         "published_macro_f1": paper.loc[model, f"{scheme}_f1"]}
    return _tidy(pd.DataFrame(rows), data)


@table("05_table3", "05")
def table3(runs: Runs, data: Dataset) -> pd.DataFrame:
    """The paper's Table 3: change of each emotion's recall, perturb minus baseline, with its paired 95 % interval over the faces."""
    paper = published("table3_perturb_change_by_emotion.csv").set_index(["version", "model"]) / 100
    rows = []
    for model in dict.fromkeys(name.split(" ")[0] for name in runs):
        for evaluation, suffix, base in (("clean", "", f"{model} baseline"), ("views", "_views", f"{model} baseline, views")):
            for a, b in zip(runs[base], runs[f"{model} perturb"]):
                recall = _paired(a, b, suffix, suffix, data)[2]
                for c, emotion in enumerate(EMOTIONS):
                    low, high = np.nanpercentile(recall[1:, c], [2.5, 97.5])
                    rows.append({"model": model, "evaluation": evaluation, "emotion": emotion, "seed": b.spec.seed,
                                 "n": int((data.labels("test") == c).sum()), "change": recall[0, c], "low": low, "high": high,
                                 "published": paper.loc[("published", model), emotion] if ("published", model) in paper.index else np.nan})
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


@table("05_longer", "05")
def longer(runs: Runs, data: Dataset) -> pd.DataFrame:
    """What a point costs: the first network's baseline, the scheme, and the baseline trained longer. `compute` is the pixels seen in
    training, as a multiple of the baseline's; `gain` is in macro accuracy over the baseline of the same seed."""
    model = next(iter(runs)).split(" ")[0]
    rows = []
    for scheme in ("baseline", "perturb", "baseline, longer"):
        for i, run in enumerate(runs[f"{model} {scheme}"]):
            base = runs[f"{model} baseline"][i]
            score = scores(run.logits("test_unmasked"), data)[0]
            rows.append({"model": model, "scheme": scheme, "seed": run.spec.seed, "epochs": run.spec.recipe.epochs,
                         "compute": _pixels(run.spec.recipe) / _pixels(base.spec.recipe), **score,
                         "gain": score["macro_accuracy"] - scores(base.logits("test_unmasked"), data)[0]["macro_accuracy"]})
    return _tidy(pd.DataFrame(rows), data)


def _pixels(recipe) -> float:
    return sum((recipe.side(epoch) or SIZE) ** 2 for epoch in range(recipe.epochs))


# -------------------------------------------------------------------------------------------------------------------- 06 saliency

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
    (`control`), and the `difference`, with 95 % intervals over the n fixed test faces; of p(label) and of accuracy.

    `faces`: unmasked for every network, also masked for networks trained on them. `fill`: mean grey, blur, or for synthetic faces
    neutral: drawn again with the region's action units at rest (no control, nothing is hidden).
    """
    frames = []
    for faces, fill in (("unmasked", "mean"), ("unmasked", "blur"), ("masked", "mean"), ("unmasked", "neutral")):
        some = {name: [run for run in several if f"{faces}_{fill}" in run.measured("regions")] for name, several in runs.items()}
        if any(some.values()):
            frame = _measured(some, "regions", f"{faces}_{fill}", ("emotion", "region"))
            frame.insert(4, "faces", faces)
            frame.insert(5, "fill", fill)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True).assign(source=data.faces.source)


QUESTIONS = (  # what the paper reads off its saliency maps: (question, emotion, region, from, to), each arm (train, scheme, faces)
    ("the scheme relies more on the mouth for fear", "fear", "mouth", ("unmasked", "baseline", "unmasked"), ("unmasked", "perturb", "unmasked")),
    ("the scheme relies less on the nose for fear", "fear", "nose", ("unmasked", "baseline", "unmasked"), ("unmasked", "perturb", "unmasked")),
    ("trained on masks brows count more for angry (unmasked faces)", "angry", "brows", ("unmasked", "baseline", "unmasked"),
     ("masked", "baseline", "unmasked")),
    ("trained on masks brows count more for angry (own masked faces)", "angry", "brows", ("unmasked", "baseline", "unmasked"),
     ("masked", "baseline", "masked")),
)


@table("06_questions", "06")
def questions(runs: Runs, data: Dataset) -> pd.DataFrame:
    """What the paper says of its maps, asked of region ablation: `change` from one arm to the other of (drop - control) of p(label).

    With several seeds `low` and `high` are the seed-paired 95 % t interval (`interval` = "seeds"); with one seed that of the faces, the arms
    taken as independent, so that it is wide ("faces": it says nothing about other trainings).
    """
    frame = region_ablation(runs, data).query("fill == 'mean'")
    frame["half"] = (frame["difference_p_high"] - frame["difference_p_low"]) / 2
    rows = []
    for question, emotion, region, *arms in QUESTIONS:
        cell = frame[(frame["emotion"] == emotion) & (frame["region"] == region)]
        a, b = (cell[(cell["train"] == t) & (cell["scheme"] == s) & (cell["faces"] == f)] for t, s, f in arms)
        pairs = a.merge(b, on=["model", "seed"], suffixes=("_from", "_to"))
        for model, pair in pairs.groupby("model", sort=False):
            change = over_seeds(pair["difference_p_to"] - pair["difference_p_from"])
            if change["n"] == 1:
                half = float(np.hypot(pair["half_from"], pair["half_to"]).iloc[0])
                change |= {"low": change["mean"] - half, "high": change["mean"] + half}
            rows.append({"question": question, "model": model, "emotion": emotion, "region": region, "seeds": change["n"],
                         "n": int(pair["n_to"].iloc[0]), "from": pair["difference_p_from"].mean(), "to": pair["difference_p_to"].mean(),
                         "change": change["mean"], "low": change["low"], "high": change["high"],
                         "interval": "seeds" if change["n"] > 1 else "faces"})
    return pd.DataFrame(rows).assign(source=data.faces.source)


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
    them drawn; a map that stays alike does not show what was learnt."""
    from .measures import CASCADE_METHODS

    rows = [{**_who(run), "method": method, "share": step / (len(likeness) - 1), "similarity": value}
            for several in runs.values() for run in several
            for method, likeness in zip(CASCADE_METHODS, run.measured("saliency")["cascade"]) for step, value in enumerate(likeness)]
    return pd.DataFrame(rows).assign(source=data.faces.source)


@table("06_similarity", "06")
def map_similarity(runs: Runs, data: Dataset) -> pd.DataFrame:
    """Spearman correlation of two networks' mean maps, per method and emotion ("all": the mean over emotions).

    `comparison`: baseline and perturb; trained on unmasked and on masked faces; two architectures (first network against each other one);
    and two seeds of one recipe. `floor` is the mean over the last kind for the same network, method and emotion: only a similarity
    below it says that the recipe, not the chance of training, moved the map. Empty with one seed.
    """
    names = {key: several for key, several in runs.items()}
    models = list(dict.fromkeys(name.split(" ")[0] for name in names))
    pairs = []
    for model in models:
        base = names[f"{model} unmasked"]
        for comparison, other in (("perturb", f"{model} perturb"), ("masked", f"{model} masked")):
            pairs += [(comparison, model, a, b) for a, b in zip(base, names.get(other, []))]
        pairs += [("seed", model, a, b) for i, a in enumerate(base) for b in base[i + 1:]]
        pairs += [("architecture", model, a, b) for a, b in zip(names[f"{models[0]} unmasked"], base) if model != models[0]]
    rows = []
    for comparison, model, a, b in pairs:
        a_maps, b_maps = (run.measured("saliency")["maps"].astype(np.float32) for run in (a, b))  # [M, 7, 48, 48]
        for method, one, other in zip(a.measured("saliency")["methods"], a_maps, b_maps):
            known = ~np.isnan(one + other).any((1, 2))
            values = np.where(known, similarity(np.nan_to_num(one), np.nan_to_num(other)), np.nan)
            rows += [{"comparison": comparison, "model": model, "seed": a.spec.seed, "other_seed": b.spec.seed, "method": str(method),
                      "emotion": emotion, "similarity": value} for emotion, value in zip(("all", *EMOTIONS), (np.nanmean(values), *values))]
    frame = pd.DataFrame(rows)
    floor = frame[frame["comparison"] == "seed"].groupby(["model", "method", "emotion"])["similarity"].mean().rename("floor").reset_index()
    return frame.merge(floor, "left", ["model", "method", "emotion"]).assign(source=data.faces.source)


@table("06_truth", "06")
def found_truth(runs: Runs, data: Dataset) -> pd.DataFrame:
    """How well region ablation with each `fill` finds the regions that carry each synthetic emotion: Spearman correlation of (drop -
    control) with the generator's loss over its regions, and whether the first region is the same. Raises ValueError for other faces."""
    if data.synthetic is None:
        raise ValueError(f"The truth is known of synthetic faces only, not of {data.faces.source!r}: leave 06_truth out.")
    frame = region_ablation(runs, data).query("faces == 'unmasked'")
    who = ["model", "train", "scheme", "seed", "fill"]
    found = [agreement_with_truth(part, data.synthetic.truth).assign(**dict(zip(who, key))) for key, part in frame.groupby(who, sort=False)]
    frame = pd.concat(found, ignore_index=True)
    return frame[who + [column for column in frame if column not in who]].assign(source=data.faces.source)
