"""What needs a network's weights, measured when its run ends and stored with it: tables and committed figures rebuild without weights.

    measures = MEASURES["attention"](model, spec, data)     # {array name: values}
"""
import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from torch.nn import functional as F

from . import synthetic
from .augment import standardise, to_float
from .dataset import VARIANTS, Dataset
from .faces import EMOTIONS
from .landmarks import HOW, REGIONS
from .objectives import Term, attributed
from .saliency import (AREA_FILLS, FEATURES, KINDS, RegionAblation, ablation_frame, align, attribute, cam_layer, cascade_randomise, compare_orders,
                       curve_frame, interval, join_regions, mass_frame, mean_maps, region_ablation, robustness_frame)
from .training import attributed_stages


def attention(model, spec, data: Dataset) -> dict[str, np.ndarray]:
    """Where the gate looks on test faces: `maps` float32 [7, 48, 48], mean attention of each emotion; `overall` [48, 48] on training
    faces; `brightness` [n], the rank correlation of attention and pixel value in each of up to 1,000 test faces; `kernel`, the input
    gate's [2, 7, 7] weights."""
    device = next(model.parameters()).device
    found, intensity = _attention(model, data, data.faces.where("test"), device)
    labels = data.labels("test")
    maps = np.stack([found[labels == c].mean(0) if (labels == c).any() else np.zeros((48, 48), np.float32) for c in range(len(EMOTIONS))])
    overall, _ = _attention(model, data, data.faces.where("train")[:4096], device)
    ranks = lambda a: a.reshape(len(a), -1).argsort(1).argsort(1).astype(np.float64)
    a, b = ranks(found[:1000]), ranks(intensity[:1000])
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    arrays = {"maps": maps, "overall": overall.mean(0), "brightness": ((a * b).mean(1) / (a.std(1) * b.std(1))).astype(np.float32)}
    if model.input_gate is not None:
        arrays["kernel"] = model.input_gate.conv.weight.detach().cpu().numpy()[0]
    return arrays


def _attention(model, data, index, device):
    maps, pixels = [], []
    for chunk in np.array_split(index, max(1, len(index) // 256)):
        x = to_float(torch.as_tensor(np.ascontiguousarray(data.faces.images[chunk])).to(device))
        maps.append(model.attention_maps(standardise(x, data.scaling)).cpu().numpy())
        pixels.append(x[:, 0].cpu().numpy())
    return np.concatenate(maps), np.concatenate(pixels)


MEASURES = {"attention": attention}


# -------------------------------------------------------------------------------------------------------------------- 06 saliency

METHODS = ("saliency", "integrated_gradients", "smoothgrad", "guided_backprop", "grad_cam", "occlusion")
SETTINGS = {"integrated_gradients": {"n_steps": 16}, "smoothgrad": {"n_steps": 8}, "occlusion": {"window": 12, "stride": 8}}  # averaged over faces
# One face an emotion for so many test rows: of FER2013's 3,589 that is 79, 33, 20, 5 and 2 faces (disgust has 38 clean rows).
REGION_ROWS, ROBUST_ROWS, MAP_ROWS, CURVE_ROWS, CASCADE_ROWS = 45, 108, 176, 700, 1500
REGION_FILLS = {"unmasked": ("mean", "blur", "black"), "masked": ("mean",)}  # of each kind of face
SHARE_REGIONS = {**FEATURES, **{name: (name,) for name in ("brows", "eyes", "background")}}
CURVE_METHODS = ("integrated_gradients", "grad_cam", "occlusion")
CASCADE_METHODS = ("saliency", "guided_backprop", "grad_cam")
ROBUST = {"darkening": ("darkening", "none", "unmasked"), "contrast": ("contrast", "none", "unmasked"),  # name: kind, fill, faces
          **{f"area_{faces}_{fill}": ("area", fill, faces) for faces in VARIANTS for fill in AREA_FILLS}}


def fixed_faces(data: Dataset, rows: int) -> np.ndarray:
    """Positions of the test faces that every network is measured on: one an emotion for `rows` test rows, at least one, sorted, int64.

    Drawn once for a data set among clean rows with landmarks of their own; fewer faces are a part of more.
    """
    test = data.faces.where("test")
    fit = test[data.faces.clean("test") & ~data.faces.blank[test] & (data.landmarks.how[test] != HOW.index("template"))]
    fit = fit if len(fit) else test  # a data set without the detector
    shuffled = np.random.default_rng(0).permutation(fit)
    count = max(1, len(test) // rows)
    return np.sort(np.concatenate([shuffled[data.faces.labels[shuffled] == c][:count] for c in range(len(EMOTIONS))]))


def mean_faces(data: Dataset, variant: str = "unmasked") -> np.ndarray:
    """`Dataset.mean_faces` of the test faces in the landmark frame of the mean maps, float32 [7, 48, 48]."""
    frame = data.landmarks.points.mean(0)
    return data.mean_faces(variant, move=lambda images, points: align(images, points, frame, "border").numpy())


def pack(name: str, frame: pd.DataFrame, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """A tidy frame as arrays: `name` float32 [columns, levels of each key ...], `name_columns` and `name_<key>` their names."""
    levels = {key: list(dict.fromkeys(frame[key])) for key in keys}
    wide = frame.set_index(list(keys)).reindex(pd.MultiIndex.from_product(levels.values(), names=keys))
    values = wide.to_numpy(np.float32).T.reshape(wide.shape[1], *map(len, levels.values()))
    return {name: values, f"{name}_columns": np.array(wide.columns, np.str_),
            **{f"{name}_{key}": np.array(level, np.str_) for key, level in levels.items()}}


def unpack(name: str, arrays: dict[str, np.ndarray], keys: tuple[str, ...]) -> pd.DataFrame:
    """The tidy frame that `pack` stored; rows without any value are left out."""
    index = pd.MultiIndex.from_product([arrays[f"{name}_{key}"].tolist() for key in keys], names=keys)
    frame = pd.DataFrame(arrays[name].reshape(len(arrays[name]), -1).T.astype(np.float64), index, arrays[f"{name}_columns"].tolist())
    frame = frame.dropna(how="all").reset_index()
    return frame.astype({"n": int}) if "n" in frame else frame


def regions(model, spec, data: Dataset) -> dict[str, np.ndarray]:
    """The primary endpoint: what fixed test faces lose when a region goes, and when the same mask goes to a random place.

    Packed `ablation_frame`s by emotion and region: `unmasked_mean` (filled with the visible pixels' mean grey), `unmasked_blur`,
    `unmasked_black`, for a network trained on masked faces `masked_mean`, the same of its own kind of face, and for synthetic data
    `unmasked_neutral`.
    """
    device = next(model.parameters()).device
    index = fixed_faces(data, REGION_ROWS)
    found, names = join_regions(data.regions(index), REGIONS, {**FEATURES, **{name: (name,) for name in REGIONS}})  # FEATURES first
    arrays = {}
    for variant, fills in REGION_FILLS.items():
        if variant in ("unmasked", spec.variant):
            images = torch.as_tensor(data.images(variant)[index]).to(device)
            for fill in fills:
                result = region_ablation(model, images, data.faces.labels[index].astype(np.int64), found, fill, data.scaling, 1)
                arrays |= pack(f"{variant}_{fill}", ablation_frame(result, names), ("emotion", "region"))
    if data.synthetic is not None:
        arrays |= pack("unmasked_neutral", ablation_frame(_neutral(model, data, index), synthetic.REGIONS), ("emotion", "region"))
    return arrays


@torch.no_grad()
def _neutral(model, data: Dataset, index: np.ndarray) -> RegionAblation:
    """What a network loses when synthetic faces are drawn again with the action units of one region at rest: nothing is hidden, and
    nothing else in the picture changes, so the control is the intact face. Says which regions the network really uses."""
    device = next(model.parameters()).device
    labels, units = data.faces.labels[index].astype(np.int64), data.synthetic.action_units[index]
    drawn = [units] + [units * (1 - synthetic.region_share(name)) for name in synthetic.REGIONS]
    logits = [model(data.standardised(synthetic.draw_faces(u.astype(np.float32))[0], device)).cpu().numpy() for u in drawn]
    probs = np.stack([softmax(one, 1) for one in logits], 1)  # [n, 1 + R, 7]
    right = np.stack([one.argmax(1) == labels for one in logits], 1).astype(np.float32)
    intact = [np.repeat(values[:, :1], len(synthetic.REGIONS), 1) for values in (probs, right)]
    return RegionAblation(labels, probs[:, 0], probs[:, 1:], intact[0], right[:, 0], right[:, 1:], intact[1])


def robustness(model, spec, data: Dataset) -> dict[str, np.ndarray]:
    """How fixed test faces are recognised as light goes, contrast goes, and a growing square hides the picture (masked faces: the last).

    Of each name in ROBUST the packed `robustness_frame` by level and emotion; every network sees the same faces and the same squares.
    """
    device = next(model.parameters()).device
    index, arrays = fixed_faces(data, ROBUST_ROWS), {}
    images = {faces: torch.as_tensor(data.images(faces)[index]).to(device) for faces in VARIANTS}
    for name, (kind, fill, faces) in ROBUST.items():
        frame = robustness_frame(model, images[faces], data.faces.labels[index].astype(np.int64), kind, fill, data.scaling)
        arrays |= pack(name, frame, ("level", "emotion"))
    return arrays


def saliency(model, spec, data: Dataset) -> dict[str, np.ndarray]:
    """Attributions of the label's logit on fixed unmasked test faces, and what can be said of them.

    maps      float16 [M, 7, 48, 48], mean map of each of `methods` and emotion in the landmark frame, every face with the same weight;
              `n` int64 [7]; `layer` Grad-CAM's; `gap` integrated gradients' mean |error of completeness| / mean |change of the logit|
    shares    packed `mass_frame` by method, emotion, region and measure, with differences to the untrained net of the same spec, the
              edge map and the centre prior
    areas     packed `curve_frame` (deletion, insertion) by map and kind; curves float32 [maps, kinds, 25], shares of the net's own p
    cascade   float32 [methods, stages + 1], rank similarity (of absolute values) to the intact net's maps as layers are drawn anew
    """
    device = next(model.parameters()).device
    untrained = spec.build().to(device).eval()
    index = fixed_faces(data, MAP_ROWS)
    x = data.inputs(index, device=device)  # (n, 1, 48, 48)
    labels = torch.as_tensor(data.faces.labels[index].astype(np.int64)).to(device)
    points, frame = data.landmarks.points[index], data.landmarks.points.mean(0)
    masks, names = join_regions(data.regions(index), REGIONS, SHARE_REGIONS)
    layer, size = cam_layer(model, x)
    plain = {name: attribute(None, x, labels, name) for name in ("edge_map", "centre_prior")}
    found, means, shares = {}, [], []
    for method in METHODS:
        settings = {"grad_cam": {"layer": layer}, **SETTINGS}.get(method, {})
        found[method] = attribute(model, x, labels, method, **settings)
        blank = {"untrained": attribute(untrained, x, labels, method, **settings)}
        shares.append(mass_frame(found[method], blank | plain, masks, names, labels).assign(method=method))
        mean, n = mean_maps(align(found[method], points, frame), labels)
        means.append(mean.cpu().numpy())
    some = np.isin(index, fixed_faces(data, CURVE_ROWS))
    curves = compare_orders(model, x[some], labels[some], {name: found[name][some] for name in CURVE_METHODS})
    few = np.isin(index, fixed_faces(data, CASCADE_ROWS))
    cascade = [cascade_randomise(model, x[few], labels[few], method, stages=3)["rank_absolute"] for method in CASCADE_METHODS]
    _, gap = attribute(model, x[few], labels[few], "integrated_gradients", **SETTINGS["integrated_gradients"], return_gap=True)
    rise = found["integrated_gradients"][few].sum((1, 2)) - gap
    own = {key: curve / curve[:, 0 if key[1] == "deletion" else -1].mean() for key, curve in curves.items()}
    sources = tuple(dict.fromkeys(name for name, _ in curves))
    return {"methods": np.array(METHODS), "maps": np.stack(means).astype(np.float16), "n": n,
            "layer": np.array(f"{layer}, {size[0]} maps of {size[1]} x {size[2]}"), "gap": (gap.abs().mean() / rise.abs().mean()).cpu().numpy(),
            **pack("shares", pd.concat(shares), ("method", "emotion", "region", "measure")),
            **pack("areas", curve_frame(curves), ("map", "kind")),
            "curves": np.stack([[own[name, kind].mean(0) for kind in KINDS] for name in sources]).astype(np.float32),
            "cascade": np.array(cascade, np.float32)}


MEASURES |= {"regions": regions, "saliency": saliency, "robustness": robustness}


# ------------------------------------------------------------------------------------------------- 07 faces with and without a mask

PAIR_FACES = 2000  # test faces whose features are set side by side


def pairs(model, spec, data: Dataset) -> dict[str, np.ndarray]:
    """How a network sees test faces without and with their mask.

    index      int64 [n], positions of up to 2,000 clean test faces, the same for every network
    tsne       float16 [2, n, 2], t-SNE of their features (the last map's mean, standardised), unmasked and masked in one picture
    silhouette float32 [3], of the emotions in the features of unmasked, of masked and of both kinds
    cosine     packed by faces and emotion: mean cosine of an unmasked face's features and those of `both` (its own masked picture) or of
               `others` (another face of the emotion, masked), with its 95 % interval
    skin       packed by kind of face and emotion: share of Grad-CAM's positive mass (target: the label) outside the mask's pixels, over
               every test face, and the share of the picture that lies there
    maps       float16 [2, 7, 48, 48], mean Grad-CAM maps in the landmark frame
    """
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score

    device, test, labels = next(model.parameters()).device, data.faces.where("test"), data.labels("test")
    index = np.sort(np.random.default_rng(0).permutation(test[data.faces.clean("test")])[:PAIR_FACES])
    x = {kind: data.inputs(test, kind, device) for kind in VARIANTS}
    some = np.isin(test, index)
    with torch.no_grad():
        features = np.concatenate([torch.cat([model.forward_features(part).mean((2, 3)).float() for part in one[some].split(256)]).cpu().numpy()
                                   for one in x.values()])  # (2n, C)
    standard = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    places = TSNE(random_state=0, init="pca", perplexity=min(30, len(index) // 4)).fit_transform(standard)
    two, n = np.tile(labels[some], 2), len(index)
    silhouette = [silhouette_score(one, of) for one, of in ((standard[:n], two[:n]), (standard[n:], two[n:]), (standard, two))]
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    cosine = pd.concat([_by_emotion((unit[:n] * unit[n:][of]).sum(1), labels[some]).assign(faces=name)
                        for name, of in (("both", slice(None)), ("others", _another(labels[some])))])
    layer, _ = cam_layer(model, x["unmasked"])
    skin, maps = [], []
    for kind, one in x.items():
        found = attribute(model, one, torch.as_tensor(labels).to(device), "grad_cam", layer=layer).clamp(min=0)
        mass, bare = found.sum((1, 2)).cpu().numpy(), ~data.mask_region[test]
        share = (found.cpu().numpy() * bare).sum((1, 2)) / np.where(mass > 0, mass, np.nan)
        skin.append(_by_emotion(share, labels).assign(faces=kind, area=_by_emotion(bare.mean((1, 2)), labels)["value"]))
        mean, _ = mean_maps(align(found, data.landmarks.points[test], data.landmarks.points.mean(0)), labels)
        maps.append(mean.cpu().numpy())
    return {"index": index, "tsne": places.reshape(2, n, 2).astype(np.float16), "silhouette": np.array(silhouette, np.float32),
            **pack("cosine", cosine, ("faces", "emotion")), **pack("skin", pd.concat(skin), ("faces", "emotion")), "maps": np.stack(maps).astype(np.float16)}


def _another(labels: np.ndarray) -> np.ndarray:
    """For each face the position of another of its emotion (the next one, the last is given the first), int64 [n]."""
    found = np.arange(len(labels))
    for c in range(len(EMOTIONS)):
        here = np.flatnonzero(labels == c)
        found[here] = np.roll(here, -1)
    return found


def _by_emotion(values: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Mean of a number a face [n], over all and by emotion, with its 95 % normal interval; NaN left out."""
    rows = []
    for emotion, here in (("all", labels >= 0), *((name, labels == c) for c, name in enumerate(EMOTIONS))):
        one = values[here & ~np.isnan(values)]
        low, high = interval(one[:, None]) if len(one) else (np.full(1, np.nan),) * 2
        rows.append({"emotion": emotion, "n": len(one), "value": one.mean() if len(one) else np.nan, "low": low[0], "high": high[0]})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------------- 08 privileged attribution

ALIGNED = ("feature x gradient", "grad_cam", "saliency")  # what the loss trains (by `mean`), and two attributions that it does not name


def alignment(model, spec, data: Dataset) -> dict[str, np.ndarray]:
    """How far attributions of the label's logit lie on the landmarks, over the clean test faces that have landmarks of their own.

    cosine        packed by prior, method and emotion: cosine of the attribution's positive part and the prior (sigma 2 px), with its interval;
                  prior `own`, or `another`: that of another face of the emotion, which a blob at the place of every face matches as well
    correlation   the same of the correlation of the attribution and the prior; `saliency` is taken by its absolute value
    maps          float16 [7, 48, 48], mean of feature x gradient (mean over channels) in the landmark frame, 0 to 1 a face

    Feature x gradient is that of the map that a privileged objective holds in training of this recipe; the method `uniform` is a map without
    any preference, whose cosine is far from 0.
    """
    device, test = next(model.parameters()).device, data.faces.where("test")
    index = test[data.faces.clean("test") & (data.landmarks.how[test] != HOW.index("template"))]
    labels = data.faces.labels[index].astype(np.int64)
    x = data.inputs(index, device=device)
    target, stages, (layer, _) = torch.as_tensor(labels).to(device), attributed_stages(model, spec.recipe, Term()), cam_layer(model, x)
    own = torch.cat([attributed(model, a, b, stages)[0].mean(1).detach() for a, b in zip(x.split(256), target.split(256))])  # (n, h, w)
    maps = {"feature x gradient": F.interpolate(own[:, None], x.shape[-2:], mode="bilinear")[:, 0],
            "grad_cam": attribute(model, x, target, "grad_cam", layer=layer), "saliency": attribute(model, x, target, "saliency").abs(),
            "uniform": torch.ones_like(x[:, 0])}
    prior = torch.as_tensor(data.priors(index)[:, 0]).to(device).float().flatten(1)
    found = {"cosine": [], "correlation": []}
    for whose, landmarks in (("own", prior), ("another", prior[torch.as_tensor(_another(labels)).to(device)])):
        for method, one in maps.items():
            one = one.flatten(1)
            centred = [values - values.mean(1, keepdim=True) for values in (one, landmarks)]
            for name, a, b in (("cosine", one.clamp(min=0), landmarks), ("correlation", *centred)):
                alike = F.cosine_similarity(a, b).cpu().numpy().astype(np.float64)
                found[name].append(_by_emotion(alike, labels).assign(prior=whose, method=method))
    top = maps["feature x gradient"].clamp(min=0)
    top = top / top.amax((1, 2), keepdim=True).clamp(min=1e-12)
    mean, _ = mean_maps(align(top, data.landmarks.points[index], data.landmarks.points.mean(0)), target, equal=False)
    keys = ("prior", "method", "emotion")
    return {**pack("cosine", pd.concat(found["cosine"]), keys), **pack("correlation", pd.concat(found["correlation"]), keys),
            "maps": mean.cpu().numpy().astype(np.float16)}


MEASURES |= {"pairs": pairs, "alignment": alignment}
