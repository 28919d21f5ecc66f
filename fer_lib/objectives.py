"""What a network is trained to minimise. An objective is one function (model, batch, recipe) -> scalar loss, and one entry in OBJECTIVES.

Beside cross-entropy stand the two companion papers: training on pairs of a face with and without a mask (Masked Student Dataset of
Expressions), and attributions that are held to the landmarks (Privileged Attribution Loss).
"""
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

SLACK = 1e-3  # of an image's typical attribution: channels far below it have no direction worth following


@dataclass(frozen=True)
class Term:
    """The second term of an objective: how strongly it joins cross-entropy, and what of the attributions is held to the landmarks."""

    weight: float = 1.0
    warmup: float = 0.0            # share of the updates over which the weight grows from 0
    channels: str = "mean"         # whose attribution: all | mean (of all) | half (each of the first half)
    target: str = "label"          # whose logit is attributed: label | sum
    form: str = "correlation"      # correlation | literal: the prior as it is, not standardised
    prior: str = "full"            # one of PRIORS
    sigma: float = 2.0             # pixels of 48: width of a landmark in the prior
    stages: int = 0                # the map after so many stages is attributed; 0: the last that is never below 6x6 in training

    def __post_init__(self):
        if self.target == "sum of probabilities":
            raise ValueError("The sum of softmax outputs is 1 whatever the network sees, so its gradient is 0 everywhere and there is "
                             'nothing to attribute: use target="label", or "sum" (of the logits).')
        for name, known in {"channels": CHANNELS, "target": ("label", "sum"), "form": ("correlation", "literal"), "prior": PRIORS}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"Unknown {name} {getattr(self, name)!r}: use one of {', '.join(known)}.")


CHANNELS = {"all": lambda a: a, "mean": lambda a: a.mean(1, keepdim=True), "half": lambda a: a[:, : a.shape[1] // 2]}
PRIORS = ("full", "visible", "shuffled")  # all landmarks | those that no mask covers | another face's (control)


@dataclass
class Batch:
    """One training step's faces, augmented and standardised."""

    x: torch.Tensor                     # float (B, 1, H, W); pairs: unmasked faces, then the same faces masked
    labels: torch.Tensor                # int64 (B,), or shares float (B, 7)
    class_weights: torch.Tensor         # float (7,), faces / (7 * faces of the emotion) in the training split
    whole: torch.Tensor | None = None   # float (B, 1, H, W): the same faces unmasked, for a teacher
    prior: torch.Tensor | None = None   # float (B, 1, H, W) in [0, 1]; all 0: the face has no landmarks
    teacher: nn.Module | None = None    # frozen
    head: nn.Module | None = None       # of the objective's own, one of HEADS
    term: Term = Term()
    stages: int = 0                     # of the map that is attributed
    done: float = 1.0                   # share of all updates


def _cross_entropy(logits, batch: Batch, recipe) -> torch.Tensor:
    return F.cross_entropy(logits.float(), batch.labels, label_smoothing=recipe.label_smoothing)


def cross_entropy(model, batch: Batch, recipe) -> torch.Tensor:
    """Cross-entropy with the recipe's label smoothing."""
    return _cross_entropy(model(batch.x), batch, recipe)


def balanced(model, batch: Batch, recipe) -> torch.Tensor:
    """Cross-entropy in which every emotion has the same weight, however rare."""
    return F.cross_entropy(model(batch.x).float(), batch.labels, batch.class_weights, label_smoothing=recipe.label_smoothing)


# ------------------------------------------------------------------------------------------------------- faces with and without a mask

def apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean over faces and places of 1 - cosine of two maps (B, C, h, w) along the channels: C/2 times the mean squared error of the
    L2-normalised maps, the code's loss of the masked-student paper."""
    return (1 - F.cosine_similarity(a.float(), b.float(), dim=1)).mean()


def contrastive(model, batch: Batch, recipe) -> torch.Tensor:
    """Cross-entropy on both pictures of a face (their mean, where the paper has the sum: its weight is twice ours), and their last maps pulled
    together."""
    maps = model.forward_features(batch.x)
    return _cross_entropy(model.head(maps), batch, recipe) + _weight(batch) * apart(*maps.chunk(2))


def distillation(model, batch: Batch, recipe) -> torch.Tensor:
    """Cross-entropy, and the last map pulled to that of a frozen teacher who sees the face without its mask."""
    maps = model.forward_features(batch.x)
    with torch.no_grad():
        taught = batch.teacher.forward_features(batch.whole)
    return _cross_entropy(model.head(maps), batch, recipe) + _weight(batch) * apart(maps, taught)


def logit_distillation(model, batch: Batch, recipe, temperature: float = 4.0) -> torch.Tensor:
    """Cross-entropy, and the softened probabilities pulled to the teacher's (Hinton et al. 2015). An extension, not the paper's."""
    logits = model(batch.x)
    with torch.no_grad():
        taught = batch.teacher(batch.whole)
    soft, hard = F.log_softmax(logits.float() / temperature, 1), F.softmax(taught.float() / temperature, 1)
    return _cross_entropy(logits, batch, recipe) + _weight(batch) * temperature**2 * F.kl_div(soft, hard, reduction="batchmean")


def supervised_contrastive(model, batch: Batch, recipe, temperature: float = 0.1) -> torch.Tensor:
    """Cross-entropy, and embeddings (128 numbers) of one emotion, masked or not, pulled together and others pushed away (Khosla et al.
    2020). An extension, not the paper's."""
    maps = model.forward_features(batch.x)
    z = F.normalize(batch.head(maps.mean((2, 3))).float(), dim=1)  # (B, 128)
    with torch.autocast(z.device.type, enabled=False):
        likeness = z @ z.T / temperature
    labels = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(1)
    self_ = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_p = likeness.masked_fill(self_, float("-inf")).log_softmax(1).masked_fill(self_, 0)
    alike = (labels[:, None] == labels) & ~self_                    # a face is alike its own other picture at least
    loss = -((log_p * alike).sum(1) / alike.sum(1).clamp(min=1)).mean()
    return _cross_entropy(model.head(maps), batch, recipe) + _weight(batch) * loss


# ----------------------------------------------------------------------------------------------------------- privileged attribution

def attributed(model, x: torch.Tensor, labels: torch.Tensor, stages: int, target: str = "label") -> tuple[torch.Tensor, torch.Tensor]:
    """Attributions F * dz/dF (B, C, h, w) of the map F after so many stages, and the logits (B, 7), both float32 outside autocast.

    z is the label's logit (of label shares, their mean) or the sum of all, as the network says it in use: in training the way from the map to
    z is gone twice, and its batch normalisation is that of eval mode where it is attributed. Else a face's slope would hold the other faces'
    labels, through the statistics of the batch, and the loss would be met there. Both can be differentiated again.
    """
    maps = model.forward_features(x, stages)
    with torch.autocast(x.device.type, enabled=False):
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        maps = maps if maps.requires_grad else maps.requires_grad_()
        logits = model.classify(maps, stages)
        judged = _in_use(model, maps, stages) if model.training else logits
        shares = labels if labels.ndim == 2 else F.one_hot(labels, logits.shape[1])
        z = (judged if target == "sum" else judged * shares).sum()
        slope, = torch.autograd.grad(z, maps, create_graph=True)
    return maps * slope, logits


def _in_use(model, maps: torch.Tensor, stages: int) -> torch.Tensor:
    """Logits of maps, without statistics of the batch and without dropout; the network is left in training mode."""
    model.eval()
    logits = model.classify(maps, stages)
    model.train()
    return logits


def prior_distance(attributions: torch.Tensor, prior: torch.Tensor, form: str = "correlation") -> torch.Tensor:
    """Privileged attribution loss of each face (B,): minus the mean over channels and places of the attributions (B, C, h, w), standardised
    per channel, times the prior (B, 1, H, W), averaged to their size. `correlation` standardises the prior too, so that -1 is a perfect
    match; `literal` does not. A face whose prior is all 0 gives 0."""
    a = attributions.flatten(2)                                                      # (B, C, hw)
    h = F.adaptive_avg_pool2d(prior.to(a.dtype), attributions.shape[-2:]).flatten(2)  # (B, 1, hw)
    a = _standardised(a, SLACK)
    h = _standardised(h) if form == "correlation" else h
    return -(a * h).mean((1, 2)) * (prior.amax((1, 2, 3)) > 0)


def _standardised(values, slack: float = 0.0):
    """(B, C, n) less each channel's mean, over its standard deviation (and `slack` of the image's typical one, so that silent channels stay so)."""
    centred = values - values.mean(-1, keepdim=True)
    variance = centred.pow(2).mean(-1, keepdim=True)
    return centred / (variance + slack**2 * variance.detach().mean(1, keepdim=True) + 1e-12).sqrt()


def privileged(model, batch: Batch, recipe) -> torch.Tensor:
    """Cross-entropy, and attributions held to the landmarks, on the faces that have any."""
    attributions, logits = attributed(model, batch.x, batch.labels, batch.stages, batch.term.target)
    with torch.autocast(batch.x.device.type, enabled=False):
        each = prior_distance(CHANNELS[batch.term.channels](attributions), batch.prior, batch.term.form)
        known = (batch.prior.amax((1, 2, 3)) > 0).sum().clamp(min=1)
        return _cross_entropy(logits, batch, recipe) + _weight(batch) * each.sum() / known


def _weight(batch: Batch) -> float:
    return batch.term.weight * min(1.0, batch.done / batch.term.warmup) if batch.term.warmup else batch.term.weight


OBJECTIVES = {"cross_entropy": cross_entropy, "balanced": balanced, "contrastive": contrastive, "distillation": distillation,
              "logit_distillation": logit_distillation, "supervised_contrastive": supervised_contrastive, "privileged": privileged}
HEADS = {"supervised_contrastive": lambda channels: nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, 128))}
PAIRED, TAUGHT = ("contrastive", "supervised_contrastive"), ("distillation", "logit_distillation")
