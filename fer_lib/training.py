"""One training loop for every network and objective, on a data set that lies on the device as one uint8 tensor.

    history = train(model, images, labels, val_images, val_labels, RECIPES["fast"], seed=0, scaling=(mean, std))
    logits = predict(model, images, scaling, test="flip")

Two recipes: `paper`, the author's, and `fast`, a one-cycle schedule for a fraction of the epochs (02 compares them).
"""
import math
import os
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau

from .augment import AUGMENTATIONS, augment, standardise, test_views, to_float
from .faces import EMOTIONS, SIZE
from .models import stage_maps, wide_stages
from .objectives import HEADS, OBJECTIVES, Batch, Term
from .perturb import REFIT, fill

TRAINING_VERSION = 1  # raised by hand when the loop or the augmentation changes what a spec trains to


@dataclass(frozen=True)
class Recipe:
    """How a network is trained and shown its test faces."""

    name: str = "fast"
    epochs: int = 40                # passes over the training faces (equal budgets: images seen / faces)
    batch: int = 128                # images in a step
    lr: float = 0.1                 # peak of the one-cycle schedule, start of the plateau one
    schedule: str = "one_cycle"     # one_cycle: linear up over `warmup`, linear down to 0 | plateau: x0.75 after 5 epochs without gain
    warmup: float = 0.2             # share of all steps
    weight_decay: float = 5e-4      # on weights of more than one axis
    label_smoothing: float = 0.1
    ema: float = 0.99               # decay a step of the averaged weights that are kept; 0 keeps the last ones
    augment: str = "light"          # a key of AUGMENTATIONS
    grow: tuple[int, ...] = ()      # pixels: sides the faces are trained at, in equal phases; () is full size throughout
    test: str = "flip"              # single | flip | ten_crop, averaged as logits
    keep: str = "last"              # last: the final weights | best: those of the epoch best on validation
    precision: str = "bf16"         # bf16: autocast in the training steps | fp32; predictions are always fp32

    def __post_init__(self):
        known = {"schedule": ("one_cycle", "plateau"), "augment": AUGMENTATIONS, "test": ("single", "flip", "ten_crop"),
                 "keep": ("last", "best"), "precision": ("bf16", "fp32")}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"Unknown {name} {getattr(self, name)!r}: use one of {', '.join(values)}.")

    def side(self, epoch: int) -> int | None:
        """Side in pixels that faces are trained at in an epoch (from 0), None for full size throughout."""
        return self.grow[epoch * len(self.grow) // self.epochs] if self.grow else None


RECIPES = {
    "fast": Recipe(),
    "paper": Recipe("paper", epochs=200, batch=64, lr=0.01, schedule="plateau", warmup=0.0, weight_decay=1e-4, label_smoothing=0.0,
                    ema=0.0, augment="paper", test="ten_crop", keep="best", precision="fp32"),
}


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The one-cycle learning rate before update `step` of `steps`."""
    done = (step + 0.5) / steps
    return recipe.lr * min(done / max(recipe.warmup, 1e-9), (1 - done) / (1 - recipe.warmup))


def kept_epoch(recipe: Recipe, history) -> int:
    """The epoch whose weights a run keeps, from its history (a frame)."""
    accuracy = [float(value) for value in history["val_accuracy"]]
    return 1 + accuracy.index(max(accuracy)) if recipe.keep == "best" else recipe.epochs


QUICK, APART = 0.1, 10  # seconds; a checkpoint that took longer comes again when this many times as long is over (a large one outlasts an epoch on a GPU)


class Stream:
    """Endless shuffled positions 0..n-1: every face once in each pass, no step is short."""

    def __init__(self, n: int, generator: torch.Generator):
        self.n, self.generator, self.left = n, generator, torch.empty(0, dtype=torch.int64, device=generator.device)

    def next(self, count: int) -> torch.Tensor:
        while len(self.left) < count:
            order = torch.randperm(self.n, generator=self.generator, device=self.generator.device)
            self.left = torch.cat([self.left, order])
        taken, self.left = self.left[:count], self.left[count:]
        return taken


def train(model, images: torch.Tensor, labels: torch.Tensor, val_images: torch.Tensor, val_labels: torch.Tensor, recipe: Recipe,
          seed: int, scaling: tuple[float, float], objective: str = "cross_entropy", views=None,
          checkpoint: Path | None = None, report=None, compiled: bool = False, masked_share: float | None = None,
          priors: torch.Tensor | None = None, teacher=None, term: Term = Term()) -> list[dict]:
    """Train `model` in place and return its history, a row an epoch (epoch, lr, loss, val_loss, val_accuracy, val_macro_accuracy).

    images uint8 [n, 48, 48] and labels, int64 [n] or shares float [n, 7], lie on the model's device. `views` (perturb.Views) cuts faces
    after the scheme. `compiled` runs the network through torch.compile, where the objective calls it as a whole: measured not to pay on a CPU.

    Images uint8 [n, 2, 48, 48] are faces unmasked and masked: each is shown masked with probability `masked_share`, or (None) both are,
    half as many faces a step. `priors` float [n, 1 or 2, 48, 48] lie over the faces (over each picture), a frozen `teacher` sees them
    unmasked; `term` says what the objective makes of them.

    With `checkpoint` the state is written after each epoch (a large one after some, so that it takes at most a tenth of the time, and when `report`
    raises) and picked up again: on the CPU at one thread count the result is bit-equal to an uninterrupted run. `report(row)` is called after each
    epoch. FloatingPointError when the loss is no longer a number.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"Unknown objective {objective!r}: use one of {', '.join(OBJECTIVES)}.")
    device = images.device
    model.to(device, memory_format=torch.channels_last)
    cuts = views if views is not None and views.perturb.views != "none" else None
    pairs = images.ndim == 4 and masked_share is None
    faces_a_step = max(1, round(recipe.batch / (cuts.copies if cuts else 2 if pairs else 1)))
    steps_an_epoch = max(1, len(images) // recipe.batch)
    steps = recipe.epochs * steps_an_epoch
    counts = labels.sum(0) if labels.ndim == 2 else torch.bincount(labels, minlength=len(EMOTIONS))
    class_weights = counts.sum() / (len(EMOTIONS) * counts.clamp(min=1))
    forward = model
    if compiled:
        torch.compiler.reset()  # else a worker's ninth network runs as it is: a function is compiled eight times at most
        forward = torch.compile(model, mode="reduce-overhead" if device.type == "cuda" else None)  # steps as CUDA graphs
    refit_every = min(REFIT, max(1, len(images) // faces_a_step))
    head = _head(objective, model, seed)
    learnt = [*model.parameters(), *(head.parameters() if head else ())]
    decay, plain = [p for p in learnt if p.ndim > 1], [p for p in learnt if p.ndim <= 1]
    stages = attributed_stages(model, recipe, term) if priors is not None else 0
    optimizer = torch.optim.SGD([{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
                                lr=recipe.lr, momentum=0.9, nesterov=True)
    plateau = ReduceLROnPlateau(optimizer, mode="max", factor=0.75, patience=5) if recipe.schedule == "plateau" else None
    averaged = Averaged(model, recipe.ema) if recipe.ema else None
    torch.manual_seed(seed)  # dropout
    generator = torch.Generator(device).manual_seed(seed)
    stream = Stream(len(images), generator)
    history, best, start = [], None, 0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=False)
        model.load_state_dict(state["model"])
        if head:
            head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["rng"].cpu())
        if device.type == "cuda" and state.get("cuda_rng") is not None:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), device)
        stream.left, history, best, start = state["left"], state["history"], state["best"], state["epoch"]
        if averaged:
            averaged.load_state_dict(state["averaged"])
        if plateau:
            plateau.load_state_dict(state["plateau"])
        if views is not None:
            views.parts = state["parts"]
    saved, took = 0.0, 0.0  # when the last checkpoint was written, and the seconds it took
    for epoch in range(start, recipe.epochs):
        model.train()
        size = recipe.side(epoch)
        total, began = torch.zeros((), device=device), time.perf_counter()
        for step in range(epoch * steps_an_epoch, (epoch + 1) * steps_an_epoch):
            if plateau is None:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(recipe, step, steps)
            faces = stream.next(faces_a_step)
            shown = _batch(images, labels, faces, recipe, scaling, generator, cuts, step, refit_every, size, masked_share, priors, teacher is not None)
            batch = Batch(**shown, class_weights=class_weights, teacher=teacher, head=head, term=term, stages=stages, done=(step + 1) / steps)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                loss = OBJECTIVES[objective](forward, batch, recipe)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if averaged:
                averaged.update()
            total += loss.detach()
        kept = averaged.module if averaged else model
        val = predict(kept, val_images, scaling, "single")
        row = {"epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"], "loss": total.item() / steps_an_epoch,
               "val_loss": F.cross_entropy(val, val_labels).item(), **_accuracies(val, val_labels)}
        if not math.isfinite(row["loss"] + row["val_loss"]):
            raise FloatingPointError(f"The loss is no longer a number in epoch {epoch + 1}: lower the learning rate, now {recipe.lr:g}.")
        history.append(row)
        if plateau:
            plateau.step(row["val_accuracy"])
        if recipe.keep == "best" and (best is None or row["val_accuracy"] > best["val_accuracy"]):
            best = {"val_accuracy": row["val_accuracy"], "weights": {k: v.clone() for k, v in kept.state_dict().items()}}
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "generator": generator.get_state(),
                 "rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
                 "left": stream.left, "history": history, "best": best,
                 "epoch": epoch + 1, "head": head.state_dict() if head else None, "averaged": averaged.state_dict() if averaged else None,
                 "plateau": plateau.state_dict() if plateau else None, "parts": views.parts if views else None}
        done = time.perf_counter()
        if checkpoint is not None and (took < QUICK or done - saved >= APART * took or epoch + 1 == recipe.epochs):
            save(checkpoint, state)
            saved = time.perf_counter()
            took = saved - done
        try:
            if report:
                report({**row, "seconds": time.perf_counter() - began, "epochs": recipe.epochs})
        except BaseException:  # stopped here, for lack of time or by a hand: nothing is lost
            if checkpoint is not None and saved < done:
                save(checkpoint, state)
            raise
    if best is not None:
        model.load_state_dict(best["weights"])
    elif averaged:
        model.load_state_dict(averaged.module.state_dict())
    return history


def attributed_stages(model, recipe: Recipe, term: Term) -> int:
    """How many stages lead to the map that a privileged objective attributes: the same at every size that the faces are trained at."""
    return term.stages or wide_stages(model, size=min(recipe.grow, default=SIZE))


class Averaged:
    """Exponential moving average of a network's weights and batch statistics, in `module`. Its decay grows from 0.1 as updates come in, so that short
    runs forget their start. They are counted in Python: torch's AveragedModel copies its count to the device at each step, which waits for all that
    is queued there."""

    def __init__(self, model, decay: float):
        self.module, self.decay, self.updates = deepcopy(model), decay, 0
        pairs = [*zip(self.module.parameters(), model.parameters()), *zip(self.module.buffers(), model.buffers())]
        self.floats, self.integers = ([*zip(*(pair for pair in pairs if pair[0].is_floating_point() == kind))] for kind in (True, False))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network as it stands; the first update copies it. Integers (batches seen) are always copied."""
        if self.integers:
            torch._foreach_copy_(*self.integers)
        if self.updates == 0:
            torch._foreach_copy_(*self.floats)
        else:
            torch._foreach_lerp_(*self.floats, 1 - min(self.decay, (1 + self.updates) / (10 + self.updates)))
        self.updates += 1

    def state_dict(self) -> dict:
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        if "n_averaged" in state:  # torch's AveragedModel, in checkpoints written before there was this class
            state = {"updates": int(state.pop("n_averaged")), "module": {name.removeprefix("module."): value for name, value in state.items()}}
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]


def _head(objective: str, model, seed: int):
    """The objective's own layers, where it has any; their weights a function of the seed."""
    if objective not in HEADS:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HEADS[objective](stage_maps(model)[-1][0]).to(next(model.parameters()).device)


def _batch(images, labels, faces, recipe, scaling, generator, views, step, refit_every, size, masked_share, priors, taught) -> dict:
    maps = None if priors is None else priors[faces]
    if views is not None:
        if step % refit_every == 0 or views.parts is None:
            views.refit(step, faces)
        maps = views.masks(faces)
    x, maps = augment(images[faces], recipe.augment, generator, maps)
    y = labels[faces].repeat_interleave(len(x) // len(faces), 0)  # crops of a face stand together
    if views is not None:
        x = views.show(x, maps, generator)
        y = torch.cat([y] * (len(x) // len(y)))                # views follow one another
        maps = None
    whole = None
    if x.shape[1] == 2:                                        # (B, 2, H, W) unmasked and masked
        whole, masked = x.split(1, 1)
        of_both = None if maps is None else (maps[:, :1], maps[:, -1:])
        if masked_share is None:
            x, y = torch.cat([whole, masked]), torch.cat([y, y])
            maps = None if maps is None else torch.cat(of_both)
        else:
            wears = torch.rand(len(faces), generator=generator, device=x.device) < masked_share
            wears = wears.repeat_interleave(len(x) // len(faces))[:, None, None, None]
            x = torch.where(wears, masked, whole)
            maps = None if maps is None else torch.where(wears, *of_both[::-1])

    def fed(x):
        if size and size != x.shape[-1]:
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
        return standardise(x, scaling).contiguous(memory_format=torch.channels_last)

    return {"x": fed(x), "labels": y, "whole": fed(whole) if taught else None, "prior": maps}


def _accuracies(logits, labels) -> dict:
    right = (logits.argmax(1) == labels).float()
    per_class = [right[labels == c].mean().item() for c in labels.unique()]
    return {"val_accuracy": right.mean().item(), "val_macro_accuracy": sum(per_class) / len(per_class)}


@torch.inference_mode()
def predict(model, images: torch.Tensor, scaling: tuple[float, float], test: str = "flip", masks: torch.Tensor | None = None,
            fill_name: str = "black", batch: int = 256) -> torch.Tensor:
    """Logits of faces, float32 [n, 7]: uint8 (n, 48, 48), in eval mode and fp32; the mean over the recipe's crops or flips.

    With `masks`, bool (1 or n, K, 48, 48), also the mean over the K+1 views: each cluster left out, and the whole face.
    """
    was_training = model.training
    model.eval()
    logits = []
    for i in range(0, len(images), batch):
        x = to_float(images[i : i + batch])  # (b, 1, 48, 48)
        shown = [x]
        if masks is not None:
            some = (masks if len(masks) == 1 else masks[i : i + batch]).to(x.device).expand(len(x), -1, -1, -1)
            shown += [fill(x, mask, fill_name, scaling) for mask in some.unbind(1)]
        seen = [standardise(v, scaling).contiguous(memory_format=torch.channels_last) for s in shown for v in test_views(s, test)]
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):  # a GPU's convolutions are TF32 else
            logits.append(torch.stack([model(v).float() for v in seen]).mean(0))
    model.train(was_training)
    return torch.cat(logits)


def save(path: Path, state: dict) -> None:
    """torch.save, whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)
