"""What notebooks 07 and 08 make of runs: made-up logits and measures whose answers are known."""
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fer_lib import plots
from fer_lib.faces import EMOTIONS
from fer_lib.measures import ALIGNED, pack
from fer_lib.tables import TABLES

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def run(labels: np.ndarray, seed: int, unmasked: float, masked: float, measures: dict | None = None) -> SimpleNamespace:
    """A run that is right on a share of each emotion's faces, another share under the mask; on validation 0.1 less."""
    def logits(name: str) -> np.ndarray:
        split, test = name.split("_", 1)
        of = labels[split]
        place = np.array([(of[:i] == label).sum() / (of == label).sum() for i, label in enumerate(of)])
        share = (masked if test == "masked" else unmasked) - 0.1 * (split == "val")
        return 3 * np.eye(7, dtype=np.float32)[np.where(place < share - 1e-9, of, (of + 1) % 7)]
    return SimpleNamespace(spec=SimpleNamespace(model="vgg16", seed=seed), logits=logits, measured=lambda name: (measures or {}).get(name, {}))


def by_emotion(value: float) -> pd.DataFrame:
    return pd.DataFrame([{"emotion": e, "n": 10, "value": value, "low": value - 0.1, "high": value + 0.1} for e in ("all", *EMOTIONS)])


def paired_measures(skin: float) -> dict:
    frame = pd.concat([by_emotion(skin + (kind == "masked") * 0.1).assign(faces=kind, area=0.6) for kind in ("unmasked", "masked")])
    return {"pairs": {"index": np.arange(5), "silhouette": np.array([0.3, 0.1, 0.2], np.float32), "tsne": np.arange(20, dtype=np.float16).reshape(2, 5, 2),
                      **pack("cosine", pd.concat([by_emotion(0.8).assign(faces="both"), by_emotion(0.7).assign(faces="others")]), ("faces", "emotion")),
                      **pack("skin", frame, ("faces", "emotion"))}}


def aligned_measures(cosine: float) -> dict:
    frame = pd.concat([by_emotion(cosine - 0.1 * i - 0.05 * (prior == "another")).assign(method=method, prior=prior)
                       for i, method in enumerate((*ALIGNED, "uniform")) for prior in ("own", "another")])
    return {"alignment": {key: value for name in ("cosine", "correlation") for key, value in pack(name, frame, ("prior", "method", "emotion")).items()}}


@pytest.fixture(scope="module")
def labels(data) -> dict:
    return {split: data.labels(split) for split in ("val", "test")}


@pytest.fixture(scope="module")
def paradigms(labels) -> dict:
    """B1 falls by 0.4 under the mask; contrast is 0.1 better than B4 there (0.2 in one seed), its seeds in another order."""
    return {"B1 unmasked": [run(labels, seed, 0.8, 0.4, paired_measures(0.5)) for seed in range(3)],
            "B4 mixed": [run(labels, seed, 0.7, 0.6, paired_measures(0.6)) for seed in range(3)],
            "contrastive": [run(labels, seed, 0.7, 0.7 + 0.1 * (seed == 1), paired_measures(0.7)) for seed in (2, 0, 1)]}


def build(name: str, runs: dict, data) -> pd.DataFrame:
    return TABLES[name].build(runs, data)


def test_mean_and_gap_are_those_of_the_two_kinds_of_face(data, paradigms):
    table = build("07_paradigms", paradigms, data).query("faces == 'all' and seed == 0").set_index(["row", "test"])["macro_accuracy"]
    assert table["B1 unmasked"].to_dict() == pytest.approx({"unmasked": 0.8, "masked": 0.4, "mean": 0.6, "gap": 0.4})
    figure = plots.paradigm_scores(build("07_paradigms", paradigms, data))
    assert figure.axes[0].get_title().startswith("Highest over both kinds of test face: contrastive (71.7%)")


def test_gains_over_mixed_training_are_paired_by_seed(data, paradigms):
    every = build("07_against_mixed", paradigms, data)
    table = every.query("faces == 'all'").set_index(["row", "test", "measure"])
    row = table.loc[("contrastive", "masked", "macro_accuracy")]
    assert row["change"] == pytest.approx(0.4 / 3) and row["sd"] == pytest.approx(np.std([0.1, 0.1, 0.2], ddof=1)) and row["seeds"] == 3
    assert row["two_level_low"] < row["change"] < row["two_level_high"] and table.loc[("contrastive", "unmasked", "accuracy"), "change"] == 0
    assert table.loc[("B1 unmasked", "gap", "accuracy"), "change"] == pytest.approx(0.3) and "B4 mixed" not in table.index.get_level_values(0)
    assert table.loc[("B1 unmasked", "mean", "accuracy"), "change"] == pytest.approx(-0.05)
    mean = every.query("row == 'contrastive' and test == 'mean' and measure == 'accuracy'").set_index("faces")
    assert mean.loc["all", ["from", "to", "change"]].tolist() == pytest.approx([0.65, 0.65 + 0.2 / 3, 0.2 / 3])
    assert mean.loc["all", "two_level_low"] < 0.2 / 3 < mean.loc["all", "two_level_high"] and mean.loc["without disgust", "n"] == 60
    assert set(mean.index) == {"all", "clean", "without disgust"} and set(every.query("test == 'gap'")["faces"]) == {"all"}
    both = build("07_against_mixed", paradigms | {"B4 mixed, from B1": paradigms["contrastive"]}, data).query("faces == 'all'")
    both = both.set_index(["against", "row", "test", "measure"]).sort_index()
    assert both.loc[("B4 mixed, from B1", "B4 mixed", "masked", "accuracy"), "change"] == pytest.approx(-0.4 / 3)
    assert (both.loc[("B4 mixed, from B1", "contrastive"), "change"] == 0).all() and ("B4 mixed", "B4 mixed, from B1", "gap", "accuracy") in both.index
    figure = plots.paradigm_gains(build("07_against_mixed", paradigms, data))
    assert figure.get_suptitle() == "Rows beyond chance over both kinds of face (3 seeds): 0 of 2 over B4 mixed"


def test_features_and_skin_come_from_what_was_measured(data, paradigms):
    found = build("07_features", paradigms, data)
    assert found.loc[0, ["silhouette_unmasked", "silhouette_masked", "silhouette_both", "cosine", "cosine_others", "n"]].tolist() == \
        pytest.approx([0.3, 0.1, 0.2, 0.8, 0.7, 5])
    skin = build("07_skin", paradigms, data)
    masked = skin.query("row == 'contrastive' and faces == 'masked' and emotion == 'all'")
    assert masked["share"].tolist() == pytest.approx([0.8] * 3) and masked["area"].tolist() == pytest.approx([0.6] * 3)
    assert plots.visible_skin(skin).get_suptitle() == "On masked faces between 60% and 80% lies outside the mask, as do 60% of the picture"
    figure = plots.feature_pictures({name: runs[0].measured("pairs")["tsne"] for name, runs in paradigms.items()}, np.arange(5))
    assert len(figure.axes) == 6


def test_sweeps_are_read_from_the_names_and_chosen_on_validation(data, labels):
    runs = {f"contrastive {w:g}": [run(labels, 0, 0.7, 0.4 + w / 50)] for w in (0, 0.1, 10)} | {"masked 0.25": [run(labels, 0, 0.7, 0.5)]}
    table = build("07_sweeps", runs, data)
    best = table.query("sweep == 'contrastive' and split == 'val' and test == 'masked'").set_index("value")["macro_accuracy"]
    assert best.index.tolist() == [0, 0.1, 10] and best.idxmax() == 10 and best[10] == pytest.approx(0.5)
    assert [axis.get_title() for axis in plots.paradigm_sweeps(table).axes] == ["best mean at 10", "best mean at 0.25"]


@pytest.fixture(scope="module")
def held(labels) -> dict:
    """The mean of channels gains 0.1 in two seeds and nothing in the third; its attribution comes to lie on the landmarks."""
    return {"vgg16 cross-entropy": [run(labels, seed, 0.6, 0.3, aligned_measures(0.5)) for seed in range(3)],
            "vgg16 mean": [run(labels, seed, 0.7 - 0.1 * (seed == 2), 0.3, aligned_measures(0.8)) for seed in (1, 2, 0)],
            "vgg16 shuffled prior": [run(labels, seed, 0.6, 0.3, aligned_measures(0.7)) for seed in range(3)]}


def test_privileged_gain_is_paired_by_seed_and_drawn(data, held):
    row = build("08_gains", held, data).query("measure == 'accuracy'").iloc[0]
    assert row["change"] == pytest.approx(0.2 / 3) and row["from"] == pytest.approx(0.6) and row["seeds"] == 3 and row["n"] == 70
    assert "0 of 2 beyond 0" in plots.privileged_gains(build("08_gains", held, data)).get_suptitle()
    assert build("08_scores", held, data).query("faces == 'all'")["n"].eq(70).all()


def test_alignment_holds_every_method_and_arm(data, held):
    table = build("08_alignment", held, data)
    found = table.query("measure == 'cosine' and emotion == 'all' and seed == 0").groupby(["arm", "prior"])["value"].apply(list)
    assert found["cross-entropy", "own"] == pytest.approx([0.5, 0.4, 0.3, 0.2]) and found["mean", "another"] == pytest.approx([0.75, 0.65, 0.55, 0.45])
    assert plots.alignments(table).get_suptitle() == "Feature x gradient, which is trained, goes from 0.50 to 0.80, by another face's landmarks to 0.70"


def test_ablations_show_validation_beside_alignment(data, labels):
    runs = {"cross-entropy": [run(labels, 0, 0.6, 0.3, aligned_measures(0.5))], "weight 10": [run(labels, 0, 0.8, 0.3, aligned_measures(0.9))]}
    table = build("08_ablations", runs, data)
    assert set(table["split"]) == {"val", "test"} and (table["n"] > 0).all()
    figure = plots.privileged_ablations(table, build("08_ablations_alignment", runs, data))
    assert figure.get_suptitle().startswith("Highest on unmasked validation faces: weight 10 (")
