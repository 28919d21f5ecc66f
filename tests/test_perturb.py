"""Phase 3 of the scheme: views are what they say, controls match the arm's areas, and every arm sees as many images."""
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.ndimage import label
from torch import nn
from torch.nn import functional as F

from fer_lib.augment import five_crops
from fer_lib.landmarks import TEMPLATE
from fer_lib.perturb import FILLS, PARTITIONS, REFIT, Perturb, Views, cut, fill, landmark_parts
from fer_lib.training import Recipe, train

SCALING = (0.5, 0.25)


class Gate:
    """A stand-in for the attention classifier: a face's attention is its smoothed brightness."""

    def attention_maps(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(F.avg_pool2d(x, 13, 1, 6)[:, 0])


def smooth(n: int, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (48, 48), mode="bicubic").clamp(0, 1)[:, 0]


def faces(n: int, seed: int = 0) -> torch.Tensor:
    return (smooth(n, seed) * 255).to(torch.uint8)


@cache
def partition(source: str, seed: int = 0, face: int = 0, **values) -> torch.Tensor:
    """A partition after the map of a made-up face; its intensity is the map upside down."""
    maps = smooth(1, face)
    return PARTITIONS[source](maps, maps.flip(1), Perturb(source=source, **values), seed)


def areas(parts: torch.Tensor, k: int = 3) -> list[int]:
    return torch.bincount(parts.flatten().long(), minlength=k).tolist()


def views(images: torch.Tensor | None = None, **values) -> Views:
    return Views(Perturb(**values), Gate(), faces(12) if images is None else images, SCALING, seed=0)


def shown(n: int = 2, **values) -> tuple[torch.Tensor, torch.Tensor]:
    """Faces of brightness 0.3 to 0.9 cut after a partition: what is shown (copies, n, 48, 48), and the masks (n, K, 48, 48)."""
    some = views(**values)
    index = torch.arange(n)
    some.refit(0, index)
    masks = some.masks(index)
    x = torch.linspace(0.3, 0.9, n)[:, None, None, None].expand(n, 1, 48, 48)
    return some.show(x, masks, torch.Generator().manual_seed(0)).view(-1, n, 48, 48), masks


# --- views ---

def test_leave_one_out_shows_each_hole_once_and_the_whole_face_and_the_holes_tile_it():
    out, masks = shown(views="leave_one_out")
    holes = out == 0
    assert len(out) == 4 and torch.equal(holes[:3].transpose(0, 1), masks) and not holes[3].any()
    assert (holes[:3].sum(0) == 1).all()  # every pixel is missing in exactly one copy
    assert all((out[:, i][~holes[:, i]] == out[3, i, 0, 0]).all() for i in range(2))


def test_keep_one_shows_each_cluster_alone_and_the_whole_face():
    out, masks = shown(views="keep_one")
    assert len(out) == 4 and torch.equal((out[:3] != 0).transpose(0, 1), masks) and (out[3] > 0).all()


def test_one_random_shows_each_face_once_in_all_views_equally_often():
    out, masks = shown(2000, images=faces(1).expand(2000, 48, 48), views="one_random")
    holes = (out == 0)[0]
    assert len(out) == 1
    which = torch.stack([(holes == masks[:, k]).all((1, 2)) for k in range(3)] + [~holes.any((1, 2))], 1)
    assert (which.sum(1) == 1).all()
    assert all(abs(share - 0.25) < 0.04 for share in which.float().mean(0).tolist())


def test_one_cluster_leaves_the_whole_face_and_a_black_one():
    out, _ = shown(views="leave_one_out", n_clusters=1)
    assert len(out) == 2 and (out[0] == 0).all() and (out[1] > 0).all()


def test_views_of_paper_crops_keep_each_faces_masks_with_it():
    some = views(views="leave_one_out", clusters_per="image")
    some.refit(0, torch.arange(2))
    images, masks = some.images[:2], some.masks(torch.arange(2))
    x, m = five_crops(images[:, None] / 255 + 0.1), five_crops(masks)
    out = some.show(x, m, torch.Generator()).view(4, 10, 40, 40)
    assert torch.equal((out[:3] == 0).transpose(0, 1), m)


# --- fills ---

def test_fill_changes_the_masked_pixels_alone():
    x, mask = torch.rand(3, 1, 48, 48), torch.rand(3, 48, 48) < 0.3
    for name in FILLS:
        out = fill(x, mask, name, SCALING)
        assert out.shape == x.shape and torch.equal(out[~mask[:, None]], x[~mask[:, None]])
    assert (fill(x, mask, "black", SCALING)[mask[:, None]] == 0).all()
    assert (fill(x, mask, "mean", SCALING)[mask[:, None]] == SCALING[0]).all()


def test_noise_fill_does_not_depend_on_the_batch():
    x, mask = torch.rand(3, 1, 48, 48), torch.ones(3, 48, 48, dtype=torch.bool)
    together = fill(x, mask, "noise", SCALING)
    assert torch.equal(together[1:2], fill(x[1:2], mask[1:2], "noise", SCALING)) and together.std() > 0.2
    assert torch.equal(together[0], together[2])


# --- partitions: the arm and its controls ---

@pytest.mark.parametrize("source", PARTITIONS)
def test_every_partition_has_k_parts_and_is_a_function_of_its_seed(source):
    first, again = partition(source, 1), partition.__wrapped__(source, 1)
    masks = cut(first, 3)
    assert masks.shape == (1, 3, 48, 48) and masks.any((2, 3)).all() and torch.equal(first, again)
    if source != "rectangles":
        assert first.shape == (1, 48, 48) and first.dtype == torch.uint8 and (masks.sum(1) == 1).all()


@pytest.mark.parametrize("source", ["rolled", "permuted", "cuts", "rectangles"])
def test_random_controls_change_with_the_seed(source):
    assert not torch.equal(partition(source, 2), partition(source, 1))


@pytest.mark.parametrize("k", [2, 6])
def test_cuts_are_connected_and_have_the_arms_areas(k):
    for face in range(2):
        parts = partition("cuts", face + 1, face, n_clusters=k)
        assert sorted(areas(parts, k)) == sorted(areas(partition("attention", 0, face, n_clusters=k), k))
        assert all(label((parts[0] == part).numpy(), torch.ones(3, 3))[1] == 1 for part in range(k))


def test_rectangles_are_rectangles_of_about_the_arms_areas():
    for face in range(2):
        masks = partition("rectangles", face + 1, face)
        for mask, area in zip(masks, areas(partition("attention", 0, face))):
            rows, cols = mask.any(1).nonzero(), mask.any(0).nonzero()
            box = mask[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
            assert box.all() and abs(int(mask.sum()) - area) <= max(box.shape) / 2 + 1


def test_rolled_and_permuted_maps_lie_elsewhere_with_areas_near_the_arms():
    for source in ("rolled", "permuted"):
        assert not torch.equal(partition(source, 1), partition("attention", 1))
        assert all(abs(a - 768) < 300 for a in areas(partition(source, 1)))


def test_a_permuted_map_gives_ragged_clusters_and_a_rolled_one_smooth_ones():
    border = lambda parts: (parts[:, 1:] != parts[:, :-1]).float().mean().item()
    rolled, permuted, arm = (border(partition(source, 1, lambda_=0.5)) for source in ("rolled", "permuted", "attention"))
    assert permuted > 3 * rolled and rolled < 2 * arm


def test_landmark_parts_hold_their_own_landmarks():
    points = np.asarray(TEMPLATE)[None]
    parts = landmark_parts(torch.as_tensor(points))
    assert parts.shape == (1, 48, 48) and parts.dtype == torch.uint8
    for part, some in enumerate(((17, 22, 36, 45), (30, 33), (48, 54, 57))):
        assert all(parts[0, round(float(y)), round(float(x))] == part for x, y in points[0, list(some)])
    with pytest.raises(ValueError, match="n_clusters=3"):
        Perturb(source="landmarks", clusters_per="image", n_clusters=4)


def test_coordinates_are_the_clusters_of_alpha_zero():
    assert torch.equal(partition("coordinates", 1), partition("attention", 1, alpha=0.0))
    assert torch.equal(partition("coordinates", 1), partition("coordinates", 1, 9))  # the map plays no part


@pytest.mark.parametrize("k", [2, 3, 5])
def test_thirds_are_bands_of_equal_height(k):
    parts = partition("thirds", n_clusters=k)[0]
    assert (parts == parts[:, :1]).all() and (parts[:, 0].diff() >= 0).all()
    assert max(areas(parts, k)) - min(areas(parts, k)) <= 48


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_centre_is_a_block_and_frames_of_equal_area_around_it(k):
    parts = partition("centre", n_clusters=k)[0]
    assert torch.equal(parts, parts.rot90()) and (parts[23, 24:].diff() >= 0).all()
    block = (parts == 0).nonzero()
    assert len(block) == (block.amax() - block.amin() + 1) ** 2  # a full square
    sides = np.sqrt(np.cumsum(areas(parts, k)))
    assert np.abs(sides - 48 * np.sqrt(np.arange(1, k + 1) / k)).max() <= 1  # pixels: a square's sides move two at a time


@pytest.mark.parametrize("signal", ["intensity", "both"])
def test_rolling_moves_whatever_is_clustered(signal):
    arm = partition("attention", 1, signal=signal, lambda_=0.3)
    for source in ("rolled", "permuted"):
        assert (partition(source, 1, signal=signal, lambda_=0.3) != arm).float().mean() > 0.2


# --- when clusters are fitted ---

def test_clusters_per_epoch_come_from_the_batch_and_per_data_set_from_all_faces():
    images = faces(12)
    epoch, whole = views(images), views(images, clusters_per="dataset")
    epoch.refit(0, torch.arange(4)), whole.refit(0, torch.arange(4))
    first, kept = epoch.parts, whole.parts
    mean = lambda some: epoch.maps(some)[0].mean(0, keepdim=True)
    assert torch.equal(first, PARTITIONS["attention"](mean(images[:4]), None, Perturb(), 0))
    assert torch.equal(kept, PARTITIONS["attention"](mean(images), None, Perturb(), 0))
    epoch.refit(5, torch.arange(4, 12)), whole.refit(5, torch.arange(4, 12))
    assert not torch.equal(epoch.parts, first) and torch.equal(whole.parts, kept)


def test_clusters_per_image_at_test_equal_those_in_training_for_the_same_face():
    some = views(clusters_per="image")
    some.refit(0, torch.arange(4))
    assert some.parts.shape == (12, 48, 48)
    assert torch.equal(some.masks(torch.tensor([7, 2])), cut(some.partition(some.images[[7, 2]]), 3))


def test_clusters_of_a_face_on_its_own_equal_those_among_others():
    some = views(clusters_per="image")
    together = some.partition(some.images)
    assert all(torch.equal(together[i], some.partition(some.images[i : i + 1])[0]) for i in range(len(together)))


@pytest.mark.parametrize("source", PARTITIONS)
def test_clusters_per_image_work_or_are_refused(source):
    """A source that draws one partition for all faces has none per image, and says so before anything is trained."""
    if source in ("attention", "rolled", "permuted"):
        some = views(faces(4), source=source, clusters_per="image")
        some.refit(0, torch.arange(2))
        assert some.masks(torch.tensor([3, 1, 0])).shape == (3, 3, 48, 48)
    else:
        with pytest.raises(ValueError, match=f'"{source}" has no clusters per image: use one of attention, rolled, permuted'):
            Perturb(source=source, clusters_per="image")


def test_attention_needs_no_gate_where_the_source_does_not_use_it():
    some = Views(Perturb(source="thirds"), None, faces(3), SCALING, 0)
    some.refit(0, torch.arange(3))
    assert some.masks(torch.arange(3)).shape == (3, 3, 48, 48)


@pytest.mark.parametrize("name", ["source", "signal", "clusters_per", "views", "fill"])
def test_unknown_names_raise_and_list_the_known_ones(name):
    with pytest.raises(ValueError, match=f"Unknown {name} 'wrong': use one of .*{getattr(Perturb(), name)}"):
        Perturb(**{name: "wrong"})


# --- equal budgets ---

class Counting(nn.Module):
    """A made-up network that counts the images and the updates it is trained with, and keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.linear, self.batches = nn.Linear(1, 7), []

    def forward(self, x):
        if self.training:
            self.batches.append(x.detach().clone())
        return self.linear(x.mean((2, 3)))


def count(some: Views | None, recipe: Recipe, n: int = 96) -> list[torch.Tensor]:
    network, labels = Counting(), torch.arange(n) % 7
    train(network, faces(n), labels, faces(7), torch.arange(7), recipe, 0, SCALING, views=some)
    return network.batches


BUDGET = Recipe("count", epochs=4, batch=32, lr=0.01, ema=0.0, augment="none", test="single", precision="fp32")


@pytest.mark.parametrize("arm", ["leave_one_out", "keep_one", "one_random", "none"])
@pytest.mark.parametrize("augmentation", ["none", "paper"])
def test_every_arm_sees_as_many_images_in_as_many_updates_as_the_baseline(arm, augmentation):
    recipe = replace(BUDGET, augment=augmentation, epochs=2)
    sizes = [[len(b) for b in count(some, recipe)] for some in (None, views(faces(96), views=arm, source="thirds"))]
    assert sizes[0] == sizes[1] == [32 * (5 if augmentation == "paper" else 1)] * 6


@pytest.mark.parametrize("k", [1, 2, 4, 5, 6, 7, 8])
def test_steps_of_other_k_differ_by_less_than_a_face(k):
    sizes = [len(b) for b in count(views(faces(96), views="leave_one_out", source="thirds", n_clusters=k), BUDGET)]
    assert len(sizes) == 12 and len(set(sizes)) == 1 and abs(sizes[0] - 32) <= (k + 1) / 2


def test_leave_one_out_passes_over_the_faces_a_k_plus_first_as_often():
    whole = [batch[24:] for batch in count(views(faces(96), views="leave_one_out", source="thirds"), BUDGET)]  # the whole faces
    seen = torch.cat(whole).flatten(1)
    assert len(seen) == 96 == len(seen.unique(dim=0))  # four epochs of the baseline: each face once


def test_clusters_are_refitted_every_pass_or_200_updates_whichever_is_sooner(monkeypatch):
    steps = []
    monkeypatch.setattr(Views, "refit", lambda self, step, chosen: (steps.append(step), setattr(self, "parts", partition("thirds"))))
    count(views(faces(96), views="one_random"), BUDGET)
    assert REFIT == 200 and steps == [0, 3, 6, 9]
    steps.clear()
    monkeypatch.setattr("fer_lib.training.REFIT", 2)
    count(views(faces(96), views="leave_one_out"), BUDGET)
    assert steps == [0, 2, 4, 6, 8, 10]
