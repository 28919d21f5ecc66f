"""Looking at single faces: kept networks, pictures from anywhere, the shell, and the explorer without a browser."""
import io
import sys
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fer_lib import explore
from fer_lib.__main__ import main
from fer_lib.dataset import open_dataset
from fer_lib.faces import EMOTIONS
from fer_lib.runs import Run, RunSpec


@pytest.fixture(scope="module")
def data():
    return open_dataset(None, (28, 7, 14))


@pytest.fixture
def run(data, monkeypatch, tmp_path):
    """A run whose weights are those of its untrained network."""
    monkeypatch.setattr(Run, "model", lambda self, device="cpu": self.spec.build().eval())
    (tmp_path / "weights.safetensors").touch()
    return Run(tmp_path, RunSpec(data.fingerprint, model="vgg16", width=0.25, depth=8))


@pytest.fixture
def study(data, tmp_path):
    return SimpleNamespace(data=data, root=tmp_path / "results" / "smoke")


@pytest.fixture
def undetected(monkeypatch):
    """No face detector is installed."""
    monkeypatch.setitem(sys.modules, "mediapipe", None)


def jpeg(path, size=(300, 200), mode="RGB"):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)).convert(mode).save(path)
    return path


# --- drawing ---

def test_overlay_is_red_where_a_map_is_for_blue_where_against_and_grey_elsewhere():
    face, maps = np.full((48, 48), 200, np.uint8), np.zeros((48, 48), np.float32)
    maps[:10], maps[-10:] = 1, -1
    shown = explore.overlay(face, maps).astype(int)
    assert shown[0, 0, 0] > shown[0, 0, 2] + 50 and shown[-1, 0, 2] > shown[-1, 0, 0] + 50
    assert np.ptp(shown[24, 24]) == 0
    assert np.ptp(explore.overlay(face, np.zeros((48, 48)))) == 0  # an empty map hides nothing


def test_picture_is_a_png_of_face_and_map():
    drawn = Image.open(io.BytesIO(explore.picture(np.zeros((48, 48), np.uint8), np.eye(48))))
    assert drawn.size == (98 * explore.ENLARGE, 48 * explore.ENLARGE)


# --- networks ---

def test_a_kept_network_sees_what_the_run_sees(run, data, study):
    assert "Kept unmasked in half precision" in explore.share(study, {"unmasked": run})
    kept, own, face = explore.networks(str(study.root.parent))["unmasked"], explore.of_run("own", run, data), data.faces.images[40]
    assert kept.about == run.key and kept.scaling == data.scaling
    (maps, p), (expected, q) = (one.see(face, "grad_cam", 3) for one in (kept, own))
    assert np.allclose(p, q, atol=2e-3) and np.allclose(maps, expected, atol=0.02 * np.abs(expected).max()) and np.isclose(p.sum(), 1, atol=1e-5)
    size = (study.root / "models" / "unmasked.safetensors").stat().st_size
    assert size < 2.1 * sum(p.numel() for p in run.model().parameters()) + 20000


def test_a_network_that_is_kept_already_is_not_written_again(run, study):
    path = study.root / "models" / "unmasked.safetensors"
    explore.share(study, {"unmasked": run})
    before = path.stat().st_mtime_ns
    explore.share(study, {"unmasked": run})
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"damaged")
    explore.share(study, {"unmasked": run})
    assert explore.shared(path).about == run.key


def test_networks_without_weights_or_too_large_are_not_kept_and_old_files_stay(run, study, monkeypatch, tmp_path):
    explore.share(study, {"unmasked": run})
    before = (study.root / "models" / "unmasked.safetensors").read_bytes()
    assert "not on this machine" in explore.share(study, {"unmasked": Run(tmp_path / "elsewhere", run.spec)})
    monkeypatch.setattr(explore, "MOST_BYTES", 1000)
    assert "more than" in explore.share(study, {"unmasked": run, "masked": run})
    assert [path.name for path in (study.root / "models").iterdir()] == ["unmasked.safetensors"]
    assert (study.root / "models" / "unmasked.safetensors").read_bytes() == before


def test_a_stronger_studys_network_comes_before_a_weaker_ones(run, data, tmp_path):
    for preset in ("smoke", "reduced"):
        explore.share(SimpleNamespace(data=data, root=tmp_path / preset), {"unmasked": run} | ({"other": run} if preset == "smoke" else {}))
    found = explore.networks(str(tmp_path))
    assert list(found) == ["unmasked", "other"]


def test_hiding_pixels_changes_what_is_said(run, data):
    looker, face = explore.of_run("own", run, data), data.faces.images[3]
    hide = np.zeros((48, 48), bool)
    assert (looker.says(face, hide) == looker.says(face)).all()
    hide[10:40] = True
    assert not np.allclose(looker.says(face, hide), looker.says(face), atol=1e-4)


# --- pictures ---

@pytest.mark.parametrize("size, mode", [((300, 200), "RGB"), ((64, 64), "L"), ((90, 200), "RGBA")])
def test_any_picture_becomes_a_face_of_48_pixels(undetected, tmp_path, size, mode):
    face, said = explore.open_picture(jpeg(tmp_path / "a.png", size, mode))
    assert face.shape == (48, 48) and face.dtype == np.uint8 and "middle square" in said
    assert (explore.open_picture((tmp_path / "a.png").read_bytes())[0] == face).all()


def test_the_middle_square_is_upright_and_in_the_middle(undetected, tmp_path):
    image = np.zeros((100, 300), np.uint8)
    image[:50, 100:150] = 255  # upper left of the middle square
    Image.fromarray(image).save(tmp_path / "a.png")
    face, _ = explore.open_picture(tmp_path / "a.png")
    assert face[:22, :22].min() > 250 and face[26:].max() < 5 and face[:, 26:].max() < 5


def test_a_picture_of_48_pixels_is_taken_as_it_is(data, tmp_path):
    Image.fromarray(data.faces.images[5]).save(tmp_path / "a.png")
    assert (explore.open_picture(tmp_path / "a.png")[0] == data.faces.images[5]).all()


def test_of_several_faces_the_largest_is_taken_and_said(monkeypatch, tmp_path):
    monkeypatch.setattr(explore, "_face_boxes", lambda image: [(0, 0, 20, 20), (100, 50, 180, 130)])
    image = np.zeros((200, 300), np.uint8)
    image[50:130, 100:180] = 200
    Image.fromarray(image).save(tmp_path / "a.png")
    face, said = explore.open_picture(tmp_path / "a.png")
    assert "2 faces were found" in said and face.min() > 150
    monkeypatch.setattr(explore, "_face_boxes", lambda image: [])
    assert "No face was found" in explore.open_picture(tmp_path / "a.png")[1]


# --- the shell ---

def test_explain_draws_one_picture(undetected, run, study, tmp_path, capsys):
    explore.share(study, {"unmasked": run})
    words = ["explain", str(jpeg(tmp_path / "me.jpg")), "--out", str(tmp_path / "map.png"), "--results", str(study.root.parent)]
    assert main([*words, "--target", "sad", "--method", "saliency"]) == 0
    said = capsys.readouterr().out
    assert "middle square" in said and run.key in said and sum(emotion in said for emotion in EMOTIONS) >= 3
    assert Image.open(tmp_path / "map.png").width > 600


@pytest.mark.parametrize("change, says", [
    (["nowhere.jpg"], "nowhere.jpg does not exist"), (["text.jpg"], "no picture that can be read"),
    (["me.jpg", "--model", "best"], "There is no network 'best': choose from unmasked"), (["me.jpg", "--model", "text.jpg"], "not a network kept"),
    (["me.jpg", "--model", "bare.safetensors"], "does not say how it was built"),
    (["me.jpg", "--method", "magic"], "Unknown method 'magic'"), (["me.jpg", "--target", "bored"], "Unknown emotion 'bored'")])
def test_bad_input_is_one_sentence_and_draws_nothing(undetected, run, study, tmp_path, capsys, monkeypatch, change, says):
    monkeypatch.chdir(tmp_path)
    explore.share(study, {"unmasked": run})
    jpeg("me.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    save_file({"a": torch.zeros(1)}, "bare.safetensors")
    assert main(["explain", *change, "--out", "map.png", "--results", "results"]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not (tmp_path / "map.png").exists()


# --- the explorer ---

def controls(box) -> dict:
    """The explorer's widgets by name."""
    (network, method, target), (emotion, which, number, variant), (own, back), (_, *hidden), image, said = \
        (child.children if hasattr(child, "children") else child for child in box.children)
    return dict(network=network, method=method, target=target, emotion=emotion, which=which, number=number, variant=variant, own=own, back=back,
                image=image, said=said, **{button.description: button for button in hidden})


@pytest.fixture
def shown(study, run):
    return controls(explore.explorer(study, {"vgg16 unmasked": [run]}))


def test_choosing_another_method_or_emotion_draws_another_picture(shown):
    first = shown["image"].value
    shown["method"].value = "occlusion"
    assert shown["image"].value != first and "label happy" in shown["said"].value and "explains happy" in shown["said"].value
    shown["number"].value = 10**6  # past the last face of the emotion: clipped
    shown["emotion"].value = "sad"
    assert "label sad" in shown["said"].value and shown["network"].value == "vgg16 unmasked, seed 0"


def test_hiding_a_region_shows_what_was_said_before(shown):
    first = shown["image"].value
    shown["mouth"].value = True
    assert shown["image"].value != first and "(whole:" in shown["said"].value
    shown["mouth"].value = False
    assert shown["image"].value == first and "(whole:" not in shown["said"].value


def test_faces_are_picked_by_error_and_by_confidence(shown, run, data):
    test, p = data.faces.where("test"), run.model()(data.inputs(data.faces.where("test"))).softmax(1).detach().numpy()
    for emotion in range(7):
        shown["emotion"].value = EMOTIONS[emotion]
        shown["which"].value = "least sure first"
        mine = np.flatnonzero(data.labels("test") == emotion)
        assert f"row {data.faces.row[test[mine[p[mine].max(1).argmin()]]]}," in shown["said"].value
        shown["which"].value = "wrong, surest first"
        wrong = mine[p[mine].argmax(1) != emotion]
        assert (f"row {data.faces.row[test[wrong[p[wrong].max(1).argmax()]]]}," if len(wrong) else "No test face") in shown["said"].value


def test_a_picture_of_ones_own_is_looked_at_until_one_goes_back(undetected, shown, tmp_path):
    first = shown["image"].value
    shown["own"].value = [{"content": jpeg(tmp_path / "me.png").read_bytes(), "name": "me.png", "type": "image/png", "size": 1, "last_modified": datetime.now()}]
    assert shown["image"].value != first and "middle square" in shown["said"].value and "label" not in shown["said"].value
    shown["own"].value = [{"content": b"nothing", "name": "a", "type": "", "size": 1, "last_modified": datetime.now()}]
    assert "no picture" in shown["said"].value
    shown["back"].click()
    assert shown["image"].value == first


def test_the_networks_that_come_along_are_enough(study, run, tmp_path):
    explore.share(study, {"unmasked": run})
    bare = Run(tmp_path / "elsewhere", run.spec)
    assert controls(explore.explorer(study, {"vgg16 unmasked": [bare]}))["network"].value == "unmasked (kept)"


def test_without_any_network_the_explorer_is_a_sentence(study, tmp_path):
    run = Run(tmp_path, RunSpec(study.data.fingerprint))
    assert "needs a network" in explore.explorer(study, {"vgg16 unmasked": [run]})
