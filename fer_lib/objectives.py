"""What a network is trained to minimise. An objective is one function (model, batch, recipe) -> scalar loss, and one entry in OBJECTIVES."""
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass
class Batch:
    """One training step's faces, augmented and standardised."""

    x: torch.Tensor                     # float (B, 1, H, W)
    labels: torch.Tensor                # int64 (B,), or shares float (B, 7)
    class_weights: torch.Tensor         # float (7,), faces / (7 * faces of the emotion) in the training split


def cross_entropy(model, batch: Batch, recipe) -> torch.Tensor:
    """Cross-entropy with the recipe's label smoothing."""
    return F.cross_entropy(model(batch.x).float(), batch.labels, label_smoothing=recipe.label_smoothing)


def balanced(model, batch: Batch, recipe) -> torch.Tensor:
    """Cross-entropy in which every emotion has the same weight, however rare."""
    return F.cross_entropy(model(batch.x).float(), batch.labels, batch.class_weights, label_smoothing=recipe.label_smoothing)


OBJECTIVES = {"cross_entropy": cross_entropy, "balanced": balanced}
