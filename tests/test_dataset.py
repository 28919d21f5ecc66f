"""Dataset: what is paired to the faces, how they are scaled and chosen, and that masks are drawn once."""
from dataclasses import replace

import numpy as np
import pytest

import fer_lib.dataset as dataset
from fer_lib.dataset import VARIANTS, Dataset, open_dataset
from fer_lib.faces import EMOTIONS, SPLITS
from fer_lib.fer2013 import USAGES, Votes
from fer_lib.landmarks import REGIONS, template


def with_faces(data: Dataset, **arrays) -> Dataset:
    return replace(data, faces=replace(data.faces, **arrays))


def test_synthetic_faces_stand_in_where_no_path_is_given(data):
    assert data.faces.source == "synthetic" and data.faces.counts().tolist() == [[30] * 7, [10] * 7, [10] * 7]
    assert data.synthetic is not None and data.versions.keys() == {"masks", "synthetic"}
    first, again, other = (open_dataset(None, (28, 7, 7), seed=seed).fingerprint for seed in (0, 0, 1))
    assert first == again != other


def test_variants_are_the_faces_and_the_same_faces_masked(data):
    assert data.images("unmasked") is data.faces.images and data.images("masked") is data.masked
    changed = data.masked != data.faces.images
    assert changed.any((1, 2)).all() and not (changed & ~data.mask_region).any()
    with pytest.raises(ValueError, match=", ".join(VARIANTS)):
        data.images("blurred")


def test_a_face_without_a_region_keeps_every_other_pixel(data):
    mouth = data.regions(np.arange(len(data.faces)), ("mouth",))[:, 0]
    without, rolled = data.images("no_mouth"), data.images("rolled_mouth")
    assert (without == data.faces.images)[~mouth].all() and (rolled != data.faces.images).any()
    face = data.faces.images[0]
    assert len(np.unique(without[0][mouth[0]])) == 1 and abs(int(without[0][mouth[0]][0]) - face[~mouth[0]].mean()) <= 1
    assert (rolled == data.images("rolled_mouth")).all()
    with pytest.raises(ValueError, match="no_mouth"):
        data.images("no_hat")


def test_training_rows_without_leaks_are_those_without_a_copy_in_validation_or_test(data):
    images = data.faces.images.copy()
    images[3], images[5] = images[285], images[7]  # a copy of a test face, and one within the training split
    found = with_faces(data, images=images).train_rows("unleaked")
    assert 3 not in found and {5, 7} <= set(found) and len(found) == 209
    assert len(data.train_rows()) == 210 and (data.train_labels() == data.labels("train")).all()


def test_votes_become_shares_of_the_seven_emotions(data):
    counts = np.zeros((len(data.faces), 10), np.int64)
    counts[:, 1], counts[:, 4], counts[:, 8] = 6, 2, 2  # happiness, anger, unknown
    counts[1] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 10]         # no face at all
    votes = Votes(counts, None, None)
    shares = replace(data, votes=votes).train_labels(labels=f"votes-{votes.fingerprint}")
    assert shares[0] == pytest.approx([0.25, 0, 0, 0.75, 0, 0, 0]) and shares[1].argmax() == data.faces.labels[1] and shares.dtype == np.float32


def test_scaling_is_that_of_the_unmasked_training_pixels(data):
    pixels = data.faces.images[:210] / 255
    assert data.scaling == pytest.approx((pixels.mean(), pixels.std()), abs=1e-6)
    other = data.faces.images.copy()
    other[210:] = 0  # validation and test play no part
    assert with_faces(data, images=other).scaling == data.scaling
    assert replace(data, masked=data.masked // 2).scaling == data.scaling


def test_fingerprint_changes_with_a_pixel_of_a_face_or_of_a_mask(data):
    face, mask = data.faces.images.copy(), data.masked.copy()
    face[300, 5, 5] ^= 1
    mask[300, 30, 20] ^= 1
    assert len({data.fingerprint, with_faces(data, images=face).fingerprint, replace(data, masked=mask).fingerprint}) == 3
    assert replace(data, masked=data.masked.copy()).fingerprint == data.fingerprint and len(data.fingerprint) == 12


def test_labels_are_those_of_the_split_in_row_order(data):
    for split in SPLITS:
        labels = data.labels(split)
        assert labels.dtype == np.int64 and (labels == data.faces.labels[data.faces.where(split)]).all()


def test_subsets_are_all_and_clean_and_what_else_was_given(data):
    images = data.faces.images.copy()
    images[285], images[290] = images[3], images[220]  # test faces 5 and 10 copied from training and validation
    copied = with_faces(data, images=images)
    found = copied.subsets("test")
    assert list(found) == ["all", "clean"] and found["all"].all() and np.flatnonzero(~found["clean"]).tolist() == [5, 10]
    assert copied.subsets("val")["clean"].all()
    agree, author = np.arange(350) % 2 == 0, np.arange(350) % 5 == 0
    votes = Votes(np.zeros((350, 10), np.int64), np.zeros(350, np.int64), agree)
    found = replace(data, votes=votes, author=author).subsets("test")
    assert list(found) == ["all", "clean", "agree", "author"]
    assert (found["agree"] == agree[280:]).all() and (found["author"] == author[280:]).all()


def test_regions_are_one_mask_a_face_and_name(data):
    index = np.array([3, 200])
    masks = data.regions(index)
    assert masks.shape == (2, len(REGIONS), 48, 48) and masks.dtype == bool
    assert (data.regions(index[1:], ("mouth",))[0, 0] == masks[1, REGIONS.index("mouth")]).all()


@pytest.fixture
def csv(data, tmp_path, monkeypatch):
    """A small fer2013.csv of synthetic faces, whose landmarks are the template whether or not there is a detector."""
    monkeypatch.setattr(dataset, "for_faces", lambda faces: template(len(faces)))
    some = data.faces.select(np.r_[0:21, 210:224, 280:294])
    lines = [f"{label},{' '.join(map(str, image.ravel()))},{USAGES[split]}"
             for image, label, split in zip(some.images, some.labels, some.split)]
    path = tmp_path / "fer2013.csv"
    path.write_text("\n".join(["emotion,pixels,Usage", *lines]) + "\n")
    return path


def test_masks_are_drawn_once_and_kept_beside_the_faces(csv, tmp_path, monkeypatch):
    first = open_dataset(csv, cache=tmp_path / "cache")
    names = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert len(names) == 2 and names[0].startswith("faces-") and names[1].startswith("masks-")  # and nothing temporary

    def never(*_):
        raise AssertionError("masks were drawn a second time")

    monkeypatch.setattr(dataset, "draw_masks", never)
    second = open_dataset(csv, cache=tmp_path / "cache")
    assert (second.masked == first.masked).all() and (second.mask_region == first.mask_region).all()
    assert second.mask_region.dtype == bool and second.fingerprint == first.fingerprint and second.scaling == first.scaling


def test_masks_are_drawn_anew_when_their_version_or_the_landmarks_change(csv, tmp_path, monkeypatch):
    open_dataset(csv, cache=tmp_path / "cache")
    monkeypatch.setattr(dataset, "MASK_VERSION", 99)
    open_dataset(csv, cache=tmp_path / "cache")
    shifted = template(49)
    shifted.points[:] += 1
    monkeypatch.setattr(dataset, "for_faces", lambda faces: shifted)
    open_dataset(csv, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("masks-*.npz"))) == 3


def test_without_a_cache_nothing_is_written(csv, tmp_path):
    found = open_dataset(csv)
    assert found.faces.source == "fer2013" and found.synthetic is None and found.versions.keys() == {"masks"}
    assert found.faces.counts().sum(1).tolist() == [21, 14, 14] and len(EMOTIONS) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["fer2013.csv"]
