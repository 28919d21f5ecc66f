"""Phase 2 of the Perturb Scheme: k-means over the pixels of attention maps, thousands of maps at once.

    parts = cluster_maps(attention, n_clusters=3)      # (B, 48, 48) -> uint8 (B, 48, 48)

Eq. 1 of the paper is the Euclidean distance of (lambda*x, lambda*y, alpha*S), x, y and S scaled to [0, 1] first; its I_jl is read as I_kl.
k-means++ draws the same uniform numbers for every map, so a map's clusters never depend on the maps beside it. What stands here is plain torch;
for thousands of maps, each on its own, `lloyd` does the same compiled.
"""
from dataclasses import dataclass

import torch

from . import lloyd

SIGNALS = ("attention", "intensity", "both")


@dataclass(frozen=True)
class KMeans:
    """What k-means found: labels int64 (B, N), centres (B, K, D), inertia (B,)."""

    labels: torch.Tensor
    centres: torch.Tensor
    inertia: torch.Tensor


def pixel_features(attention: torch.Tensor | None, lambda_: float = 1.5, alpha: float = 1.2,
                   intensity: torch.Tensor | None = None, signal: str = "attention") -> torch.Tensor:
    """The pixels' features of Eq. 1: maps (B, H, W) -> (B, H*W, 3), or 4 columns for signal "both"."""
    maps = _signal(attention, intensity, signal)
    b, h, w = maps[0].shape
    y, x = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
    place = torch.stack([x, y], -1).to(maps[0]).mul(lambda_).expand(b, h, w, 2)
    low = [m.amin((1, 2), keepdim=True) for m in maps]
    scaled = [alpha * (m - l) / (m.amax((1, 2), keepdim=True) - l).clamp_min(1e-12) for m, l in zip(maps, low)]
    return torch.cat([place, torch.stack(scaled, -1)], -1).flatten(1, 2)  # (B, H*W, D)


def _signal(attention, intensity, signal: str) -> list[torch.Tensor]:
    """The maps that a signal stands for."""
    if signal not in SIGNALS:
        raise ValueError(f"Unknown signal {signal!r}: use one of {', '.join(SIGNALS)}.")
    maps = {"attention": [attention], "intensity": [intensity], "both": [attention, intensity]}[signal]
    if any(m is None for m in maps):
        raise ValueError(f'Signal "{signal}" needs {"both maps" if signal == "both" else "its map"}; one was not given.')
    return maps


def kmeans(points: torch.Tensor, n_clusters: int, n_init: int = 10, max_iter: int = 50, random_state: int = 0) -> KMeans:
    """Lloyd's k-means with k-means++ starts on B sets at once: points (B, N, D); the best of `n_init` starts for each set.

    Nothing of size N x K is stored: a running minimum over the clusters. Stops when no label changes.
    """
    best = None
    for u in _draws(n_init, n_clusters, random_state).to(points):
        found = _lloyd(points, _plus_plus(points, u), max_iter)
        if best is None:
            best = found
        else:
            better = found.inertia < best.inertia
            best = KMeans(torch.where(better[:, None], found.labels, best.labels),
                          torch.where(better[:, None, None], found.centres, best.centres),
                          torch.where(better, found.inertia, best.inertia))
    return best


def _draws(n_init: int, n_clusters: int, random_state: int) -> torch.Tensor:
    return torch.rand((n_init, n_clusters), generator=torch.Generator().manual_seed(random_state))


def _plus_plus(points, u):
    """k-means++ (Arthur & Vassilvitskii 2007) by inverse transform: `u` (K,) uniform numbers, the same for every set."""
    b, n, _ = points.shape
    first = (u[0] * n).long().clamp(max=n - 1).expand(b)
    centres = [points[torch.arange(b), first]]
    nearest = (points - centres[0][:, None]).square().sum(-1)  # (B, N)
    for uk in u[1:]:
        total = nearest.cumsum(1)
        pick = torch.searchsorted(total, (uk * total[:, -1:]), right=True).clamp(max=n - 1)[:, 0]
        centres.append(points[torch.arange(b), pick])
        nearest = torch.minimum(nearest, (points - centres[-1][:, None]).square().sum(-1))
    return torch.stack(centres, 1)  # (B, K, D)


def _assign(points, centres):
    """Nearest centre by |c|^2 - 2 c.x: labels (B, N) and the squared distances (B, N)."""
    least = labels = None
    for k in range(centres.shape[1]):
        c = centres[:, k]
        score = c.square().sum(-1)[:, None] - 2 * torch.bmm(points, c[:, :, None])[..., 0]  # (B, N)
        if least is None:
            least, labels = score, torch.zeros_like(score, dtype=torch.int64)
        else:
            closer = score < least
            least, labels = torch.where(closer, score, least), labels.masked_fill(closer, k)
    return labels, least + points.square().sum(-1)


def _lloyd(points, centres, max_iter):
    labels = None
    for _ in range(max_iter):
        new, _ = _assign(points, centres)
        if labels is not None and torch.equal(new, labels):
            break
        labels = new
        for k in range(centres.shape[1]):
            member = (labels == k).to(points)[:, None]                     # (B, 1, N)
            count = member.sum(-1)                                         # (B, 1)
            mean = torch.bmm(member, points)[:, 0] / count.clamp_min(1)
            centres = centres.index_copy(1, torch.tensor([k], device=points.device),
                                         torch.where(count > 0, mean, centres[:, k])[:, None])
    labels, distance = _assign(points, centres)
    return KMeans(labels, centres, distance.sum(1))


def cluster_maps(attention: torch.Tensor | None, n_clusters: int = 3, lambda_: float = 1.5, alpha: float = 1.2,
                 intensity: torch.Tensor | None = None, signal: str = "attention", n_init: int = 10,
                 random_state: int = 0, max_iter: int = 50, chunk: int = 512) -> torch.Tensor:
    """Cluster of every pixel, numbered from the top of the face down: maps (B, H, W) -> uint8 (B, H, W)."""
    maps = _signal(attention, intensity, signal)
    found = lloyd.fit(torch.stack(maps, 1), _draws(n_init, n_clusters, random_state), lambda_, alpha, max_iter)
    if found is not None:
        return _from_the_top(*found[:2]).view_as(maps[0])
    parts = []
    for several in zip(*(m.split(chunk) for m in maps)):
        named = dict(zip(("attention", "intensity") if signal == "both" else (signal,), several))
        one = kmeans(pixel_features(named.get("attention"), lambda_, alpha, named.get("intensity"), signal), n_clusters, n_init, max_iter, random_state)
        parts.append(_from_the_top(one.labels, one.centres))
    return torch.cat(parts).view_as(maps[0])


def _from_the_top(labels: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Labels (B, N) numbered by their clusters' mean height, uint8."""
    return centres[..., 1].argsort(1).argsort(1).to(torch.uint8).gather(1, labels.long())
