"""Masking: the MaskFer drawing (a mask on every face, with its exact region); occlusion of regions and its controls.

    masked, region = draw_masks(faces.images, marks.points, faces.row)        # uint8 [N, 48, 48], bool [N, 48, 48]
    table = coverage(region, marks.points, marks.how)                         # what the masks cover, one line per face
    hidden = occlude(x, region, fill="mean")                                  # float [B, 1, 48, 48]
    control = occlude(x, roll_region(region, generator), fill="mean")         # the same area somewhere else

A mask is drawn as a dome: an outline from the jaw and the bridge of the nose, joined with mouth and nose tip, lit as
the uncovered skin is, with edge, seams or pleats, and straps. Kind and shade come from a face's row, never from the
order of the call, and no face's mask depends on the others'. The outline itself tells of the emotion (an open mouth
lowers the chin: 12 outline numbers classify 32.6 % where the majority is 25.2 %), so `outline` offers two controls: one
that knows the pose but neither jaw nor mouth, and one that is the same for all.
"""
from dataclasses import dataclass
from typing import Callable

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from .faces import SIZE
from .landmarks import (HOW, POLYGONS, TEMPLATE, checked, face_axes, face_outline, hull, inside, region_masks, stretch,
                        winding)

MASK_VERSION = 1  # raised by hand whenever a drawn pixel changes; part of every run's key

SAMPLES = 4        # lines per pixel row, anti-aliasing
FAINTEST = 16      # coverage in 256ths below which a pixel is left alone, so that the region is exact
N95_WHITEST = 245  # grey level


# --- where the mask lies on the face ---

def _own(points: np.ndarray) -> np.ndarray:
    """The face's own points: the mask follows jaw, mouth and nose (default; its outline tells of the emotion)."""
    return points


def _from_eyes_nose(points: np.ndarray) -> np.ndarray:
    """The template moved, turned and scaled onto eye corners and nose: place and pose, but no jaw and no mouth."""
    anchors = [27, 28, 29, 30, 33, 36, 39, 42, 45]
    there = points[:, anchors, 0] + 1j * points[:, anchors, 1]  # (n, 9)
    here = TEMPLATE[anchors, 0].astype(np.float64) + 1j * TEMPLATE[anchors, 1]
    centred = here - here.mean()
    # least squares (n,): a turn and a scale as one complex number
    turn = (centred.conj() * (there - there.mean(1, keepdims=True))).sum(1) / (np.abs(centred) ** 2).sum()
    shape = TEMPLATE[:, 0].astype(np.float64) + 1j * TEMPLATE[:, 1]
    moved = there.mean(1)[:, None] + turn[:, None] * (shape - here.mean())  # (n, 68)
    return np.stack([moved.real, moved.imag], 2)


def _from_template(points: np.ndarray) -> np.ndarray:
    """One outline for all faces."""
    return np.repeat(TEMPLATE[None].astype(np.float64), len(points), 0)


OUTLINES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "face": _own, "eyes_nose": _from_eyes_nose, "template": _from_template}


@dataclass(frozen=True)
class Fit:
    """A mask's place on n faces; lengths in pixels of the 48-px face."""

    points: np.ndarray  # [n, 68, 2]
    right: np.ndarray   # [n, 2] unit vector
    up: np.ndarray      # [n, 2] unit vector
    scale: np.ndarray   # [n, 1] about the distance of the eyes
    bridge: np.ndarray  # [n, 2] where the upper edge crosses the nose
    chin: np.ndarray    # [n, 2] a little below the chin
    left_corner: np.ndarray   # [n, 2] upper corner at the cheek, left in the picture
    right_corner: np.ndarray  # [n, 2]
    apex: np.ndarray    # [n, 2] what stands out most, between the tip of the nose and the mouth
    across: np.ndarray  # [n, 48, 48] from -1 at the left edge through 0 at the apex to 1 at the right edge
    along: np.ndarray   # [n, 48, 48] from -1 at the bridge through 0 at the apex to 1 at the chin
    near: np.ndarray    # [n, 2] 1.0 where the left (right) side of the face can be seen, 0.0 where it is turned away


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1]


def _fit(points: np.ndarray, corner: float, reach: float) -> Fit:
    """Place a mask: corners `corner` of the way from jaw point 1 to 2, lower edge `reach` scales below the chin."""
    right, up, scale = face_axes(points)
    bridge = 0.2 * points[:, 27] + 0.8 * points[:, 28]
    chin = points[:, 8] - reach * scale * up
    left_corner = (1 - corner) * points[:, 1] + corner * points[:, 2]
    right_corner = (1 - corner) * points[:, 15] + corner * points[:, 14]
    apex = 0.6 * points[:, 30] + 0.2 * (points[:, 48] + points[:, 54])
    y, x = np.mgrid[:SIZE, :SIZE]
    dx, dy = x - apex[:, 0, None, None], y - apex[:, 1, None, None]  # (n, 48, 48)
    u = dx * right[:, 0, None, None] + dy * right[:, 1, None, None]
    v = -(dx * up[:, 0, None, None] + dy * up[:, 1, None, None])  # downwards
    to_left, to_right = _dot(apex - left_corner, right), _dot(right_corner - apex, right)  # (n,)
    least = 0.3 * scale[:, 0]
    half_width = np.where(u < 0, np.maximum(to_left, least)[:, None, None], np.maximum(to_right, least)[:, None, None])
    half_height = np.where(v < 0, np.maximum(_dot(bridge - apex, up), least)[:, None, None],
                           np.maximum(_dot(apex - chin, up), least)[:, None, None])
    near = np.stack([to_left > np.maximum(least, 0.45 * to_right), to_right > np.maximum(least, 0.45 * to_left)], 1)
    return Fit(points, right, up, scale, bridge, chin, left_corner, right_corner, apex, u / half_width, v / half_height,
               near.astype(np.float64))


def _curve(start: np.ndarray, middle: np.ndarray, end: np.ndarray, steps: int = 7) -> np.ndarray:
    """Quadratic curve [n, steps, 2] from `start` to `end` that passes through `middle` half-way."""
    t = np.linspace(0, 1, steps)[None, :, None]
    control = 2 * middle - (start + end) / 2
    return (1 - t) ** 2 * start[:, None] + 2 * t * (1 - t) * control[:, None] + t ** 2 * end[:, None]


def _stroke(path: np.ndarray, width: np.ndarray | float) -> np.ndarray:
    """A line of `width` px (number or [n, 1]) along path [n, K, 2], as a polygon [n, 2K, 2]."""
    along = np.concatenate([path[:, 1:2] - path[:, :1], path[:, 2:] - path[:, :-2], path[:, -1:] - path[:, -2:-1]], 1)
    length = np.maximum(np.sqrt(_dot(along, along)), 1e-6)[..., None]
    side = np.stack([-along[..., 1], along[..., 0]], 2) / length * (np.asarray(width)[..., None] / 2)
    return np.concatenate([path + side, (path - side)[:, ::-1]], 1)


def _cover(polygons: list[np.ndarray]) -> np.ndarray:
    """Greatest coverage of several lists of polygons, int32 [n, 48, 48] in 256ths."""
    total = winding(polygons[0], SAMPLES)
    for polygon in polygons[1:]:
        np.maximum(total, winding(polygon, SAMPLES), out=total)
    return total


def _outline(fit: Fit, bridge_width: float) -> np.ndarray:
    """The mask's outline [n, 64, 2]: the hull of corners, bridge of the nose, jaw, mouth and tip of the nose.

    Without mouth and nose tip the mouth would stay visible in 4.4 % of the FER2013 faces (sad 8.5 %), mostly profiles.
    """
    p, half = fit.points, bridge_width * fit.scale * fit.right
    upper = np.stack([fit.left_corner, fit.bridge - half, fit.bridge + half, fit.right_corner], 1)
    jaw = p[:, 3:14] + 0.04 * (p[:, 3:14] - fit.apex[:, None])  # a little outside the jaw
    at_chin = (1 - np.abs(np.arange(11) - 5) / 5)[None, :, None]
    jaw = jaw + at_chin * (fit.chin - p[:, 8])[:, None]
    mouth = stretch(p[:, 48:60], fit.right, fit.up, (1.14, 1.22))
    return hull(np.concatenate([upper, jaw, mouth, p[:, [30, 31, 33, 35]]], 1), 64)


def _inset(fit: Fit, outline: np.ndarray, by: float) -> np.ndarray:
    """The outline drawn towards the apex by a share of its distance."""
    return outline + by * (fit.apex[:, None] - outline)


def _bands(fit: Fit) -> list[np.ndarray]:
    """Two elastic bands round the head: upwards from the corners and level from the jaw; none on a side turned away."""
    bands = []
    for side, corner, low in ((0, fit.left_corner, fit.points[:, 4]), (1, fit.right_corner, fit.points[:, 12])):
        out = (2 * side - 1) * fit.scale * fit.right
        width = 0.075 * fit.scale * fit.near[:, side: side + 1]
        for start, rise in ((corner - 0.1 * out, 0.42), (low - 0.1 * out, 0.2)):
            end = start + 0.6 * (out + rise * fit.scale * fit.up)  # to the ear
            bands.append(_stroke(_curve(start, (start + end) / 2 - 0.04 * fit.scale * fit.up, end, 5), width))
    return bands


def _loops(fit: Fit) -> list[np.ndarray]:
    """An ear loop on each side, from upper and lower corner of the mask to the ear; none on a side turned away."""
    loops = []
    for side, corner, low, ear in ((0, fit.left_corner, fit.points[:, 4], fit.points[:, 0]),
                                   (1, fit.right_corner, fit.points[:, 12], fit.points[:, 16])):
        out = (2 * side - 1) * fit.scale * fit.right
        width = 0.055 * fit.scale * fit.near[:, side: side + 1]
        behind = 0.55 * ear + 0.45 * corner + 0.3 * out
        loops.append(_stroke(_curve(corner, (corner + behind) / 2 + 0.04 * fit.scale * fit.up, behind, 5), width))
        middle = (low + behind) / 2 + 0.05 * out - 0.02 * fit.scale * fit.up
        loops.append(_stroke(_curve(low, middle, behind, 5), width))
    return loops


# --- what it looks like ---

@dataclass(frozen=True)
class Drawing:
    """A mask before light falls on it. Coverage int32 [n, 48, 48] in 256ths; a tone of 1.0 is white in its light."""

    body: np.ndarray
    straps: np.ndarray
    tone: np.ndarray        # [n, 48, 48]
    strap_tone: np.ndarray  # [n, 1, 1]
    relief: float           # how much the dome's shape shows in its shading, 0 = flat
    grain: np.ndarray       # [n, 1, 1] grey levels
    whitest: float          # grey level


def _line(polygons: list[np.ndarray], strength: float) -> np.ndarray:
    """Factor [n, 48, 48] by which lines (seams, pleats, edges) darken a tone, 1 where there is none."""
    return 1 - strength * _cover(polygons) / 256


def _across_at(fit: Fit, height: float, dip: float, reach: float = 0.98) -> np.ndarray:
    """Curve from edge to edge at `height` (-1 bridge, 0 apex, 1 chin) in the middle, its ends `dip` scales higher."""
    top = _dot(fit.bridge - fit.apex, fit.up)[:, None] if height < 0 else _dot(fit.apex - fit.chin, fit.up)[:, None]
    middle = fit.apex - height * top * fit.up
    ends = [middle + reach * _dot(corner - fit.apex, fit.right)[:, None] * fit.right + dip * fit.scale * fit.up
            for corner in (fit.left_corner, fit.right_corner)]
    return _curve(ends[0], middle, ends[1], 9)


def _wire(fit: Fit, half: float, below: float, width: np.ndarray | float) -> np.ndarray:
    """The wire over the nose, `half` scales to either side and `below` the bridge, as a polygon."""
    reach, fall = half * fit.scale * fit.right, 0.1 * fit.scale * fit.up
    low = fit.bridge - below * fit.scale * fit.up
    return _stroke(_curve(low - reach - fall, low, low + reach - fall, 5), width)


def _n95(points: np.ndarray, chance: np.ndarray) -> Drawing:
    """A white respirator: a dome with a welded edge, a nose clip, either two panel seams or one fold, two bands."""
    fit = _fit(points, corner=0.35, reach=0.1)
    outline = _outline(fit, bridge_width=0.13)
    body = _cover([outline])
    inner = _cover([_inset(fit, outline, 0.11)]) / 256
    panels = [_stroke(_across_at(fit, -0.3, 0.06, 0.9), 0.9), _stroke(_across_at(fit, 0.42, 0.12, 0.9), 0.9)]
    fold = [_stroke(_curve(fit.bridge, fit.apex, fit.chin, 9), 1.0)]
    folded = chance[:, 0, None, None] < 0.4
    seams = np.where(folded, _line(fold, 0.2), _line(panels, 0.24))
    clip = _line([_wire(fit, 0.26, 0.12, 0.07 * fit.scale)], 0.34)
    tone = (0.97 + 0.06 * chance[:, 1, None, None]) * seams * clip * (0.8 + 0.2 * inner)
    return Drawing(body, _cover(_bands(fit)), tone, 0.62 + 0.3 * chance[:, 2, None, None], 1.0,
                   1.5 + np.zeros((len(points), 1, 1)), N95_WHITEST)


def _surgical(points: np.ndarray, chance: np.ndarray) -> Drawing:
    """A pleated mask, light blue to white in grey: three pleats, bound upper and lower edges, ear loops."""
    fit = _fit(points, corner=0.55, reach=0.06)
    outline = _outline(fit, bridge_width=0.16)
    body = _cover([outline])
    inner = _cover([_inset(fit, outline, 0.1)]) / 256
    tone = 0.66 + 0.26 * chance[:, 1, None, None]
    for height, dip in ((-0.18, 0.02), (0.24, 0.06), (0.6, 0.1)):
        pleat = _across_at(fit, height, dip)
        tone = tone * _line([_stroke(pleat, 0.85)], 0.34)
        lip = pleat + (0.055 * fit.scale * fit.up)[:, None]  # the fold above it catches light
        tone = tone * (1 + 0.1 * _cover([_stroke(lip, 1.0)]) / 256)
    tone = tone * _line([_wire(fit, 0.3, 0.13, 0.8)], 0.15) * (1.12 - 0.12 * inner)  # the binding is paler
    return Drawing(body, _cover(_loops(fit)), tone, np.full((len(points), 1, 1), 0.9), 0.7,
                   2.0 + np.zeros((len(points), 1, 1)), 250)


def _cloth(points: np.ndarray, chance: np.ndarray) -> Drawing:
    """A sewn mask of any shade from black to white: a seam down the middle, a stitched hem, a weave, ear loops."""
    fit = _fit(points, corner=0.5, reach=0.05)
    outline = _outline(fit, bridge_width=0.1)
    body = _cover([outline])
    hem = (_cover([_inset(fit, outline, 0.1)]) - _cover([_inset(fit, outline, 0.17)])) / 256
    shade = 0.12 + 0.8 * chance[:, 1, None, None]
    seam = _line([_stroke(_curve(fit.bridge, fit.apex, fit.chin, 9), 0.9)], 0.3)
    y, x = np.mgrid[:SIZE, :SIZE]
    weave = np.where(chance[:, 3, None, None] < 0.5, ((x + y) % 2)[None], (y % 2)[None])  # (n, 48, 48)
    tone = shade * seam * (1 - 0.18 * hem) * (1 - 0.06 * weave)
    loop_shade = np.clip(shade * (0.7 + 0.6 * chance[:, 2, None, None]), 0.08, 0.95)
    return Drawing(body, _cover(_loops(fit)), tone, loop_shade, 0.9, 2.0 + 4.0 * shade, 250)


_DRAWN: dict[str, Callable[[np.ndarray, np.ndarray], Drawing]] = {"n95": _n95, "surgical": _surgical, "cloth": _cloth}
KINDS = (*_DRAWN, "mixed")  # mixed: one of the three, a third each, by the face's row

# One sheet of noise for all; each face takes its own cut of it.
_NOISE = np.random.default_rng(48).standard_normal((128, 128)).round(3)


def _chances(rows: np.ndarray, seed: int, count: int = 8) -> np.ndarray:
    """Uniform numbers in [0, 1) from row and seed only, float64 [n, count] (after SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        state = rows.astype(np.int64).astype(np.uint64)[:, None] * np.uint64(0xD1342543DE82EF95)
        state = state + np.uint64(seed % 2 ** 64) * np.uint64(0xAF251AF3B0F025B5)
        for _ in range(2):
            state = state + np.uint64(0x9E3779B97F4A7C15) * (np.arange(1, count + 1, dtype=np.uint64))
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) / 2 ** 53


def _light(images: np.ndarray, points: np.ndarray, covered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How bright the uncovered skin is and from which side it is lit: level [n] in grey levels, side [n] in -0.5..0.5.

    Skin is the face without eyes and brows; where a mask leaves too little of it, all uncovered pixels count.
    """
    features = np.logical_or.reduce([inside(polygon) for name in ("eyes", "brows")
                                     for polygon in POLYGONS[name](points)])
    skin = inside(face_outline(points)) & ~covered & ~features  # (n, 48, 48)
    few = skin.sum((1, 2)) < 40
    skin[few] = ~covered[few]
    right, _, _ = face_axes(points)
    y, x = np.mgrid[:SIZE, :SIZE]
    offset = ((x - points[:, 27, 0, None, None]) * right[:, 0, None, None]
              + (y - points[:, 27, 1, None, None]) * right[:, 1, None, None])
    pixels = images.astype(np.int64)
    sides = (skin & (offset < 0), skin & (offset >= 0))
    counts = [side.sum((1, 2)) for side in sides]
    sums = [(pixels * side).sum((1, 2)) for side in sides]  # whole numbers: exact in any order
    level = (sums[0] + sums[1]) / np.maximum(counts[0] + counts[1], 1)
    both = (counts[0] >= 20) & (counts[1] >= 20)
    left_mean, right_mean = (s / np.maximum(c, 1) for s, c in zip(sums, counts))
    side = np.where(both, (right_mean - left_mean) / np.maximum(left_mean + right_mean, 1), 0)
    return level, np.clip(side, -0.5, 0.5)


def _paint(images: np.ndarray, points: np.ndarray, rows: np.ndarray, kind: str,
           seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one kind of mask on a few faces: uint8 [n, 48, 48] and the region, bool [n, 48, 48]."""
    chance = _chances(rows, seed)
    drawing = _DRAWN[kind](points, chance)
    body = np.where(drawing.body >= FAINTEST, drawing.body, 0) / 256
    straps = np.where(drawing.straps >= FAINTEST, drawing.straps, 0) / 256
    region = (body > 0) | (straps > 0)
    level, side = _light(images, points, region)
    white = np.minimum(1.3 * level + 30, 250)[:, None, None]  # a white cloth beside this skin
    fit = _fit(points, 0.5, 0.06)
    slope_x, slope_y = 0.9 * fit.across, 0.75 * fit.along  # of a parabolic dome
    toward = (1.0 + 1.6 * side[:, None, None] * slope_x - 0.45 * slope_y) / np.sqrt(1 + slope_x ** 2 + slope_y ** 2)
    shading = 1 + drawing.relief * (0.55 * (np.clip(toward, 0.2, 1.6) - 1))
    cut = (chance[:, 5:7] * 80).astype(np.int64)  # (n, 2)
    y, x = np.mgrid[:SIZE, :SIZE]
    noise = _NOISE[cut[:, 0, None, None] + y, cut[:, 1, None, None] + x]  # (n, 48, 48)
    cloth = np.clip(white * drawing.tone * shading + drawing.grain * noise, 4, drawing.whitest)
    picture = images * (1 - straps) + np.clip(white * drawing.strap_tone, 4, drawing.whitest) * straps
    picture = picture * (1 - body) + cloth * body
    return np.where(region, np.rint(picture), images).astype(np.uint8), region


def draw_masks(images: np.ndarray, points: np.ndarray, rows: np.ndarray, kind: str = "n95", outline: str = "face",
               seed: int = 0, chunk: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Draw a mask on every face: masked uint8 [N, 48, 48] and the region bool [N, 48, 48], all that changed.

    images uint8 [N, 48, 48]; points [N, 68, 2] in pixels; rows int64 [N] seed kind and shade, together with `seed`.
    kind: one of KINDS. outline: `face` follows the face's own points; `eyes_nose` moves the template onto eyes and
    nose; `template` is the same for all (both are controls). The region holds the straps too.
    Raises ValueError on unknown names and on arrays that do not fit together.
    """
    if kind not in KINDS:
        raise ValueError(f"Unknown kind of mask {kind!r}: use {', '.join(KINDS)}.")
    if outline not in OUTLINES:
        raise ValueError(f"Unknown outline {outline!r}: use {', '.join(OUTLINES)}.")
    images, points, rows = np.asarray(images), checked(points), np.asarray(rows)
    n = len(images)
    if images.dtype != np.uint8 or images.shape != (n, SIZE, SIZE):
        raise ValueError(f"images must be uint8 [N, {SIZE}, {SIZE}], got {images.dtype} {images.shape}.")
    if len(points) != n or rows.shape != (n,):
        raise ValueError(f"points and rows need one entry for each of {n} images, got {len(points)} and {rows.shape}.")
    names = np.full(n, kind, object)
    if kind == "mixed":
        names = np.array(list(_DRAWN), object)[(_chances(rows, seed)[:, 7] * len(_DRAWN)).astype(np.int64)]
    masked, region = np.empty_like(images), np.empty(images.shape, bool)
    for name in _DRAWN:
        of_kind = np.flatnonzero(names == name)
        for begin in range(0, len(of_kind), chunk):
            some = of_kind[begin: begin + chunk]
            shape = OUTLINES[outline](points[some])
            masked[some], region[some] = _paint(images[some], shape, rows[some], name, seed)
    return masked, region


def coverage(region: np.ndarray, points: np.ndarray, how: np.ndarray, chunk: int = 2048) -> pd.DataFrame:
    """Share of each feature that a mask covers, one line per face in the order given: group it by the faces' labels.

    Columns: how (name), mouth, nose, eyes, brows (share of the feature's pixels, NaN when it lies outside the picture),
    overall (share of the picture). region bool [N, 48, 48], points [N, 68, 2], how uint8 [N].
    """
    features = ("mouth", "nose", "eyes", "brows")
    shares = np.empty((len(region), len(features)))
    for begin in range(0, len(region), chunk):
        areas = region_masks(points[begin: begin + chunk], features)  # (n, 4, 48, 48)
        covered = (areas & region[begin: begin + chunk, None]).sum((2, 3))
        size = areas.sum((2, 3))
        shares[begin: begin + chunk] = np.where(size > 0, covered / np.maximum(size, 1), np.nan)
    table = pd.DataFrame(shares, columns=list(features))
    table.insert(0, "how", np.array(HOW, object)[how])
    return table.assign(overall=region.mean((1, 2)))


# --- occlusion of regions, and controls ---

def _black(x: torch.Tensor, region: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    return torch.zeros_like(x)


def _mean(x: torch.Tensor, region: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Each face's mean over its visible pixels (0.5 where none is visible): tells nothing of what is hidden."""
    seen = (~region).to(x.dtype)
    count = seen.sum((1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    mean = (x * seen).sum((1, 2, 3), keepdim=True) / count.clamp(min=1)
    return torch.where(count > 0, mean, torch.full_like(mean, 0.5)).expand_as(x)


def _blur(x: torch.Tensor, region: torch.Tensor, generator: torch.Generator | None, sigma: float = 4.0) -> torch.Tensor:
    """The face itself, blurred by a Gaussian of `sigma` px (replicated borders): keeps the brightness alone."""
    reach = int(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-offsets ** 2 / (2 * sigma ** 2))
    kernel = kernel / kernel.sum()
    smooth = F.conv2d(F.pad(x, [reach] * 4, mode="replicate"), kernel.view(1, 1, -1, 1))
    return F.conv2d(smooth, kernel.view(1, 1, 1, -1))  # (B, 1, H, W)


def _noise(x: torch.Tensor, region: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Uniform noise in [0, 1)."""
    generator = generator or torch.Generator(x.device).manual_seed(0)
    return torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)


OCCLUSIONS: dict[str, Callable[..., torch.Tensor]] = {"black": _black, "mean": _mean, "blur": _blur, "noise": _noise}


def occlude(x: torch.Tensor, region: torch.Tensor, fill: str = "black",
            generator: torch.Generator | None = None) -> torch.Tensor:
    """Hide `region` (bool [B, 48, 48]) of x (float [B, 1, 48, 48] in [0, 1], not yet standardised): x's shape.

    fill: one of OCCLUSIONS; `generator` (on x's device) feeds `noise`. Raises ValueError on an unknown fill or shape.
    """
    if fill not in OCCLUSIONS:
        raise ValueError(f"Unknown fill {fill!r}: use {', '.join(OCCLUSIONS)}.")
    region = torch.as_tensor(region, dtype=torch.bool, device=x.device)
    if x.ndim != 4 or x.shape[1] != 1 or region.shape != (x.shape[0], *x.shape[2:]):
        raise ValueError(f"x must be [B, 1, H, W], region [B, H, W], got {tuple(x.shape)} and {tuple(region.shape)}.")
    region = region[:, None]  # (B, 1, H, W)
    return torch.where(region, OCCLUSIONS[fill](x, region, generator), x)


def roll_region(region: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Each region [B, H, W] moved to a random place, wrapping round the borders: same area and shape, other content."""
    region = torch.as_tensor(region, dtype=torch.bool)
    b, h, w = region.shape
    device = region.device
    down = torch.randint(h, (b, 1), generator=generator, device=device)
    across = torch.randint(w, (b, 1), generator=generator, device=device)
    rows = (torch.arange(h, device=device) - down) % h     # (B, H)
    columns = (torch.arange(w, device=device) - across) % w  # (B, W)
    return region[torch.arange(b, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def random_patches(region: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """For each region [B, H, W] a random connected patch with exactly as many pixels, bool [B, H, W].

    A patch is the set of pixels nearest to a random centre, in an elliptic distance of random direction and of axes up
    to 1:2; where the border cuts it off it grows on the other side.
    """
    region = torch.as_tensor(region, dtype=torch.bool)
    b, h, w = region.shape
    device = region.device
    centre_y, centre_x, turn, ratio = torch.rand((4, b, 1, 1), generator=generator, device=device, dtype=torch.float64)
    y = torch.arange(h, device=device)[None, :, None] - centre_y * (h - 1)  # (B, H, 1)
    x = torch.arange(w, device=device)[None, None, :] - centre_x * (w - 1)  # (B, 1, W)
    cos, sin = torch.cos(turn * torch.pi), torch.sin(turn * torch.pi)
    distance = (x * cos + y * sin) ** 2 + (1 + 3 * ratio) * (y * cos - x * sin) ** 2  # (B, H, W)
    rank = distance.flatten(1).argsort(1).argsort(1)  # (B, H*W)
    return (rank < region.flatten(1).sum(1, keepdim=True)).view(b, h, w)
