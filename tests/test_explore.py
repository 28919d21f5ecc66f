"""The explorer without a browser: what it draws and what it says."""
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fer_lib import explore
from fer_lib.dataset import open_dataset
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


def test_explain_gives_a_map_and_probabilities(data, run):
    maps, p = explore.explain(run, data, 40, "grad_cam", "masked")
    assert maps.shape == (48, 48) and np.isclose(p.sum(), 1, atol=1e-5)


def test_choosing_another_method_or_emotion_draws_another_picture(data, run):
    box = explore.explorer(SimpleNamespace(data=data), {"vgg16 unmasked": [run]})
    (network, method), (emotion, number, variant), image, said = box.children[0].children, box.children[1].children, *box.children[2:]
    first = image.value
    method.value = "occlusion"
    assert image.value != first and "label happy" in said.value
    number.value = 10 ** 6  # past the last face of the emotion: clipped
    emotion.value = "sad"
    assert "label sad" in said.value and network.value == "vgg16 unmasked, seed 0"


def test_without_weights_the_explorer_is_a_sentence(data, tmp_path):
    run = Run(tmp_path, RunSpec(data.fingerprint))
    assert "needs weights" in explore.explorer(SimpleNamespace(data=data), {"vgg16 unmasked": [run]})
