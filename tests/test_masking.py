"""Masking: masks cover mouth and nose alone, and are the same whoever else is in the call; occlusion and controls."""
import os

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, label

from fer_lib.faces import SIZE
from fer_lib.landmarks import TEMPLATE, for_faces
from fer_lib.masking import (KINDS, N95_WHITEST, OCCLUSIONS, OUTLINES, coverage, draw_masks, occlude, random_patches,
                             roll_region)


def some_faces(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures of smooth shades, the template moved, turned and shaken, and rows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    images = rng.uniform(40, 140, (n, 1, 1)) + rng.uniform(-40, 60, (n, 1, 1)) * x + rng.uniform(-20, 40, (n, 1, 1)) * y
    angle, scale = rng.uniform(-0.4, 0.4, n), rng.uniform(0.7, 1.1, n)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], 1) * scale[:, None]
    points = (TEMPLATE - 24 + rng.normal(0, 0.3, (n, 68, 2))) @ turn.reshape(n, 2, 2).transpose(0, 2, 1) + 24
    points = points + rng.normal(0, 1.5, (n, 1, 2))
    return images.clip(0, 255).astype(np.uint8), points.astype(np.float32), rng.permutation(40000)[:n]


@pytest.mark.parametrize("kind", KINDS)
def test_mask_covers_mouth_not_eyes(kind):
    images, points, rows = some_faces(60)
    _, region = draw_masks(images, points, rows, kind)
    table = coverage(region, points, np.zeros(60, np.uint8))
    assert list(table.columns) == ["how", "mouth", "nose", "eyes", "brows", "overall"] and len(table) == 60
    mean = table.mean(numeric_only=True)
    assert mean.mouth > 0.999 and mean.nose > 0.85 and mean.eyes < 0.04 and mean.brows < 0.005
    assert 0.15 < mean.overall < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_change_only_inside_the_region(kind):
    images, points, rows = some_faces(60, seed=1)
    masked, region = draw_masks(images, points, rows, kind)
    assert masked.dtype == np.uint8 and region.dtype == bool
    assert (masked == images)[~region].all()
    assert (masked != images)[region].mean() > 0.9


@pytest.mark.parametrize("outline", OUTLINES)
def test_mask_does_not_depend_on_the_other_faces(outline):
    images, points, rows = some_faces(150, seed=2)
    masked, region = draw_masks(images, points, rows, "mixed", outline)
    order = np.random.default_rng(0).permutation(150)
    again, where = draw_masks(images[order], points[order], rows[order], "mixed", outline)
    assert (again == masked[order]).all() and (where == region[order]).all()
    for i in (0, 77, 127, 128, 149):
        alone, there = draw_masks(images[i: i + 1], points[i: i + 1], rows[i: i + 1], "mixed", outline)
        assert (alone[0] == masked[i]).all() and (there[0] == region[i]).all()


def test_look_is_seeded_by_the_row_and_the_seed():
    images, points, _ = some_faces(1)
    images, points = images.repeat(40, 0), points.repeat(40, 0)
    same, _ = draw_masks(images, points, np.full(40, 7), "cloth")
    assert (same == same[0]).all()
    by_row, _ = draw_masks(images, points, np.arange(40), "cloth")
    assert len({face.tobytes() for face in by_row}) == 40
    other, _ = draw_masks(images, points, np.arange(40), "cloth", seed=1)
    assert (other != by_row).any((1, 2)).all()


def test_mixed_draws_each_kind_for_about_a_third():
    images, points, rows = some_faces(150, seed=3)
    mixed, _ = draw_masks(images, points, rows, "mixed")
    share = [(draw_masks(images, points, rows, kind)[0] == mixed).all((1, 2)).mean() for kind in KINDS[:-1]]
    assert sum(share) == pytest.approx(1) and min(share) > 0.2


def test_template_outline_is_one_for_all_and_own_outline_is_not():
    images, points, rows = some_faces(20, seed=4)
    _, fixed = draw_masks(images, points, rows, "surgical", "template")
    assert (fixed == fixed[0]).all()
    _, own = draw_masks(images, points, rows, "surgical", "face")
    assert (own != own[0]).any((1, 2))[1:].all()


def test_eyes_nose_outline_ignores_jaw_and_mouth():
    images, points, rows = some_faces(20, seed=5)
    moved = points.copy()
    moved[:, 4:13, 1] += 6  # an open mouth
    moved[:, 48:, 1] += 4
    _, before = draw_masks(images, points, rows, "n95", "eyes_nose")
    _, after = draw_masks(images, moved, rows, "n95", "eyes_nose")
    assert (before == after).all()
    assert (draw_masks(images, moved, rows)[1] != draw_masks(images, points, rows)[1]).any()


def test_hidden_pixels_leave_no_trace():
    images, points, rows = some_faces(12, seed=6)
    masked, region = draw_masks(images, points, rows)
    deep = np.stack([binary_erosion(one, np.ones((3, 3)), 2) for one in region])  # no soft border, no straps
    assert deep.sum((1, 2)).min() > 150
    again, _ = draw_masks(np.where(deep, 255 - images, images), points, rows)
    assert (again == masked).all()  # not even the brightness of the mask knows what it hides


def test_n95_is_never_whiter_than_its_cap():
    _, points, rows = some_faces(10)
    black_below = np.full((10, SIZE, SIZE), 250, np.uint8)
    black_below[:, 20:] = 0  # so that only mask is white there
    masked, region = draw_masks(black_below, points, rows)
    assert masked[:, 22:][region[:, 22:]].max() <= N95_WHITEST


def test_unknown_names_are_refused():
    images, points, rows = some_faces(2)
    with pytest.raises(ValueError, match="Unknown kind of mask 'ffp3': use n95, surgical, cloth, mixed"):
        draw_masks(images, points, rows, "ffp3")
    with pytest.raises(ValueError, match="Unknown outline 'own': use face, eyes_nose, template"):
        draw_masks(images, points, rows, outline="own")
    with pytest.raises(ValueError, match="Unknown fill 'white': use black, mean, blur, noise"):
        occlude(torch.zeros(2, 1, 48, 48), torch.zeros(2, 48, 48, dtype=torch.bool), "white")
    with pytest.raises(ValueError, match="one entry for each"):
        draw_masks(images, points[:1], rows)
    empty = draw_masks(images[:0], points[:0], rows[:0])
    assert empty[0].shape == (0, SIZE, SIZE)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((5, 1, SIZE, SIZE), generator=generator)
    region = torch.zeros((5, SIZE, SIZE), dtype=torch.bool)
    for i in range(5):
        region[i, 10 + i: 20 + 3 * i, 5: 30 + i] = True
    return x, region


@pytest.mark.parametrize("fill", OCCLUSIONS)
def test_occlusion_fills_the_region_and_nothing_else(fill, batch):
    x, region = batch
    hidden = occlude(x, region, fill, torch.Generator().manual_seed(1))
    assert (hidden[~region[:, None]] == x[~region[:, None]]).all()
    assert (hidden != x)[region[:, None]].float().mean() > 0.99
    assert hidden.min() >= 0 and hidden.max() <= 1 and hidden.dtype == x.dtype
    assert (occlude(x, torch.zeros_like(region), fill) == x).all()


def test_fills_have_their_known_values(batch):
    x, region = batch
    assert (occlude(x, region, "black")[region[:, None]] == 0).all()
    mean = occlude(x, region, "mean")
    for i in range(5):
        visible = x[i, 0][~region[i]].mean()
        assert torch.allclose(mean[i, 0][region[i]], visible.expand(int(region[i].sum())), atol=1e-5)
    flat = torch.full_like(x, 0.3)
    assert torch.allclose(occlude(flat, region, "blur"), flat, atol=1e-5)
    everything = torch.ones_like(region)
    assert (occlude(x, everything, "mean") == 0.5).all()


def test_rolled_region_keeps_area_and_moves(batch):
    _, region = batch
    rolled = roll_region(region, torch.Generator().manual_seed(0))
    assert (rolled.sum((1, 2)) == region.sum((1, 2))).all()
    assert (rolled != region).any((1, 2)).float().mean() > 0.7
    assert (rolled == roll_region(region, torch.Generator().manual_seed(0))).all()
    single = torch.zeros((1, 4, 4), dtype=torch.bool)
    single[0, 1, 2] = True
    places = {int(roll_region(single, torch.Generator().manual_seed(i)).flatten().nonzero()) for i in range(200)}
    assert places == set(range(16))


def test_random_patches_have_equal_area_and_are_connected():
    generator = torch.Generator().manual_seed(3)
    area = torch.randint(0, 1200, (200,), generator=generator)
    region = (torch.arange(SIZE * SIZE) < area[:, None]).view(-1, SIZE, SIZE)
    patches = random_patches(region, generator)
    assert (patches.sum((1, 2)) == area).all()
    assert all(label(patch.numpy(), np.ones((3, 3)))[1] <= 1 for patch in patches)
    assert patches.float().mean(0).min() > 0  # they get everywhere


@pytest.mark.skipif("FER2013" not in os.environ, reason="needs FER2013")
def test_masks_cover_fer2013_as_measured():
    from fer_lib import fer2013
    faces = fer2013.load(os.environ["FER2013"])
    faces = faces.select(np.random.default_rng(0).choice(len(faces), 1500, replace=False))
    marks = for_faces(faces)
    masked, region = draw_masks(faces.images, marks.points, faces.row)
    assert (masked == faces.images)[~region].all()
    mean = coverage(region, marks.points, marks.how).mean(numeric_only=True)
    assert mean.mouth > 0.998 and 0.88 < mean.nose < 0.98 and mean.eyes < 0.04 and mean.brows < 0.005
