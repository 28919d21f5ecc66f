"""Faces: arrays that fit together, splits, duplicates and leaks, and a fingerprint that notices every change."""
import numpy as np
import pytest

from fer_lib.faces import EMOTIONS, SIZE, SPLITS, Faces


def make(n: int = 9) -> Faces:
    """Three faces a split, every one different."""
    images = np.random.default_rng(0).integers(0, 256, (n, SIZE, SIZE), dtype=np.uint8)
    return Faces(images, np.arange(n, dtype=np.uint8) % 7, np.repeat(np.arange(3, dtype=np.uint8), n // 3), np.arange(n), "made up")


def with_images(faces: Faces, images: np.ndarray) -> Faces:
    return Faces(images, faces.labels, faces.split, faces.row, faces.source)


def test_emotions_stand_in_the_order_of_the_csv():
    assert EMOTIONS == ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def test_where_finds_each_split_in_row_order():
    faces = make()
    assert [faces.where(split).tolist() for split in SPLITS] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_unknown_split_lists_the_known_ones():
    with pytest.raises(ValueError, match="train, val, test"):
        make().where("PrivateTest")


def test_select_keeps_every_array_together():
    faces = make()
    some = faces.select(np.array([4, 1]))
    assert some.row.tolist() == [4, 1] and some.labels.tolist() == [4, 1] and some.source == "made up"
    assert (some.images == faces.images[[4, 1]]).all()


def test_counts_are_per_split_and_emotion():
    counts = make().counts()
    assert counts.shape == (3, 7) and counts.sum(1).tolist() == [3, 3, 3]
    assert counts[0].tolist() == [1, 1, 1, 0, 0, 0, 0] and counts[2].tolist() == [1, 1, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("images", [np.zeros((9, 40, 40), np.uint8), np.zeros((9, SIZE, SIZE), np.float32)])
def test_images_of_another_shape_or_type_are_refused(images):
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, 48, 48\]"):
        with_images(make(), images)


def test_arrays_of_different_length_are_refused():
    faces = make()
    with pytest.raises(ValueError, match="labels must have one entry per image"):
        Faces(faces.images, faces.labels[:-1], faces.split, faces.row)


@pytest.mark.parametrize("change", ["images", "labels", "split", "row"])
def test_fingerprint_changes_with_every_array(change):
    faces = make()
    arrays = {name: getattr(faces, name).copy() for name in ("images", "labels", "split", "row")}
    assert Faces(**arrays).fingerprint == faces.fingerprint
    arrays[change].flat[3] ^= 1
    assert Faces(**arrays).fingerprint != faces.fingerprint


def test_copies_share_a_group_and_nothing_else_does():
    faces = make()
    images = faces.images.copy()
    images[7] = images[1]
    groups = with_images(faces, images).copies
    assert groups[7] == groups[1] and len(np.unique(groups)) == 8


def test_a_test_face_copied_from_training_is_leaked_and_not_clean():
    faces = make()
    images = faces.images.copy()
    images[7], images[8] = images[1], images[4]  # one copy of a training face, one of a validation face
    faces = with_images(faces, images)
    assert faces.leaked("test").tolist() == [False, True, True]
    assert faces.leaked("test", ("train",)).tolist() == [False, True, False]
    assert faces.clean("test").tolist() == [True, False, False]


def test_validation_is_clean_of_training_only():
    faces = make()
    images = faces.images.copy()
    images[3], images[8] = images[0], images[4]
    assert with_images(faces, images).clean("val").tolist() == [False, True, True]


def test_blank_faces_are_no_leak_of_each_other():
    faces = make()
    images = faces.images.copy()
    images[[0, 8]] = 255
    faces = with_images(faces, images)
    assert faces.blank.nonzero()[0].tolist() == [0, 8] and not faces.leaked("test").any()
