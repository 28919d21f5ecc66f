"""k-means against scikit-learn and known answers, the features of Eq. 1, and clusters as parts of the face."""
import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch.nn import functional as F

from fer_lib.clustering import SIGNALS, cluster_maps, kmeans, pixel_features


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
