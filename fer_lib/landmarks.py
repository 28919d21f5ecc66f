"""Landmarks: 68 points per face (iBUG order) and the regions of the face they span.

    marks = for_faces(faces)             # FER2013: the points kept in reference/; else the detector; else the template
    marks.points                         # float32 [N, 68, 2]  (x, y) in pixels; the centre of column j is x = j
    masks = region_masks(marks.points)   # bool [N, 10, 48, 48]  in the order of REGIONS

Detector: MediaPipe FaceMesh (Kartynnik et al. 2019, https://arxiv.org/abs/1907.06724), mediapipe 0.10.14, an optional
extra (itself installed with `--no-deps`, its needs by `pip install -e .[landmarks]`); its 468 points are read at the 68
places of the iBUG scheme (Sagonas et al. 2013). Measured on FER2013: 98.4 % of faces found, 2-4 % of those visibly
wrong, mostly hands, profiles and pictures without a face.
"""
import hashlib
import logging
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Callable

import numpy as np

from .faces import SIZE, Faces

HOW = ("detected", "template", "exact")
MATCHES = ("hash", "row", "none")  # how a face was found among the reference points
REGIONS = ("brows", "eyes", "nose", "mouth", "cheeks", "forehead", "jaw", "upper_half", "lower_half", "background")
REFERENCE = Path(__file__).parent / "reference" / "fer2013_landmarks.npz"
FIXED_POINT = 32  # steps per pixel of the points in the reference file: errors of at most 1/64 px

log = logging.getLogger(__name__)

# Median shape of the 35,317 FER2013 faces the detector finds, pixels.
TEMPLATE = np.array([
    (5.1, 18.3), (5.9, 25.6), (6.4, 29.6), (7.7, 33.9), (9.3, 37.5), (11.1, 40.2),
    (13.5, 42.6), (17.7, 45.8), (23.9, 47.3), (30.1, 45.6), (34.3, 42.3), (36.7, 39.9),
    (38.5, 37.1), (40.1, 33.4), (41.2, 29.1), (41.7, 25.1), (42.2, 17.8),
    (7.8, 14.0), (9.3, 12.5), (11.7, 11.9), (15.1, 12.1), (19.1, 12.6),
    (27.7, 12.5), (31.7, 11.9), (35.0, 11.5), (37.5, 12.2), (39.1, 13.5),
    (23.5, 17.4), (23.5, 21.7), (23.6, 25.5), (23.6, 27.8),
    (18.7, 30.3), (21.4, 30.9), (23.7, 30.9), (25.9, 30.9), (28.6, 30.1),
    (10.9, 18.1), (12.6, 17.2), (15.6, 17.0), (18.6, 18.7), (16.2, 19.3), (13.3, 19.3),
    (28.5, 18.6), (31.4, 16.8), (34.3, 16.9), (36.2, 17.8), (33.8, 19.0), (30.9, 19.1),
    (16.6, 36.4), (18.0, 35.3), (21.5, 34.4), (23.7, 34.6), (26.0, 34.3), (29.5, 35.1),
    (31.0, 36.1), (29.4, 38.0), (26.1, 40.0), (23.8, 40.2), (21.6, 40.0), (18.2, 38.2),
    (17.7, 36.3), (20.7, 36.0), (23.8, 36.1), (26.9, 35.9), (29.9, 36.0), (27.1, 37.3), (23.8, 37.7), (20.5, 37.4),
], np.float32)  # [68, 2]

# Where the 68 iBUG points lie among the 468 of FaceMesh.
JAW = [127, 93, 132, 58, 172, 136, 150, 176, 152, 400, 379, 365, 397, 288, 361, 323, 356]
BROWS = [70, 63, 105, 66, 107, 336, 296, 334, 293, 300]
NOSE = [168, 197, 5, 4, 98, 97, 2, 326, 327]
EYES = [33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380]
LIPS = [61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91, 78, 81, 13, 311, 308, 402, 14, 178]
FACEMESH = np.array(JAW + BROWS + NOSE + EYES + LIPS)  # [68]
MIRRORED = np.array(  # which point each of the 68 becomes when the picture is mirrored
    [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31, 45, 44, 43, 42, 47, 46, 39, 38, 37, 36,
     41, 40, 54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65])

ENLARGE = 4  # x8 finds no more
# Tries in turn: (padding as a share of the side, histogram equalised, mirrored). The first finds 96.7 %, all 98.4 %.
TRIES = ((0.25, False, False), (0.5, False, False), (0.25, True, False), (0.25, False, True), (0.5, True, True))


@dataclass(frozen=True)
class Landmarks:
    """68 points per face and how they were got. Raises ValueError when the arrays do not fit together."""

    points: np.ndarray  # float32 [N, 68, 2]  (x, y) in pixels, may lie outside the picture
    how: np.ndarray     # uint8 [N]  index into HOW

    def __post_init__(self):
        n = len(self.points)
        if self.points.dtype != np.float32 or self.points.shape != (n, 68, 2):
            raise ValueError(f"points must be float32 [N, 68, 2], got {self.points.dtype} {self.points.shape}.")
        if self.how.dtype != np.uint8 or self.how.shape != (n,) or (n and self.how.max() >= len(HOW)):
            raise ValueError(f"how must be uint8 [N] with values below {len(HOW)}, one for each of the {n} faces.")

    def __len__(self) -> int:
        return len(self.points)

    def select(self, index: np.ndarray) -> "Landmarks":
        """The landmarks at `index` (positions or a boolean mask), in that order."""
        return Landmarks(self.points[index], self.how[index])


def template(n: int) -> Landmarks:
    """The median shape n times, flagged `template`."""
    return Landmarks(np.repeat(TEMPLATE[None], n, 0), np.full(n, HOW.index("template"), np.uint8))


# --- getting the points ---

def for_faces(faces: Faces) -> Landmarks:
    """Landmarks of any faces: the kept points for FER2013's, the detector for others, the template without it."""
    kept, match = _from_reference(faces)
    rest = np.flatnonzero(match == MATCHES.index("none"))
    if not len(rest):
        return kept
    found = detect(faces.images[rest])
    points, how = kept.points.copy(), kept.how.copy()
    points[rest], how[rest] = found.points, found.how
    return Landmarks(points, how)


def detect(images: np.ndarray) -> Landmarks:
    """Run MediaPipe FaceMesh on uint8 [N, 48, 48] faces, about 8 ms each on one core; reruns are bit-identical.

    A face found in none of `TRIES` gets the median shape of those found here (`TEMPLATE` when fewer than 50 are).
    Without mediapipe every face gets `TEMPLATE`, and a warning says so.
    """
    if not len(images):
        return template(0)
    os.environ.setdefault("GLOG_minloglevel", "2")
    try:
        import cv2
        import mediapipe
    except ImportError as missing:
        log.warning("No landmark detector (%s): all %d faces get the template shape, so masks and regions are only "
                    "roughly in place. `pip install --no-deps mediapipe==0.10.14` and the extra `landmarks` mend it.",
                    missing, len(images))
        return template(len(images))
    points = np.full((len(images), 68, 2), np.nan, np.float32)
    with mediapipe.solutions.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=1, refine_landmarks=False,
                                                min_detection_confidence=0.1) as mesh:
        for i, image in enumerate(images):
            for padding, equalise, mirror in TRIES:
                picture = np.ascontiguousarray(image[:, ::-1]) if mirror else image
                picture = cv2.equalizeHist(picture) if equalise else picture
                picture = cv2.resize(picture, None, fx=ENLARGE, fy=ENLARGE, interpolation=cv2.INTER_CUBIC)
                border = round(SIZE * ENLARGE * padding)
                # never a reflected border: the faces in it would be found
                picture = cv2.copyMakeBorder(picture, *[border] * 4, cv2.BORDER_REPLICATE)
                found = mesh.process(cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)).multi_face_landmarks
                if found:
                    share = np.array([(point.x, point.y) for point in found[0].landmark], np.float32)  # (468, 2)
                    points[i] = (share[FACEMESH] * picture.shape[0] - border) / ENLARGE - 0.5
                    if mirror:
                        points[i, :, 0] = SIZE - 1 - points[i, :, 0]
                        points[i] = points[i, MIRRORED]
                    break
    unfound = np.isnan(points[:, 0, 0])
    enough = (~unfound).sum() >= 50
    points[unfound] = np.median(points[~unfound], 0) if enough else TEMPLATE
    if unfound.any():
        log.info("No face found in %d of %d pictures: they get the median shape.", unfound.sum(), len(images))
    return Landmarks(points, np.where(unfound, HOW.index("template"), HOW.index("detected")).astype(np.uint8))


def load_reference(faces: Faces) -> Landmarks:
    """The points of FER2013 kept in the repository, for any subset, order or copy of it.

    A face is looked up by the hash of its pixels; where that is unknown and `faces.source` is "fer2013" (a re-encoded
    copy), by its row; else it gets the template. The log says how many went which way.
    """
    return _from_reference(faces)[0]


def image_hashes(images: np.ndarray) -> np.ndarray:
    """Eight-byte BLAKE2 hash of each picture's pixels, uint64 [N]."""
    flat = np.ascontiguousarray(images).reshape(len(images), -1)
    digests = b"".join(hashlib.blake2b(face, digest_size=8).digest() for face in flat)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def save_reference(images: np.ndarray, marks: Landmarks, path: Path = REFERENCE) -> None:
    """Keep the points of `images` (all of FER2013, in row order) as int16 fixed point with the hash of each picture.

    Stored are the steps from each point to the next, low bytes apart from high bytes: 5 MB in place of 8.
    """
    fixed = np.rint(marks.points.astype(np.float64) * FIXED_POINT).astype("<i2")  # (N, 68, 2)
    steps = np.ascontiguousarray(np.diff(fixed, axis=1, prepend=np.int16(0)).transpose(1, 2, 0))  # (68, 2, N)
    low_high = steps.view(np.uint8).reshape(*steps.shape, 2).transpose(3, 0, 1, 2)  # (2, 68, 2, N)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        np.savez_compressed(file, steps=np.ascontiguousarray(low_high), how=marks.how, hashes=image_hashes(images))
    os.replace(temporary, path)


@lru_cache(maxsize=2)
def _reference(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """points int16 [M, 68, 2], how uint8 [M], hashes uint64 [M] of the reference file, indexed by row."""
    with np.load(path) as file:
        low_high, how, hashes = file["steps"], file["how"], file["hashes"]
    steps = np.ascontiguousarray(low_high.transpose(1, 2, 3, 0)).view("<i2")[..., 0]  # (68, 2, M)
    return np.cumsum(steps, 0, dtype=np.int16).transpose(2, 0, 1), how, hashes


def _from_reference(faces: Faces) -> tuple[Landmarks, np.ndarray]:
    """Landmarks from the reference file and how each face was matched, uint8 [N] index into MATCHES."""
    points, how, hashes = _reference(REFERENCE)
    order = np.argsort(hashes, kind="stable")
    wanted = image_hashes(faces.images)
    place = order[np.minimum(np.searchsorted(hashes[order], wanted), len(hashes) - 1)]  # copies share hash and points
    match = np.where(hashes[place] == wanted, MATCHES.index("hash"), MATCHES.index("none")).astype(np.uint8)
    if faces.source == "fer2013":
        by_row = (match == MATCHES.index("none")) & (faces.row >= 0) & (faces.row < len(hashes))
        match[by_row], place[by_row] = MATCHES.index("row"), faces.row[by_row]
    counts = np.bincount(match, minlength=len(MATCHES))
    if counts[0] + counts[1]:
        log.info("Landmarks of FER2013: %d faces by image hash, %d by row, %d not among them.", *counts)
    known = (match != MATCHES.index("none"))
    marks = template(len(faces))
    marks.points[known] = points[place[known]].astype(np.float32) / FIXED_POINT
    marks.how[known] = how[place[known]]
    return marks, match


# --- polygons, many faces at a time ---

def face_axes(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors to the right and up [N, 2] of each face and its scale [N, 1], about the eyes' distance in px."""
    right_eye, left_eye, mouth = (points[:, s].mean(1) for s in (slice(36, 42), slice(42, 48), slice(48, 60)))  # (N, 2)
    across, down = left_eye - right_eye, mouth - (left_eye + right_eye) / 2
    up = np.stack([across[:, 1] - down[:, 0], -across[:, 0] - down[:, 1]], 1)  # normal of `across`, minus `down`
    up /= np.maximum(np.hypot(up[:, :1], up[:, 1:]), 1e-6)
    right = np.stack([-up[:, 1], up[:, 0]], 1)
    # in a profile the eyes lie close together
    scale = np.maximum(np.hypot(across[:, :1], across[:, 1:]), 0.85 * np.hypot(down[:, :1], down[:, 1:]))
    return right, up, np.maximum(scale, 1.0)


def hull(points: np.ndarray, directions: int = 48) -> np.ndarray:
    """Convex hull of [N, P, 2] points as polygons [N, directions, 2]: the farthest point each way (some repeat)."""
    angle = np.arange(directions) * (2 * np.pi / directions)
    reach = points[:, :, :1] * np.cos(angle) + points[:, :, 1:] * np.sin(angle)  # (N, P, directions)
    return np.take_along_axis(points, reach.argmax(1)[:, :, None], 1)  # (N, directions, 2)


def stretch(points: np.ndarray, right: np.ndarray, up: np.ndarray, by: tuple[float, float]) -> np.ndarray:
    """Points [N, P, 2] scaled by (across, along) the face's axes about the middle of their extent."""
    u = (points * right[:, None]).sum(2)  # (N, P)
    v = (points * up[:, None]).sum(2)
    u0, v0 = (u.max(1) + u.min(1))[:, None] / 2, (v.max(1) + v.min(1))[:, None] / 2
    u, v = u0 + (u - u0) * by[0], v0 + (v - v0) * by[1]
    return u[:, :, None] * right[:, None] + v[:, :, None] * up[:, None]


def _eye(points: np.ndarray, first: int) -> np.ndarray:
    """Ellipse of one eye [N, 24, 2]: 1.3 x half its width between the corners, 1.5 x half its height, at least 2:5."""
    eye = points[:, first: first + 6]
    axis = eye[:, 3] - eye[:, 0]  # (N, 2) corner to corner
    half_width = np.maximum(np.hypot(axis[:, :1], axis[:, 1:]) / 2, 0.5)  # (N, 1)
    axis = axis / (2 * half_width)
    normal = np.stack([-axis[:, 1], axis[:, 0]], 1)
    height = (eye * normal[:, None]).sum(2)  # (N, 6)
    a = 1.3 * half_width
    b = np.maximum(1.5 * (height.max(1) - height.min(1))[:, None] / 2, 0.4 * a)
    angle = np.arange(24) * (2 * np.pi / 24)
    return (eye.mean(1)[:, None] + np.cos(angle)[:, None] * (a * axis)[:, None]
            + np.sin(angle)[:, None] * (b * normal)[:, None])


def _brow(points: np.ndarray, first: int) -> np.ndarray:
    """Band of one brow [N, 10, 2] about its five points, FaceMesh's upper edge of the brow: more below than above."""
    right, up, scale = face_axes(points)
    brow = points[:, first: first + 5].copy()
    brow[:, 0] -= 0.04 * scale * right  # a little past both ends
    brow[:, 4] += 0.04 * scale * right
    above = brow + (0.05 * scale * up)[:, None]
    below = brow - (0.13 * scale * up)[:, None]
    return np.concatenate([above, below[:, ::-1]], 1)


def _arch(points: np.ndarray) -> np.ndarray:
    """Hairline [N, 13, 2] from the left temple (point 16) over the top to the right one (point 0).

    It lies as far above the brows as the foot of the nose lies below them (the classical thirds of a face).
    """
    right, up, _ = face_axes(points)
    middle = (points[:, 0] + points[:, 16]) / 2  # (N, 2)
    half = (points[:, 16] - points[:, 0]) / 2
    brow = points[:, 17:27].mean(1)
    third = np.maximum(((brow - points[:, 33]) * up).sum(1), 0)[:, None]  # (N, 1)
    height = np.maximum(((brow - middle) * up).sum(1)[:, None] + third, 1.0)
    angle = np.linspace(0, np.pi, 13)
    return middle[:, None] + np.cos(angle)[:, None] * half[:, None] + np.sin(angle)[:, None] * (height * up)[:, None]


def face_outline(points: np.ndarray) -> np.ndarray:
    """The whole face [N, 28, 2]: the jaw, then the hairline."""
    return np.concatenate([points[:, :17], _arch(points)[:, 1:-1]], 1)


def _mouth(points: np.ndarray) -> list[np.ndarray]:
    right, up, _ = face_axes(points)
    return [hull(stretch(points[:, 48:60], right, up, (1.12, 1.2)))]


def _cheeks(points: np.ndarray) -> list[np.ndarray]:
    return [points[:, [0, 1, 2, 3, 48, 31, 30, 28, 39, 40, 41, 36]],
            points[:, [16, 15, 14, 13, 54, 35, 30, 28, 42, 47, 46, 45]]]


def _forehead(points: np.ndarray) -> list[np.ndarray]:
    """What lies above the brows, and between them down to the bridge of the nose, where a frown shows."""
    return [np.concatenate([points[:, [*range(17, 22), 27, *range(22, 27)]], _arch(points)[:, 2:-2]], 1)]


# points [N, 68, 2] -> polygons [N, V, 2]; where two overlap the earlier name wins
POLYGONS: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {
    "eyes": lambda points: [_eye(points, 36), _eye(points, 42)],
    "mouth": _mouth,
    "nose": lambda points: [hull(points[:, 27:36])],
    "brows": lambda points: [_brow(points, 17), _brow(points, 22)],
    "forehead": _forehead,
    "jaw": lambda points: [points[:, [*range(3, 14), 54, 55, 56, 57, 58, 59, 48]]],
    "cheeks": _cheeks,
}


def winding(polygons: np.ndarray, samples: int = 0) -> np.ndarray:
    """How much of each pixel lies in each polygon [N, V, 2], in 256ths: int32 [N, 48, 48]; any number of faces at once.

    samples = 0 asks at the pixel's centre (0 or 256), samples = s takes s lines per row with exact ends (anti-aliased).
    A polygon's edges are added up as signed crossings of each line, from left to right, so self-overlaps stay filled.
    Vertices may lie outside the picture; they count to 1/256 pixel, so a face's result depends on that face alone.
    """
    n, lines = len(polygons), SIZE * max(samples, 1)
    start = np.rint(np.asarray(polygons, np.float64) * 256) / 256  # (N, V, 2)
    end = np.roll(start, -1, 1)
    y = (np.arange(lines) + 0.5) / max(samples, 1) - 0.5  # (L,) the lines' heights
    below = start[:, None, :, 1] <= y[:, None]  # (N, L, V)
    crossing = np.flatnonzero(below != (end[:, None, :, 1] <= y[:, None]))  # edges that cross a line, sparse
    face_line, edge = np.divmod(crossing, start.shape[1])
    face, line = np.divmod(face_line, lines)
    edge += face * start.shape[1]
    (x0, y0), (x1, y1) = start.reshape(-1, 2)[edge].T, end.reshape(-1, 2)[edge].T
    x = x0 + (y[line] - y0) * (x1 - x0) / (y1 - y0)
    sign = np.where(y1 > y0, 256.0, -256.0)
    if samples == 0:
        column = np.clip(np.ceil(x), 0, SIZE).astype(np.int64)
        steps = np.bincount(face_line * (SIZE + 2) + column, sign, n * lines * (SIZE + 2))
    else:
        x = np.rint(np.clip(x + 0.5, 0, SIZE) * 256)  # from the left border, in 256ths
        column = (x // 256).astype(np.int64)
        part = (x - column * 256) / 256
        steps = np.bincount(np.concatenate([face_line * (SIZE + 2) + column, face_line * (SIZE + 2) + column + 1]),
                            np.concatenate([sign * (1 - part), sign * part]), n * lines * (SIZE + 2))
    filled = np.cumsum(steps.astype(np.int32).reshape(n, lines, SIZE + 2)[:, :, :SIZE], 2, dtype=np.int32)  # (N, L, 48)
    filled = np.minimum(np.abs(filled), 256)
    return filled if samples <= 1 else filled.reshape(n, SIZE, samples, SIZE).sum(2, dtype=np.int32) // samples


def inside(polygons: np.ndarray) -> np.ndarray:
    """Pixels whose centre lies in the polygon, bool [N, 48, 48], for polygons [N, V, 2]."""
    return winding(polygons) > 0


def region_masks(points: np.ndarray, names: tuple[str, ...] = REGIONS, chunk: int = 256) -> np.ndarray:
    """Pixels of each region, bool [N, R, 48, 48], for points [N, 68, 2]; about 3,000 faces a second on one core.

    brows, eyes, nose, mouth, cheeks, forehead and jaw never overlap and leave strips between them free; upper_half and
    lower_half part the face at the middle of the nose; background is what lies outside the face with its forehead. Good
    on frontal faces; a guess where a hand or a profile hides the feature. Raises ValueError on an unknown
    name or points that are not [N, 68, 2] finite numbers.
    """
    unknown = [name for name in names if name not in REGIONS]
    if unknown:
        raise ValueError(f"Unknown region {unknown[0]!r}: use {', '.join(REGIONS)}.")
    points = checked(points)
    masks = np.empty((len(points), len(names), SIZE, SIZE), bool)
    for begin in range(0, len(points), chunk):
        regions = _regions(points[begin: begin + chunk])
        for r, name in enumerate(names):
            masks[begin: begin + chunk, r] = regions[name]
    return masks


def heatmaps(points: np.ndarray, sigma: float = 2.0, keep: np.ndarray | None = None, chunk: int = 512) -> np.ndarray:
    """Gaussians of `sigma` pixels around the points of brows, nose, eyes and mouth (the jaw is left out), joined by their maximum and scaled
    to [0, 1], float16 [N, 48, 48] for points [N, 68, 2]; of points in `keep`, bool [N, 68], only. A face without any stays 0."""
    points, grid = checked(points)[:, 17:], np.arange(SIZE)
    maps = np.zeros((len(points), SIZE, SIZE), np.float16)
    for begin in range(0, len(points), chunk):
        some = points[begin: begin + chunk].astype(np.float32)
        x, y = (np.exp(-((grid - some[..., axis, None]) ** 2) / (2 * sigma**2)) for axis in (0, 1))  # (n, 51, 48)
        if keep is not None:
            y *= keep[begin: begin + chunk, 17:, None]
        joined = np.zeros((len(some), SIZE, SIZE), np.float32)
        for k in range(some.shape[1]):
            np.maximum(joined, y[:, k, :, None] * x[:, k, None, :], out=joined)
        top = joined.max((1, 2), keepdims=True)
        maps[begin: begin + chunk] = joined / np.where(top > 1e-6, top, 1)
    return maps


def checked(points: np.ndarray) -> np.ndarray:
    """The points as float64 [N, 68, 2]; raises ValueError when they have another shape or are not finite."""
    points = np.asarray(points, np.float64)
    if points.ndim != 3 or points.shape[1:] != (68, 2) or not np.isfinite(points).all():
        raise ValueError(f"points must be finite numbers [N, 68, 2], got {points.shape}: give faces without any the "
                         "template.")
    return points


def _regions(points: np.ndarray) -> dict[str, np.ndarray]:
    """All regions of a few faces, each bool [n, 48, 48]."""
    taken = np.zeros((len(points), SIZE, SIZE), bool)
    regions = {}
    for name, polygons in POLYGONS.items():
        area = np.logical_or.reduce([inside(polygon) for polygon in polygons(points)]) & ~taken
        regions[name] = area
        taken |= area
    face = inside(face_outline(points)) | taken  # in a profile nose and mouth stand out from the outline
    _, up, _ = face_axes(points)
    middle = (points[:, 27] + points[:, 33]) / 2  # (n, 2) of the nose
    y, x = np.mgrid[:SIZE, :SIZE]
    height = ((x - middle[:, 0, None, None]) * up[:, 0, None, None]
              + (y - middle[:, 1, None, None]) * up[:, 1, None, None])  # (n, 48, 48) pixels above the nose's middle
    return regions | {"upper_half": face & (height > 0), "lower_half": face & (height <= 0), "background": ~face}
