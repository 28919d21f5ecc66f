"""Phase 3 of the Perturb Scheme: views of a face with one cluster blacked out, and the controls the scheme must beat.

    parts = PARTITIONS[perturb.source](...)         # which pixels form which cluster
    masks = views.masks(faces)                      # bool (B, K, 48, 48): what view k leaves out of each face
    x = fill(x, masks[:, k], "black")

Clusters live in the coordinates of the 48-pixel face and move with it through the augmentation.
"""
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from .augment import to_float
from .clustering import SIGNALS, cluster_maps

REFIT = 200  # updates after which clusters are fitted anew when a pass over the faces takes longer


@dataclass(frozen=True)
class Perturb:
    """Everything that decides which views a predictor is trained on. Defaults are the paper's (STUDY: section 4 of the paper, Eq. 1)."""

    source: str = "attention"      # where the partition comes from: one of SOURCES
    n_clusters: int = 3            # K
    lambda_: float = 1.5           # weight of the pixel's place
    alpha: float = 1.2             # weight of the attention (or intensity)
    signal: str = "attention"      # attention | intensity | both
    clusters_per: str = "epoch"    # epoch: one map from the first batch; dataset; image
    views: str = "one_random"      # one_random | leave_one_out | keep_one | none (trains as the baseline: control C0)
    fill: str = "black"            # black | mean | noise, on [0, 1] pixels before standardising

    def __post_init__(self):
        known = {"source": SOURCES, "signal": SIGNALS, "clusters_per": ("epoch", "dataset", "image"), "views": VIEWS, "fill": FILLS}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"Unknown {name} {getattr(self, name)!r}: use one of {', '.join(values)}.")
        if self.clusters_per == "image" and self.source not in PER_IMAGE:
            raise ValueError(f'"{self.source}" has no clusters per image: use one of {", ".join(PER_IMAGE)}.')
        if self.source == "landmarks" and (self.clusters_per, self.n_clusters) != ("image", len(FEATURE_POINTS)):
            raise ValueError(f'"landmarks" cuts each face into {len(FEATURE_POINTS)}: set clusters_per="image" and n_clusters={len(FEATURE_POINTS)}.')


# --- which pixels a cluster holds: (attention, intensity, perturb, seed) -> uint8 (B, 48, 48); the maps are float (B, 48, 48) ---

def _attention(attention, intensity, perturb, seed):
    return cluster_maps(attention, perturb.n_clusters, perturb.lambda_, perturb.alpha, intensity, perturb.signal,
                        n_init=2 if perturb.clusters_per == "image" else 10, random_state=seed)


def _rolled(attention, intensity, perturb, seed):
    """C5: the maps rolled to a random place and turned by a multiple of 90 degrees: as smooth, elsewhere;
    the clusters' areas are its own."""
    draw = torch.randint(0, attention.shape[-1], (3,), generator=torch.Generator().manual_seed(seed)).tolist()
    attention, intensity = (m.roll(draw[:2], (1, 2)).rot90(draw[2] % 4, (1, 2)) for m in (attention, intensity))
    return _attention(attention, intensity, perturb, seed)


def _permuted(attention, intensity, perturb, seed):
    """C5: the maps' pixels in random order."""
    order = torch.randperm(attention[0].numel(), generator=torch.Generator().manual_seed(seed))
    attention, intensity = (m.flatten(1)[:, order].view_as(m) for m in (attention, intensity))
    return _attention(attention, intensity, perturb, seed)


def _cuts(attention, intensity, perturb, seed):
    """C1: connected parts of the arm's areas, cut off one after the other by lines of random direction."""
    areas = _areas(_attention(attention, intensity, perturb, 0), perturb.n_clusters)
    generator = torch.Generator().manual_seed(seed)
    areas = areas[torch.randperm(len(areas), generator=generator)]
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    parts = torch.full((48, 48), perturb.n_clusters - 1, dtype=torch.uint8)
    free = torch.ones(48 * 48, dtype=torch.bool)
    for k, area in enumerate(areas[:-1].tolist()):
        angle = torch.rand(1, generator=generator).item() * 2 * math.pi
        along = (x * math.cos(angle) + y * math.sin(angle)).flatten().masked_fill(~free, math.inf)
        cut = along.argsort()[:area]
        parts.view(-1)[cut], free[cut] = k, False
    return parts[None]


def _rectangles(attention, intensity, perturb, seed):
    """C2: a rectangle of each cluster's area at a random place (random erasing); two may overlap."""
    areas = _areas(_attention(attention, intensity, perturb, 0), perturb.n_clusters)
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(len(areas), 48, 48, dtype=torch.bool)
    for mask, area in zip(masks, areas.tolist()):
        u = torch.rand(3, generator=generator).tolist()
        h = round(min(max(math.sqrt(area * math.exp((2 * u[0] - 1) * math.log(2))), area / 48), 48))
        w = min(round(area / h), 48)
        top, left = int(u[1] * (49 - h)), int(u[2] * (49 - w))
        mask[top : top + h, left : left + w] = True
    return masks


def _thirds(attention, intensity, perturb, seed):
    """C3: K fixed horizontal bands of equal height."""
    return (torch.arange(48) * perturb.n_clusters // 48).to(torch.uint8)[:, None].expand(48, 48)[None].clone()


def _centre(attention, intensity, perturb, seed):
    """C3: a fixed block in the centre and K - 1 square frames around it, of areas as equal as whole pixels allow."""
    reach = (torch.arange(48) - 23.5).abs()
    sides = torch.tensor([round(24 * math.sqrt(k / perturb.n_clusters)) for k in range(1, perturb.n_clusters)])  # half of each square's
    return torch.bucketize(torch.maximum(reach[:, None], reach), sides)[None].to(torch.uint8)


def _coordinates(attention, intensity, perturb, seed):
    """C4: k-means on the coordinates alone (alpha = 0)."""
    return cluster_maps(torch.zeros(1, 48, 48), perturb.n_clusters, perturb.lambda_, 0.0, random_state=seed)


FEATURE_POINTS = (range(17, 27), range(36, 48)), (range(27, 36),), (range(48, 68),)  # brows and eyes, nose, mouth


def landmark_parts(points: torch.Tensor) -> torch.Tensor:
    """C7, an oracle: each pixel to the feature whose landmark is nearest (brows and eyes, nose, mouth): [B, 68, 2] -> uint8 (B, 48, 48)."""
    grid = torch.stack(torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="xy"), -1).view(1, -1, 2)  # (1, 2304, 2), x before y
    nearest = [torch.cat([torch.cdist(grid, some[:, [i for part in feature for i in part]]).amin(2) for some in points.float().split(256)])
               for feature in FEATURE_POINTS]
    return torch.stack(nearest).argmin(0).to(torch.uint8).view(-1, 48, 48)


def _areas(parts, n_clusters):
    return torch.bincount(parts.flatten().long(), minlength=n_clusters) // len(parts)


PARTITIONS = {"attention": _attention, "rolled": _rolled, "permuted": _permuted, "cuts": _cuts, "rectangles": _rectangles,
              "thirds": _thirds, "centre": _centre, "coordinates": _coordinates}
SOURCES = (*PARTITIONS, "landmarks")  # the last is `landmark_parts`, which looks at no map
PER_IMAGE = ("attention", "rolled", "permuted", "landmarks")  # sources that give each face a partition of its own; the others draw one for all


# --- what a view leaves out ---

FILLS = {"black": lambda x, scaling: 0.0, "mean": lambda x, scaling: scaling[0], "noise": lambda x, scaling: _noise(*x.shape[-2:], x.device, x.dtype)}


@lru_cache
@torch.inference_mode(False)  # first drawn by `predict`, it may be asked for in training
def _noise(height: int, width: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """One fixed uniform noise image (H, W) for every face, so that a prediction never depends on its batch."""
    return torch.rand(48, 48, generator=torch.Generator().manual_seed(0))[:height, :width].to(device, dtype)


def fill(x: torch.Tensor, mask: torch.Tensor, name: str, scaling: tuple[float, float]) -> torch.Tensor:
    """x float (B, 1, H, W) in [0, 1] with the pixels of mask bool (B, H, W) exchanged for a fill."""
    value = FILLS[name](x, scaling)
    return torch.where(mask[:, None], value, x) if torch.is_tensor(value) else x.masked_fill(mask[:, None], value)


def _one_random(x, masks, name, scaling, generator):
    """Each face in one of its K+1 views, drawn at random."""
    b, k = masks.shape[:2]
    view = torch.randint(0, k + 1, (b,), generator=generator, device=x.device)
    chosen = masks[torch.arange(b, device=x.device), view.clamp(max=k - 1)] & (view < k)[:, None, None]
    return fill(x, chosen, name, scaling)


def _leave_one_out(x, masks, name, scaling, generator):
    """Each face K+1 times: with cluster k left out, and whole. (B, 1, H, W) -> ((K+1) * B, 1, H, W), view by view."""
    return torch.cat([fill(x, mask, name, scaling) for mask in masks.unbind(1)] + [x])


def _keep_one(x, masks, name, scaling, generator):
    """Each face K+1 times: with only cluster k left, and whole."""
    return torch.cat([fill(x, ~mask, name, scaling) for mask in masks.unbind(1)] + [x])


VIEWS = {"one_random": _one_random, "leave_one_out": _leave_one_out, "keep_one": _keep_one, "none": None}


class Views:
    """The views of one predictor's training: fits clusters when they are due and cuts faces with them.

    `gate` is the frozen attention classifier of phase 1 (eval mode); `images` uint8 [N, 48, 48] the training faces and `points`
    [N, 68, 2] their landmarks, which only C7 looks at. After training
    `parts` holds the last partition, uint8 (1, 48, 48), (K, 48, 48) bool for rectangles, or (N, 48, 48) with clusters per image.
    """

    def __init__(self, perturb: Perturb, gate, images: torch.Tensor, scaling: tuple[float, float], seed: int,
                 points: np.ndarray | None = None):
        self.perturb, self.gate, self.images, self.scaling, self.seed = perturb, gate, images, scaling, seed
        self.points = points
        self.copies = 1 if perturb.views in ("one_random", "none") else perturb.n_clusters + 1
        self.parts: torch.Tensor | None = None

    def maps(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention and intensity of faces: uint8 (B, 48, 48) -> two float (B, 48, 48)."""
        attention, intensity = [], []
        for chunk in images.split(512):
            x = to_float(chunk)
            intensity.append(x[:, 0])
            if self.gate is None:
                attention.append(torch.zeros_like(intensity[-1]))
            else:
                attention.append(self.gate.attention_maps((x - self.scaling[0]) / self.scaling[1]).float())
        return torch.cat(attention), torch.cat(intensity)

    def partition(self, images: torch.Tensor, points: np.ndarray | None = None) -> torch.Tensor:
        """Partition of each face on its own, uint8 (B, 48, 48): clusters per image, and the same at test time."""
        if self.perturb.source == "landmarks":
            return landmark_parts(torch.as_tensor(points))
        attention, intensity = self.maps(images)
        return PARTITIONS[self.perturb.source](attention, intensity, self.perturb, self.seed)

    def refit(self, step: int, faces: torch.Tensor) -> None:
        """Fit clusters if they are due: every pass or REFIT updates from this batch's summed maps ("epoch"), else once."""
        per = self.perturb.clusters_per
        if per == "image" and self.parts is None:
            self.parts = self.partition(self.images, self.points).to(self.images.device)
        elif per == "dataset" and self.parts is None:
            self._fit(self.images, 0)
        elif per == "epoch":
            self._fit(self.images[faces], step)

    def _fit(self, images, step):
        attention, intensity = (m.mean(0, keepdim=True).cpu() for m in self.maps(images))
        self.parts = PARTITIONS[self.perturb.source](attention, intensity, self.perturb, self.seed + step).to(self.images.device)

    def masks(self, faces: torch.Tensor) -> torch.Tensor:
        """What each view leaves out of each face: positions (B,) -> bool (B, K, 48, 48)."""
        parts = self.parts[faces] if self.perturb.clusters_per == "image" else self.parts
        return cut(parts, self.perturb.n_clusters).expand(len(faces), -1, -1, -1)

    def show(self, x: torch.Tensor, masks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The batch the network sees: x (B, 1, H, W) -> (copies * B, 1, H, W)."""
        return VIEWS[self.perturb.views](x, masks, self.perturb.fill, self.scaling, generator)


def cut(parts: torch.Tensor, n_clusters: int) -> torch.Tensor:
    """Partition uint8 (B, 48, 48) -> masks bool (B, K, 48, 48); masks bool (K, 48, 48) -> (1, K, 48, 48)."""
    if parts.dtype == torch.bool:
        return parts[None]
    return parts[:, None] == torch.arange(n_clusters, dtype=torch.uint8, device=parts.device)[None, :, None, None]
