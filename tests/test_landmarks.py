"""Landmarks: the kept points of FER2013 are found again, regions are rasterised as a slow reference does it."""
import logging
import os
import sys

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from fer_lib import landmarks
from fer_lib.faces import SIZE, Faces
from fer_lib.landmarks import HOW, POLYGONS, REGIONS, TEMPLATE, Landmarks, inside, region_masks, winding

DETECTED, BY_TEMPLATE = HOW.index("detected"), HOW.index("template")


def shapes(n: int, seed: int = 0) -> np.ndarray:
    """The template turned, scaled, moved and shaken, float32 [n, 68, 2]."""
    rng = np.random.default_rng(seed)
    angle, scale = rng.uniform(-0.7, 0.7, n), rng.uniform(0.6, 1.3, n)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], 1) * scale[:, None]
    centred = (TEMPLATE - 24) + rng.normal(0, 0.6, (n, 68, 2))
    return (centred @ turn.reshape(n, 2, 2).transpose(0, 2, 1) + 24 + rng.normal(0, 3, (n, 1, 2))).astype(np.float32)


def made_faces(n: int, source: str = "fer2013", seed: int = 0) -> Faces:
    images = np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE), dtype=np.uint8)
    return Faces(images, np.zeros(n, np.uint8), np.zeros(n, np.uint8), np.arange(n), source)


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """A made-up reference file of 20 faces, face 3 without a detection."""
    faces = made_faces(20)
    how = np.zeros(20, np.uint8)
    how[3] = BY_TEMPLATE
    marks = Landmarks(shapes(20), how)
    path = tmp_path / "points.npz"
    landmarks.save_reference(faces.images, marks, path)
    monkeypatch.setattr(landmarks, "REFERENCE", path)
    return faces, marks


def test_reference_is_found_by_hash_in_any_order(reference):
    faces, marks = reference
    index = np.array([7, 3, 19, 0])
    shuffled = faces.select(index)
    other = Faces(shuffled.images, shuffled.labels, shuffled.split, np.arange(4), "somebody's copy")
    found = landmarks.load_reference(other)
    assert np.abs(found.points - marks.points[index]).max() <= 1 / 64
    assert found.how.tolist() == [DETECTED, BY_TEMPLATE, DETECTED, DETECTED]


def test_reference_is_found_by_row_when_pixels_differ(reference, caplog):
    faces, marks = reference
    images = faces.images.copy()
    images[5] ^= 1  # as re-encoding does
    with caplog.at_level(logging.INFO):
        found = landmarks.load_reference(Faces(images, faces.labels, faces.split, faces.row, "fer2013"))
    assert np.abs(found.points[5] - marks.points[5]).max() <= 1 / 64
    assert "19 faces by image hash, 1 by row, 0 not among them" in caplog.text


def test_unknown_faces_get_the_template(reference):
    found = landmarks.load_reference(made_faces(4, source="other", seed=9))
    assert (found.how == BY_TEMPLATE).all() and (found.points == TEMPLATE).all()


def test_without_the_detector_the_template_is_used_and_said(reference, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    known, _ = reference
    strange = made_faces(6, source="other", seed=9)
    both = Faces(np.concatenate([known.images[:2], strange.images]), np.zeros(8, np.uint8), np.zeros(8, np.uint8),
                 np.arange(8), "other")
    found = landmarks.for_faces(both)
    assert found.how.tolist() == [DETECTED] * 2 + [BY_TEMPLATE] * 6
    assert "No landmark detector" in caplog.text and "6 faces" in caplog.text


def test_saved_points_keep_a_sixty_fourth_of_a_pixel_even_far_outside(tmp_path):
    faces = made_faces(3)
    points = shapes(3)
    points[1, 8] = (-310.3, 420.7)
    landmarks.save_reference(faces.images, Landmarks(points, np.zeros(3, np.uint8)), tmp_path / "points.npz")
    kept, _, _ = landmarks._reference(tmp_path / "points.npz")
    assert np.abs(kept / landmarks.FIXED_POINT - points).max() <= 1 / 64
    assert [path.name for path in tmp_path.iterdir()] == ["points.npz"]


def test_landmarks_refuse_other_shapes():
    with pytest.raises(ValueError, match=r"float32 \[N, 68, 2\]"):
        Landmarks(np.zeros((2, 5, 2), np.float32), np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match="how"):
        Landmarks(np.zeros((2, 68, 2), np.float32), np.full(2, 9, np.uint8))


def test_mirrored_points_swap_sides_and_swap_back():
    assert (landmarks.MIRRORED[landmarks.MIRRORED] == np.arange(68)).all()
    flipped = TEMPLATE[landmarks.MIRRORED] * [-1, 1] + [SIZE - 1, 0]
    assert np.abs(flipped - TEMPLATE).max() < 2.0  # the median face is nearly symmetrical


def test_winding_of_a_square_is_its_area():
    square = np.array([[[9.75, 4.0], [20.25, 4.0], [20.25, 12.5], [9.75, 12.5]]])
    assert inside(square)[0].sum() == 11 * 9  # pixel centres 10..20 across, 4..12 down (its lower border is open)
    assert winding(square, 4).sum() / 256 == pytest.approx(10.5 * 8.5, abs=0.01)
    assert (winding(square[:, ::-1], 4) == winding(square, 4)).all()
    assert winding(square + 100.0).sum() == 0
    assert winding(np.array([[[-90.0, -90], [140, -90], [140, 140], [-90, 140]]]), 2).min() == 256


def test_polygons_match_a_slow_reference():
    points = shapes(6).astype(np.float64)
    y, x = np.mgrid[:SIZE, :SIZE]
    centres = np.stack([x.ravel(), y.ravel()], 1)
    for name, polygons in POLYGONS.items():
        for polygon in polygons(points):
            fast = inside(polygon)
            for one, mask in zip(polygon, fast):
                slow = Outline(one, closed=False).contains_points(centres).reshape(SIZE, SIZE)
                assert (slow != mask).sum() <= 1, name  # a centre on the very border may fall to either side


def test_regions_are_disjoint_and_the_halves_make_the_face():
    masks = dict(zip(REGIONS, region_masks(shapes(40)).transpose(1, 0, 2, 3)))
    small = np.stack([masks[name] for name in ("brows", "eyes", "nose", "mouth", "cheeks", "forehead", "jaw")])
    assert small.sum(0).max() == 1
    assert (masks["upper_half"].astype(int) + masks["lower_half"] + masks["background"] == 1).all()
    assert not (small.any(0) & masks["background"]).any()


def test_regions_of_the_template_hold_their_points():
    names = ("brows", "eyes", "nose", "mouth", "jaw")
    masks = dict(zip(names, region_masks(TEMPLATE[None], names)[0]))
    middle = {"eyes": TEMPLATE[36:42].mean(0), "nose": TEMPLATE[30], "mouth": TEMPLATE[60:68].mean(0),
              "brows": TEMPLATE[19], "jaw": (TEMPLATE[8] + TEMPLATE[57]) / 2}
    for name, (x, y) in middle.items():
        assert masks[name][round(float(y)), round(float(x))], name
    assert masks["eyes"].sum() < masks["jaw"].sum()


def test_a_region_does_not_depend_on_the_other_faces():
    points = shapes(300)
    together = region_masks(points)
    for i in (0, 255, 256, 299):
        assert (region_masks(points[i: i + 1])[0] == together[i]).all()


def test_unknown_region_and_bad_points_are_refused():
    with pytest.raises(ValueError, match="Unknown region 'chin': use brows"):
        region_masks(TEMPLATE[None], ("mouth", "chin"))
    with pytest.raises(ValueError, match="finite"):
        region_masks(np.full((1, 68, 2), np.nan))
    assert region_masks(np.zeros((0, 68, 2))).shape == (0, len(REGIONS), SIZE, SIZE)


@pytest.mark.skipif("FER2013" not in os.environ, reason="needs FER2013")
def test_kept_points_cover_fer2013():
    from fer_lib import fer2013
    marks = landmarks.for_faces(fer2013.load(os.environ["FER2013"]))
    assert len(marks) == 35887 and 0.983 < (marks.how == DETECTED).mean() < 0.985
    assert np.abs(np.median(marks.points[marks.how == DETECTED], 0) - TEMPLATE).max() <= 0.07
