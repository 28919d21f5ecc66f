"""Dataset: the faces of a study with everything paired to them, row by row: masks, landmarks, votes, truth.

    data = open_dataset("fer2013.csv", cache="results/cache")    # or open_dataset(None): synthetic faces
    data.images("masked")                                        # uint8 [N, 48, 48]
    data.subsets("test")["clean"]                                # bool [n]: rows without a copy in training or validation
"""
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from .augment import standardise, to_float
from .faces import EMOTIONS, SIZE, Faces
from .fer2013 import Votes, load, maskfer_rows, votes
from .landmarks import HOW, REGIONS, Landmarks, for_faces, heatmaps, region_masks
from .masking import MASK_VERSION, draw_masks, occlude, roll_region
from .pairs import holds_pairs, read_pairs
from .synthetic import SYNTHETIC_VERSION, Synthetic, make_faces

TRAIN_ROWS = ("all", "unleaked")
LEAST_IN_MEAN = 20                 # faces of real people in a picture of their mean: one of a few would show them
VARIANTS = ("unmasked", "masked")  # what every network is tested on
BOTH = ("mixed", "pairs")          # what one may be trained on besides: each face unmasked or masked by chance, or both pictures of it
# And trained and tested on besides: faces without a region, and without the same shape at a random place.
OCCLUDED = tuple(f"{kind}_{region}" for kind in ("no", "rolled") for region in REGIONS)


@dataclass(frozen=True)
class Dataset:
    """All arrays have one entry a face, in the order of `faces`."""

    faces: Faces
    landmarks: Landmarks
    masked: np.ndarray                   # uint8 [N, 48, 48]
    mask_region: np.ndarray              # bool [N, 48, 48]
    votes: Votes | None = None           # FER+
    author: np.ndarray | None = None     # bool [N], rows of the first paper's MaskFer
    synthetic: Synthetic | None = None   # action units and truth

    def images(self, variant: str) -> np.ndarray:
        """uint8 [N, 48, 48] of one of VARIANTS, or of OCCLUDED (filled with the mean of the face's visible pixels); of one of BOTH
        [N, 2, 48, 48], unmasked and masked."""
        if variant not in (*VARIANTS, *BOTH, *OCCLUDED):
            raise ValueError(f"Unknown variant {variant!r}: use one of {', '.join((*VARIANTS, *BOTH, *OCCLUDED))}.")
        if variant in BOTH:
            return np.stack([self.faces.images, self.masked], 1)
        if variant in OCCLUDED:
            return self._occluded(*variant.split("_", 1))
        return self.faces.images if variant == "unmasked" else self.masked

    def inputs(self, index: np.ndarray, variant: str = "unmasked", device: str | torch.device = "cpu") -> torch.Tensor:
        """What a network is fed of the faces at `index`: float32 (n, 1, 48, 48), standardised."""
        return self.standardised(self.images(variant)[index], device)

    def standardised(self, images: np.ndarray, device: str | torch.device = "cpu") -> torch.Tensor:
        """Any grey pictures, uint8 [n, 48, 48], as these networks are fed: float32 (n, 1, 48, 48)."""
        return standardise(to_float(torch.as_tensor(np.ascontiguousarray(images)).to(device)), self.scaling)

    def _occluded(self, kind: str, region: str) -> np.ndarray:
        found, generator = [], torch.Generator().manual_seed(0)
        for index in np.array_split(np.arange(len(self.faces)), max(1, len(self.faces) // 2048)):
            mask = torch.as_tensor(self.regions(index, (region,))[:, 0])
            mask = roll_region(mask, generator) if kind == "rolled" else mask
            x = to_float(torch.as_tensor(np.ascontiguousarray(self.faces.images[index])))
            found.append((occlude(x, mask, "mean") * 255).round().byte()[:, 0].numpy())
        return np.concatenate(found)

    def train_rows(self, rows: str = "all") -> np.ndarray:
        """Positions of the training faces, int64: all, or those without a pixel copy in validation or test ("unleaked")."""
        if rows not in TRAIN_ROWS:
            raise ValueError(f"Unknown rows {rows!r}: use one of {', '.join(TRAIN_ROWS)}.")
        train = self.faces.where("train")
        return train if rows == "all" else train[~self.faces.leaked("train", ("val", "test"))]

    def priors(self, index: np.ndarray, prior: str = "full", sigma: float = 2.0) -> np.ndarray:
        """Where the landmarks of the faces at `index` lie, float16 [n, 2, 48, 48]: for the unmasked and for the masked picture.

        `full`: the same for both; `visible`: without the points under the mask; `shuffled`: those of another face (a control). Faces of
        which no landmarks are known (those of the template) stay 0. Raises ValueError when none are known at all.
        """
        known = self.landmarks.how[index] != HOW.index("template")
        if not known.any():
            raise ValueError("No landmarks are known of these faces, so there is nothing to hold attributions to: install the extra "
                             "`landmarks` and load them again.")
        points = self.landmarks.points[index]
        keep = np.repeat(known[:, None], points.shape[1], 1)
        maps = heatmaps(points, sigma, keep)
        if prior == "shuffled":
            order = np.random.default_rng(0).permutation(np.flatnonzero(known))
            maps[order] = maps[np.roll(order, 1)]
        if prior != "visible":
            return np.stack([maps, maps], 1)
        x, y = np.clip(points.round().astype(int), 0, SIZE - 1).transpose(2, 0, 1)  # (n, 68) each
        return np.stack([maps, heatmaps(points, sigma, keep & ~self.mask_region[index[:, None], y, x])], 1)

    def train_labels(self, rows: str = "all", labels: str = "given") -> np.ndarray:
        """What is learnt of the same faces: the given labels int64 [n], or ("votes-<fingerprint of the votes>") FER+'s shares of the votes,
        float32 [n, 7]. Raises ValueError when these votes are not at hand."""
        index = self.train_rows(rows)
        if labels == "given":
            return self.faces.labels[index].astype(np.int64)
        if self.votes is None or labels != f"votes-{self.votes.fingerprint}":
            raise ValueError(f"Labels {labels!r} need the FER+ votes of that fingerprint: give them by --votes.")
        return self.votes.shares(self.faces.labels)[index]

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of faces and drawn masks: part of every run's key."""
        digest = hashlib.sha256(self.faces.fingerprint.encode())
        digest.update(np.ascontiguousarray(self.masked).tobytes())
        return digest.hexdigest()[:12]

    @cached_property
    def scaling(self) -> tuple[float, float]:
        """Scalar mean and standard deviation of the unmasked training split's pixels in [0, 1]; every network is fed by them."""
        pixels = self.faces.images[self.faces.where("train")]
        counts = np.bincount(pixels.ravel(), minlength=256).astype(float)
        values = np.arange(256) / 255
        mean = (counts * values).sum() / counts.sum()
        return round(float(mean), 6), round(float(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum())), 6)

    def subsets(self, split: str = "test") -> dict[str, np.ndarray]:
        """Views of a split, bool [n] each: all; clean (no copy in earlier splits); agree (FER+ plurality is the label); author (MaskFer rows)."""
        here = self.faces.where(split)
        views = {"all": np.ones(len(here), bool), "clean": self.faces.clean(split)}
        if self.votes is not None:
            views["agree"] = self.votes.agree[here]
        if self.author is not None:
            views["author"] = self.author[here]
        return views

    def labels(self, split: str) -> np.ndarray:
        """int64 [n]."""
        return self.faces.labels[self.faces.where(split)].astype(np.int64)

    def mean_faces(self, variant: str, split: str = "test", move: Callable = lambda images, points: images) -> np.ndarray:
        """Mean face of each emotion over the split's clean rows, float32 [7, 48, 48] in 0..255: what is shown in git in place of people.

        `move` (images [n, 48, 48], points [n, 68, 2] -> images) first brings faces to one place. An emotion with fewer than LEAST_IN_MEAN faces of
        real people stays grey (127).
        """
        here, images = self.faces.where(split)[self.faces.clean(split)], self.images(variant)
        means, least = np.full((len(EMOTIONS), 48, 48), 127, np.float32), 1 if self.faces.source == "synthetic" else LEAST_IN_MEAN
        for k in range(len(EMOTIONS)):
            rows = here[self.faces.labels[here] == k]
            if len(rows) >= least:
                means[k] = move(images[rows], self.landmarks.points[rows]).mean(0, dtype=np.float32)
        return means

    def regions(self, index: np.ndarray, names: tuple[str, ...] = REGIONS) -> np.ndarray:
        """Region masks of the faces at `index`, bool [n, R, 48, 48]."""
        return region_masks(self.landmarks.points[index], names)

    @cached_property
    def region_shares(self) -> dict[str, np.ndarray]:
        """Share of the test faces whose region covers each pixel, float [48, 48] a region."""
        index = self.faces.where("test")
        return {name: self.regions(index, (name,)).mean((0, 1)) for name in REGIONS}

    @property
    def versions(self) -> dict[str, int]:
        """Versions of what the images were made with, for the run key."""
        return {"masks": MASK_VERSION, **({"synthetic": SYNTHETIC_VERSION} if self.faces.source == "synthetic" else {})}


def open_dataset(path: str | Path | None = None, sizes: tuple[int, int, int] = (2100, 700, 700), votes_path: str | Path | None = None,
                 author_rows: str | Path | None = None, cache: str | Path | None = None, seed: int = 0) -> Dataset:
    """The data set at `path`, or synthetic faces of the given split sizes when it is None.

    Masks are drawn once and kept in `cache` (a folder ignored by git) beside the faces. A csv of paired pictures (see pairs.py) brings real
    masked faces: `masked` is these, and `mask_region` what a mask drawn from the unmasked picture's landmarks would cover, for the true
    region is not known and the two pictures need not lie alike. FER+ votes and the author's rows belong to FER2013 and are refused then.
    Raises fer2013.DataError on bad input.
    """
    synthetic, real = None, None
    if path is None:
        synthetic = make_faces(*sizes, seed=seed)
        faces, marks = synthetic.faces, synthetic.landmarks
    else:
        faces, real = read_pairs(path)[:2] if holds_pairs(path) else (load(path, cache=cache), None)
        marks = for_faces(faces)
    paired = votes(votes_path, faces) if votes_path else None  # before anything is written: their files may be bad
    author = maskfer_rows(author_rows, faces) if author_rows else None
    masked, region = _masks(faces, marks, Path(cache) if cache else None)
    return Dataset(faces, marks, masked if real is None else real, region, paired, author, synthetic)


def _masks(faces: Faces, marks: Landmarks, cache: Path | None) -> tuple[np.ndarray, np.ndarray]:
    digest = hashlib.sha256(marks.points.tobytes() + f"{faces.fingerprint} {MASK_VERSION}".encode()).hexdigest()[:12]
    kept = cache / f"masks-{digest}.npz" if cache else None
    if kept is not None and kept.exists():
        with np.load(kept) as arrays:
            return arrays["masked"], np.unpackbits(arrays["region"], axis=-1).astype(bool)
    masked, region = draw_masks(faces.images, marks.points, faces.row)
    if kept is not None:
        cache.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(f"{kept.name}.{os.getpid()}.npz")
        np.savez(temporary, masked=masked, region=np.packbits(region, axis=-1))
        os.replace(temporary, kept)
    return masked, region
