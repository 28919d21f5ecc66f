"""Synthetic faces: 48x48 grey faces of seven emotions, drawn from facial action units. The embedded default.

    made = make_faces(1400, 350, 700, seed=0)
    made.faces          Faces, source "synthetic", rows 0 .. N-1 in the order train, val, test
    made.landmarks      exact 68 points per face (iBUG order), taken from the same curves that are drawn
    made.action_units   float32 [N, A], intensity 0..1 of every unit of ACTION_UNITS
    made.truth          emotion x region: what a classifier on the units loses when a region goes neutral
    images, points = draw_faces(units)      # the same people with any expression: change one unit, keep the rest

Units, regions and combinations follow the Facial Action Coding System (Ekman & Friesen 1978; Ekman, Friesen & Hager
2002). Every feature is a curve y(x) in a face frame, drawn with soft edges over whole batches, in rows around it only.
Arithmetic is + - * / and sqrt on float32 throughout (no exp, no matrix product), which IEEE rounds alike everywhere:
the same seed should give the same bytes, and so the same fingerprint, on every machine. Faces are drawn in blocks of
fixed size, each with its own generator, so a split's faces do not depend on the size of any split.
These are drawings: no statement about people follows from them.
"""
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from .faces import EMOTIONS, SIZE, SPLITS, Faces

SYNTHETIC_VERSION = 1  # raised by hand when a seed's faces change
BLOCK = 28  # faces drawn at once, four of each emotion; one float32 plane of them is 0.26 MB and stays in cache

REGIONS = ("brows", "eyes", "nose", "mouth", "cheeks", "forehead")  # the regions that action units move

# Name of each unit and the share of it that each region shows: when a region goes neutral, the unit loses that share.
ACTION_UNITS = {
    "AU1": ("inner brow raiser", {"brows": 0.8, "forehead": 0.2}),
    "AU2": ("outer brow raiser", {"brows": 0.8, "forehead": 0.2}),
    "AU4": ("brow lowerer", {"brows": 0.9, "forehead": 0.1}),
    "AU5": ("upper lid raiser", {"eyes": 1.0}),
    "AU6": ("cheek raiser", {"cheeks": 0.6, "eyes": 0.4}),
    "AU7": ("lid tightener", {"eyes": 1.0}),
    "AU9": ("nose wrinkler", {"nose": 0.8, "cheeks": 0.2}),
    "AU10": ("upper lip raiser", {"mouth": 0.8, "cheeks": 0.2}),
    "AU12": ("lip corner puller", {"mouth": 0.9, "cheeks": 0.1}),
    "AU15": ("lip corner depressor", {"mouth": 1.0}),
    "AU17": ("chin raiser", {"mouth": 1.0}),
    "AU20": ("lip stretcher", {"mouth": 1.0}),
    "AU23": ("lip tightener", {"mouth": 1.0}),
    "AU25": ("lips part", {"mouth": 1.0}),
    "AU26": ("jaw drop", {"mouth": 1.0}),
    "AU27": ("mouth stretch", {"mouth": 1.0}),
    "AU43": ("eyes closed", {"eyes": 1.0}),
}
UNITS = tuple(ACTION_UNITS)  # the columns of action_units

# Units of each emotion with the chance that a face of it shows them: first the FACS prototype, then companions.
EMOTION_UNITS = {
    "angry": {"AU4": 0.97, "AU5": 0.45, "AU7": 0.85, "AU23": 0.85, "AU17": 0.3, "AU25": 0.12, "AU10": 0.1},
    "disgust": {"AU9": 0.97, "AU15": 0.75, "AU10": 0.55, "AU4": 0.3, "AU17": 0.3, "AU7": 0.25, "AU25": 0.2},
    "fear": {"AU1": 0.93, "AU2": 0.8, "AU4": 0.75, "AU5": 0.9, "AU20": 0.9, "AU25": 0.75, "AU26": 0.25},
    "happy": {"AU6": 0.85, "AU12": 0.98, "AU25": 0.7, "AU26": 0.12},
    "sad": {"AU1": 0.93, "AU4": 0.75, "AU15": 0.93, "AU17": 0.4, "AU43": 0.2, "AU7": 0.1},
    "surprise": {"AU1": 0.93, "AU2": 0.95, "AU5": 0.85, "AU26": 0.9, "AU25": 0.6, "AU27": 0.3},
    "neutral": {},
}
STRAY = 0.07  # chance that a unit foreign to the emotion shows, at up to 0.45


@dataclass(frozen=True)
class Synthetic:
    """Synthetic faces with all that is known about them."""

    faces: Faces
    landmarks: "Landmarks"    # points float32 [N, 68, 2] (x, y) in pixels, how = "exact"
    action_units: np.ndarray  # float32 [N, A], 0..1, columns UNITS

    @cached_property
    def truth(self) -> pd.DataFrame:
        """`truth_table` of these faces, computed once when asked for."""
        return truth_table(self)


def make_faces(n_train: int, n_val: int, n_test: int, seed: int = 0) -> Synthetic:
    """Draw three splits of synthetic faces, emotions balanced to within one face in each.

    Same seed, same bytes; a split's faces depend on seed and split only, and a larger split begins with the smaller.
    Raises ValueError for a negative size or no face at all.
    """
    sizes = (n_train, n_val, n_test)
    if min(sizes) < 0 or sum(sizes) == 0:
        raise ValueError(f"Sizes must not be negative and at least one face must be asked for, got {sizes}.")
    from .landmarks import HOW, Landmarks

    parts = [_draw_block(seed, split, block, min(BLOCK, size - block * BLOCK))
             for split, size in enumerate(sizes) for block in range(-(-size // BLOCK))]
    images, points, units, labels = (np.concatenate(column) for column in zip(*parts))
    split = np.repeat(np.arange(len(SPLITS), dtype=np.uint8), sizes)
    faces = Faces(images, labels, split, np.arange(sum(sizes), dtype=np.int64), "synthetic")
    how = np.full(len(faces), HOW.index("exact"), np.uint8)
    return Synthetic(faces, Landmarks(points, how), units)


def draw_faces(action_units: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Faces with given unit intensities [n, A] (0..1, columns UNITS): images uint8 [n,48,48], points float32 [n,68,2].

    Face i of one seed is the same person in the same pose and light whatever its units.
    Raises ValueError for another shape or range.
    """
    units = np.asarray(action_units, np.float32)
    if units.ndim != 2 or units.shape[1] != len(UNITS) or not len(units):
        raise ValueError(f"action_units must be [n, {len(UNITS)}] with n at least 1, got {list(units.shape)}.")
    if not ((units >= 0) & (units <= 1)).all():
        raise ValueError("action_units must lie in 0..1.")
    n, drawn = len(units), []
    padded = np.concatenate([units, np.zeros((-n % BLOCK, len(UNITS)), np.float32)])
    for block in range(len(padded) // BLOCK):
        rng = np.random.default_rng([seed, len(SPLITS), block])  # a stream of its own beside those of the splits
        drawn.append(_draw(rng, padded[block * BLOCK:(block + 1) * BLOCK]))
    images, points = (np.concatenate(column)[:n] for column in zip(*drawn))
    return images, points


def strongest(synthetic: Synthetic, count: int) -> np.ndarray:
    """Positions of each emotion's `count` clearest faces, int64 [7, count]: most of its own units, least of all others."""
    scores = [2 * synthetic.action_units[:, [unit in EMOTION_UNITS[emotion] for unit in UNITS]].sum(1) - synthetic.action_units.sum(1)
              for emotion in EMOTIONS]
    return np.stack([np.argsort(np.where(synthetic.faces.labels == k, -score, np.inf), kind="stable")[:count] for k, score in enumerate(scores)])


def truth_table(synthetic: Synthetic) -> pd.DataFrame:
    """What each emotion loses when a region's units go neutral: the truth that occlusion and saliency should recover.

    Multinomial logistic regression on the units of the training split (gradient boosting does no better: 0.97 both);
    recall on the test split with all units and with the region's share of each unit taken away. An empty split is
    replaced by the other. Tidy frame, 7 emotions x 6 regions: emotion, region, accuracy, accuracy_without, loss
    (fractions; a loss may be negative). Raises ValueError where an emotion is missing from training.
    """
    faces, units = synthetic.faces, synthetic.action_units
    train, test = _train_and_test(faces)
    model = _classifier(units[train], faces.labels[train])

    def recall(values: np.ndarray) -> list[float]:
        right = model.predict(values) == faces.labels[test]
        return [float(right[faces.labels[test] == k].mean()) if (faces.labels[test] == k).any() else np.nan
                for k in range(len(EMOTIONS))]

    full, rows = recall(units[test]), []
    for region in REGIONS:
        without = recall(units[test] * (1 - region_share(region)))
        rows += [dict(emotion=emotion, region=region, accuracy=a, accuracy_without=b, loss=a - b)
                 for emotion, a, b in zip(EMOTIONS, full, without)]
    return pd.DataFrame(rows)


def hidden_truth(synthetic: Synthetic) -> pd.DataFrame:
    """What each emotion loses when a region's units are not seen: another question than `truth_table`'s, where they are seen at rest.

    The same classifier is fitted anew without the region's share of each unit. `separation` is the mean p(emotion) over the emotion's test
    faces less that over all others; tidy: emotion, region, separation, separation_without, loss. Hiding a region of the picture takes what it
    shows away, so this is what occlusion should recover. Raises ValueError as `truth_table` does.
    """
    faces = synthetic.faces
    train, test = _train_and_test(faces)
    own = faces.labels[test][:, None] == np.arange(len(EMOTIONS))  # (n, 7)

    def separation(units: np.ndarray) -> np.ndarray:
        p = _classifier(units[train], faces.labels[train]).predict_proba(units[test])  # (n, 7)
        return (p * own).sum(0) / own.sum(0) - (p * ~own).sum(0) / (~own).sum(0)

    full, rows = separation(synthetic.action_units), []
    for region in REGIONS:
        without = separation(synthetic.action_units * (1 - region_share(region)))
        rows += [dict(emotion=emotion, region=region, separation=a, separation_without=b, loss=a - b)
                 for emotion, a, b in zip(EMOTIONS, full, without)]
    return pd.DataFrame(rows)


def _train_and_test(faces: Faces) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the faces that a classifier of units learns from and is tested on; an empty split is replaced by the other."""
    train = faces.where("train") if len(faces.where("train")) else np.arange(len(faces))
    if len(np.unique(faces.labels[train])) < len(EMOTIONS):
        raise ValueError("The truth table needs every emotion among the training faces: make at least seven of them.")
    return train, faces.where("test") if len(faces.where("test")) else train


def _classifier(units: np.ndarray, labels: np.ndarray):
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=10.0, max_iter=1000).fit(units, labels)


def region_share(region: str) -> np.ndarray:
    """Share of every unit that `region` shows, float32 [A]."""
    if region not in REGIONS:
        raise ValueError(f"Unknown region {region!r}: use one of {', '.join(REGIONS)}.")
    return np.array([shares.get(region, 0.0) for _, shares in ACTION_UNITS.values()], np.float32)


# ---- what varies: units, identity, pose, light

def _draw_block(seed: int, split: int, block: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The first n faces of one block: images u8 [n,48,48], points f32 [n,68,2], units f32 [n,A], labels u8 [n]."""
    rng = np.random.default_rng([seed, split, block])
    order = rng.random((BLOCK // len(EMOTIONS), len(EMOTIONS))).argsort(axis=1)  # each seven faces hold every emotion
    labels = order.reshape(-1).astype(np.uint8)
    units = _sample_units(rng, labels)
    images, points = _draw(rng, units)
    return images[:n], points[:n], units[:n], labels[:n]


def _draw(rng: np.random.Generator, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One whole block of faces with these units, of people drawn from `rng`."""
    shape = _shape(units, _sample_identity(rng, BLOCK))
    noise = rng.random((2, BLOCK, SIZE, SIZE), dtype=np.float32) - 0.5
    points = _points(shape)
    return _paint(shape, points, noise), points


def _sample_units(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Unit intensities for these labels, float32 [n, A]: weak to strong expressions, units missing, stray units."""
    n, a = len(labels), len(UNITS)
    chance = np.array([[EMOTION_UNITS[e].get(u, 0.0) for u in UNITS] for e in EMOTIONS], np.float32)[labels]  # [n, A]
    strength = 0.3 + 0.7 * rng.random((n, 1), dtype=np.float32)  # of the whole expression; many are weak
    own = strength * (0.6 + 0.7 * rng.random((n, a), dtype=np.float32))
    own *= rng.random((n, a), dtype=np.float32) < chance
    stray = 0.45 * rng.random((n, a), dtype=np.float32)
    stray *= rng.random((n, a), dtype=np.float32) < STRAY
    return np.clip(np.maximum(own, stray), 0, 1).astype(np.float32)


def _sample_identity(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Everything about a face but its expression: name -> float32 [n, 1, 1]. Lengths in pixels of a face at scale 1."""
    def flat(low: float, high: float) -> np.ndarray:
        return (low + (high - low) * rng.random((n, 1, 1))).astype(np.float32)

    def bell(mean: float, spread: float) -> np.ndarray:  # three uniforms: nearly normal, never beyond three spreads
        a, b, c = rng.random((3, n, 1, 1))
        return (mean + 2 * spread * (a + b + c - 1.5)).astype(np.float32)

    def some(chance: float) -> np.ndarray:
        return (rng.random((n, 1, 1)) < chance).astype(np.float32)

    skin = flat(0.42, 0.86)
    male = some(0.5)
    old = flat(0, 1) * flat(0, 1)
    return dict(
        # head
        width=bell(16.3, 0.7), chin=bell(19.3, 0.8), square=flat(0.0, 0.7), male=male, old=old, skin=skin,
        # hair: tone, line over the forehead, parting, length at the sides, volume, bald heads
        hair=np.minimum(flat(0.05, 0.75), skin * flat(0.25, 0.95) + 0.05), hairline=bell(-16.2, 1.2),
        fringe=flat(-0.004, 0.055), parting=bell(0, 0.1), long=some(0.55) * (1 - 0.8 * male), volume=flat(1.0, 3.5),
        bald=some(0.12) * male, gaunt=flat(0, 1), beard=some(0.35) * male * flat(0.08, 0.5), ears=flat(0.8, 1.2),
        # features
        eye_x=bell(7.6, 0.4), eye_y=bell(-5.0, 0.4), eye_w=bell(3.7, 0.22), eye_h=bell(1.75, 0.17), tilt=bell(0, 0.25),
        iris=flat(0.08, 0.38), gaze=bell(0, 0.4), lash=flat(0.4, 0.85),
        brow_y=bell(-9.9, 0.45), brow_in=bell(3.3, 0.35), brow_len=bell(8.6, 0.45),
        brow_arch=bell(0.9, 0.3), brow_slant=bell(-0.2, 0.4), brow_thick=flat(0.75, 1.25) + 0.25 * male,
        brow_dark=flat(0.65, 1.0),
        nose_y=bell(5.2, 0.55), nose_w=bell(3.1, 0.3), mouth_y=bell(11.2, 0.45), mouth_w=bell(6.0, 0.4),
        lip_up=bell(1.0, 0.18), lip_low=bell(1.45, 0.22), lip_dark=flat(0.12, 0.42), mouth_bend=bell(0.0, 0.3),
        glasses=some(0.1), rim=flat(0.05, 0.5), uneven=bell(0, 0.07), uneven_mouth=bell(0, 0.12),
        # pose
        roll=bell(0, 0.06), yaw=bell(0, 1.5), pitch=bell(0, 0.7), scale=bell(1.08, 0.045),
        at_x=bell(23.5, 0.8), at_y=bell(23.4, 0.8),
        # light and camera
        light_x=bell(0, 0.2), light_y=bell(-0.1, 0.09), back=flat(0.05, 0.95), back_x=bell(0, 0.12),
        cloth=flat(0.05, 0.8), contrast=flat(0.72, 1.15), level=bell(0.47, 0.055), soft=flat(0.0, 0.7),
        grain=flat(0.01, 0.08), texture=flat(0.02, 0.07),
        # something in front of the face, from one side
        occluded=some(0.13), occ_angle=flat(-1, 1), occ_side=some(0.5) * 2 - 1, occ_low=some(0.4),
        occ_reach=flat(9, 15), occ_half=flat(2.5, 5.5), occ_tone=flat(0.05, 0.85),
    )


# ---- from units to geometry

def _shape(units: np.ndarray, face: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`face` with the geometry of the moved features, float32 [n, 1, 1]. Face frame: pixels at scale 1, y down."""
    au = {name: units[:, k, None, None] for k, name in enumerate(UNITS)}
    g = {**face, **au}
    drop = np.minimum(1.6 * au["AU26"] + 2.6 * au["AU27"], 3.2)  # jaw, pixels
    g["jaw"] = g["chin"] + drop - 0.5 * au["AU17"]
    gap = 1.4 * au["AU25"] + 4.0 * au["AU26"] + 5.0 * au["AU27"] + 0.4 * au["AU20"] + 0.5 * au["AU10"] * au["AU25"]
    g["gap"] = np.minimum(gap * (1 + 0.3 * au["AU12"] * au["AU25"]), 7.0) * (1 - 0.5 * au["AU23"])
    g["half"] = (g["mouth_w"] + 1.5 * au["AU12"] + 1.9 * au["AU20"] + 0.3 * au["AU15"]
                 - 1.3 * au["AU23"] - 1.0 * au["AU26"] - 1.5 * au["AU27"])
    g["bend"] = (g["mouth_bend"] - 3.6 * au["AU12"] + 3.0 * au["AU15"]
                 + 0.3 * au["AU20"] + 0.5 * au["AU17"])  # how far the corners lie below the middle
    g["lips_y"] = (g["mouth_y"] + 0.9 * au["AU12"] + 0.12 * drop
                   - 0.8 * au["AU17"] - 0.6 * au["AU9"] - 0.8 * au["AU10"] - 0.3 * au["AU15"])
    g["upper"] = g["lip_up"] * (1 - 0.5 * au["AU23"] - 0.25 * au["AU12"]) * (1 + 0.35 * au["AU10"])
    g["lower"] = g["lip_low"] * (1 - 0.5 * au["AU23"] - 0.15 * au["AU12"] + 0.25 * au["AU17"])
    g["raise"] = 1.5 * au["AU10"] + 0.7 * au["AU9"]  # of the upper lip's middle
    g["wing_y"] = g["nose_y"] - 1.1 * au["AU9"] - 0.3 * au["AU10"]
    g["wing_w"] = g["nose_w"] + 0.4 * au["AU9"] + 0.3 * au["AU12"]
    middle = 0.35 * g["bend"] + 0.22 * g["gap"] + g["raise"] + 0.9 * g["upper"]  # of the upper lip's edge above lips_y
    g["lips_y"] = np.maximum(g["lips_y"], g["wing_y"] + 1.2 + middle)            # stays below the nose
    room = g["jaw"] - 2.0 - (g["lips_y"] - 0.35 * g["bend"] + g["lower"])        # the lower lip stays above the chin
    g["gap"] = np.minimum(g["gap"], np.maximum(room, 0) * (1 / 0.78))
    close = np.clip(1 - 0.95 * au["AU43"], 0.06, 1)
    g["lid_up"] = g["eye_h"] * close * (1 + 0.75 * au["AU5"] - 0.40 * au["AU7"] - 0.12 * au["AU6"] - 0.15 * au["AU9"])
    slack = 1 + 0.2 * au["AU5"] - 0.45 * au["AU7"] - 0.65 * au["AU6"] - 0.25 * au["AU9"]
    g["lid_low"] = g["eye_h"] * 0.72 * np.clip(slack, 0.15, 2)
    return g


def _brow(g: dict, s: np.ndarray, side: int) -> np.ndarray:
    """Height of a brow's middle line at s = 0 (inner end) .. 1 (outer end)."""
    inner = (1 - s) * (1 - s)
    move = -3.4 * g["AU1"] * inner - g["AU2"] * (3.2 * s * (1.6 - 0.8 * s) + 0.3)
    move = move + g["AU4"] * (2.9 * inner * (1 - 0.6 * g["AU1"]) + 0.7) + 0.8 * g["AU9"] * inner
    rest = g["brow_y"] - 4 * g["brow_arch"] * s * (1 - s) + g["brow_slant"] * (s - 0.5)
    return rest + move * (1 + side * g["uneven"])


def _brow_ends(g: dict) -> tuple[np.ndarray, np.ndarray]:
    return g["brow_in"] - 1.1 * g["AU4"], g["brow_len"]  # inner end, length


def _lids(g: dict, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heights of the upper and lower lid at u = -1 (inner corner) .. 1 (outer corner)."""
    arch, line = 1 - u * u, g["eye_y"] - g["tilt"] * u
    return line - g["lid_up"] * arch * (1 - 0.12 * u), line + g["lid_low"] * arch * (1 + 0.12 * u)


def _lips(g: dict, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Heights of the lips at u = -1 .. 1, top to bottom: upper lip outside, inside, lower lip inside, outside."""
    uu = u * u
    arch = 1 - uu
    line = g["lips_y"] + g["bend"] * (uu - 0.35) + g["uneven_mouth"] * u
    inside = line - (0.22 * g["gap"] + 0.5 * g["raise"]) * arch
    below = line + 0.78 * g["gap"] * arch
    bow = arch * (0.88 + 1.6 * uu * arch)  # a slight dip in the middle of the upper lip
    return inside - g["upper"] * bow - 0.5 * g["raise"] * arch, inside, below, below + g["lower"] * arch


def _outline(g: dict, t: np.ndarray) -> np.ndarray:
    """Half width of the face, squared and relative, at t = 0 (eyes) .. 1 (chin)."""
    tt = t * t
    return 1 - (1 - g["square"]) * tt - g["square"] * tt * tt


EYE_LINE = -5.0  # where the face is widest, face frame
TURN_X, TURN_Y = 24, 34  # pixels from the middle at which a turned head moves no more


def _place(g: dict, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Face frame -> pixels, [n, k] and [n, k] -> float32 [n, k, 2]. The inverse of `_frame`."""
    k = {name: g[name][:, 0] for name in ("yaw", "pitch", "roll", "scale", "at_x", "at_y")}
    x = x + k["yaw"] * (1 - (x / TURN_X) ** 2)
    y = y + k["pitch"] * (1 - (y / TURN_Y) ** 2)
    norm = 1 + k["roll"] ** 2
    c, s = (1 - k["roll"] ** 2) / norm, 2 * k["roll"] / norm  # cosine and sine of 2 atan(roll)
    px = k["at_x"] + k["scale"] * (c * x - s * y)
    py = k["at_y"] + k["scale"] * (s * x + c * y)
    return np.stack([px, py], -1).astype(np.float32)


def _frame(g: dict) -> tuple[np.ndarray, np.ndarray]:
    """Face-frame coordinates of every pixel, two float32 [n, 48, 48]."""
    grid = np.arange(SIZE, dtype=np.float32)
    dx, dy = grid[None, None, :] - g["at_x"], grid[None, :, None] - g["at_y"]
    norm = (1 + g["roll"] ** 2) * g["scale"]
    c, s = (1 - g["roll"] ** 2) / norm, 2 * g["roll"] / norm

    def unturn(a: np.ndarray, turn: np.ndarray, reach: float) -> np.ndarray:
        """The b with a = b + turn (1 - (b / reach)^2)."""
        a = a - turn
        return 2 * a / (1 + np.sqrt(np.maximum(1 - (4 * turn / reach ** 2) * a, 0.05)))

    return unturn(c * dx + s * dy, g["yaw"], TURN_X), unturn(c * dy - s * dx, g["pitch"], TURN_Y)


JAW_T = np.array([0.0, 0.19, 0.38, 0.55, 0.70, 0.82, 0.91, 0.975, 1.0], np.float32)  # heights of jaw points 0..8


def _points(g: dict) -> np.ndarray:
    """The 68 points, float32 [n, 68, 2]: the drawn curves at fixed places."""
    n = len(g["jaw"])
    f = {name: value[:, 0] for name, value in g.items()}  # [n, 1]
    full = np.ones((n, 1), np.float32)
    x, y = np.empty((n, 68), np.float32), np.empty((n, 68), np.float32)

    t = full * JAW_T  # (n, 9)
    half, level = f["width"] * np.sqrt(np.maximum(_outline(f, t), 0)), EYE_LINE + t * (f["jaw"] - EYE_LINE)
    x[:, :9], y[:, :9] = -half, level
    x[:, 9:17], y[:, 9:17] = half[:, 7::-1], level[:, 7::-1]

    s = full * np.array([1, 0.75, 0.5, 0.25, 0], np.float32)  # outer to inner
    inner, length = _brow_ends(f)
    x[:, 17:22], y[:, 17:22] = -(inner + length * s), _brow(f, s, -1)
    x[:, 22:27], y[:, 22:27] = (inner + length * s)[:, ::-1], _brow(f, s, 1)[:, ::-1]

    bridge = f["eye_y"] + (f["wing_y"] - 2.0 - f["eye_y"]) * np.array([0, 1 / 3, 2 / 3, 1], np.float32)
    x[:, 27:31], y[:, 27:31] = 0, bridge
    across = np.array([-1, -0.5, 0, 0.5, 1], np.float32)
    x[:, 31:36], y[:, 31:36] = f["wing_w"] * across, f["wing_y"] + 0.7 * (1 - across ** 2)

    u = full * np.array([1, 1 / 3, -1 / 3, -1], np.float32)  # outer corner, over, over, inner corner
    top, low = _lids(f, u)
    x[:, 36:40], y[:, 36:40] = -(f["eye_x"] + f["eye_w"] * u), top
    x[:, 40:42], y[:, 40:42] = x[:, 38:36:-1], low[:, 2:0:-1]
    x[:, 42:46], y[:, 42:46] = -x[:, 39:35:-1], y[:, 39:35:-1]
    x[:, 46:48], y[:, 46:48] = -x[:, 41:39:-1], y[:, 41:39:-1]

    u = full * np.array([-1, -0.62, -0.26, 0, 0.26, 0.62, 1], np.float32)
    outer, top, low, bottom = _lips(f, u)
    x[:, 48:55], y[:, 48:55] = f["half"] * u, outer
    x[:, 55:60], y[:, 55:60] = f["half"] * u[:, 5:0:-1], bottom[:, 5:0:-1]
    u = full * np.array([-0.86, -0.3, 0, 0.3, 0.86], np.float32)
    outer, top, low, bottom = _lips(f, u)
    x[:, 60:65], y[:, 60:65] = f["half"] * u, top
    x[:, 65:68], y[:, 65:68] = f["half"] * u[:, 3:0:-1], low[:, 3:0:-1]
    return _place(g, x, y)


# ---- from geometry to pixels

def _ramp(d: np.ndarray, width: float = 1.0) -> np.ndarray:
    """1 where d is well below 0, 0 well above, linear over `width` pixels around 0: a soft edge."""
    d = d * (-1 / width)
    d += 0.5
    np.maximum(d, 0, out=d)
    return np.minimum(d, 1, out=d)


def _bump(r2: np.ndarray) -> np.ndarray:
    """Smooth hill (1 - r^2)^2 of a squared radius, 0 outside the unit circle."""
    hill = 1 - r2
    np.maximum(hill, 0, out=hill)
    hill *= hill
    return hill


def _spot(dx: np.ndarray, dy: np.ndarray, rx: float, ry: float) -> np.ndarray:
    """Smooth hill on an ellipse with half axes rx, ry pixels."""
    dx, dy = dx * (1 / rx), dy * (1 / ry)
    dx *= dx
    dy *= dy
    dx += dy
    return _bump(dx)


def _line(d: np.ndarray, half: float) -> np.ndarray:
    """Soft stroke: 1 on the curve, 0 at `half` pixels from it, d = signed distance."""
    d = np.abs(d)
    d *= -1 / half
    d += 1
    return np.maximum(d, 0, out=d)


def _blend(image: np.ndarray, cover: np.ndarray, tone: np.ndarray) -> None:
    """Lay `tone` over `image` in place where `cover` is 1; cover 0..1."""
    layer = tone - image
    layer *= cover
    image += layer


def _window(points: np.ndarray, pad: tuple[float, float, float, float]) -> tuple[slice, slice, slice]:
    """Part of the batch that holds these points of every face, padded left, top, right, bottom by pixels."""
    low = np.floor(points.reshape(-1, 2).min(0) - pad[:2]).clip(0, SIZE - 1).astype(int)
    high = np.ceil(points.reshape(-1, 2).max(0) + pad[2:]).clip(0, SIZE - 1).astype(int) + 1
    return slice(None), slice(low[1], high[1]), slice(low[0], high[0])


def _paint(g: dict, points: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Draw the faces back to front, uint8 [n, 48, 48]."""
    x, y = _frame(g)
    soft_noise = _smooth(_smooth(noise[0]))
    image, hair = _paint_head(g, x, y, soft_noise)
    _paint_cheeks(g, x, y, image, points)
    _paint_nose(g, x, y, image, points)
    for side in (-1, 1):
        _paint_eye(g, x, y, image, points, side)
        _paint_brow(g, x, y, image, points, noise[1], side)
    _paint_mouth(g, x, y, image, points)
    _paint_front(g, x, y, image, hair, soft_noise)
    return _photograph(g, image, noise[1])


def _smooth(a: np.ndarray) -> np.ndarray:
    """Blur with (1, 2, 1) / 4 along rows and columns, edges repeated; [n, 48, 48]."""
    for axis in (1, 2):
        q = np.moveaxis(a * 0.25, axis, 0)  # a view whose first axis is blurred
        out = q + q
        out[1:] += q[:-1]
        out[:-1] += q[1:]
        out[0] += q[0]
        out[-1] += q[-1]
        a = np.moveaxis(out, 0, axis)
    return a


def _paint_head(g: dict, x: np.ndarray, y: np.ndarray, soft_noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Background, back hair, shoulders, neck, ears and lit skin; also gives the hair's tone per pixel."""
    ax = np.abs(x)
    hair = soft_noise * (0.2 + 0.6 * g["hair"])
    hair += g["hair"] * 0.96
    hair -= y * 0.002
    image = g["back_x"] * (1 / 12) * x
    image += soft_noise * 0.15
    image += g["back"]
    # hair behind the head, to the shoulders where it is long
    xx, up = x * x, np.minimum((y + 6) * (1 / 19.5), 0)
    up *= up
    r = xx * (1 / (g["width"] + g["volume"]) ** 2)
    r += up
    behind = _ramp((np.sqrt(r) - 1) * 16, 1.5)
    behind *= _ramp(y - 1 - 30 * g["long"] - soft_noise * 12, 6)
    behind *= 1 - g["bald"]
    _blend(image, behind, hair * 0.9)
    # shoulders and neck
    w = (slice(None), slice(26, SIZE), slice(None))
    low = y[w]
    _blend(image[w], _ramp(22 + 0.012 * xx[w] - low - 2 * g["male"], 2), g["cloth"] + soft_noise[w] * 0.2)
    neck = _ramp(ax[w] - 0.56 * g["width"] - 0.8 * g["male"], 1.5)
    neck *= _ramp(8 - low, 2) * _ramp(low - 24 - 0.3 * ax[w], 3)
    _blend(image[w], neck, g["skin"] * 0.66)
    # ears, hidden by long hair
    w = (slice(None), slice(10, 34), slice(None))
    over, down = (ax[w] - g["width"]) * 0.5, (y[w] + 1.5) * 0.26
    ear = _ramp((np.sqrt(over * over + down * down) - g["ears"]) * 2, 1.0)
    _blend(image[w], ear * (1 - np.minimum(g["long"], 1)), g["skin"] * 0.8)
    # the head: distance to the outline F = 1 as (F - 1) / |grad F|
    down = y - EYE_LINE
    t = np.maximum(down, 0) * (1 / (g["jaw"] - EYE_LINE))
    crown = np.minimum(down, 0) * (1 / 17.5)
    tt = t * t
    f = xx * (1 / g["width"] ** 2) + tt * (1 - g["square"] + g["square"] * tt) + crown * crown
    slope_y = t * (2 * (1 - g["square"]) + 4 * g["square"] * tt) * (1 / (g["jaw"] - EYE_LINE))
    slope_y -= crown * (2 / 17.5)
    slope = slope_y * slope_y + xx * (2 / g["width"] ** 2) ** 2
    inside = _ramp((f - 1) / np.sqrt(slope + 1e-4), 1.2)
    # skin: light from one side, falling off round the head, cheek bones over hollow cheeks, a beard
    nx, ny = x * (1 / g["width"]), (y - 1) * (1 / 21)
    nn = nx * nx
    lit = nn * (-0.12 - 0.24 * nn * nn)
    lit += (g["light_x"] * nx) * (1 + 0.6 * nn)
    lit += ny * (g["light_y"] - 0.06 * ny)
    lit += soft_noise * (g["texture"] * 2.5)
    w = (slice(None), slice(18, 44), slice(None))
    hollow = _spot(ax[w] - 11.5, y[w] - 7.5, 4.5, 6.5)
    lit[w] -= (0.05 + 0.10 * g["gaunt"]) * hollow
    lit += 1.05
    skin = g["skin"] * lit
    beard = _ramp(8.5 - y[w] - 0.012 * xx[w], 5) * (1 + soft_noise[w]) * g["beard"]
    _blend(skin[w], beard, np.minimum(hair[w] + 0.1, skin[w]))
    _blend(image, inside, skin)
    return image, hair


def _paint_cheeks(g: dict, x: np.ndarray, y: np.ndarray, image: np.ndarray, points: np.ndarray) -> None:
    """Forehead lines (AU1, AU2), glabella (AU4), cheeks, crow's feet (AU6), nasolabial folds, mouth corners, chin."""
    ax = np.abs(x)
    depth = 0.35 + 0.65 * g["old"]  # how clearly skin shows its lines
    # forehead: three lines that follow the brows, over the middle by AU1, over the sides by AU2
    w = _window(points[:, 17:27], (2, 9, 2, -1))
    fy, fa = y[w].copy(), ax[w].copy()
    lift = np.minimum(fa * (1 / 12), 1)
    amount = (0.04 * g["old"] + 0.22 * (g["AU1"] * (1 - lift) + g["AU2"] * (0.35 + 0.65 * lift))) * (0.6 + 0.4 * depth)
    rise = g["brow_y"] - 1.6 * (g["AU1"] + g["AU2"]) + 0.006 * fa * fa
    lines = _line(fy - rise + 2.6, 0.8) + _line(fy - rise + 4.6, 0.8) + 0.8 * _line(fy - rise + 6.4, 0.8)
    image[w] *= 1 - amount * lines * np.maximum(1 - fa * fa * (1 / 150), 0)
    # glabella: two upright furrows between the brows, and a shadow
    w = _window(points[:, [21, 22, 27]], (2, 3, 2, 1))
    fa, fy = ax[w].copy(), y[w].copy()
    up = _bump(((fy - g["brow_y"] - 0.8) * (1 / 3.6)) ** 2)
    furrow = (g["AU4"] * 0.42 + 0.05 * g["old"]) * _line(fa - 1.5, 1.0)
    image[w] *= 1 - up * (furrow + 0.12 * g["AU4"] * _ramp(fa - 3, 2))
    # cheeks: bright apple, line below the lower lid, crow's feet
    w = _window(points[:, [36, 45, 48, 54, 31, 35]], (7, 3, 7, 0))
    fa, fy = ax[w].copy(), y[w].copy()
    high = g["eye_y"] + 7.6 - 1.5 * g["AU6"] - 0.7 * g["AU12"]
    apple = _spot(fa - 9.3, fy - high, 5.5, 4.2)
    image[w] *= 1 + (0.05 + 0.17 * g["AU6"] + 0.06 * g["AU12"]) * apple
    v = (fa - g["eye_x"]) * (1 / 5)
    bag = g["eye_y"] + 3.6 - 0.9 * g["AU6"] + 0.4 * (1 - 2.2 * v * v)
    image[w] *= 1 - (0.06 * depth + 0.30 * g["AU6"] + 0.10 * g["AU7"]) * _line(fy - bag, 0.9) * np.maximum(1 - v * v, 0)
    out = fa - g["eye_x"] - g["eye_w"] - 0.5
    down = fy - g["eye_y"]
    feet = _line(down - 0.55 * out, 0.6) + _line(down + 0.6 + 0.25 * out, 0.6) + _line(down - 1.2 - 1.1 * out, 0.6)
    image[w] *= 1 - 0.30 * g["AU6"] * (0.5 + 0.5 * depth) * feet * _bump((out * (1 / 2.2) - 1) ** 2)
    # nasolabial fold: from the nose's wing to outside the mouth's corner
    w = _window(points[:, [31, 35, 48, 54]], (5, 3, 5, 3))
    fa, fy = ax[w].copy(), y[w].copy()
    start, corner = g["wing_y"] - 1.0, g["lips_y"] + 0.65 * g["bend"]
    span = np.maximum(corner + 0.6 - start, 3.0)
    v = np.clip((fy - start) / span, 0, 1)
    fold = g["wing_w"] + 0.7 + (g["half"] - g["wing_w"] + 0.6 + 0.7 * g["AU12"]) * (v * (0.55 + 0.45 * v))
    fold += 1.8 * g["AU12"] * v * (1 - v)
    deep = 0.04 + 0.12 * g["old"] + 0.20 * g["AU12"] + 0.22 * g["AU9"] * (1.2 - v) + 0.16 * g["AU10"] + 0.06 * g["AU20"]
    within = _ramp(np.abs(fy - start - 0.5 * span) - 0.5 * span, 1.5)
    image[w] *= 1 - np.minimum(deep, 0.34) * (1.1 - 0.5 * v) * _line(fa - fold, 1.0) * within
    # mouth corners and chin
    w = _window(points[:, [48, 54, 57, 8]], (4, 3, 4, -1))
    fa, fy = ax[w].copy(), y[w].copy()
    spot = _spot(fa - g["half"] - 0.5, fy - corner - 0.7 * g["AU15"], 1.8, 2.0)
    image[w] *= 1 - (0.10 + 0.18 * g["AU12"] + 0.30 * g["AU15"] + 0.15 * g["AU20"]) * spot
    below = g["lips_y"] - 0.35 * g["bend"] + 0.78 * g["gap"] + g["lower"] + 1.5
    pit = _spot(fa, fy - below, 4.5, 1.9)
    boss = _spot(fa, fy - below - 3.0, 4.0, 2.2)
    image[w] *= 1 - (0.14 + 0.30 * g["AU17"]) * pit + (0.04 + 0.12 * g["AU17"]) * boss


def _paint_nose(g: dict, x: np.ndarray, y: np.ndarray, image: np.ndarray, points: np.ndarray) -> None:
    """Bridge and tip with light, wings, nostrils, and the wrinkles of AU9."""
    w = _window(points[:, [27, 31, 33, 35]], (4, 2, 4, 3))
    fx, fy, fa = x[w].copy(), y[w].copy(), np.abs(x[w])
    along = np.clip((fy - g["eye_y"]) / (g["wing_y"] - g["eye_y"]), 0, 1)
    wide = 1.3 + (g["wing_w"] - 1.2) * along * along
    on = _ramp(np.abs(fy - 0.5 * (g["eye_y"] + g["wing_y"]) + 0.5) - 0.5 * (g["wing_y"] - g["eye_y"]) - 0.2, 2.5)
    edge = _line(fa - wide - 0.3, 1.5) * on
    shadow = 0.13 - g["light_x"] * np.where(fx > 0, 0.8, -0.8)
    image[w] *= 1 - np.clip(shadow, 0.02, 0.4) * edge * (0.5 + 0.5 * along)
    image[w] *= 1 + 0.10 * _ramp(fa - 0.8, 1.6) * on
    tip = _spot(fx, fy - g["wing_y"] + 1.6, 2.4, 2.0)
    image[w] *= 1 + 0.12 * tip
    wing = _spot(fa - g["wing_w"] - 0.1, fy - g["wing_y"] + 0.6, 1.2, 1.8)
    under = _bump((fa / (g["wing_w"] + 0.8)) ** 2 + ((fy - g["wing_y"] - 1.0) * (1 / 1.3)) ** 2)
    hole = _spot(fa - 0.55 * g["wing_w"], fy - g["wing_y"] - 0.2, 1.3, 1.1)
    image[w] *= (1 - 0.22 * wing) * (1 - 0.16 * under) * (1 - 0.6 * hole)
    root = g["eye_y"] + 1.2
    bow = 0.10 * fa * fa
    wrinkles = _line(fy - root + bow, 0.8) + _line(fy - root - 2.0 + bow, 0.8) + _line(fy - root - 4.0 + 1.6 * bow, 0.8)
    image[w] *= 1 - 0.42 * g["AU9"] * wrinkles * _bump((fa * (1 / 4.4)) ** 2)


def _paint_eye(g: dict, x: np.ndarray, y: np.ndarray, image: np.ndarray, points: np.ndarray, side: int) -> None:
    """One eye: socket, white, iris with pupil and light, lids and crease."""
    w = _window(points[:, 36:42] if side < 0 else points[:, 42:48], (3, 5, 3, 3))
    fx, fy = side * x[w], y[w].copy()
    u = (fx - g["eye_x"]) / g["eye_w"]
    arch = np.maximum(1 - u * u, 0)
    up, low = _lids(g, np.clip(u, -1, 1))
    patch = image[w].copy()
    socket = _spot(u, fy - g["eye_y"] + 1.2, 1.7, 5.0)
    patch *= 1 - (0.20 - 0.05 * g["AU5"]) * socket
    crease = _line(fy - up + 1.5 + 0.5 * g["AU5"], 0.8) * arch
    patch *= 1 - (0.16 + 0.1 * g["AU5"]) * crease
    opening = _ramp(np.maximum(up - fy, fy - low), 0.9) * _ramp(np.abs(u) - 1, 0.25)
    white = np.minimum(0.34 + 0.70 * g["skin"], 0.93) * (1 - 0.25 * u * u)
    dx = fx - g["eye_x"] - side * g["gaze"]
    dy = fy - g["eye_y"] + 0.15 * g["lid_up"]
    r = np.sqrt(dx * dx + dy * dy)
    colour = white + _ramp(r - 1.75, 1.0) * (g["iris"] - white)
    colour += _ramp(r - 0.75, 0.9) * (0.04 - colour)
    colour += 0.75 * _spot(fx - g["eye_x"] - 0.6, dy + 0.7, 0.9, 0.9) * (1 - colour)
    colour *= 1 - 0.35 * _line(fy - up, 1.6)  # the lid's shadow on the ball
    patch += opening * (colour - patch)
    edge = _ramp(np.abs(u) - 1.04, 0.3)
    patch *= 1 - g["lash"] * _line(fy - up, 1.0) * edge
    patch *= 1 - 0.35 * _line(fy - low, 0.8) * edge
    image[w] = patch


def _paint_brow(g: dict, x: np.ndarray, y: np.ndarray, image: np.ndarray, points: np.ndarray, noise: np.ndarray,
                side: int) -> None:
    """One brow: a tapered hairy band around the line that the units move."""
    w = _window(points[:, 17:22] if side < 0 else points[:, 22:27], (3, 3, 3, 3))
    inner, length = _brow_ends(g)
    s = (side * x[w] - inner) / length
    held = np.clip(s, 0, 1)
    half = g["brow_thick"] * (1.05 - 0.65 * held * held)
    d = np.abs(y[w].copy() - _brow(g, held, side)) - half
    band = _ramp(d, 1.2) * _ramp(np.abs(s - 0.5) - 0.5, 0.16)
    tone = np.minimum(g["hair"] * 0.7, g["skin"] * 0.55) + 0.05
    alpha = band * g["brow_dark"] * (0.92 + 0.5 * noise[w])
    image[w] += alpha * (tone - image[w])


def _paint_mouth(g: dict, x: np.ndarray, y: np.ndarray, image: np.ndarray, points: np.ndarray) -> None:
    """Lips, the dark of an open mouth, teeth."""
    w = _window(points[:, 48:68], (2, 2, 2, 2))
    fy, u = y[w].copy(), x[w] / g["half"]
    patch = image[w].copy()
    held = np.clip(u, -1, 1)
    outer, top, low, bottom = _lips(g, held)
    side = _ramp(np.abs(u) - 1, 0.16)
    lip = g["skin"] * (1 - g["lip_dark"])
    upper = _ramp(np.maximum(outer - fy, fy - top), 0.9) * side
    lower = _ramp(np.maximum(low - fy, fy - bottom), 0.9) * side
    patch += upper * (lip * 0.86 - patch)
    shine = 1.04 + 0.16 * _bump(((fy - low - 0.55 * g["lower"]) * (1 / 1.2)) ** 2 + u * u)
    patch += lower * (lip * shine - patch)
    hole = _ramp(np.maximum(top - fy, fy - low) + 0.1, 0.9) * side * _ramp(0.35 - g["gap"], 0.7)
    dark = 0.10 + 0.12 * np.clip((fy - top - 2.5) * (1 / 4), 0, 1) * g["skin"]  # a hint of tongue
    show = 0.35 + 1.1 * g["AU12"] + 0.7 * g["AU20"] + 0.8 * g["AU10"] - 0.5 * g["AU27"] - 0.25 * g["AU26"]
    teeth = _ramp(fy - top - np.minimum(0.45 * g["gap"] + 0.9, 2.4), 0.9)
    teeth *= _ramp(np.abs(u) - 0.8, 0.25) * np.clip(show, 0, 1)
    lower_teeth = _ramp(low - 0.9 - fy, 0.9) * _ramp(np.abs(u) - 0.6, 0.25) * np.clip(1.2 * g["AU20"] - 0.2, 0, 0.8)
    inside = dark + np.maximum(teeth, lower_teeth) * (0.48 + 0.48 * g["skin"] - dark)
    patch += hole * (inside - patch)
    seam = _line(fy - top, 0.9) * side * (1 - 0.6 * np.minimum(g["gap"], 1))
    patch *= 1 - (0.55 + 0.15 * g["AU23"]) * seam
    image[w] = patch


def _paint_front(g: dict, x: np.ndarray, y: np.ndarray, image: np.ndarray, hair: np.ndarray,
                 soft_noise: np.ndarray) -> None:
    """What hides skin: front hair, glasses, and now and then an arm or another thing from the side."""
    w = (slice(None), slice(0, 30), slice(None))
    fx, fy, ax = x[w].copy(), y[w].copy(), np.abs(x[w])
    xx, up = fx * fx, np.minimum((fy + 6) * (1 / 19), 0)
    skull = _ramp((np.sqrt(xx * (1 / (g["width"] + 0.6 * g["volume"]) ** 2) + up * up) - 1) * 16, 1.5)
    line = g["hairline"] + g["fringe"] * xx + (2 * g["parting"]) * fx + soft_noise[w] * 5
    temple = _ramp(g["width"] - 0.5 - 1.2 * g["long"] - ax, 1.2) * _ramp(fy + 4 - 25 * g["long"], 5)
    cover = np.maximum(_ramp(fy - line, 1.8), temple)
    cover *= skull
    cover *= 1 - g["bald"]
    gloss = _spot(fy + 18, fx - 20 * g["light_x"], 5, 12)
    _blend(image[w], cover, hair[w] * (1 + (g["light_x"] * (1 / 20)) * fx + 0.35 * gloss))
    worn = np.flatnonzero(g["glasses"])  # most faces wear none: draw only where needed
    if len(worn):
        w, k = (worn, slice(8, 34)), {name: g[name][worn] for name in ("eye_x", "eye_y", "rim", "width")}
        fy, ax = y[w], np.abs(x[w])
        r2 = ((ax - k["eye_x"] - 0.2) * (1 / 5.4)) ** 2 + ((fy - k["eye_y"] - 0.6) * (1 / 4.4)) ** 2
        ring = _line((np.sqrt(0.5 * (r2 * r2 + r2)) - 1) * 4.5, 1.1)
        bar = np.maximum(_ramp(ax - 2.4, 0.8), _ramp(13 - ax, 0.8) * _ramp(ax - k["width"], 1))
        bar *= _line(fy - k["eye_y"] + 0.8, 1.0)
        image[w] += 0.85 * np.maximum(ring, bar) * (k["rim"] - image[w])
    # an arm or hand: a rounded beam from the side or from below, its tip `occ_reach` pixels from the middle
    hidden = np.flatnonzero(g["occluded"])
    if len(hidden):
        k = {name: value[hidden] for name, value in g.items() if name.startswith("occ_")}
        fx, fy, below = x[hidden], y[hidden], k["occ_low"] > 0
        across = np.where(below, fx - 8 * k["occ_angle"], fy - 3 - 12 * k["occ_angle"])
        tip = np.minimum(np.where(below, fy, k["occ_side"] * fx) - k["occ_reach"], 0)
        beam = _ramp(np.sqrt(across * across + tip * tip) - k["occ_half"], 1.2)
        tone = k["occ_tone"] * (1 + 0.6 * soft_noise[hidden] - 0.02 * across)
        image[hidden] += beam * (tone - image[hidden])


def _photograph(g: dict, image: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Focus, contrast, level, grain; float [n,48,48] -> uint8."""
    image = image + g["soft"] * (_smooth(image) - image)
    image = g["level"] + g["contrast"] * (image - 0.47) + g["grain"] * noise
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
