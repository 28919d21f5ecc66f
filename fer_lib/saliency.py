"""Saliency: where a network looks (captum behind one call) and whether that place matters (ablation, curves, sanity).

    maps = attribute(model, x, labels, "integrated_gradients", scaling=data.scaling)     # float32 [B, H, W]
    result = region_ablation(model, images, labels, regions, "mean", data.scaling)       # the primary endpoint
    frame = ablation_frame(result, names)                                                # emotion x region, tidy

A map that lies on eyes and mouth proves nothing by itself: an untrained network and a centre Gaussian do as well. So
evidence is region ablation (captum's FeatureAblation with region masks, of p) against the same mask rolled to random
places, and every other number is read as a difference to an untrained network, `edge_map` and `centre_prior`. Maps are
tensors on the device of their input, numbers numpy arrays or tidy frames. Models are any nn.Module that takes
standardised float [B, 1, H, W] and gives logits [B, 7]; where a target is asked for, use the label unless said.
An interval here is over faces of one run. The training run is the unit of replication: compare runs over seeds.
"""
import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor, nn

from .augment import standardise, to_float
from .faces import EMOTIONS
from .models import MINIMUM_MAP
from .masking import OCCLUSIONS, occlude, random_patches, roll_region
from .metrics import wilson

Array = Tensor | np.ndarray
Scaling = tuple[float, float]  # mean and standard deviation of [0, 1] pixels, with which x was standardised
FEATURES = {"brows+eyes": ("brows", "eyes"), "nose": ("nose",), "mouth": ("mouth",)}  # the primary endpoint's regions


# ---- the model, held still ------------------------------------------------------------------------------------------

@contextlib.contextmanager
def _still(model: nn.Module, layout: torch.memory_format = torch.contiguous_format) -> Iterator[nn.Module]:
    """The uncompiled model in eval mode, weights without gradients and in one layout, fp32; all as it was afterwards.

    Contiguous for gradients; channels_last where only forward passes count (1.2 to 1.5 times as fast on a CPU).
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile hides hooks, and with them guided backpropagation
    parameters = list(model.parameters())
    odd = {str(p.dtype) for p in parameters if p.dtype != torch.float32}
    if odd:
        raise ValueError(f"The model has weights in {', '.join(sorted(odd))}: give a float32 copy, model.float().")
    modes = [(module, module.training) for module in model.modules()]
    weights = [(parameter, parameter.requires_grad, parameter.data) for parameter in parameters]
    try:
        model.eval()
        for parameter, _, data in weights:
            parameter.requires_grad_(False)
            parameter.data = data.contiguous(memory_format=layout if data.dim() == 4 else torch.contiguous_format)
        cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with cudnn, torch.autocast(_device(model).type, enabled=False):
            yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, needed, data in weights:
            parameter.data = data
            parameter.requires_grad_(needed)


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _batch(batch: int | None, device: torch.device) -> int:
    """Pictures in a forward pass where the caller did not say: 64 keeps a CPU's maps in cache, 256 leaves a GPU room for other workers."""
    return batch or (64 if device.type == "cpu" else 256)


def _check(x: Tensor) -> Tensor:
    if not torch.is_tensor(x) or x.dim() != 4 or x.shape[1] != 1 or not x.is_floating_point():
        got = f"{x.dtype} {list(x.shape)}" if torch.is_tensor(x) else type(x).__name__
        raise ValueError(f"x must be a standardised float tensor [B, 1, H, W], got {got}.")
    return x.detach().float().contiguous()


def _check_regions(regions: Array, n: int, size: tuple[int, int], device: torch.device) -> Tensor:
    if len(regions.shape) != 4 or regions.shape[0] != n or tuple(regions.shape[2:]) != tuple(size):
        raise ValueError(f"regions must be bool [{n}, R, {size[0]}, {size[1]}], got {list(regions.shape)}.")
    return torch.as_tensor(regions, device=device).bool()


def _targets(target: Array | Sequence[int] | int, n: int, device: torch.device) -> Tensor:
    target = torch.as_tensor(target, device=device).long()
    target = target.expand(n) if target.dim() == 0 else target
    if target.shape != (n,):
        raise ValueError(f"target must be one class or one per face ({n}), got shape {list(target.shape)}.")
    return target


@torch.no_grad()
def _probs(model: nn.Module, x: Tensor, batch: int | None) -> Tensor:
    """Probabilities float32 [N, 7] on the CPU; x on any device."""
    device = _device(model)
    return torch.cat([model(part.to(device)).float().softmax(1).cpu() for part in x.split(_batch(batch, device))])


def _scores(model: nn.Module, x: Tensor, target: Tensor, batch: int | None) -> tuple[Tensor, Tensor]:
    """p(target) float32 [N] and whether the target is the prediction, bool [N]; x on any device, results on the CPU."""
    probs, target = _probs(model, x, batch), target.cpu()
    return probs.gather(1, target[:, None])[:, 0], probs.argmax(1) == target


# ---- attributions ---------------------------------------------------------------------------------------------------

def _black(x: Tensor, scaling: Scaling | None) -> Tensor:
    if scaling is None:
        raise ValueError("A black baseline needs `scaling`: the (mean, std) with which pixels were standardised.")
    return standardise(torch.zeros_like(x), scaling)


BASELINES = {
    "mean": lambda x, scaling: torch.zeros_like(x),               # 0 in standardised units is the training mean
    "black": _black,                                              # pixel value 0
    "blur": lambda x, scaling: OCCLUSIONS["blur"](x, None, None),  # Gaussian of 4 px, replicated border
}


def baseline_of(x: Tensor, baseline: str | Tensor, scaling: Scaling | None = None) -> Tensor:
    """What replaces the face x [B, 1, H, W], in standardised units [B, 1, H, W]: a BASELINES name or a tensor."""
    if torch.is_tensor(baseline):
        return baseline.to(x).expand_as(x)
    if baseline not in BASELINES:
        raise ValueError(f"Unknown baseline {baseline!r}: use one of {', '.join(BASELINES)}, or a tensor like x.")
    return BASELINES[baseline](x, scaling)


@dataclass(frozen=True)
class _Job:
    """One chunk of faces with every setting a method may want."""

    target: Tensor        # int64 [b]
    base: Tensor | None   # float32 [b, 1, H, W]
    layer: nn.Module | None
    n_steps: int
    seed: int
    noise: float
    window: int
    stride: int
    at_once: int          # perturbed copies per forward


def _captum():
    """captum's methods, imported when one is asked for: the import costs every process half a second."""
    from captum import attr

    return attr


def _saliency(model: nn.Module, x: Tensor, job: _Job) -> Tensor:
    return _captum().Saliency(model).attribute(x, target=job.target, abs=False)


def _integrated_gradients(model: nn.Module, x: Tensor, job: _Job) -> Tensor:
    method = _captum().IntegratedGradients(model)
    return method.attribute(x, baselines=job.base, target=job.target, n_steps=job.n_steps)


def _smoothgrad(model: nn.Module, x: Tensor, job: _Job) -> Tensor:
    """Mean signed gradient over noisy copies, every face with the same seeded draws, scaled to its own range.

    captum's NoiseTunnel draws from the global generator over the whole batch: a map would depend on its neighbours.
    """
    noise = torch.randn((job.n_steps, *x.shape[1:]), generator=torch.Generator().manual_seed(job.seed)).to(x)
    reach = (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, 1, 1, 1, 1)
    copies = x[:, None] + job.noise * reach * noise  # [b, n_steps, 1, H, W]
    target = job.target.repeat_interleave(job.n_steps)
    return _captum().Saliency(model).attribute(copies.flatten(0, 1), target=target, abs=False).view_as(copies).mean(1)


def _guided_backprop(model: nn.Module, x: Tensor, job: _Job) -> Tensor:
    if not any(isinstance(module, nn.ReLU) for module in model.modules()):
        raise ValueError("Guided backpropagation needs nn.ReLU modules and the model has none: it would silently equal "
                         "the plain gradient. Exchange F.relu or GELU for nn.ReLU, or use method 'saliency'.")
    return _captum().GuidedBackprop(model).attribute(x, target=job.target)


def _grad_cam(model: nn.Module, x: Tensor, job: _Job) -> Tensor:
    maps = _captum().LayerGradCam(model, job.layer).attribute(x, target=job.target, relu_attributions=True)
    return _captum().LayerAttribution.interpolate(maps, tuple(x.shape[-2:]), "bilinear")


def _occlusion(model: nn.Module, x: Tensor, job: _Job) -> Tensor:
    return _captum().Occlusion(model).attribute(
        x, sliding_window_shapes=(1, job.window, job.window), strides=(1, job.stride, job.stride), baselines=job.base,
        target=job.target, perturbations_per_eval=job.at_once)


ATTRIBUTIONS: dict[str, Callable[[nn.Module, Tensor, _Job], Tensor]] = {
    "saliency": _saliency,
    "integrated_gradients": _integrated_gradients,
    "smoothgrad": _smoothgrad,
    "guided_backprop": _guided_backprop,
    "grad_cam": _grad_cam,
    "occlusion": _occlusion,
}
SIGNED = ("saliency", "integrated_gradients", "smoothgrad", "guided_backprop", "occlusion")


def edge_map(x: Tensor) -> Tensor:
    """Sobel edge strength of each face, float32 [B, H, W]; x [B, 1, H, W]. What a map shows that sees only edges."""
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=x.device) / 8
    kernel = torch.stack([across, across.T])[:, None]  # [2, 1, 3, 3]
    return F.conv2d(F.pad(_check(x), (1, 1, 1, 1), mode="replicate"), kernel).norm(dim=1)


def centre_prior(x: Tensor, sigma: float = 0.25) -> Tensor:
    """A Gaussian in the middle of the frame, float32 [B, H, W]; sigma as a fraction of the height. Looks at nothing."""
    high, wide = x.shape[-2:]
    down = (torch.arange(high, device=x.device) - (high - 1) / 2)[:, None]
    across = (torch.arange(wide, device=x.device) - (wide - 1) / 2)[None]
    return torch.exp(-(down**2 + across**2) / (2 * (sigma * high) ** 2)).expand(len(x), high, wide).clone()


def random_order(x: Tensor, seed: int = 0) -> Tensor:
    """Uniform noise, float32 [B, H, W], one draw for all faces so that a map never depends on its batch."""
    noise = torch.rand(tuple(x.shape[-2:]), generator=torch.Generator().manual_seed(seed))
    return noise.to(x).expand(len(x), -1, -1).clone()


REFERENCES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "edge_map": lambda x, seed: edge_map(x),
    "centre_prior": lambda x, seed: centre_prior(x),
    "random_order": random_order,
}


def attribute(model: nn.Module | None, x: Tensor, target: Array | Sequence[int] | int, method: str = "saliency",
              layer: str | nn.Module | None = None, n_steps: int = 32, seed: int = 0, *,
              baseline: str | Tensor = "mean", scaling: Scaling | None = None, noise: float = 0.05, window: int = 8,
              stride: int = 4, batch: int | None = None, return_gap: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """Attribution of the target's logit to the pixels of each face, float32 [B, H, W], on the device of x.

    x is standardised float [B, 1, H, W], target a class or int [B]. `method` is a name in ATTRIBUTIONS, or one in
    REFERENCES (maps that see no model; `model` may then be None). Where defaults depart from captum's:
      saliency              signed gradient (captum takes its absolute value)
      integrated_gradients  signed; n_steps Gauss-Legendre points (captum 50) from `baseline` (captum 0, here "mean")
      smoothgrad            signed; n_steps draws (captum 5) of standard deviation `noise` x the face's range (captum 1.0
                            in input units); more than 0.05 is refused: it moves faces off what the model knows
      guided_backprop       as captum; ValueError where the model has no nn.ReLU, since captum then gives the plain
                            gradient. Looks convincing and is no evidence
      grad_cam              positive part, bilinear upsampling (captum: no ReLU, nearest); `layer` a module or its name,
                            default `cam_layer`: the last map of at least 6x6 that all of the signal passes
      occlusion             drop of the logit under a window x window square of `baseline`, moved by `stride`
    `baseline` is "mean" (0), "black" (needs `scaling`), "blur", or a tensor [B, 1, H, W]. `batch` is about how many
    pictures are in one forward pass; it changes speed, not results. `return_gap` (integrated gradients only) adds sum
    of the map - (logit of the face - logit of the baseline), float32 [B].
    Raises ValueError for unknown names, wrong shapes, and weights that are not float32. The model is used in eval mode,
    fp32, without torch.compile or autocast, and left as it was.
    """
    x = _check(x)
    if method in REFERENCES:
        return REFERENCES[method](x, seed)
    if method not in ATTRIBUTIONS:
        raise ValueError(f"Unknown method {method!r}: use one of {', '.join((*ATTRIBUTIONS, *REFERENCES))}.")
    if return_gap and method != "integrated_gradients":
        raise ValueError(f"return_gap belongs to integrated_gradients, not to {method}.")
    if not 0 <= noise <= 0.05:
        raise ValueError(f"noise is {noise}: give a share of the face's range between 0 and 0.05.")
    target = _targets(target, len(x), x.device)
    base = baseline_of(x, baseline, scaling) if method in ("integrated_gradients", "occlusion") else None
    batch = _batch(batch, x.device)
    chunk = max(1, batch // n_steps) if method in ("integrated_gradients", "smoothgrad") else batch
    chunk = min(batch, 32) if method == "occlusion" else chunk
    layout = torch.channels_last if method == "occlusion" else torch.contiguous_format
    maps, gaps = [x.new_zeros((0, *x.shape[2:]))], [x.new_zeros(0)]
    with _still(model, layout) as still, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="captum")
        if method == "grad_cam":
            layer = _layer(still, layer, x[:1])
        for start in range(0, len(x), chunk):
            at = slice(start, start + chunk)
            job = _Job(target[at], None if base is None else base[at], layer, n_steps, seed, float(noise), window,
                       stride, max(1, batch // len(x[at])))
            maps.append(ATTRIBUTIONS[method](still, x[at], job).detach().float()[:, 0])  # [b, H, W]
            if return_gap:
                with torch.no_grad():
                    rise = still(x[at]) - still(base[at])  # [b, 7]
                gaps.append(maps[-1].sum((1, 2)) - rise.gather(1, target[at, None])[:, 0])
    return (torch.cat(maps), torch.cat(gaps)) if return_gap else torch.cat(maps)


def _layer(model: nn.Module, layer: str | nn.Module | None, x: Tensor) -> nn.Module:
    if isinstance(layer, nn.Module):
        return layer
    named = dict(model.named_modules())
    name = cam_layer(model, x)[0] if layer is None else layer
    if name not in named:
        raise ValueError(f"Unknown layer {name!r}: use a name of model.named_modules(), as {cam_layer(model, x)[0]!r}.")
    return named[name]


def cam_layer(model: nn.Module, x: Tensor, least: int = MINIMUM_MAP) -> tuple[str, tuple[int, int, int]]:
    """Grad-CAM's default layer: name and (channels, height, width) of its map, for the caption; x [B, 1, H, W].

    The last module, in order of execution, whose output is a map of at least `least` x `least` pixels and which all of
    the signal from the picture to the last map passes (a branch beside a shortcut, a gate or a dense layer is not it);
    of those of its size rather one whose map is rectified: weights of a map before its ReLU tell little. Found by
    running `forward_features` (where a model has none, the model) on one face. ValueError where there is none.
    """
    x = _check(x)[:1]
    with _still(model) as still:
        run = getattr(still, "forward_features", still)
        names = {module: name for name, module in still.named_modules() if name}
        seen: list[tuple[nn.Module, tuple[int, int, int], bool]] = []

        def note(module: nn.Module, _: tuple, out: Tensor) -> None:
            if torch.is_tensor(out) and out.dim() == 4 and min(out.shape[-2:]) >= least:
                seen.append((module, tuple(out.shape[1:]), bool(out.min() >= 0)))

        with _hooks(names, note), torch.no_grad():
            run(x)
        ran, found = [module for module, *_ in seen], None
        for module, size, rectified in reversed(seen):
            if ran.count(module) > 1 or (found and not (rectified and size[1:] == found[1][1:])):
                continue  # reused: captum would take its last call only; or no better than what is found
            with _hooks([module], lambda module, _, out: out.detach()):
                cut = not run(x.clone().requires_grad_()).requires_grad  # here nothing of the picture is left
            if cut and rectified:
                return names[module], size
            found = found or ((names[module], size) if cut else None)
    if found:
        return found
    raise ValueError(f"No layer gives a map of at least {least}x{least} that all of the signal passes: name a layer.")


@contextlib.contextmanager
def _hooks(modules: Sequence[nn.Module], hook: Callable) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---- shares, ranks, regions -----------------------------------------------------------------------------------------

PARTS = {"positive": torch.relu, "absolute": torch.abs, "value": lambda maps: maps}


def _part(maps: Array, part: str) -> Tensor:
    maps = torch.as_tensor(maps).float()
    if maps.dim() != 3:
        raise ValueError(f"attributions must be [B, H, W], got {list(maps.shape)}.")
    if part not in PARTS:
        raise ValueError(f"Unknown part {part!r}: use one of {', '.join(PARTS)}.")
    return PARTS[part](maps)


def pixel_order(attributions: Array, part: str = "value", seed: int = 0) -> Tensor:
    """Pixels of each face from most to least important, int64 [B, H*W]; ties fall in one seeded random order.

    (Grad-CAM and guided maps are mostly zeros; ties in reading order would walk down from the forehead.)
    """
    flat = _part(attributions, part).flatten(1)  # [B, P]
    shuffle = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed)).to(flat.device)
    return shuffle[flat[:, shuffle].argsort(dim=1, descending=True, stable=True)]


MASS = ("share", "enrichment", "pointing", "rank_accuracy")


def region_mass(attributions: Array, regions: Array, part: str = "positive") -> dict[str, np.ndarray]:
    """How much of each map [B, H, W] lies in each region bool [B, R, H, W]: {name in MASS: float32 [B, R]}.

    share          of the map's mass; `part` is "positive" (default) or "absolute"
    enrichment     share of mass / share of area: 1 for an even map
    pointing       1 where the strongest pixel lies in the region
    rank_accuracy  share of the A strongest pixels in a region of area A (Arras et al. 2022)
    NaN where a map or a region is empty. Read each number as a difference to an untrained network, the edge map and the
    centre prior (`mass_frame`): by itself it says nothing.
    """
    if part == "value":
        raise ValueError("A share needs one sign: use part 'positive' or 'absolute'.")
    maps = _part(attributions, part)
    regions = _check_regions(regions, len(maps), maps.shape[1:], maps.device)
    flat, inside = maps.flatten(1), regions.flatten(2).float()  # [B, P], [B, R, P]
    area, total = inside.sum(2), flat.sum(1, keepdim=True)  # [B, R], [B, 1]
    share = torch.einsum("bp,brp->br", flat, inside) / total
    order = pixel_order(maps)
    hits = inside.gather(2, order[:, None].expand_as(inside)).cumsum(2)  # [B, R, P] region pixels among the first
    rank = hits.gather(2, (area.long() - 1).clamp_min(0)[..., None])[..., 0] / area
    values = (share, share * flat.shape[1] / area, hits[:, :, 0], rank)
    nothing = (area == 0) | (total == 0)
    return {name: value.masked_fill(nothing, torch.nan).cpu().numpy() for name, value in zip(MASS, values)}


def join_regions(regions: np.ndarray, names: Sequence[str],
                 groups: dict[str, Sequence[str]] = FEATURES) -> tuple[np.ndarray, tuple[str, ...]]:
    """Unions of regions bool [N, R, H, W] -> bool [N, G, H, W] and their names; default brows+eyes, nose, mouth."""
    unknown = sorted({part for parts in groups.values() for part in parts} - set(names))
    if unknown:
        raise ValueError(f"Unknown region {', '.join(unknown)}: use one of {', '.join(names)}.")
    joined = [regions[:, [list(names).index(part) for part in parts]].any(1) for parts in groups.values()]
    return np.stack(joined, 1), tuple(groups)


def _groups(labels: Array) -> list[tuple[str, np.ndarray]]:
    """("all", every face), then each emotion that occurs with its faces, bool [N]."""
    labels = labels.detach().cpu().numpy() if torch.is_tensor(labels) else np.asarray(labels)
    found = [(emotion, labels == k) for k, emotion in enumerate(EMOTIONS)]
    return [("all", np.ones(len(labels), bool)), *((emotion, rows) for emotion, rows in found if rows.any())]


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; NaN where nothing is left, without numpy's warning."""
    known = ~np.isnan(values)
    count = known.sum(0)
    return np.where(count > 0, np.where(known, values, 0).sum(0) / np.maximum(count, 1), np.nan)


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % normal interval of the mean over the first axis, NaN left out: mean +- 1.96 standard errors."""
    count = (~np.isnan(values)).sum(0)
    spread = np.sqrt(_mean((values - _mean(values)) ** 2) * count / np.where(count > 1, count - 1, np.nan))
    half = 1.959964 * spread / np.sqrt(np.maximum(count, 1))
    return _mean(values) - half, _mean(values) + half


def mass_frame(maps: Array, references: dict[str, Array], regions: Array, names: Sequence[str], labels: Array,
               part: str = "positive") -> pd.DataFrame:
    """`region_mass` of maps [N, H, W], as means per emotion and region and as differences to the same of references.

    Columns emotion ("all" first), region, measure (of MASS), n, value, and for each reference minus_<reference> with
    _low and _high, its 95 % interval over the faces (paired).
    """
    def stacked(one: Array) -> np.ndarray:  # [N, measures * R]
        return np.concatenate(list(region_mass(one, regions, part).values()), 1).astype(np.float64)

    own, others, rows = stacked(maps), {name: stacked(other) for name, other in references.items()}, []
    for emotion, chosen in _groups(labels):
        columns = {"n": (~np.isnan(own[chosen])).sum(0), "value": _mean(own[chosen])}
        for name, other in others.items():
            change = (own - other)[chosen]
            columns[f"minus_{name}"] = _mean(change)
            columns[f"minus_{name}_low"], columns[f"minus_{name}_high"] = interval(change)
        rows.append(pd.DataFrame({"emotion": emotion, "region": [*names] * len(MASS),
                                  "measure": np.repeat(MASS, len(names)), **columns}))
    return pd.concat(rows, ignore_index=True)


# ---- primary endpoint: region ablation with a matched control -------------------------------------------------------

@dataclass(frozen=True)
class RegionAblation:
    """What a model loses, face by face, when a region goes and when the same mask goes elsewhere; NaN: empty region."""

    labels: np.ndarray           # int64 [N]
    probs: np.ndarray            # float32 [N, 7]     probabilities of the intact face
    probs_region: np.ndarray     # float32 [N, R, 7]  with the region replaced
    probs_control: np.ndarray    # float32 [N, R, 7]  with the mask rolled to random places, mean over controls
    correct: np.ndarray          # float32 [N]        1 where the label is the prediction
    correct_region: np.ndarray   # float32 [N, R]
    correct_control: np.ndarray  # float32 [N, R]

    @property
    def p(self) -> np.ndarray:
        """p(label), float32 [N]."""
        return self.probs[np.arange(len(self.labels)), self.labels]

    @property
    def p_region(self) -> np.ndarray:
        """float32 [N, R]."""
        return self.probs_region[np.arange(len(self.labels)), :, self.labels]

    @property
    def p_control(self) -> np.ndarray:
        """float32 [N, R]."""
        return self.probs_control[np.arange(len(self.labels)), :, self.labels]


CONTROLS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {"roll": roll_region, "patch": random_patches}


def region_ablation(model: nn.Module, images: Array, labels: Array, regions: Array, fill: str = "mean",
                    scaling: Scaling = (0.0, 1.0), n_controls: int = 3, seed: int = 0, batch: int | None = None,
                    control: str = "roll") -> RegionAblation:
    """Probabilities and correctness of each face intact, per region replaced, and per region's mask rolled elsewhere.

    images uint8 [N, 48, 48], labels int [N], regions bool [N, R, 48, 48] (may overlap), `fill` a name in
    masking.OCCLUSIONS, `scaling` the (mean, std) that turns [0, 1] pixels into the model's x. Costs
    N * (1 + R * (1 + n_controls)) forward passes, on the model's device. `control` is "roll" (the same mask at a random
    place) or "patch" (a random connected patch of equal area). Masks are drawn for all faces at once: results do not
    depend on `batch`, and one seed gives every model the same controls. With n_controls=0 the control arrays are NaN.
    """
    pixels = torch.as_tensor(images)
    if control not in CONTROLS:
        raise ValueError(f"Unknown control {control!r}: use one of {', '.join(CONTROLS)}.")
    if pixels.dtype != torch.uint8 or pixels.dim() != 3:
        raise ValueError(f"images must be uint8 [N, H, W], got {pixels.dtype} {list(pixels.shape)}.")
    regions = _check_regions(regions, len(pixels), pixels.shape[1:], pixels.device)
    if not len(pixels) or not regions.shape[1]:
        raise ValueError("Region ablation needs at least one face and one region.")
    target = _targets(labels, len(pixels), pixels.device)
    pixels = to_float(pixels)  # [N, 1, H, W]
    generator = torch.Generator(device=pixels.device).manual_seed(seed)
    goal, shape = target.cpu().numpy(), (2, *regions.shape[:2])
    probs, correct = np.full((*shape, len(EMOTIONS)), np.nan, np.float32), np.full(shape, np.nan, np.float32)  # region, control
    with _still(model, torch.channels_last) as still:
        intact = _probs(still, standardise(pixels, scaling), batch).numpy()

        def without(mask: Tensor) -> np.ndarray:  # [N, H, W] -> [N, 7]
            return _probs(still, standardise(occlude(pixels, mask, fill, generator), scaling), batch).numpy()

        for r in range(regions.shape[1]):
            hidden = [[without(regions[:, r])], [without(CONTROLS[control](regions[:, r], generator)) for _ in range(n_controls)]]
            for i, several in enumerate(hidden[:2 if n_controls else 1]):
                probs[i, :, r], correct[i, :, r] = np.mean(several, 0), np.mean([one.argmax(1) == goal for one in several], 0)
    nothing = ~regions.flatten(2).any(2).cpu().numpy()
    probs[:, nothing], correct[:, nothing] = np.nan, np.nan
    return RegionAblation(goal, intact, *probs, (intact.argmax(1) == goal).astype(np.float32), *correct)


def _separation(labels: np.ndarray, emotion: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of an emotion's value over its faces less that over all others ("all": the mean over emotions), and half of its
    95 % interval over faces drawn emotion by emotion, [R] each; values [N, R, 7], NaN faces left out."""
    known, parts = ~np.isnan(values[..., 0]), np.zeros(values.shape[:2])
    kinds = np.unique(labels) if emotion == "all" else [EMOTIONS.index(emotion)]
    with np.errstate(invalid="ignore", divide="ignore"):
        for k in kinds:
            own, other = known & (labels == k)[:, None], known & (labels != k)[:, None]
            parts += np.nan_to_num(values[..., k]) * (own / own.sum(0) - other / other.sum(0)) / len(kinds)
        groups = [np.where(known, parts, np.nan)[labels == k] for k in np.unique(labels)]
        counts = [(~np.isnan(group)).sum(0) for group in groups]
        spread = sum(n * _mean((group - _mean(group)) ** 2) * n / (n - 1) for group, n in zip(groups, counts))
    return parts.sum(0), 1.959964 * np.sqrt(spread)


def ablation_frame(result: RegionAblation, names: Sequence[str]) -> pd.DataFrame:
    """The emotion x region matrix of one run, tidy; emotion "all" first, NaN faces (empty region) left out of n.

    Columns emotion, region, n; p (intact), drop_p, control_p, difference_p = drop_p - control_p; the same of accuracy;
    each drop and difference with _low and _high, its 95 % interval over faces. Values are fractions; a drop is intact
    minus replaced. The same of `separation`: p(emotion) of the emotion's faces less that of all other faces. A hidden
    region makes a network guess, and an emotion that it then likes to guess loses no p: only separation sees it.
    """
    if len(names) != result.p_region.shape[1]:
        raise ValueError(f"{len(names)} region names for {result.p_region.shape[1]} regions: give one each.")
    rows = []
    region, control = (values.astype(np.float64) for values in (result.probs_region, result.probs_control))  # [N, R, 7]
    whole = np.where(np.isnan(region), np.nan, result.probs[:, None].astype(np.float64))
    changes = {"": whole, "drop_": whole - region, "control_": whole - control, "difference_": control - region}
    for emotion, chosen in _groups(result.labels):
        columns: dict[str, np.ndarray] = {"n": (~np.isnan(result.p_region[chosen])).sum(0)}
        kinds = {"p": (result.p, result.p_region, result.p_control),
                 "accuracy": (result.correct, result.correct_region, result.correct_control)}
        for kind, triple in kinds.items():
            intact, hidden, rolled = (values[chosen].astype(np.float64) for values in triple)
            intact = np.where(np.isnan(hidden), np.nan, intact[:, None])
            columns[kind] = _mean(intact)
            drops = {"drop": intact - hidden, "control": intact - rolled, "difference": rolled - hidden}
            for name, values in drops.items():  # [n, R]
                columns[f"{name}_{kind}"] = _mean(values)
                if name != "control":
                    columns[f"{name}_{kind}_low"], columns[f"{name}_{kind}_high"] = interval(values)
        for name, values in changes.items():
            columns[f"{name}separation"], half = _separation(result.labels, emotion, values)
            if name in ("drop_", "difference_"):
                columns[f"{name}separation_low"] = columns[f"{name}separation"] - half
                columns[f"{name}separation_high"] = columns[f"{name}separation"] + half
        rows.append(pd.DataFrame({"emotion": emotion, "region": list(names), **columns}))
    return pd.concat(rows, ignore_index=True)


# ---- robustness: less light, less contrast, more hidden -------------------------------------------------------------

LIGHT = (1.0, 0.75, 0.5, 0.35, 0.2, 0.1)                                  # what is left of light or of contrast
LEVELS = {"darkening": LIGHT, "contrast": LIGHT, "area": (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)}  # the intact face first
AREA_FILLS = ("black", "mean")


def squares(n: int, area: float, size: int, seed: int = 0) -> Tensor:
    """One square of `area` (share of the picture, to the nearest whole side) at a random place of each face, bool [n, size, size].

    A larger area of the same seed holds the smaller one.
    """
    side = round(size * area ** 0.5)
    first = (torch.rand((2, n, 1), generator=torch.Generator().manual_seed(seed)) * (size - side)).round()  # top, left
    line = torch.arange(size)
    down, across = (line >= first) & (line < first + side)  # [n, size] each
    return down[:, :, None] & across[:, None, :]


HARDER: dict[str, Callable[[Tensor, float, str, int], Tensor]] = {  # faces [N, 1, H, H] in [0, 1], level, fill, seed
    "darkening": lambda x, level, fill, seed: x * level,
    "contrast": lambda x, level, fill, seed: torch.lerp(x.mean((1, 2, 3), keepdim=True), x, level),  # round the face's own mean
    "area": lambda x, level, fill, seed: occlude(x, squares(len(x), level, x.shape[-1], seed).to(x.device), fill),
}


def robustness_frame(model: nn.Module, images: Array, labels: Array, kind: str, fill: str = "none", scaling: Scaling = (0.0, 1.0),
                     seed: int = 0, batch: int | None = None) -> pd.DataFrame:
    """Accuracy and mean p(label) of images uint8 [N, H, H] as faces get harder to see, per emotion ("all" first); tidy.

    `kind` is one of LEVELS: light or contrast left, or the share of the picture that a square hides (`fill`: a name in masking.OCCLUSIONS).
    Changed pixels stay floats: rounding a dark picture to 8 bits would take more than the light. Columns level, emotion, n, accuracy, low, high
    (its 95 % Wilson interval over the faces), p_label.
    """
    if kind not in HARDER:
        raise ValueError(f"Unknown kind {kind!r}: use one of {', '.join(HARDER)}.")
    pixels, rows = to_float(torch.as_tensor(images)), []  # [N, 1, H, H]
    target = _targets(labels, len(pixels), pixels.device)
    with _still(model, torch.channels_last) as still:
        for level in LEVELS[kind]:
            p, right = _scores(still, standardise(HARDER[kind](pixels, level, fill, seed), scaling), target, batch)
            for emotion, chosen in _groups(target):
                accuracy = float(right[chosen].float().mean())
                low, high = wilson(accuracy, n := int(chosen.sum()))
                rows.append({"level": level, "emotion": emotion, "n": n, "accuracy": accuracy, "low": low, "high": high,
                             "p_label": float(p[chosen].mean())})
    return pd.DataFrame(rows)


# ---- deletion and insertion -----------------------------------------------------------------------------------------

KINDS = {
    "deletion": lambda early, face, base: torch.where(early, base, face),
    "insertion": lambda early, face, base: torch.where(early, face, base),
}


def perturbation_curve(model: nn.Module, x: Tensor, target: Array | int, attributions: Array, kind: str = "deletion",
                       steps: int = 24, baseline: str | Tensor = "blur", scaling: Scaling | None = None,
                       part: str = "value", seed: int = 0, batch: int | None = None) -> np.ndarray:
    """p(target) as pixels leave ("deletion") or enter ("insertion") in the map's order, float32 [N, steps + 1].

    Step k has moved the first round(k * H * W / steps) pixels. x [N, 1, H, W] is standardised, maps [N, H, W]; what
    stands for a missing pixel is `baseline`. Deletion begins and insertion ends at the intact face. Order a signed
    gradient by part "absolute", everything else by "value".
    """
    if kind not in KINDS:
        raise ValueError(f"Unknown kind {kind!r}: use one of {', '.join(KINDS)}.")
    x = _check(x)
    target = _targets(target, len(x), x.device)
    base = baseline_of(x, baseline, scaling)
    order = pixel_order(torch.as_tensor(attributions, device=x.device), part, seed)
    pixels = torch.arange(order.shape[1], device=x.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, pixels).view_as(x)  # [N, 1, H, W], 0 = the most important
    moved = [round(k * order.shape[1] / steps) for k in range(steps + 1)]
    stages = torch.cat([KINDS[kind](rank < count, x, base) for count in moved])  # [(steps + 1) * N, 1, H, W]
    with _still(model, torch.channels_last) as still:
        return _scores(still, stages, target.repeat(steps + 1), batch)[0].view(steps + 1, len(x)).numpy().T


def compare_orders(model: nn.Module, x: Tensor, target: Array, maps: dict[str, Array], steps: int = 24,
                   baseline: str | Tensor = "blur", scaling: Scaling | None = None, seed: int = 0,
                   batch: int | None = None) -> dict[tuple[str, str], np.ndarray]:
    """Curves of the named maps and of edge map, centre prior and random order: {(map, kind): float32 [N, steps + 1]}.

    Maps named saliency and smoothgrad, plain gradients, are ordered by absolute value, all others by value.
    """
    x = _check(x)
    maps = {**maps, **{name: make(x, seed) for name, make in REFERENCES.items()}}
    parts = {name: "absolute" if name in ("saliency", "smoothgrad") else "value" for name in maps}
    return {(name, kind): perturbation_curve(model, x, target, one, kind, steps, baseline, scaling, parts[name], seed,
                                             batch) for name, one in maps.items() for kind in KINDS}


def curve_frame(curves: dict[tuple[str, str], np.ndarray], seed: int = 0) -> pd.DataFrame:
    """Areas under the curves of `compare_orders` as shares of the model's own mean p(target).

    Low is good for deletion, high for insertion. Columns map, kind, n, area, and minus_<reference> for edge map, centre
    prior and random order; each with _low and _high, 95 % from 2,000 resamples of the faces (ratios of means).
    """
    trapezoid = {key: ((curve[:, 1:] + curve[:, :-1]) / 2).mean(1) for key, curve in curves.items()}  # [N]
    n = len(next(iter(trapezoid.values())))
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=2000)  # [2000, N], drawn once: paired
    times = np.concatenate([np.ones((1, n), int), times]).astype(np.float32)  # first the faces as they are
    rows = []
    for (name, kind), curve in curves.items():
        own = times @ curve[:, 0 if kind == "deletion" else -1]
        area = {"area": times @ trapezoid[name, kind] / own}
        area |= {f"minus_{other}": area["area"] - times @ trapezoid[other, kind] / own for other in REFERENCES}
        row = {"map": name, "kind": kind, "n": n}
        for column, values in area.items():
            low, high = np.percentile(values[1:], [2.5, 97.5])
            row |= {column: values[0], f"{column}_low": low, f"{column}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


# ---- sanity ---------------------------------------------------------------------------------------------------------

def similarity(a: Array, b: Array, part: str = "value") -> np.ndarray:
    """Spearman's rank correlation of two maps of each face, float64 [B]; NaN for a constant map."""
    a, b = (_part(maps, part).flatten(1).cpu().numpy() for maps in (a, b))
    if a.shape != b.shape:
        raise ValueError(f"The two sets of maps differ in shape: {list(a.shape)} and {list(b.shape)}.")
    a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (rankdata(a, axis=1), rankdata(b, axis=1)))
    size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.where(size > 0, (a * b).sum(1) / np.where(size > 0, size, 1), np.nan)


def weight_layers(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the modules that hold weights of their own, in the order in which a forward pass meets them."""
    with _still(model) as still:
        names = {m: name for name, m in still.named_modules() if next(m.parameters(recurse=False), None) is not None}
        met: list[str] = []
        with _hooks(names, lambda module, *_: met.append(names[module])), torch.no_grad():
            still(_check(x)[:1])
    return list(dict.fromkeys(met))


def cascade_randomise(model: nn.Module, x: Tensor, target: Array | int, method: str = "saliency", stages: int = 8,
                      seed: int = 0, **settings) -> pd.DataFrame:
    """Likeness of the maps to the original ones as layers are drawn anew from the logits down (Adebayo et al. 2018).

    The layers with weights are cut into at most `stages` runs of equal count; step k has re-initialised the top k of
    them in a copy (the model is untouched). Columns step, layer (lowest one drawn anew, "" at step 0), n, rank and
    rank_absolute (mean Spearman of the maps and of their absolute values), and flat (share of faces whose map became
    constant: they are left out of the means). A map that stays alike does not depend on what was learnt.
    `settings` go to `attribute`; Grad-CAM keeps the layer, given by name, that was chosen on the intact model.
    """
    model = getattr(model, "_orig_mod", model)
    x = _check(x)
    if method == "grad_cam":
        settings["layer"] = settings.get("layer") or cam_layer(model, x)[0]
    original = attribute(model, x, target, method, seed=seed, **settings)
    layers = weight_layers(model, x)[::-1]
    changed = copy.deepcopy(model)  # after a pass without gradients: a map that a gate keeps can then be copied
    device, parts = _device(model), dict(changed.named_modules())
    rows = []
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU: the same on every device
        torch.manual_seed(seed)
        for step, names in enumerate([[], *np.array_split(layers, min(stages, len(layers)))]):
            changed.cpu()
            for name in names:
                parts[str(name)].reset_parameters()  # of batch norm also its running statistics
            maps = attribute(changed.to(device), x, target, method, seed=seed, **settings) if step else original
            rank = similarity(original, maps)
            rows.append({"step": step, "layer": str(names[-1]) if step else "", "n": len(x), "rank": float(_mean(rank)),
                         "rank_absolute": float(_mean(similarity(original, maps, "absolute"))),
                         "flat": np.isnan(rank).mean()})
    return pd.DataFrame(rows)


# ---- mean maps in the landmark frame --------------------------------------------------------------------------------

def mean_maps(attributions: Array, labels: Array, n_classes: int = len(EMOTIONS),
              equal: bool = True) -> tuple[Tensor, np.ndarray]:
    """Mean map per emotion, float32 [n_classes, H, W] (NaN where there is no face), and faces in each, int64.

    `equal` first scales each face's map to a mean absolute value of 1, so that no face speaks louder than another (maps
    that are zero everywhere stay zero and count).
    """
    maps = torch.as_tensor(attributions).float()
    labels = torch.as_tensor(labels, device=maps.device).long()
    if equal:
        size = maps.abs().mean((1, 2), keepdim=True)
        maps = maps / torch.where(size > 0, size, 1)
    total = maps.new_zeros((n_classes, *maps.shape[1:])).index_add_(0, labels, maps)
    count = torch.bincount(labels, minlength=n_classes)
    return total / count[:, None, None], count.cpu().numpy()  # 0 / 0 is NaN


def _anchors(points: Tensor) -> Tensor:
    """Centres of both eyes and of the mouth as complex numbers x + iy, [B, 3]; points [B, 68, 2] in iBUG order."""
    centres = torch.stack([points[:, part].mean(1) for part in (slice(36, 42), slice(42, 48), slice(48, 68))], 1)
    return torch.complex(centres[..., 0], centres[..., 1])


def align(maps: Array, points: Array, template: Array | None = None, border: str = "zeros") -> Tensor:
    """Maps (or faces) [B, H, W] in the frame of a template shape, float32 [B, H, W].

    points [B, 68, 2] are (x, y) in pixels, the centre of column j at x = j; `template` [68, 2], by default their mean.
    Each face is turned, scaled and moved (never sheared or mirrored) by the least-squares fit of the template's eye and
    mouth centres to its own, and read bilinearly; outside the picture 0, or with border="border" the nearest pixel.
    """
    maps = torch.as_tensor(maps).float()
    points = torch.as_tensor(points, device=maps.device).float()
    if maps.dim() != 3 or points.shape != (len(maps), 68, 2):
        got = f"{list(maps.shape)} and {list(points.shape)}"
        raise ValueError(f"align takes maps [B, H, W] and points [B, 68, 2], got {got}.")
    template = points.mean(0) if template is None else torch.as_tensor(template, device=maps.device).float()
    own, shape = _anchors(points), _anchors(template[None])  # [B, 3], [1, 3]
    own_mean, shape_mean = own.mean(1, keepdim=True), shape.mean(1, keepdim=True)
    size = (shape - shape_mean).abs().square().sum()
    if not size > 0:
        raise ValueError("The template's eyes and mouth lie on one point: give a template of a face.")
    turn = ((own - own_mean) * (shape - shape_mean).conj()).sum(1, keepdim=True) / size  # [B, 1]
    high, wide = maps.shape[1:]
    down, across = (torch.arange(n, device=maps.device, dtype=torch.float32) for n in (high, wide))
    pixel = torch.complex(across.expand(high, wide), down[:, None].expand(high, wide)).reshape(1, -1)
    source = (turn * (pixel - shape_mean) + own_mean).view(-1, high, wide)  # [B, H, W], where each pixel comes from
    grid = torch.stack([2 * source.real / (wide - 1) - 1, 2 * source.imag / (high - 1) - 1], -1)  # [B, H, W, 2]
    return F.grid_sample(maps[:, None], grid, "bilinear", border, align_corners=True)[:, 0]


# ---- synthetic faces: agreement with the truth ----------------------------------------------------------------------

def agreement_with_truth(importance: pd.DataFrame, truth: pd.DataFrame, value: str = "difference_p",
                         loss: str = "loss") -> pd.DataFrame:
    """How a frame's regions rank against those that carry each emotion in the generator.

    `importance` is tidy with emotion, region and `value` (one run, as an `ablation_frame`), `truth` tidy with emotion,
    region and `loss`. Columns emotion ("all" pools every pair, last), n_regions, rank (Spearman, NaN where the truth is
    constant, as for an emotion that no region carries), top (whether the region of largest value has the largest loss).
    """
    pairs = importance[["emotion", "region", value]].merge(truth[["emotion", "region", loss]], on=["emotion", "region"])
    if pairs.empty:
        raise ValueError("The two frames share no pair of emotion and region: check their names.")
    if pairs.duplicated(["emotion", "region"]).any():
        raise ValueError("A pair of emotion and region occurs twice: give the rows of one run and fill.")
    pairs, rows = pairs.dropna(), []
    order = [emotion for emotion in EMOTIONS if (pairs["emotion"] == emotion).any()]
    for emotion, part in [*((emotion, pairs[pairs["emotion"] == emotion]) for emotion in order), ("all", pairs)]:
        constant = part[value].nunique() < 2 or part[loss].nunique() < 2
        rank = np.nan if constant else part[value].rank().corr(part[loss].rank())
        top = np.nan if constant else float(part[loss].to_numpy()[part[value].argmax()] == part[loss].max())
        rows.append((emotion, len(part), rank, top))
    return pd.DataFrame(rows, columns=["emotion", "n_regions", "rank", "top"])
