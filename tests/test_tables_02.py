"""What notebook 02 makes of runs: its tables hold known answers of made-up logits, its figures say what the tables hold."""
from dataclasses import replace
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest

from fer_lib import plots
from fer_lib.dataset import Dataset
from fer_lib.faces import EMOTIONS
from fer_lib.fer2013 import Votes
from fer_lib.metrics import measures
from fer_lib.tables import TABLES
from fer_lib.training import RECIPES

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def leaky(data) -> Dataset:
    """70 synthetic test faces under another name: the first of fear and every one of disgust are copies of training faces."""
    faces = data.faces
    images, test = faces.images.copy(), faces.where("test")
    copied = [*test[faces.labels[test] == 1], test[faces.labels[test] == 2][0]]
    images[copied] = images[faces.where("train")[: len(copied)]]
    votes = Votes(np.zeros((len(faces), 10), np.int64), faces.labels.astype(np.int64), faces.labels != 6)
    return replace(data, faces=replace(faces, images=images, source="leaky"), votes=votes, author=faces.labels != 0, synthetic=None)


def run(model: str, seed: int, labels: np.ndarray, share: float, masked: float | None = None) -> SimpleNamespace:
    """A run whose predictions are right for a share of each emotion's test faces, else the next emotion; another share under the mask."""
    def logits(name: str) -> np.ndarray:
        rng, right = np.random.default_rng(seed), share if name == "test_unmasked" or masked is None else masked
        place = np.array([(labels[:i] == label).sum() / (labels == label).sum() for i, label in enumerate(labels)])
        return (3 * np.eye(7)[np.where(place < right, labels, (labels + 1) % 7)] + rng.normal(0, 0.1, (len(labels), 7))).astype(np.float32)
    return SimpleNamespace(spec=SimpleNamespace(model=model, seed=seed), logits=logits)


@pytest.fixture(scope="module")
def runs(leaky) -> dict:
    """Two networks: vgg16 (0.8 right, 0.3 under the mask, two seeds), resnet (0.5 and 0.5, its seeds the other way round); vgg16 on masks."""
    labels = leaky.labels("test")
    return {"vgg16 unmasked": [run("vgg16", seed, labels, 0.8, 0.3) for seed in (0, 1)],
            "resnet unmasked": [run("resnet", seed, labels, 0.5) for seed in (1, 0)], "vgg16 masked": [run("vgg16", 0, labels, 0.6)]}


def build(name: str, runs: dict, data: Dataset):
    return TABLES[name].build(runs, data)


def test_ranking_turns_where_the_mask_turns_it(leaky, runs):
    table = build("02_rankings", runs, leaky).set_index(["view", "model"])
    assert list(dict.fromkeys(table.index.get_level_values("view"))) == ["all", "clean", "agree", "author", "author, masked"]
    assert table.loc[("all", "vgg16"), ["rank", "macro_accuracy", "n", "seeds"]].tolist() == pytest.approx([1, 0.8, 70, 2])
    assert table.loc[("all", "resnet"), ["rank", "behind"]].tolist() == pytest.approx([3, 0.3])
    assert table.loc[("author, masked", "resnet"), "rank"] < table.loc[("author, masked", "vgg16"), "rank"]
    assert table.loc[("author, masked", "vgg16"), "n"] == 60 and (table["low"] <= table["macro_accuracy"]).all()
    first = table[table["rank"] == 1]
    assert (first[["behind", "behind_low", "behind_high"]] == 0).all(axis=None) and len(first) == 5


def test_views_that_are_not_given_are_absent(data, runs):
    table = build("02_rankings", runs, data)
    assert set(table["view"]) == {"all", "clean"} and set(table["source"]) == {"synthetic"}


def test_ranking_figure_counts_models_whose_rank_moves(leaky, data, runs):
    figure = plots.ranking_by_view(build("02_rankings", runs, leaky))
    assert len(figure.axes) == 5 and figure.get_suptitle() == "2 of 3 models have another rank in another view"
    assert plots.ranking_by_view(build("02_rankings", runs, data)).get_suptitle() == "No view changes the ranking"


def test_ensemble_joins_runs_of_one_seed(leaky, runs):
    table = build("02_baselines", runs, leaky)
    joint = table.query("model == 'ensemble' and faces == 'all' and test == 'unmasked'")
    assert joint["train"].tolist() == ["unmasked", "unmasked"] and joint["seed"].tolist() == [0, 1]
    one = {name: several[:1] for name, several in runs.items()}  # seeds 0 and 1: no ensemble
    assert "ensemble" not in set(build("02_baselines", one, leaky)["model"])


def test_table2_1_is_the_unmasked_part_of_the_baselines(leaky, runs):
    part = build("02_baselines", runs, leaky).query("train == 'unmasked' and test == 'unmasked' and faces in ['all', 'clean']")
    table = build("02_table2_1", runs, leaky)
    shared = [column for column in table if column in part]
    assert len(shared) == 10 and (table[shared].to_numpy() == part[shared].to_numpy()).all()


def test_leak_table_tells_copies_from_clean_faces(leaky, runs):
    table = build("02_leaked", runs, leaky).set_index(["model", "emotion"])
    row = table.loc[("vgg16", "fear")]
    assert row[["n_leaked", "leaked", "n_clean", "clean"]].tolist() == pytest.approx([1, 1, 9, 7 / 9])
    assert row["gain"] == pytest.approx(0.8 - 7 / 9) and row["clean_low"] < 7 / 9 < row["clean_high"]
    assert table.loc[("vgg16", "disgust"), "n_clean"] == 0 and np.isnan(table.loc[("vgg16", "disgust"), ["clean", "clean_low"]].tolist()).all()
    assert table.loc[("mean", "fear"), "clean"] == pytest.approx((7 / 9 + 4 / 9) / 2)  # the networks', not the ensemble's
    assert table.loc[("mean", "all"), "n_leaked"] == 11


def test_without_copies_nothing_leaks(data, runs):
    table = build("02_leaked", runs, data)
    assert (table["n_leaked"] == 0).all() and table["leaked"].isna().all() and (table["gain"] == 0).all()
    assert table["emotion"].unique().tolist() == [*EMOTIONS, "all"]


def test_price_of_copies_is_split_by_faces(leaky):
    labels = leaky.labels("test")
    arms = {"without copies": [run("vgg16", seed, labels, 0.5) for seed in (0, 1)], "with copies": [run("vgg16", seed, labels, 0.8) for seed in (1, 0)]}
    table = build("02_leak", arms, leaky).set_index(["faces", "measure"])
    assert table.loc[("all", "accuracy"), ["from", "to", "change", "seeds", "n"]].tolist() == pytest.approx([0.5, 0.8, 0.3, 2, 70])
    assert table["n"].unique().tolist() == [70, 11, 59] and table.loc[("leaked", "macro_accuracy"), "change"] == pytest.approx(0.15)  # fear's is right in both


def test_recipes_stand_beside_each_other_with_what_they_cost(leaky):
    labels, history = leaky.labels("test"), pd.DataFrame({"epoch": [1, 2, 3], "lr": [0.3, 0.2, 0.1], "val_accuracy": [0.2, 0.5, 0.4]})

    def trained(recipe, share):
        one = run("vgg16", 0, labels, share)
        one.spec.recipe, one.history = recipe, history[: recipe.epochs]
        one.metrics = {"val_unmasked": {"all": {"accuracy": share, "macro_accuracy": share}}}
        return [one]

    runs = {"vgg16 fast": trained(replace(RECIPES["fast"], epochs=2, grow=(24, 48)), 0.8), "vgg16 paper": trained(replace(RECIPES["paper"], epochs=3), 0.5)}
    runs["vgg16 fast, twice"] = trained(replace(RECIPES["fast"], epochs=3), 0.8)
    table = build("02_recipes", {name: runs[name] for name in ("vgg16 fast", "vgg16 paper")}, leaky).set_index("recipe")
    assert table["kept"].to_dict() == {"fast": 2, "paper": 2} and table["lr_last"].tolist() == [0.2, 0.1]
    assert table["compute"].tolist() == pytest.approx([1, 3 * 5 * 40**2 / (24**2 + 48**2)])
    assert table["val_accuracy"].tolist() == table["accuracy"].tolist() == pytest.approx([0.8, 0.5]) and (table["n"] == 70).all()
    axis, = plots.recipe_curves(runs).axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["fast, 2 epochs", "fast, 3 epochs", "paper, 3 epochs"]


def test_reliability_table_and_figure_carry_the_calibration_error(leaky, runs):
    table = build("02_reliability", runs, leaky)
    assert (table.groupby(["model", "seed"])["n"].sum() == 70).all()
    found = table[(table["model"] == "vgg16") & (table["seed"] == 0)]
    known = measures(runs["vgg16 unmasked"][0].logits("test_unmasked"), leaky.labels("test"))["ece"]
    assert ((found["confidence"] - found["accuracy"]).abs() * found["n"]).sum() / 70 == pytest.approx(known) == found["ece"].iloc[0]
    figure = plots.reliability_curves(table)
    assert "ECE" in figure.axes[0].get_legend().get_texts()[0].get_text() and figure.get_suptitle().endswith(" of 3")


def test_batched_f1_lies_between_its_shuffles(leaky, runs):
    table = build("02_batched_f1", runs, leaky)
    assert len(table) == 6 and (table["shuffles"] == 20).all() and (table["n"] == 70).all()
    assert (table["batched_lowest"] <= table["batched"]).all() and (table["batched"] <= table["batched_highest"]).all()
    assert np.allclose(table["change"], table["batched"] - table["macro_f1"])
