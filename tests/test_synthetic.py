"""Synthetic faces: same seed, same bytes; points lie on what is drawn; units move what they name."""
import numpy as np
import pytest
import torch
from torch import nn

from fer_lib.faces import EMOTIONS
from fer_lib.landmarks import HOW
from fer_lib.synthetic import (ACTION_UNITS, EMOTION_UNITS, REGIONS, SYNTHETIC_VERSION, UNITS, draw_faces, make_faces,
                               region_share)

ANGRY, HAPPY = EMOTIONS.index("angry"), EMOTIONS.index("happy")


@pytest.fixture(scope="module")
def made():
    return make_faces(1540, 70, 700, seed=0)


def expression(n: int = 56, **units: float) -> tuple[np.ndarray, np.ndarray]:
    """The same n people, all with these units; images and points."""
    values = np.zeros((n, len(UNITS)), np.float32)
    for name, intensity in units.items():
        values[:, UNITS.index(name)] = intensity
    return draw_faces(values, seed=1)


def pixels(images: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Grey values nearest to points [n, k, 2], float [n, k]."""
    xy = np.clip(np.rint(at), 0, 47).astype(int)
    return images[np.arange(len(images))[:, None], xy[..., 1], xy[..., 0]].astype(float)


def test_same_seed_gives_same_bytes():
    first, again, other = make_faces(60, 7, 7, seed=3), make_faces(60, 7, 7, seed=3), make_faces(60, 7, 7, seed=4)
    assert first.faces.fingerprint == again.faces.fingerprint != other.faces.fingerprint
    assert first.landmarks.points.tobytes() == again.landmarks.points.tobytes()
    assert first.action_units.tobytes() == again.action_units.tobytes()


def test_version_names_the_drawing():
    """Where this fails because the drawing changed: raise SYNTHETIC_VERSION and write the new fingerprint here."""
    assert (SYNTHETIC_VERSION, make_faces(112, 14, 14, seed=0).faces.fingerprint) == (1, "cf0aa7c477e7")


def test_a_split_does_not_depend_on_the_other_splits():
    small, large = make_faces(30, 7, 40, seed=0), make_faces(90, 50, 61, seed=0)
    for split, n in (("train", 30), ("val", 7), ("test", 40)):
        a, b = small.faces.where(split), large.faces.where(split)[:n]
        assert np.array_equal(small.faces.images[a], large.faces.images[b])
        assert np.array_equal(small.action_units[a], large.action_units[b])
        assert np.array_equal(small.landmarks.points[a], large.landmarks.points[b])


def test_splits_share_no_face(made):
    assert len(np.unique(made.faces.copies)) == len(made.faces)


def test_shapes_and_rows(made):
    n = 1540 + 70 + 700
    assert made.faces.images.shape == (n, 48, 48) and made.faces.source == "synthetic"
    assert np.array_equal(made.faces.row, np.arange(n))
    assert [len(made.faces.where(split)) for split in ("train", "val", "test")] == [1540, 70, 700]
    assert made.landmarks.points.shape == (n, 68, 2) and made.landmarks.points.dtype == np.float32
    assert (made.landmarks.how == HOW.index("exact")).all()
    assert made.action_units.shape == (n, len(UNITS)) and made.action_units.dtype == np.float32
    assert made.action_units.min() >= 0 and made.action_units.max() <= 1


def test_emotions_are_balanced_at_any_size():
    counts = make_faces(100, 10, 33, seed=0).faces.counts()
    assert (counts.max(1) - counts.min(1) <= 1).all()


def test_empty_split_is_allowed_and_no_face_is_not():
    assert len(make_faces(7, 0, 0).faces) == 7
    with pytest.raises(ValueError, match="at least one face"):
        make_faces(0, 0, 0)
    with pytest.raises(ValueError, match="negative"):
        make_faces(7, -1, 0)


def test_at_least_twelve_units_each_shown_by_known_regions():
    assert len(UNITS) >= 12
    for _, shares in ACTION_UNITS.values():
        assert set(shares) <= set(REGIONS) and sum(shares.values()) == pytest.approx(1)
    assert all(region_share(region).sum() > 0 for region in REGIONS)
    assert set(EMOTION_UNITS) == set(EMOTIONS) and all(set(units) <= set(UNITS) for units in EMOTION_UNITS.values())
    with pytest.raises(ValueError, match="brows, eyes"):
        region_share("ears")


def test_emotions_show_their_facs_prototype(made):
    prototypes = dict(happy="6 12", sad="1 4 15", surprise="1 2 5 26", fear="1 2 4 5 20", angry="4 5 7 23",
                      disgust="9 15")
    neutral = made.action_units[made.faces.labels == EMOTIONS.index("neutral")].mean(0)
    for emotion, numbers in prototypes.items():
        mean = made.action_units[made.faces.labels == EMOTIONS.index(emotion)].mean(0)
        for number in numbers.split():
            unit = UNITS.index(f"AU{number}")
            assert mean[unit] > neutral[unit] + 0.15, (emotion, number)


def test_points_lie_in_the_picture_in_ibug_order(made):
    p = made.landmarks.points
    assert (p[:, 17:68] > -1).all() and (p[:, 17:68] < 49).all()  # the jaw may leave the frame
    assert (np.diff(p[:, 3:14, 0], axis=1) > 0).all()             # jaw from left to right
    assert (p[:, 8, 1] > p[:, 57, 1]).all() and (p[:, 57, 1] > p[:, 33, 1]).all()  # chin, lower lip, nose
    assert (p[:, 36, 0] < p[:, 39, 0]).all() and (p[:, 42, 0] < p[:, 45, 0]).all()
    assert (p[:, 66, 1] >= p[:, 62, 1] - 1e-4).all()  # inner lips do not cross


def test_points_lie_on_drawn_features():
    images, p = expression(AU26=1)
    mouth = pixels(images, p[:, [62, 66]].mean(1, keepdims=True)).mean()
    brow = pixels(images, p[:, [18, 19, 24, 25]]).mean()
    eye = pixels(images, p[:, [36, 42]] * 0.5 + p[:, [39, 45]] * 0.5).mean()
    cheek = pixels(images, p[:, [31, 35]] * 0.5 + p[:, [3, 13]] * 0.5).mean()
    assert mouth < 0.5 * cheek and brow < 0.8 * cheek and eye < 0.6 * cheek


@pytest.mark.parametrize("unit, points, axis, sign", [
    ("AU1", [21, 22], 1, -1), ("AU2", [17, 18, 25, 26], 1, -1), ("AU4", [21, 22], 1, 1),
    ("AU5", [37, 38, 43, 44], 1, -1), ("AU7", [40, 41, 46, 47], 1, -1), ("AU9", [31, 35], 1, -1),
    ("AU12", [48, 54], 1, -1), ("AU15", [48, 54], 1, 1),
    ("AU20", [54], 0, 1), ("AU23", [54], 0, -1), ("AU26", [8, 57], 1, 1), ("AU27", [8, 57], 1, 1),
    ("AU43", [37, 38, 43, 44], 1, 1)])
def test_unit_moves_its_points(unit, points, axis, sign):
    still, moved = expression()[1], expression(**{unit: 1})[1]
    step = sign * (moved - still)[:, points, axis]
    assert (step.mean(1) > 0).all() and step.mean() > 0.4  # pixels


def test_lip_gap_grows_with_jaw_drop():
    gap = [np.linalg.norm(p[:, 66] - p[:, 62], axis=-1).mean() for p in (expression(AU26=i)[1] for i in (0, 0.5, 1))]
    assert gap[0] < 0.1 and gap[1] > gap[0] + 1 and gap[2] > gap[1] + 1


@pytest.mark.parametrize("unit, near, far", [("AU1", [20, 21, 22, 23], [48, 54]), ("AU9", [28, 29], [8, 17]),
                                             ("AU12", [48, 54, 57], [17, 26]), ("AU5", [37, 44], [57, 8])])
def test_unit_changes_the_picture_where_it_acts(unit, near, far):
    (still, p), (moved, _) = expression(), expression(**{unit: 1})
    change = np.abs(moved.astype(float) - still)
    assert pixels(change, p[:, near]).mean() > 5 * pixels(change, p[:, far]).mean()


def test_units_out_of_range_are_refused():
    with pytest.raises(ValueError, match="0..1"):
        draw_faces(np.full((1, len(UNITS)), 1.5))
    with pytest.raises(ValueError, match="must be"):
        draw_faces(np.zeros((1, 3)))


def test_truth_names_the_regions_that_carry_each_emotion(made):
    table = made.truth
    assert len(table) == len(EMOTIONS) * len(REGIONS) and made.truth is table
    assert (table.accuracy > 0.85).all()
    assert np.allclose(table.loss, table.accuracy - table.accuracy_without)
    loss = table.pivot(index="emotion", columns="region", values="loss")
    assert loss.loc["happy"].idxmax() == "mouth" and loss.loc["disgust"].idxmax() == "nose"
    assert loss.loc["happy", "mouth"] > loss.loc["angry", "mouth"] + 0.1
    assert loss.loc["angry", ["brows", "eyes"]].max() > 0.05
    assert loss.loc["sad", "brows"] > 0.05


def test_small_network_learns_and_needs_the_mouth_for_happy(made):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        faces, layers, channels = made.faces, [], 1
        for width in (8, 16, 32, 64):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.MaxPool2d(2)]
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 3 * 3, 7)).to(memory_format=torch.channels_last)
        x = torch.from_numpy(faces.images).float()[:, None] / 255  # (N, 1, 48, 48)
        x, y = (x - x.mean()) / x.std(), torch.from_numpy(faces.labels).long()
        train, test, batch, epochs = faces.where("train"), faces.where("test"), 35, 6
        optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, epochs * (len(train) // batch))
        for _ in range(epochs):
            order = torch.randperm(len(train)).reshape(-1, batch)
            for index in order:
                pick = train[index.numpy()]
                loss = nn.functional.cross_entropy(net(x[pick]), y[pick])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        net.eval()

        def recall(x: torch.Tensor) -> np.ndarray:
            with torch.no_grad():
                guess = net(x).argmax(1)
            return np.array([(guess[y[test] == k] == k).float().mean().item() for k in range(7)])

        mouth = made.landmarks.points[test, 48:68]  # (n, 20, 2)
        low, high, grid = mouth.min(1) - 2, mouth.max(1) + 2, np.arange(48)
        columns = (grid >= low[:, :1]) & (grid <= high[:, :1])
        rows = (grid >= low[:, 1:]) & (grid <= high[:, 1:])
        hidden = torch.from_numpy(rows[:, :, None] & columns[:, None, :])[:, None]
        seen, unseen = recall(x[test]), recall(x[test].masked_fill(hidden, x.min().item()))
    finally:
        torch.set_num_threads(threads)
    assert 0.6 < seen.mean() < 0.97
    assert seen[HAPPY] - unseen[HAPPY] > seen[ANGRY] - unseen[ANGRY]
