"""What notebook 01 makes of a data set: its tables hold known counts, its figures say what the tables hold."""
from dataclasses import replace

import matplotlib
import numpy as np
import pytest

from fer_lib import plots
from fer_lib.dataset import Dataset
from fer_lib.faces import EMOTIONS, SPLITS, Faces
from fer_lib.fer2013 import OFFICIAL, Votes
from fer_lib.landmarks import HOW, Landmarks
from fer_lib.masking import draw_masks
from fer_lib.synthetic import EMOTION_UNITS, UNITS, make_faces, strongest
from fer_lib.tables import TABLES

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def synthetic() -> Dataset:
    made = make_faces(140, 35, 70)
    return Dataset(made.faces, made.landmarks, *draw_masks(made.faces.images, made.landmarks.points, made.faces.row), synthetic=made)


@pytest.fixture(scope="module")
def leaky(synthetic) -> Dataset:
    """The same faces under another name: one happy test face is a copy of a training face, one face in ten has the template's points."""
    faces = synthetic.faces
    images, (train, test) = faces.images.copy(), (np.flatnonzero((faces.split == s) & (faces.labels == 3))[0] for s in (0, 2))
    images[test] = images[train]
    how = np.where(np.arange(len(faces)) % 10 == 0, HOW.index("template"), HOW.index("detected")).astype(np.uint8)
    agree = faces.labels != 2
    votes = Votes(np.zeros((len(faces), 10), np.int64), np.where(agree, 0, -1), agree)
    return Dataset(Faces(images, faces.labels, faces.split, faces.row, "leaky"), Landmarks(synthetic.landmarks.points, how),
                   synthetic.masked, synthetic.mask_region, votes, author=faces.labels == 4)


def build(name: str, data: Dataset):
    return TABLES[name].build({}, data)


def headline(figure) -> str:
    figure.canvas.draw()
    return figure.get_suptitle()


def test_integrity_counts_a_copy_and_names_its_source(leaky):
    table = build("01_integrity", leaky).set_index(["check", "split", "emotion"])
    assert table.loc[("copies_in_train", "test", "happy"), "value"] == 1 and table.loc[("clean", "test", "all"), "value"] == 69
    assert set(table["source"]) == {"leaky"} and set(table["fingerprint"]) == {leaky.faces.fingerprint}


def test_leak_figure_says_how_many_and_where(leaky, synthetic):
    title = headline(plots.leaks(build("01_integrity", leaky)))
    assert title.startswith("1.4 % of the test faces have a copy") and "10 % of happy" in title
    assert "FER+ confirms 86 % of the test labels, 0 % of fear" in title
    assert headline(plots.leaks(build("01_integrity", synthetic))) == "No test face has a copy in training or validation"


def test_class_distribution_compares_with_the_official_counts(synthetic):
    table = build("01_integrity", synthetic)
    assert headline(plots.class_distribution(table)) == "Emotions are balanced"
    counts = table["check"] == "faces"
    for split, line in zip(SPLITS, OFFICIAL):
        for emotion, n in zip(EMOTIONS, line):
            table.loc[counts & (table["split"] == split) & (table["emotion"] == emotion), ["value", "expected"]] = n
    table.loc[counts & (table["split"] == "val") & (table["emotion"] == "sad"), "value"] = 650
    figure = plots.class_distribution(table)
    assert "20 of 21 counts are the official ones" in headline(figure)
    assert "  650, officially 653" in [text.get_text() for text in figure.axes[1].texts]


def test_mask_table_counts_landmarks_and_author_rows(leaky):
    table = build("01_masks", leaky).set_index(["emotion", "how"])
    assert table.loc[("all", "all"), "n"] == len(leaky.faces)
    assert table.loc[("all", "template"), "share"] == pytest.approx(25 / 245)
    assert table.loc[("sad", "all"), "author"] == 1 and table.loc[("happy", "all"), "author"] == 0
    assert (table["mouth"] > 0.99).all() and (table["brows"] < 0.01).all() and set(table["fingerprint"]) == {leaky.fingerprint}


def test_mask_figure_names_the_emotions_the_first_paper_left_out(leaky):
    figure = plots.mask_coverage(build("01_masks", leaky))
    assert "100.0 % of the mouth" in headline(figure) and "100 % of sad" in headline(figure)


def test_truth_is_of_synthetic_faces_only(synthetic):
    table = build("01_truth", synthetic)
    assert len(table) == 7 * 6 and set(table["source"]) == {"synthetic"}
    assert "nose: " in headline(plots.truth(table))
    with pytest.raises(ValueError, match="synthetic faces only"):
        build("01_truth", replace(synthetic, synthetic=None))


def test_strongest_faces_show_their_own_units(synthetic):
    made = synthetic.synthetic
    clear = strongest(made, 3)
    assert (made.faces.labels[clear] == np.arange(7)[:, None]).all()
    happy = [unit in EMOTION_UNITS["happy"] for unit in UNITS]
    everyone = made.action_units[made.faces.labels == 3][:, happy].sum(1)
    assert made.action_units[clear[3]][:, happy].sum(1).min() > np.median(everyone)
    assert made.action_units[clear[6]].sum(1).max() < 0.5  # neutral faces show next to nothing


def test_sheet_places_faces_in_rows_and_columns(synthetic):
    images = synthetic.faces.images[:6].reshape(2, 3, 48, 48)
    figure = plots.sheet(images, ["a", "b"], ["x", "y", "z"], "title", points=synthetic.landmarks.points[:6].reshape(2, 3, 68, 2))
    mosaic = np.asarray(figure.axes[0].images[0].get_array())
    assert (mosaic[51:99, 102:150] == images[1, 2]).all() and (mosaic[48:51] == 255).all()
    assert {text.get_text().split()[0] for text in figure.axes[0].get_legend().get_texts()} == set(plots.REGION_COLOURS)


def test_mean_faces_are_means_of_an_emotions_test_faces(synthetic):
    faces = synthetic.faces
    means = synthetic.mean_faces("unmasked")
    assert means.shape == (7, 48, 48) and means.dtype == np.float32
    assert np.allclose(means[3], faces.images[(faces.split == 2) & (faces.labels == 3)].mean(0), atol=1e-3)


def test_template_figure_measures_the_gap(synthetic):
    figure = plots.landmark_template(synthetic.mean_faces("unmasked").mean(0), synthetic.landmarks.points, synthetic.mask_region.mean(0))
    assert "px from the median" in headline(figure) and f"covers {100 * synthetic.mask_region.mean():.0f} %" in headline(figure)
