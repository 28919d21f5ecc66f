"""What notebook 06 makes of measures: its tables hold known answers of made-up ones, with several seeds and with one."""
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest

from fer_lib import plots
from fer_lib.faces import EMOTIONS
from fer_lib.landmarks import REGIONS
from fer_lib.measures import ROBUST, pack
from fer_lib.synthetic import hidden_truth
from fer_lib.tables import TABLES, _over_runs

matplotlib.use("Agg")
NAMES = ("brows+eyes", "nose", "mouth", *(region for region in REGIONS if region not in ("nose", "mouth")))
PLACE = {name: i / 100 for i, name in enumerate(NAMES)}  # what a region costs


class FakeRun:
    """A stored run of which only spec and measures are asked."""

    def __init__(self, variant: str, perturb: bool, seed: int, measures: dict):
        self.spec = SimpleNamespace(model="vgg16", variant=variant, perturb=perturb or None, seed=seed)
        self.measured = lambda name: measures.get(name, {})


def ablation(cost, names=NAMES) -> pd.DataFrame:
    """A frame in which (drop - control) of p and of separation is cost(emotion, region), +- 0.05 over the faces."""
    return pd.DataFrame([{"emotion": e, "region": r, "n": 9, "p": 0.5, "separation": 0.3, "drop_p": 0.5, "control_p": 0.5 - cost(e, r)}
                          | {f"difference_{m}{end}": cost(e, r) + move for m in ("p", "separation")
                             for end, move in (("", 0), ("_low", -0.05), ("_high", 0.05))} for e in ("all", *EMOTIONS) for r in names])


def run(variant="unmasked", perturb=False, seed=0, more=0.0) -> FakeRun:
    """Brows cost angry `more` than elsewhere and each seed adds a hundredth; black says the opposite of grey, blur the same as grey."""
    def cost(emotion, region):
        return PLACE[region] + 0.01 * seed + more * (emotion == "angry" and region == "brows")
    frames = {"unmasked_mean": ablation(cost), "unmasked_blur": ablation(cost), "unmasked_black": ablation(lambda e, r: -cost(e, r))}
    if variant == "masked":
        frames["masked_mean"] = ablation(lambda e, r: 0.5)
    regions = {key: value for name, frame in frames.items() for key, value in pack(name, frame, ("emotion", "region")).items()}
    curve = pd.DataFrame([{"level": level, "emotion": emotion, "n": 9, "accuracy": 1 - level, "low": 0.9 - level, "high": 1.1 - level, "p_label": 0.5}
                          for level in (0.0, 0.5) for emotion in ("all", *EMOTIONS)])
    robustness = {key: value for name in ROBUST for key, value in pack(name, curve, ("level", "emotion")).items()}
    rng, noise = np.random.default_rng(0), np.random.default_rng([seed, perturb, variant == "masked"])
    maps = rng.normal(size=(2, 7, 48, 48)) + 0.5 * noise.normal(size=(2, 7, 48, 48)) + perturb * noise.normal(size=(2, 7, 48, 48))
    saliency = {"methods": np.array(["saliency", "grad_cam"]), "maps": maps.astype(np.float16), "n": np.full(7, 3)}
    return FakeRun(variant, perturb, seed, {"regions": regions, "robustness": robustness, "saliency": saliency})


@pytest.fixture(scope="module")
def seeds() -> dict:
    """Three seeds of the baseline, two of masked training in which brows cost angry 0.2 more (0.22 in the second), three of the scheme."""
    return {"vgg16 unmasked": [run(seed=seed) for seed in (0, 1, 2)],
            "vgg16 masked": [run("masked", seed=seed, more=0.2 + 0.01 * seed) for seed in (2, 0)],
            "vgg16 perturb": [run(perturb=True, seed=seed) for seed in (1, 0, 2)]}


@pytest.fixture(scope="module")
def single(seeds) -> dict:
    return {name: [one for one in several if one.spec.seed == 0] for name, several in seeds.items()}


def build(name: str, runs: dict, data):
    return TABLES[name].build(runs, data)


def test_region_table_has_every_fill_of_unmasked_faces_and_grey_of_masked_ones(data, seeds):
    table = build("06_region_ablation", seeds, data)
    assert set(zip(table["faces"], table["fill"])) == {("unmasked", "mean"), ("unmasked", "blur"), ("unmasked", "black"), ("masked", "mean")}
    assert len(table) == (8 * 3 + 2) * 8 * len(NAMES) and set(table[table["faces"] == "masked"]["train"]) == {"masked"}
    panels = {fill: part for fill, part in table[table["faces"] == "unmasked"].groupby("fill")}
    figure = plots.region_matrices(panels, "three fills")
    texts = [text.get_text() for axis in figure.axes[:3] for text in axis.texts]
    assert len(texts) == 3 * 8 * len(NAMES) and any("\u2022" in text for text in texts)


def test_fills_that_say_the_same_correlate_and_opposite_ones_do_not(data, single):
    table = build("06_fills", single, data).set_index(["train", "scheme", "measure", "fill", "other_fill"]).sort_index()
    row = table.loc[("unmasked", "baseline", "p")]
    assert row.loc[("mean", "blur"), "rank"] == pytest.approx(1) and row.loc[("mean", "black"), "rank"] == pytest.approx(-1)
    assert row.loc[("mean", "blur"), "same_top"] == 1 and row.loc[("blur", "black"), "same_top"] == 0 and row["cells"].eq(70).all()


def test_questions_are_answered_seed_by_seed_whatever_the_order_of_runs(data, seeds):
    table = build("06_questions", seeds, data).set_index(["question", "fill", "measure"])
    brows = table.loc[("trained on masks brows count more for angry (unmasked faces)", "mean", "p")]
    assert brows["seeds"] == 2 and brows["change"] == pytest.approx(0.21) and brows["interval"] == "seeds"
    assert brows["low"] == pytest.approx(0.21 - 12.706 * 0.01, abs=1e-4)
    fear = table.loc[("the scheme relies more on the mouth for fear", "blur", "separation")]
    assert fear["seeds"] == 3 and fear["change"] == pytest.approx(0, abs=1e-6)
    assert set(table.loc["trained on masks brows count more for angry (own masked faces)"].index.get_level_values("fill")) == {"mean"}


def test_with_one_seed_the_interval_is_that_of_the_faces(data, single):
    row = build("06_questions", single, data).iloc[0]
    assert row["interval"] == "faces" and row["high"] - row["change"] == pytest.approx(np.hypot(0.05, 0.05)) and np.isnan(row["p"])


def test_matrix_over_seeds_finds_the_one_cell_that_moved(data, seeds):
    table = build("06_seeds_ablation", seeds, data).set_index(["train", "scheme", "measure", "faces", "fill", "region", "emotion"]).sort_index()
    base = table.loc[("unmasked", "baseline", "p", "unmasked", "mean", "nose", "fear")]
    assert base["seeds"] == 3 and base["difference"] == pytest.approx(PLACE["nose"] + 0.01) and np.isnan(base["change"])
    assert base["high"] - base["difference"] == pytest.approx(4.3027 * 0.01 / np.sqrt(3), rel=1e-3)
    moved = table.loc[("masked", "baseline", "p", "unmasked", "mean", "brows")]
    assert moved["change"].drop("all").idxmax() == "angry" and moved.loc["angry", "pairs"] == 2
    assert moved.loc["angry", "change"] == pytest.approx(0.21) and moved.loc["angry", "p_holm"] >= moved.loc["angry", "p"]
    assert np.isnan(moved.loc["all", "p_holm"]) and table.loc[("masked", "baseline", "p", "masked", "mean"), "change"].isna().all()


def test_one_seed_and_missing_arms_give_tables_without_intervals(data, single):
    table = build("06_seeds_ablation", {"vgg16 unmasked": single["vgg16 unmasked"], "vgg16 masked": []}, data)
    assert table["low"].isna().all() and table["p_holm"].isna().all() and (table["seeds"] == 1).all()
    table = build("06_seeds_ablation", single, data)
    assert table["change"].notna().any() and table["change_low"].isna().all()
    alike, floor = build("06_seeds_similarity", single, data), build("06_seeds_floor", single, data)
    assert alike["floor"].isna().all() and floor.empty
    plots.map_similarities(alike, floor, "one seed").canvas.draw()


def test_the_scheme_moves_maps_beyond_the_floor_and_masks_do_not(data, seeds):
    seeds = {**seeds, "vgg16 masked": [run("masked", seed=seed) for seed in (0, 1, 2)]}
    alike = build("06_seeds_similarity", seeds, data)
    assert len(alike[alike["comparison"] == "seed"]) == 3 * 2 * 8 and len(alike[alike["comparison"] == "perturb"]) == 6 * 2 * 8
    floor = build("06_seeds_floor", seeds, data).set_index(["comparison", "method", "emotion"])
    assert floor.loc[("perturb", "grad_cam", "all"), "high"] < 0 and abs(floor.loc[("masked", "grad_cam", "all"), "change"]) < 0.02
    assert floor["seeds"].eq(3).all() and np.allclose(floor["similarity"] - floor["floor"], floor["change"])
    plots.map_similarities(alike, floor.reset_index(), "three seeds").canvas.draw()


def test_training_without_a_region_is_held_against_its_shape_elsewhere(data):
    labels = data.labels("test")

    def trained(share):  # right on a share of each emotion, of happy never
        place = np.array([(labels[:i] == label).sum() / (labels == label).sum() for i, label in enumerate(labels)])
        right = (place < share) & (labels != EMOTIONS.index("happy"))
        return [SimpleNamespace(spec=SimpleNamespace(model="vgg16", seed=0), logits=lambda name: 3 * np.eye(7)[np.where(right, labels, (labels + 1) % 7)])]
    table = build("06_occluded", {"whole": trained(0.8), "no_mouth": trained(0.5), "rolled_mouth": trained(0.7)}, data).set_index("emotion")
    columns = [f"{name}_accuracy" for name in ("drop", "control", "difference")]
    assert table.loc["sad", ["accuracy", *columns]].tolist() == pytest.approx([0.8, 0.3, 0.1, 0.2]) and table.loc["sad", "n"] == 10
    assert table.loc["all", ["accuracy", *columns]].tolist() == pytest.approx([0.8 * 6 / 7, 0.3 * 6 / 7, 0.1 * 6 / 7, 0.2 * 6 / 7])
    assert table.loc["all", "difference_accuracy_low"] > 0 and (table.loc["happy", columns] == 0).all() and table.loc["all", "n"] == 70
    assert plots.region_matrices({"absent": table.reset_index()}, "title", "accuracy").axes[0].texts[0].get_text() == "17\u2022"


def test_robustness_table_is_tidy_and_drawn_for_every_training(data, seeds):
    table = build("06_robustness", seeds, data)
    assert len(table) == len(ROBUST) * 2 * 8 * 8 and table["level"].dtype == float and set(table["kind"]) == {"darkening", "contrast", "area"}
    assert set(zip(table["fill"], table["faces"])) == {("none", "unmasked"), *((f, k) for f in ("black", "mean") for k in ("unmasked", "masked"))}
    figure = plots.robustness(table, "curves")
    assert len(figure.axes) == 5 and all(len(axis.lines) == 4 for axis in figure.axes)


def test_truth_is_found_where_the_losses_are_the_truths(data):
    rest, hidden = data.synthetic.truth, hidden_truth(data.synthetic)
    losses = [truth.set_index(["emotion", "region"])["loss"] for truth in (rest, hidden)]
    names = tuple(dict.fromkeys(rest["region"]))
    frames = {"unmasked_neutral": losses[0], "unmasked_blur": losses[1], "unmasked_mean": losses[1]}
    regions = {}
    for name, loss in frames.items():
        regions |= pack(name, ablation(lambda e, r: loss.get((e, r), 0.0), names), ("emotion", "region"))
    runs = {"vgg16 unmasked": [FakeRun("unmasked", False, 0, {"regions": regions})]}
    table = build("06_truth", runs, data).query("emotion == 'all'").set_index(["truth", "fill", "measure"])["rank"]
    assert table["rest", "neutral", "p"] == pytest.approx(1) and table["hidden", "blur", "separation"] == pytest.approx(1)
    assert table["rest", "blur", "p"] < 1 and hidden["loss"].max() > 0.05 and (hidden["separation"] > 0.5).all()
    frame = build("06_region_ablation", runs, data)
    assert len(plots.truth_and_found(rest, hidden, frame, "found").axes) == 6


def test_a_number_a_run_becomes_a_mean_over_runs_and_a_change_paired_by_seed():
    values = {("unmasked", "baseline"): (0.1, 0.3, 0.2), ("unmasked", "perturb"): (0.2, 0.5, 0.2)}
    frame = pd.DataFrame([{"model": "vgg16", "train": train, "scheme": scheme, "seed": seed, "kind": "area", "n": 9, "value": value}
                          for (train, scheme), each in values.items() for seed, value in enumerate(each)]).sample(frac=1, random_state=0)
    table = _over_runs(frame, ["kind"], "value").set_index("scheme")
    scheme = table.loc["perturb"]
    assert scheme[["seeds", "pairs", "n"]].tolist() == [3, 3, 9] and scheme["value"] == pytest.approx(0.3) and scheme["change"] == pytest.approx(0.1)
    assert scheme["change_low"] == pytest.approx(0.1 - 4.302653 * 0.1 / 3**0.5, abs=1e-6) and table.loc["baseline", ["pairs", "change"]].isna().all()


def test_robustness_over_seeds_has_a_row_a_level_and_recipe(data, seeds):
    table = build("06_seeds_robustness", seeds, data)
    assert len(table) == 3 * 2 * len(ROBUST) and set(table["seeds"]) == {2, 3}
    half = table[(table["level"] == 0.5) & (table["kind"] == "darkening")].set_index(["train", "scheme"])
    assert half["accuracy"].tolist() == [0.5] * 3 and half["change"].isna().tolist() == [True, False, False] and half["n"].tolist() == [9] * 3


def test_maps_over_seeds_have_a_value_beyond_each_reference_and_none_beyond_itself(data):
    def made(perturb, seed):
        place = {"emotion": "all", "region": "nose", "measure": "share", "n": 9 - seed, "value": 0.5}
        shares = pd.DataFrame([place | {"method": "saliency", "minus_untrained": 0.1 * perturb + 0.01 * seed, "minus_edge_map": 0.3}])
        areas = pd.DataFrame([{"map": name, "kind": "deletion", "n": 9, "area": 0.5, "minus_edge_map": value}
                              for name, value in (("grad_cam", 0.2), ("edge_map", 0.0))])
        return FakeRun("unmasked", perturb, seed, {"saliency": pack("shares", shares, ("method", "emotion", "region", "measure"))
                                                   | pack("areas", areas, ("map", "kind")) | {"cascade": np.full((3, 4), 0.25, np.float32)}})

    runs = {"vgg16 unmasked": [made(False, seed) for seed in range(3)], "vgg16 perturb": [made(True, seed) for seed in range(3)]}
    table = build("06_seeds_saliency", runs, data)
    moved = table[(table["scheme"] == "perturb") & (table["beyond"] == "untrained")].iloc[0]
    assert moved["change"] == pytest.approx(0.1, abs=1e-6) and moved["value"] == pytest.approx(0.11, abs=1e-6) and moved["n"] == 7
    assert not (table["method"] == table["beyond"]).any() and set(table["measure"]) == {"share", "deletion", "similarity, all weights drawn anew"}
