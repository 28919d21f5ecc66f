"""The claims ledger: every claim of the three papers that data can speak to, with our number, its interval over seeds and a verdict.

    ledger = claims({grid: study.finished(grid) for grid in GRIDS}, data)     # tables/00_claims.csv

The list (reference/claims.csv) was committed before the runs that test it; the verdict is computed by `metrics.verdict`, never typed.
A claim is tested by one function here: runs by grid -> one value a seed, in the claim's own measure and direction. Some are told twice, by another
function in BESIDE, which stands in the note.
"""
from collections.abc import Callable
from functools import partial
from itertools import permutations

import numpy as np
import pandas as pd

from .dataset import VARIANTS, Dataset
from .faces import EMOTIONS
from .measures import ALIGNED, unpack
from .metrics import measures, over_seeds, verdict
from .models import ensemble
from .runs import Run
from .tables import Runs, enrichment, published, table

Values = tuple[list[float], int]                                   # one value a seed, and the test faces it rests on
Test = Callable[[dict[str, Runs], Dataset], Values]
CLAIMS: dict[int, Test] = {}
BESIDE: dict[int, tuple[str, bool, Test]] = {}                     # what it is, whether the verdict needs both to agree, and the test


def _score(run: Run, data: Dataset, test: str = "unmasked", measure: str = "macro_accuracy") -> float:
    return measures(run.logits(f"test_{test}"), data.labels("test"))[measure]


def _of(data: Dataset, emotion: str, paired: bool = False) -> np.ndarray:
    """An emotion's test faces, bool [n]; `paired`: those of the author's MaskFer rows, where they are given."""
    return (data.labels("test") == EMOTIONS.index(emotion)) & (data.subsets("test").get("author", True) if paired else True)


def _changes(grid: Runs, a: str, b: str, value: Callable[[Run], float]) -> list[float]:
    """value(b) - value(a), a pair a seed."""
    return [value(other) - value(one) for one in grid.get(a, []) for other in grid.get(b, []) if one.spec.seed == other.spec.seed]


def _change(grid: str, a: str, b: str, test: str = "unmasked", measure: str = "macro_accuracy") -> Test:
    return lambda runs, data: (_changes(runs[grid], a, b, lambda run: _score(run, data, test, measure)), len(data.labels("test")))


def _between(id_: int, *change: str, **values: str) -> None:
    """A claim on a score: `_change`'s grid, arm a, arm b."""
    CLAIMS[id_] = _change(*change, **values)


def _emotion(id_: int, grid: str, a: str, b: str, emotion: str) -> None:
    """A claim on an emotion's recall of arm b against arm a, whole faces, all test rows."""
    def recall(run):
        return run.metrics["test_unmasked"]["all"]["recall"][EMOTIONS.index(emotion)]

    CLAIMS[id_] = lambda runs, data: (_changes(runs[grid], a, b, recall), int(_of(data, emotion).sum()))


def _under_mask(id_: int, grid: str, name: str, emotion: str, relative: bool = False) -> None:
    """A claim on an emotion's recall under a mask against without one, the same network and the same faces."""
    def values(runs, data):
        some, right = _of(data, emotion, paired=True), EMOTIONS.index(emotion)
        recalls = [[(run.logits(f"test_{test}").argmax(1)[some] == right).mean() for test in VARIANTS] for run in runs[grid].get(name, [])]
        return [(masked - whole) / (whole if relative else 1) for whole, masked in recalls], int(some.sum())

    CLAIMS[id_] = values


def _measured_changes(grid: Runs, measure: str, a: str, b: str, cell: Callable[[Run], pd.Series | dict], value: str) -> Values:
    """Differences of a stored measure, arm b minus arm a, and of how many faces: `cell` gives a run's values, among them n."""
    known = {name: [run for run in grid.get(name, []) if run.measured(measure)] for name in (a, b)}
    n = int(cell(known[a][0])["n"]) if known[a] else 0
    return _changes(known, a, b, lambda run: cell(run)[value]), n


def _ablated(id_: int, a: str, b: str, emotion: str, region: str) -> None:
    """A claim on what region ablation (control subtracted) costs an emotion, arm b against arm a: grey and p(label) as the claim was written down,
    and beside it blur and separation, which find the true regions of synthetic faces where the former do not. Only both together decide."""
    def test(fill: str, value: str) -> Test:
        def cell(run):
            return unpack(f"unmasked_{fill}", run.measured("regions"), ("emotion", "region")).set_index(["emotion", "region"]).loc[(emotion, region)]

        return lambda runs, data: _measured_changes(runs["06_seeds"], "regions", a, b, cell, value)

    CLAIMS[id_], BESIDE[id_] = test("mean", "difference_p"), ("by blur and separation", True, test("blur", "difference_separation"))


def _enriched(id_: int, feature: str) -> None:
    """A claim that the input gate's attention lies on a feature."""
    CLAIMS[id_] = lambda runs, data: ([enrichment(run, data, (feature,))[0] - 1 for run in runs["03_seeds"].get("input", [])
                                       if run.measured("attention")], len(data.labels("test")))


_between(1, "05_controls", "baseline", "perturb")
_between(2, "05_second", "baseline", "perturb")  # the second network is a ResNet
_between(3, "05", "dpn baseline", "dpn perturb")
_between(4, "05_controls", "baseline", "perturb", measure="macro_f1")
_between(5, "05_controls", "C4 coordinates", "perturb")
_between(6, "05_controls", "baseline", "perturb", test="masked")
for id_, (first, then) in {7: (1, 3), 8: (2, 3), 9: (4, 3), 10: (3, 6)}.items():
    _between(id_, "04", f"K={first}", f"K={then}")
for id_, feature in {11: "eyes", 12: "mouth"}.items():
    _enriched(id_, feature)
_under_mask(14, "05_controls", "baseline", "happy", relative=True)
_under_mask(15, "05_controls", "baseline", "surprise", relative=True)
_under_mask(16, "05_controls", "baseline", "disgust")
for id_, network in {17: "densenet", 18: "dpn", 19: "resnet"}.items():
    _under_mask(id_, "02", f"{network} unmasked", "sad")
_under_mask(20, "05_controls", "baseline", "neutral")
_between(21, "02", "vgg16 unmasked", "densenet unmasked")
_emotion(23, "05_controls", "baseline", "perturb", "fear")
_emotion(24, "05_controls", "baseline", "perturb", "sad")
_ablated(25, "vgg16 unmasked", "vgg16 perturb", "fear", "mouth")
_ablated(26, "vgg16 unmasked", "vgg16 perturb", "fear", "nose")
_ablated(27, "vgg16 unmasked", "vgg16 masked", "angry", "brows")
_between(29, "07", "B1 unmasked", "B2 masked")
for id_, row in {30: "contrastive", 32: "distillation"}.items():
    _between(id_, "07", "B4 mixed", row, test="masked")
    _between(id_ + 1, "07", "B1 unmasked", row)
_between(35, "08", "resnet cross-entropy", "resnet mean")
_between(36, "08", "resnet all", "resnet mean")


def _holds_features(runs: dict[str, Runs], data: Dataset, arm: str = "perturb") -> Values:
    """How much the clusters of an arm's runs hold: the least of the shares of left eye, right eye, and mouth with nose that lie each
    in a cluster of its own (the best such assignment), minus one half."""
    eyes, nose, mouth = (data.region_shares[name] for name in ("eyes", "nose", "mouth"))  # [48, 48] each
    left = np.arange(48) < 24
    features = np.stack([eyes * left, eyes * ~left, nose + mouth])
    found = []
    for run in runs["05_controls"].get(arm, []):
        parts = run.measured("clusters")["parts"][0]
        share = np.array([[(feature * (parts == k)).sum() for k in range(3)] for feature in features]) / features.sum((1, 2))[:, None]
        found.append(max(min(share[i, k] for i, k in enumerate(order)) for order in permutations(range(3))) - 0.5)
    return found, len(data.labels("test"))


def _ensemble_gain(runs: dict[str, Runs], data: Dataset) -> Values:
    """Macro accuracy of the networks' ensemble minus that of the member best on validation."""
    members = [several for name, several in runs["02"].items() if name.endswith(" unmasked")]
    found = []
    for some in zip(*members) if len(members) > 1 else ():
        best = max(some, key=lambda run: run.metrics["val_unmasked"]["all"]["macro_accuracy"])
        joint = ensemble([run.logits("test_unmasked") for run in some]).numpy()
        found.append(measures(joint, data.labels("test"))["macro_accuracy"] - _score(best, data))
    return found, len(data.labels("test"))


def _in_low_light(runs: dict[str, Runs], data: Dataset) -> Values:
    """Mean accuracy over emotions and all levels of darkening, scheme minus baseline."""
    def cell(run):
        frame = unpack("darkening", run.measured("robustness"), ("level", "emotion"))
        everyone = frame["emotion"] == "all"
        return {"n": frame[everyone]["n"].iloc[0], "accuracy": frame[(frame["level"].astype(float) < 1) & ~everyone]["accuracy"].mean()}

    return _measured_changes(runs["06_seeds"], "robustness", "vgg16 unmasked", "vgg16 perturb", cell, "accuracy")


def _on_landmarks(runs: dict[str, Runs], data: Dataset, model: str = "resnet", arm: str = "mean") -> Values:
    """Cosine of attribution and landmark prior, the attribution that the loss trains: held by the mean of channels minus cross-entropy."""
    def cell(run):
        keys = ("prior", "method", "emotion")
        return unpack("cosine", run.measured("alignment"), keys).set_index(list(keys)).loc[("own", ALIGNED[0], "all")]

    return _measured_changes(runs["08"], "alignment", f"{model} cross-entropy", f"{model} {arm}", cell, "value")


CLAIMS |= {13: _holds_features, 22: _ensemble_gain, 28: _in_low_light, 37: _on_landmarks}
BESIDE[13] = "clusters of the attention rolled to another place (C5)", False, partial(_holds_features, arm="C5 rolled")
BESIDE[30] = "against pairs without the term", False, _change("07_sweeps", "contrastive 0", "contrastive 0.1", test="masked")
BESIDE[32] = "against training on both from the same first network", False, _change("07", "B4 mixed, from B1", "distillation", test="masked")
BESIDE[37] = "the VGG trained with another face's landmarks", False, partial(_on_landmarks, model="vgg16", arm="shuffled prior")


@table("00_claims", "*")
def claims(runs: dict[str, Runs], data: Dataset) -> pd.DataFrame:
    """One line a claim: what was published, ours (mean over seeds) with its 95 % t interval, seeds, test faces, and the verdict.

    `runs` holds every grid. A claim without runs (or without data that could test it) is "not testable". Disgust alone has too few faces for a
    verdict. `note` says why there is none, or gives what is told beside it, in the unit of the claim. Published values are FER2013's.
    """
    rows = []
    for claim in published("claims.csv").to_dict("records"):
        if data.faces.source == "synthetic":
            claim["published"] = np.nan
        values, n = CLAIMS[claim["id"]](runs, data) if claim["id"] in CLAIMS else ([], 0)
        found, said = _judged(claim, values)
        note = "" if values else "its data are not obtainable" if "not obtainable" in claim["comparison"] else "no run that tests it is stored"
        if values and claim["id"] in BESIDE:
            about, decides, test = BESIDE[claim["id"]]
            other, verdict_ = _judged(claim, test(runs, data)[0])
            ends = interval(claim, other)
            note = f"{about}: " + (shown(claim, other["value"]) + f" ({ends})" * bool(ends) if other["seeds"] else "not run")
            said = said if verdict_ == said or not decides else "inconclusive"
        if values and claim["measure"] == "recall of disgust":
            note, said = f"{n} faces: too few for a verdict", "inconclusive"
        rows.append(claim | {**{name: found[name] for name in ("value", "low", "high", "seeds")}, "n": n if values else 0, "verdict": said, "note": note})
    return pd.DataFrame(rows).rename(columns={"source": "where"}).assign(source=data.faces.source)


def _judged(claim: dict, values: list[float]) -> tuple[dict, str]:
    """Mean over seeds (`value`) with its interval, and the verdict."""
    over = over_seeds(values) if values else {"mean": np.nan, "n": 0, "low": np.nan, "high": np.nan}
    found = {"value": over["mean"], "low": over["low"], "high": over["high"], "seeds": over["n"]}
    return found, verdict(over["low"], over["high"], over["n"], claim["direction"], claim["published"])


PAPERS = {"P": "Leaving Some Facial Features Behind", "M": "Masked-FER paradigms (MSD-E)", "A": "Privileged Attribution Loss"}


def points(value: float) -> str:
    """A difference of fractions in points, "" where there is none."""
    return f"{100 * value:+.1f}" if np.isfinite(value) else ""


def shown(claim: dict, value: float) -> str:
    """A value in the unit of its claim, "" where there is none: points; percent where a change is relative; enrichment and cosine as they are."""
    if not np.isfinite(value):
        return ""
    plain = claim["measure"].startswith(("enrichment", "cosine"))
    return f"{value:+.2f}" if plain else points(value) + " %" * claim["measure"].startswith("relative")


def interval(claim: dict, found: dict) -> str:
    """"-1.0 to +1.8" in the unit of the claim, "" where there is no interval."""
    return f"{shown(claim, found['low'])} to {shown(claim, found['high'])}" if np.isfinite(found["low"]) else ""


def readable(ledger: pd.DataFrame) -> str:
    """The ledger as a Markdown table, differences in points unless said: what the README and the report show. `ledger` as `claims` gives it or as
    read from its CSV; claims without a run of their own are counted below."""
    lines = ["| claim (where) | published | ours | 95 % over seeds | seeds | verdict |", "|---|---|---|---|---|---|"]
    tested = ledger[ledger["seeds"] > 0]
    for claim in tested.to_dict("records"):
        note = f"; {claim['note']}" if isinstance(claim["note"], str) and claim["note"] else ""
        lines.append(f"| {claim['claim']} ({claim['where']}) | {shown(claim, claim['published'])} | {shown(claim, claim['value'])} | {interval(claim, claim)} | "
                     f"{claim['seeds']} | {claim['verdict']}{note} |")
    counts = tested["verdict"].value_counts()
    said = ", ".join(f"{counts.get(name, 0)} {name}" for name in ("reproduced", "not reproduced", "inconclusive"))
    rest = ledger[ledger["seeds"] == 0]
    without = "; ".join(f"{len(part)} of {PAPERS[paper]}" for paper, part in rest.groupby("paper", sort=False))
    return "\n".join([*lines, "", f"Of {len(tested)} claims tested: {said}." + (f" Not yet testable: {without}." if without else "")])
