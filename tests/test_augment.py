"""Augmentation: what it does to a face, that maps move with it, and that it is a function of its generator alone."""
import numpy as np
import pytest
import torch

from fer_lib.augment import AUGMENTATIONS, CROP, augment, five_crops, standardise, test_views as views_at_test, to_float

SIZE = 48


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, SIZE, SIZE), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_light_is_a_crop_of_the_reflected_face_and_perhaps_its_mirror():
    images = noise(300)
    x, _ = augment(images, "light", seeded())
    found = []
    for image, out in zip(images.numpy(), (x[:, 0] * 255).round().numpy().astype(np.uint8)):
        fits = []
        for mirrored in (False, True):
            padded = np.pad(image[:, ::-1] if mirrored else image, 4, mode="reflect")
            fits += [(mirrored, i, j) for i in range(9) for j in range(9) if (padded[i : i + SIZE, j : j + SIZE][::9] == out[::9]).all()
                     and (padded[i : i + SIZE, j : j + SIZE] == out).all()]
        assert len(fits) == 1  # one, and only one, of the 162 the recipe allows
        found += fits
    mirrored, rows, cols = map(np.array, zip(*found))
    assert 0.4 < mirrored.mean() < 0.6 and set(rows) == set(cols) == set(range(9))
    assert abs(np.corrcoef(rows, cols)[0, 1]) < 0.2  # drawn apart


def test_light_moves_maps_exactly_with_their_face():
    images = noise(40)
    x, maps = augment(images, "light", seeded(), torch.stack([images, 255 - images], 1))
    assert maps.dtype == torch.uint8 and maps.shape == (40, 2, SIZE, SIZE)
    assert torch.equal(to_float(maps[:, 0]), x) and torch.equal(maps[:, 1], 255 - maps[:, 0])


def test_paper_moves_maps_exactly_with_their_face(monkeypatch):
    """Faces with one straight edge: bilinear grey values lie on the same side of the edge as the nearest map value, always."""
    monkeypatch.setattr("fer_lib.augment._erase", lambda x, generator: x)
    places = torch.arange(14, 34)
    left = torch.arange(SIZE) < places[:, None]
    bright = torch.cat([left[:, None, :].expand(-1, SIZE, -1), left[:, :, None].expand(-1, -1, SIZE)])  # (40, 48, 48)
    inside = torch.zeros_like(bright)
    inside[:, 2:-2, 2:-2] = True  # away from the frame, beyond which is black
    images = torch.where(bright, 110, 80).to(torch.uint8)
    x, maps = augment(images, "paper", seeded(), torch.stack([bright, inside], 1))
    assert maps.dtype == torch.bool and maps.shape == (200, 2, CROP, CROP) and x.shape == (200, 1, CROP, CROP)
    both = 0
    for crop, (is_bright, is_inside) in zip(x[:, 0], maps):
        light, dark = crop[is_bright & is_inside], crop[~is_bright & is_inside]
        if len(light) and len(dark):
            both += 1
            assert light.min() > dark.max() - 1e-6
    assert both > 150


def test_paper_erases_to_black_in_half_of_the_crops():
    x, _ = augment(torch.full((200, SIZE, SIZE), 200, dtype=torch.uint8), "paper", seeded())
    centre = x.view(200, 5, CROP, CROP)[:, 4, 12:28, 12:28]  # no shift brings the black beyond the frame here often
    assert 0.15 < (centre.flatten(1).amin(1) == 0).float().mean() < 0.65
    assert x.min() == 0 and x.max() <= 1


def test_paper_turns_a_face_into_five_crops_that_stand_together():
    x, maps = augment(noise(6), "paper", seeded(), torch.ones(6, 3, SIZE, SIZE, dtype=torch.bool))
    assert x.shape == (30, 1, CROP, CROP) and maps.shape == (30, 3, CROP, CROP)


def test_none_returns_the_faces_as_they_are():
    images = noise(3)
    x, maps = augment(images, "none", seeded(), images[:, None])
    assert torch.equal(x, images[:, None] / 255) and torch.equal(maps[:, 0], images)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_generator_alone_decides(name):
    images, maps = noise(16), noise(16, 1)[:, None]
    before = torch.get_rng_state()
    first, second, other = (augment(images, name, seeded(seed), maps) for seed in (0, 0, 1))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert torch.equal(before, torch.get_rng_state())
    assert name == "none" or not torch.equal(first[0], other[0])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_maps_do_not_change_what_is_drawn(name):
    images = noise(8)
    x, maps = augment(images, name, seeded())
    assert maps is None and torch.equal(x, augment(images, name, seeded(), images[:, None])[0])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_pixels_stay_between_0_and_1(name):
    x, _ = augment(noise(32), name, seeded())
    assert x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1


def test_unknown_augmentation_lists_the_known_ones():
    with pytest.raises(ValueError, match="none, light, paper"):
        augment(noise(1), "mixup", seeded())


def test_five_crops_are_corners_and_centre_face_by_face():
    x = torch.arange(3 * SIZE * SIZE, dtype=torch.float32).view(3, 1, SIZE, SIZE)
    crops = five_crops(x).view(3, 5, CROP, CROP)
    for i, (top, left) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]):
        assert torch.equal(crops[:, i], x[:, 0, top : top + CROP, left : left + CROP])


def test_ten_crop_shows_the_five_crops_and_their_mirrors():
    x = torch.rand(2, 1, SIZE, SIZE)
    views = views_at_test(x, "ten_crop")
    assert len(views) == 10 and all(v.shape == (2, 1, CROP, CROP) for v in views)
    assert torch.equal(torch.stack(views[:5], 1), five_crops(x).view(2, 5, 1, CROP, CROP))
    assert all(torch.equal(a.flip(-1), b) for a, b in zip(views[:5], views[5:]))


def test_flip_shows_the_face_and_its_mirror_and_single_the_face():
    x = torch.rand(2, 1, SIZE, SIZE)
    assert torch.equal(views_at_test(x, "flip")[1], x.flip(-1))
    assert [len(views_at_test(x, name)) for name in ("single", "flip")] == [1, 2] and torch.equal(views_at_test(x, "single")[0], x)


def test_unknown_test_averaging_lists_the_known_ones():
    with pytest.raises(ValueError, match="single, flip or ten_crop"):
        views_at_test(torch.rand(1, 1, SIZE, SIZE), "five")


def test_standardise_takes_the_mean_away_and_divides_by_the_spread():
    assert standardise(torch.tensor([0.5, 0.7]), (0.5, 0.2)).tolist() == pytest.approx([0.0, 1.0])
