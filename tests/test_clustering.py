"""k-means against scikit-learn and known answers, the features of Eq. 1, and clusters as parts of the face."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch.nn import functional as F

from fer_lib import lloyd
from fer_lib.clustering import SIGNALS, _draws, cluster_maps, kmeans, pixel_features


def smooth(n: int, seed: int = 0, side: int = 48) -> torch.Tensor:
    """Maps like the attention of faces: a few bumps, float (n, side, side)."""
    coarse = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (side, side), mode="bicubic")[:, 0]


@pytest.mark.parametrize("k", [2, 3, 6])
def test_inertia_is_within_one_percent_of_scikit_learn(k):
    points = pixel_features(smooth(4))
    found = kmeans(points, k)
    theirs = [KMeans(k, n_init=10, random_state=0).fit(one.double().numpy()).inertia_ for one in points]
    assert (found.inertia.numpy() / theirs).max() < 1.01


def test_labels_centres_and_inertia_belong_together():
    points = pixel_features(smooth(3, side=24))
    found = kmeans(points, 4, n_init=2)
    distance = (points[:, :, None] - found.centres[:, None]).square().sum(-1)  # (B, N, K)
    assert torch.equal(found.labels, distance.argmin(-1))
    assert torch.allclose(found.inertia, distance.amin(-1).sum(1), rtol=1e-4)
    for k in range(4):
        mean = torch.stack([p[labels == k].mean(0) for p, labels in zip(points, found.labels)])
        assert torch.allclose(found.centres[:, k], mean, atol=1e-4)


def test_well_separated_blobs_are_found_exactly():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0, 0], [10, 0, 0], [0, 10, 0], [0, 0, 10]])
    truth = torch.randint(0, 4, (5, 300), generator=generator)
    points = centres[truth] + 0.1 * torch.randn(5, 300, 3, generator=generator)
    found = kmeans(points, 4)
    for labels, true in zip(found.labels, truth):
        assert len({(a, b) for a, b in zip(labels.tolist(), true.tolist())}) == 4  # a renaming


def test_one_cluster_is_the_mean_of_all():
    points = torch.rand(2, 50, 3)
    found = kmeans(points, 1)
    assert torch.allclose(found.centres[:, 0], points.mean(1), atol=1e-5) and (found.labels == 0).all()


def test_more_starts_are_never_worse():
    points = pixel_features(smooth(8, side=24))
    few, many = (kmeans(points, 5, n_init=n).inertia for n in (1, 4))
    assert (many <= few + 1e-4).all() and (many < few - 1e-3).any()


def test_a_maps_clusters_do_not_depend_on_the_maps_beside_it():
    maps = smooth(7)
    together = cluster_maps(maps, n_init=2)
    assert torch.equal(together, torch.cat([cluster_maps(one[None], n_init=2) for one in maps]))
    assert torch.equal(together.flip(0), cluster_maps(maps.flip(0), n_init=2))
    assert torch.equal(together, cluster_maps(maps, n_init=2, chunk=3))


def test_same_random_state_same_clusters():
    maps = smooth(3)
    before = torch.get_rng_state()
    assert torch.equal(cluster_maps(maps, n_init=1), cluster_maps(maps, n_init=1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("k", [3, 5])
def test_alpha_zero_gives_voronoi_cells(k):
    """Without attention every pixel belongs to the nearest of K places, and the map plays no part."""
    parts = cluster_maps(smooth(2), k, alpha=0.0, n_init=2)
    assert torch.equal(parts[0], parts[1])
    y, x = np.mgrid[:48, :48]
    cells = parts[0].numpy()
    centres = np.array([(y[cells == i].mean(), x[cells == i].mean()) for i in range(k)])
    distance = (y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2  # (48, 48, K)
    own = np.take_along_axis(distance, cells[..., None].astype(int), -1)[..., 0]
    assert (own <= distance.min(-1) + 1e-2).all()


def test_large_alpha_cuts_by_attention_alone():
    maps = smooth(1)
    parts = cluster_maps(maps, 2, lambda_=0.0, alpha=1.0)[0]
    a, b = sorted((maps[0][parts == k] for k in (0, 1)), key=lambda values: values.mean())
    assert a.max() <= b.min()


def test_clusters_are_numbered_from_the_top():
    parts = cluster_maps(smooth(6), 4, n_init=2)
    assert parts.dtype == torch.uint8 and parts.shape == (6, 48, 48)
    height = torch.arange(48.0)[:, None].expand(48, 48)
    for one in parts:
        heights = [height[one == k].mean().item() for k in range(4)]
        assert heights == sorted(heights)


@pytest.mark.parametrize("signal", SIGNALS)
def test_features_are_those_of_eq_1(signal):
    attention, intensity = torch.rand(2, 6, 4) * 3 + 1, torch.rand(2, 6, 4)
    features = pixel_features(attention, 1.5, 1.2, intensity, signal).view(2, 6, 4, -1)
    scaled = lambda m: (m - m.min()) / (m.max() - m.min())
    used = {"attention": [attention], "intensity": [intensity], "both": [attention, intensity]}[signal]
    assert features.shape[-1] == 2 + len(used)
    for b, i, j in ((0, 0, 0), (0, 5, 3), (1, 2, 1)):
        expected = [1.5 * j / 3, 1.5 * i / 5] + [1.2 * scaled(m[b])[i, j].item() for m in used]
        assert features[b, i, j].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_constant_map_gives_a_constant_feature():
    features = pixel_features(torch.full((1, 8, 8), 0.4))
    assert features.isfinite().all() and (features[..., 2] == 0).all()


def test_unknown_signal_and_missing_maps_are_refused():
    with pytest.raises(ValueError, match="attention, intensity, both"):
        pixel_features(torch.rand(1, 4, 4), signal="depth")
    with pytest.raises(ValueError, match="needs both maps"):
        pixel_features(torch.rand(1, 4, 4), signal="both")
    with pytest.raises(ValueError, match="needs its map"):
        pixel_features(None, signal="attention")


# --- compiled ---

def both_ways(maps: torch.Tensor, k: int, starts: int, max_iter: int):
    """What numba and plain torch find of the same maps (B, V, H, W)."""
    features = pixel_features(maps[:, 0], intensity=maps[:, -1], signal="both" if maps.shape[1] == 2 else "attention")
    return lloyd.fit(maps, _draws(starts, k, 0), 1.5, 1.2, max_iter), kmeans(features, k, starts, max_iter)


@pytest.fixture
def compiled(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(lloyd, "LEAST", 1)


@pytest.mark.parametrize("k, values, side", [(3, 1, 48), (5, 2, 48), (1, 1, 48), (3, 1, 20)])
def test_compiled_for_the_cpu_it_is_the_same_k_means(compiled, k, values, side):
    maps = smooth(12, side=side).view(-1, values, side, side)
    (labels, centres, inertia), reference = both_ways(maps, k, 1, 10)
    assert torch.equal(labels.long(), reference.labels)
    assert torch.allclose(centres, reference.centres, atol=1e-4) and torch.allclose(inertia, reference.inertia, rtol=1e-4)


def test_compiled_it_finds_scikit_learns_inertia(compiled):
    maps = smooth(40)[:, None]
    points = pixel_features(maps[:, 0]).double().numpy()
    one = np.array([KMeans(3, n_init=1, max_iter=10, random_state=0).fit(p).inertia_ for p in points])
    ten = np.array([KMeans(3, n_init=10, random_state=0).fit(p).inertia_ for p in points])
    ours_one, ours_ten = (lloyd.fit(maps, _draws(starts, 3, 0), 1.5, 1.2, steps)[2].numpy() for starts, steps in ((1, 10), (10, 50)))
    assert (ours_one / ten).mean() < 1.01 * (one / ten).mean() and (ours_ten / ten).mean() < 1.002


def test_compiled_maps_are_numbered_and_shaped_as_ever(compiled, monkeypatch):
    maps = smooth(6)
    found = cluster_maps(maps, 4, n_init=1)
    monkeypatch.setattr(lloyd, "LEAST", 1000)
    assert found.dtype == torch.uint8 and torch.equal(found, cluster_maps(maps, 4, n_init=1))


def test_compiled_it_leaves_torchs_threads_alone(compiled):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    found = lloyd.fit(smooth(5)[:, None], _draws(1, 3, 0), 1.5, 1.2, 10)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, lloyd.fit(smooth(5)[:, None], _draws(1, 3, 0), 1.5, 1.2, 10)))


def test_compiled_constant_maps_and_alpha_zero_give_places_alone(compiled):
    maps = torch.cat([torch.full((1, 1, 48, 48), 0.4), torch.zeros(1, 1, 48, 48)])
    (labels, _, inertia), reference = both_ways(maps, 3, 1, 10)
    assert inertia.isfinite().all() and torch.equal(labels.long(), reference.labels)


TRITON = """
import torch
from fer_lib import lloyd
from fer_lib.clustering import _draws, kmeans, pixel_features
torch.manual_seed(0)
maps = torch.nn.functional.interpolate(torch.rand(2, 2, 6, 6), (48, 48), mode="bicubic")
for k, values in ((3, 1), (5, 2), (1, 1)):
    some, draws = maps[:, :values].contiguous(), _draws(2, k, 0)
    found = torch.empty(2, 2304, dtype=torch.uint8), torch.empty(2, k, 2 + values), torch.empty(2)
    lloyd._triton()(some, draws, 1.5, 1.2, 10, *found)
    reference = kmeans(pixel_features(some[:, 0], intensity=some[:, -1], signal="both" if values == 2 else "attention"), k, 2, 10)
    assert torch.equal(found[0].long(), reference.labels) and torch.allclose(found[1], reference.centres, atol=1e-4)
    assert torch.allclose(found[2], reference.inertia, rtol=1e-4)
"""


def test_the_kernel_for_gpus_is_the_same_k_means_as_its_interpreter_runs_it():
    pytest.importorskip("triton")
    said = subprocess.run([sys.executable, "-c", TRITON], env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
                          capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-1500:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_the_same_k_means():
    maps = smooth(600)[:, None]
    reference = kmeans(pixel_features(maps[:, 0]), 3, 1, 10)
    labels, _, inertia = lloyd.fit(maps.cuda(), _draws(1, 3, 0), 1.5, 1.2, 10)
    assert torch.allclose(inertia.cpu(), reference.inertia, rtol=1e-3) and (labels.cpu().long() == reference.labels).float().mean() > 0.999
