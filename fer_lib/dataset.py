"""Dataset: the faces of a study with everything paired to them, row by row: masks, landmarks, votes, truth.

    data = open_dataset("fer2013.csv", cache="results/cache")    # or open_dataset(None): synthetic faces
    data.images("masked")                                        # uint8 [N, 48, 48]
    data.subsets("test")["clean"]                                # bool [n]: rows without a copy in training or validation
"""
import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from .faces import EMOTIONS, Faces
from .fer2013 import Votes, load, maskfer_rows, votes
from .landmarks import REGIONS, Landmarks, for_faces, region_masks
from .masking import MASK_VERSION, draw_masks
from .synthetic import SYNTHETIC_VERSION, Synthetic, make_faces

VARIANTS = ("unmasked", "masked")


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
        """uint8 [N, 48, 48] of one of VARIANTS."""
        if variant not in VARIANTS:
            raise ValueError(f"Unknown variant {variant!r}: use one of {', '.join(VARIANTS)}.")
        return self.faces.images if variant == "unmasked" else self.masked

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

    def mean_faces(self, variant: str, split: str = "test") -> np.ndarray:
        """Mean face of each emotion, float32 [7, 48, 48] in 0..255: what is shown in git in place of people."""
        here = self.faces.where(split)
        return np.stack([self.images(variant)[here[self.labels(split) == k]].mean(0, dtype=np.float32) for k in range(len(EMOTIONS))])

    def regions(self, index: np.ndarray, names: tuple[str, ...] = REGIONS) -> np.ndarray:
        """Region masks of the faces at `index`, bool [n, R, 48, 48]."""
        return region_masks(self.landmarks.points[index], names)

    @property
    def versions(self) -> dict[str, int]:
        """Versions of what the images were made with, for the run key."""
        return {"masks": MASK_VERSION, **({"synthetic": SYNTHETIC_VERSION} if self.faces.source == "synthetic" else {})}


def open_dataset(path: str | Path | None = None, sizes: tuple[int, int, int] = (2100, 700, 700), votes_path: str | Path | None = None,
                 author_rows: str | Path | None = None, cache: str | Path | None = None, seed: int = 0) -> Dataset:
    """The data set at `path`, or synthetic faces of the given split sizes when it is None.

    Masks are drawn once and kept in `cache` (a folder ignored by git) beside the faces. Raises fer2013.DataError on bad input.
    """
    synthetic = None
    if path is None:
        synthetic = make_faces(*sizes, seed=seed)
        faces, marks = synthetic.faces, synthetic.landmarks
    else:
        faces = load(path, cache=cache)
        marks = for_faces(faces)
    paired = votes(votes_path, faces) if votes_path else None  # before anything is written: their files may be bad
    author = maskfer_rows(author_rows, faces) if author_rows else None
    masked, region = _masks(faces, marks, Path(cache) if cache else None)
    return Dataset(faces, marks, masked, region, paired, author, synthetic)


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
