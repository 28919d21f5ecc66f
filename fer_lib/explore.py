"""The explorer: one face, one method, one network at a time, in a notebook.

    explorer(study, runs)      # runs: {name: one Run a seed}; shows widgets, or returns a sentence where no weights are at hand

Pictures of faces appear on the user's machine only: nothing is written, and widgets are blank in executed copies.
"""
import io
from functools import lru_cache

import matplotlib
import numpy as np
import torch
from PIL import Image

from .dataset import Dataset
from .faces import EMOTIONS
from .runs import Run
from .saliency import ATTRIBUTIONS, attribute

ENLARGE = 7  # pixels of the screen a pixel of the face


def overlay(face: np.ndarray, attributions: np.ndarray) -> np.ndarray:
    """A map [48, 48] over a face uint8 [48, 48] as uint8 [48, 48, 3]: red for, blue against; the map's own 99th percentile is full colour."""
    value = np.clip(attributions / max(float(np.percentile(np.abs(attributions), 99)), 1e-12), -1, 1)
    colour = matplotlib.colormaps["RdBu_r"](value / 2 + 0.5)[..., :3]
    strength = np.abs(value)[..., None] ** 0.6
    return (255 * ((1 - strength) * (0.35 + 0.65 * face / 255)[..., None] + strength * colour)).round().astype(np.uint8)


def picture(face: np.ndarray, attributions: np.ndarray) -> bytes:
    """Face and overlay side by side, enlarged, as PNG bytes: swapping these in a widgets.Image is 30 times as fast as a new plot."""
    pair = np.concatenate([np.repeat(face[..., None], 3, -1), np.full((48, 2, 3), 255, np.uint8), overlay(face, attributions)], 1)
    buffer = io.BytesIO()
    Image.fromarray(pair).resize((pair.shape[1] * ENLARGE, pair.shape[0] * ENLARGE), Image.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


@lru_cache(maxsize=6)
def _model(run: Run):
    return run.model()


def explain(run: Run, data: Dataset, position: int, method: str = "integrated_gradients", variant: str = "unmasked",
            target: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One face's map float32 [48, 48] and the network's probabilities float32 [7].

    `position` is the face's place in data.faces, `target` the class explained, by default the label. Raises FileNotFoundError where
    the run's weights are not on this machine, ValueError for an unknown method or variant.
    """
    model = _model(run)
    x = data.inputs([position], variant)  # (1, 1, 48, 48)
    label = int(data.faces.labels[position]) if target is None else target
    with torch.no_grad():
        p = model(x).softmax(1)[0]
    return attribute(model, x, label, method)[0].numpy(), p.numpy()


def explorer(study, runs: dict[str, list[Run]]):
    """Widgets that choose network, method, emotion, face and kind of face, or a sentence where no run has its weights."""
    here = {f"{name}, seed {run.spec.seed}": run for name, several in runs.items() for run in several if run.has_weights}
    if not here:
        return "The explorer needs weights, and no run of this study has them on this machine: train one, or copy weights.safetensors."
    import ipywidgets as widgets

    data, test = study.data, study.data.faces.where("test")
    network = widgets.Dropdown(options=list(here), description="network")
    method = widgets.Dropdown(options=list(ATTRIBUTIONS), value="integrated_gradients", description="method")
    emotion = widgets.Dropdown(options=EMOTIONS, value="happy", description="emotion")
    number = widgets.BoundedIntText(value=0, min=0, description="face")
    variant = widgets.ToggleButtons(options=("unmasked", "masked"))
    image, said = widgets.Image(format="png"), widgets.HTML()

    def show(*_) -> None:
        faces = test[data.faces.labels[test] == EMOTIONS.index(emotion.value)]
        number.max = max(len(faces) - 1, 0)
        if not len(faces):
            said.value = f"No test face is {emotion.value}."
            return
        position = faces[min(number.value, number.max)]
        try:
            found, p = explain(here[network.value], data, position, method.value, variant.value)
        except ValueError as wrong:
            said.value = str(wrong)
            return
        image.value = picture(data.images(variant.value)[position], found)
        guesses = ", ".join(f"{EMOTIONS[c]} {100 * p[c]:.0f} %" for c in np.argsort(-p)[:3])
        said.value = f"row {data.faces.row[position]}, label {emotion.value}; the network says {guesses}. Target of the map: the label."

    for control in (network, method, emotion, number, variant):
        control.observe(show, "value")
    show()
    return widgets.VBox([widgets.HBox([network, method]), widgets.HBox([emotion, number, variant]), image, said])
