"""Faces: the one thing every other file works on, a set of labelled 48x48 grey faces in three splits.

    faces.images   uint8  [N, 48, 48]
    faces.labels   uint8  [N]   index into EMOTIONS
    faces.split    uint8  [N]   index into SPLITS
    faces.row      int64  [N]   identity of a face: its row in fer2013.csv (or its place in the source)
"""
import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # the order of fer2013.csv, everywhere
SPLITS = ("train", "val", "test")
SIZE = 48  # pixels, height and width of every face
RESERVED = ("fer2013", "fer2013_images", "synthetic", "unknown", "")  # sources with a meaning of their own: no folder's name stands for them


def named_after(folder: str, kind: str) -> str:
    """The source that a folder's name gives, with the kind of its pictures where the name alone would be taken for another source."""
    return f"{folder}_{kind}" if folder in RESERVED else folder


@dataclass(frozen=True)
class Faces:
    """Labelled faces of one source. Arrays share their first axis; raises ValueError when they do not fit together."""

    images: np.ndarray  # uint8 [N, 48, 48]
    labels: np.ndarray  # uint8 [N]
    split: np.ndarray   # uint8 [N]
    row: np.ndarray     # int64 [N]
    source: str = "unknown"  # "fer2013", "synthetic", or the folder's name

    def __post_init__(self):
        n = len(self.images)
        if self.images.dtype != np.uint8 or self.images.shape != (n, SIZE, SIZE):
            raise ValueError(f"images must be uint8 [N, {SIZE}, {SIZE}], got {self.images.dtype} {self.images.shape}.")
        for name in ("labels", "split", "row"):
            if getattr(self, name).shape != (n,):
                raise ValueError(f"{name} must have one entry per image ({n}), got {getattr(self, name).shape}.")

    def __len__(self) -> int:
        return len(self.images)

    def where(self, split: str) -> np.ndarray:
        """Positions of one split's faces, int64 [n], in row order."""
        if split not in SPLITS:
            raise ValueError(f"Unknown split {split!r}: use one of {', '.join(SPLITS)}.")
        return np.flatnonzero(self.split == SPLITS.index(split))

    def select(self, index: np.ndarray) -> "Faces":
        """The faces at `index` (positions or a boolean mask), in that order."""
        return Faces(self.images[index], self.labels[index], self.split[index], self.row[index], self.source)

    def counts(self) -> np.ndarray:
        """Faces per split and emotion, int64 [3, 7]."""
        table = np.zeros((len(SPLITS), len(EMOTIONS)), np.int64)
        np.add.at(table, (self.split, self.labels), 1)
        return table

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change when any pixel, label, split or row does."""
        digest = hashlib.sha256()
        for array in (self.images, self.labels, self.split, self.row.astype("<i8")):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:12]

    @cached_property
    def copies(self) -> np.ndarray:
        """Group of exact pixel copies each face belongs to, int64 [N]; faces of one group share every pixel."""
        flat = np.ascontiguousarray(self.images.reshape(len(self), -1))
        _, group = np.unique(flat.view(np.dtype((np.void, flat.shape[1]))).ravel(), return_inverse=True)
        return group.astype(np.int64)

    @cached_property
    def blank(self) -> np.ndarray:
        """Faces whose pixels all have one value, bool [N]."""
        flat = self.images.reshape(len(self), -1)
        return flat.min(1) == flat.max(1)

    def leaked(self, split: str = "test", into: tuple[str, ...] = ("train", "val")) -> np.ndarray:
        """Faces of `split` with a pixel copy in the splits `into`, bool [n] in the order of `where(split)`.

        Blank images are set apart: they are copies of each other but no leak of a face.
        """
        other = np.isin(self.split, [SPLITS.index(name) for name in into]) & ~self.blank
        here = self.where(split)
        return np.isin(self.copies[here], self.copies[other]) & ~self.blank[here]

    def clean(self, split: str = "test") -> np.ndarray:
        """Faces of `split` with no pixel copy in the earlier splits, bool [n]: the clean test split."""
        return ~self.leaked(split, SPLITS[: SPLITS.index(split)])
