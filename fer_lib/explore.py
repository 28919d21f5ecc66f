"""Looking at single faces: networks small enough to keep in git, one picture of one's own from the shell, the notebook's widgets.

    share(study, {"unmasked": run, ...})                     # results/<preset>/models/unmasked.safetensors, half precision
    explain_file("me.jpg", "me_map.png", "unmasked")         # what `python -m fer_lib explain` does
    explorer(study, runs)                                    # runs: {name: one Run a seed}; widgets, or a sentence where there is no network

Pictures of faces appear on the user's machine only: nothing of them is written but what `explain_file` is told to, and widgets are blank in
executed copies.
"""
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.special import softmax

from . import plots
from .augment import standardise, to_float
from .dataset import Dataset
from .faces import EMOTIONS, SIZE
from .landmarks import FACEMESH, TEMPLATE, detect, region_masks
from .masking import occlude
from .models import Network
from .runs import Run, RunSpec
from .saliency import ATTRIBUTIONS, attribute
from .study import results_folder

ENLARGE = 7        # pixels of the screen a pixel of the face
MOST_BYTES = 12e6  # of the networks kept in git, together
PARTS = ("brows", "eyes", "nose", "mouth", "cheeks", "forehead", "jaw")  # regions that can be hidden


# ---- networks ----

@dataclass(frozen=True)
class Looker:
    """A trained network ready to look at faces: `scaling` is the mean and standard deviation its pixels are standardised by."""

    name: str
    about: str
    scaling: tuple[float, float]
    load: Callable[[], Network] = field(repr=False)

    @cached_property
    def model(self) -> Network:
        return self.load()

    def see(self, face: np.ndarray, method: str, target: int | None = None, hide: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Map of `method` float32 [48, 48] and probabilities float32 [7] of a face uint8 [48, 48], the pixels of `hide` (bool) mean grey.

        The map explains the class `target`, by default the one the network gives. ValueError for an unknown method.
        """
        x, p = self._input(face, hide), self.says(face, hide)
        return attribute(self.model, x, int(p.argmax()) if target is None else target, method)[0].numpy(), p

    @torch.no_grad()
    def says(self, face: np.ndarray, hide: np.ndarray | None = None) -> np.ndarray:
        """The probabilities alone."""
        return self.model(self._input(face, hide)).softmax(1)[0].numpy()

    def _input(self, face, hide):
        x = to_float(torch.as_tensor(np.array(face)[None]))  # (1, 1, 48, 48)
        return standardise(x if hide is None else occlude(x, torch.as_tensor(hide)[None], "mean"), self.scaling)


def of_run(name: str, run: Run, data: Dataset) -> Looker:
    """A run whose weights are on this machine."""
    return Looker(name, run.key, data.scaling, run.model)


def share(study, runs: dict[str, Run]) -> str:
    """Keep networks in models/<name>.safetensors of the study's folder, float16, with their spec; says what was kept. Runs without weights on this
    machine leave the files as they are; more than 12 MB in all are not kept."""
    here = {name: run for name, run in runs.items() if run.has_weights}
    weights = {name: {key: value.half().contiguous() if value.is_floating_point() else value for key, value in run.model().state_dict().items()}
               for name, run in here.items()}
    size = sum(value.numel() * value.element_size() for one in weights.values() for value in one.values())
    if not here or size > MOST_BYTES:
        return "No network is kept: " + (f"{size / 1e6:.0f} MB are more than {MOST_BYTES / 1e6:.0f}." if here else "their weights are not on this machine.")
    folder = study.root / "models"
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in weights.items():
        about = {"spec": json.dumps(here[name].spec.to_json(), sort_keys=True), "scaling": json.dumps(study.data.scaling), "key": here[name].key}
        if not _holds(path := folder / f"{name}.safetensors", values, about):
            temporary = folder / f".{name}.{os.getpid()}"
            save_file(values, temporary, about)
            os.replace(temporary, path)
    return f"Kept {', '.join(weights)} in half precision, {size / 1e6:.1f} MB."


def _holds(path: Path, values: dict[str, torch.Tensor], about: dict[str, str]) -> bool:
    """Is the network in the file already? Written again it would be another file: the order of what it says about itself is chance."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() == about and set(file.keys()) == set(values) and all(torch.equal(file.get_tensor(key), values[key]) for key in values)
    except (OSError, SafetensorError):
        return False


def shared(path: Path) -> Looker:
    """A network kept by `share`. ValueError for a file that is none."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a network kept by this study ({error}).") from error
    if not {"spec", "scaling", "key"} <= about.keys():
        raise ValueError(f"{path} is not a network kept by this study: it does not say how it was built.")
    spec = RunSpec.from_json(json.loads(about["spec"]))

    def load() -> Network:
        with safe_open(path, "pt") as file:
            values = {key: file.get_tensor(key) for key in file.keys()}
        model = spec.build()
        model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in values.items()})
        return model.eval()

    return Looker(path.stem, about["key"], tuple(json.loads(about["scaling"])), load)


def networks(results: str = "") -> dict[str, Looker]:
    """The networks that come with the project, by name; those of the strongest study before others of the same name."""
    root, found = results_folder(results), {}
    for preset in ("paper", "full", "reduced", "smoke"):
        for path in sorted((root / preset / "models").glob("*.safetensors")):
            found.setdefault(path.stem, shared(path))
    return found


# ---- pictures ----

def open_picture(file) -> tuple[np.ndarray, str]:
    """The face of a picture (path, bytes or file) as uint8 [48, 48], cropped as FER2013's are, and how that was done, in a sentence.

    With the landmark detector (extra `landmarks`) the largest face is taken, without it the middle square. ValueError when it is no picture.
    """
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)).convert("RGB")
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist.") from error
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{'This' if isinstance(file, bytes) else file} is no picture that can be read: give a PNG or a JPEG.") from error
    grey = ImageOps.grayscale(image)
    if image.size == (SIZE, SIZE):
        return np.asarray(grey), "The picture is 48x48 and taken as it is."
    boxes = _face_boxes(np.asarray(image))
    if boxes:
        box = max(boxes, key=lambda box: box[2] - box[0])
        said = "One face was found." if len(boxes) == 1 else f"{len(boxes)} faces were found; this is the largest. Crop the picture to see another."
    else:
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        said = "No face was found: the middle square is taken." if boxes is not None else \
            "The middle square is taken, for no face detector is installed (extra `landmarks`): crop the picture to the face first."
    left, top, right, bottom = (round(value) for value in box)
    beyond = max(0, -left, -top, right - image.width, bottom - image.height)
    framed = np.pad(np.asarray(grey), beyond, "edge")[top + beyond : bottom + beyond, left + beyond : right + beyond]
    return np.asarray(Image.fromarray(framed).resize((SIZE, SIZE), Image.Resampling.BICUBIC)), said


def _face_boxes(image: np.ndarray) -> list[tuple[float, float, float, float]] | None:
    """Squares (left, top, right, bottom) that frame each face as FER2013 does, of a picture uint8 [H, W, 3]; None without the detector."""
    os.environ.setdefault("GLOG_minloglevel", "2")
    try:
        import mediapipe
    except ImportError:
        return None
    with mediapipe.solutions.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=10, refine_landmarks=False, min_detection_confidence=0.3) as mesh:
        found = mesh.process(np.ascontiguousarray(image)).multi_face_landmarks or []
    boxes = []
    for one in found:
        points = np.array([(point.x * image.shape[1], point.y * image.shape[0]) for point in one.landmark])[FACEMESH]  # (68, 2)
        scale = (np.ptp(points, 0) / np.ptp(TEMPLATE, 0)).mean()  # pixels of the picture a pixel of a face
        left, top = points.mean(0) - scale * TEMPLATE.mean(0)
        boxes.append((left, top, left + scale * SIZE, top + scale * SIZE))
    return boxes


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


def guesses(p: np.ndarray, many: int = 3) -> str:
    """The likeliest emotions in words."""
    return ", ".join(f"{EMOTIONS[c]} {100 * p[c]:.0f} %" for c in np.argsort(-p)[:many])


def explain_file(path: str, out: str, model: str = "unmasked", method: str = "integrated_gradients", target: str = "", results: str = "") -> str:
    """Draw the face of a picture, its map and the probabilities into `out`, whole or not at all; returns what was seen, in words.

    `model` is a name of `networks` or a file kept by `share`; `target` an emotion, "" the one that the network gives. ValueError for whatever
    does not exist or is no picture.
    """
    known = networks(results)
    if model not in known and not Path(model).is_file():
        raise ValueError(f"There is no network {model!r}: " + (f"choose from {', '.join(known)}, or give a file." if known else
                         "none comes with these results; run notebook 06, or give a file."))
    if method not in ATTRIBUTIONS:
        raise ValueError(f"Unknown method {method!r}: use one of {', '.join(ATTRIBUTIONS)}.")
    if target and target not in EMOTIONS:
        raise ValueError(f"Unknown emotion {target!r}: use one of {', '.join(EMOTIONS)}.")
    if not Path(out).absolute().parent.is_dir():
        raise ValueError(f"The folder of {out} does not exist: make it, or choose another.")
    looker = known[model] if model in known else shared(Path(model))
    face, said = open_picture(path)
    maps, p = looker.see(face, method, EMOTIONS.index(target) if target else None)
    figure = plots.one_face(face, overlay(face, maps), p, f"{plots.METHOD_NAMES.get(method, method)} for {target or EMOTIONS[int(p.argmax())]}")
    plots.save_figure(figure, Path(out))
    return f"{said} The network {looker.name} ({looker.about}) says {guesses(p)}."


# ---- widgets ----

def explorer(study, runs: dict[str, list[Run]]):
    """Widgets that choose network, method, face (by emotion, by error, by confidence, or a picture of one's own) and what of it is hidden;
    a sentence where there is no network."""
    data, test = study.data, study.data.faces.where("test")
    here = {f"{name}, seed {run.spec.seed}": of_run(name, run, data) for name, several in runs.items() for run in several if run.has_weights}
    here |= {f"{name} (kept)": one for name, one in networks(str(study.root.parent)).items()}
    if not here:
        return "The explorer needs a network, and no run of this study has its weights on this machine: train one, or copy weights.safetensors."
    import ipywidgets as widgets

    network = widgets.Dropdown(options=list(here), description="network")
    method = widgets.Dropdown(options=list(ATTRIBUTIONS), value="integrated_gradients", description="method")
    emotion = widgets.Dropdown(options=EMOTIONS, value="happy", description="emotion")
    which = widgets.Dropdown(options=("in order", "wrong, surest first", "right, surest first", "least sure first"), description="faces")
    number = widgets.BoundedIntText(value=0, min=0, description="face")
    variant = widgets.ToggleButtons(options=("unmasked", "masked"))
    target = widgets.Dropdown(options=("the label", "what is seen", *EMOTIONS), description="explain")
    hidden = {part: widgets.ToggleButton(value=False, description=part, layout={"width": "84px"}) for part in PARTS}
    own = widgets.FileUpload(accept="image/*", multiple=False, description="own picture", layout={"width": "auto"})
    back = widgets.Button(description="back to the test faces", layout={"width": "auto"})
    image, said = widgets.Image(format="png"), widgets.HTML()
    seen: dict[str, np.ndarray] = {}  # probabilities of the test faces by network and kind of face
    mine: dict = {}                   # the own picture and how it was cropped

    def probabilities() -> np.ndarray:
        key, looker = f"{network.value} {variant.value}", here[network.value]
        stored = study.root / "runs" / looker.about  # of this data or not
        if key not in seen and (stored / "spec.json").exists():
            run = Run(stored, RunSpec.from_json(json.loads((stored / "spec.json").read_text())))
            if run.spec.data == data.fingerprint:
                seen[key] = softmax(run.logits(f"test_{variant.value}"), 1)
        if key not in seen:
            said.value = f"{network.value} looks at all {len(test):,} {variant.value} test faces, once..."
            with torch.no_grad():
                seen[key] = torch.cat([looker.model(x).softmax(1) for x in data.inputs(test, variant.value).split(512)]).numpy()
        return seen[key]

    def positions() -> np.ndarray:
        label = EMOTIONS.index(emotion.value)
        here_ = data.labels("test") == label
        if which.value != "in order":
            p = probabilities()
            right, sure = p.argmax(1) == label, p.max(1)
            here_ &= {"w": ~right, "r": right, "l": True}[which.value[0]]
            order = np.argsort(sure if which.value[0] == "l" else -sure, kind="stable")
            return test[order[here_[order]]]
        return test[here_]

    def show(*_) -> None:
        if mine:
            face, points, label, about = mine["face"], mine["points"], None, mine["said"]
        else:
            faces = positions()
            number.max = max(len(faces) - 1, 0)
            if not len(faces):
                said.value = f"No test face is {emotion.value} and {which.value.split(',')[0]}."
                return
            position = faces[min(number.value, number.max)]
            face, points, label = data.images(variant.value)[position], data.landmarks.points[position], int(data.faces.labels[position])
            picked = "" if which.value == "in order" else " Picked by the stored prediction (averaged over the flipped face)."
            about = f"row {data.faces.row[position]}, label {emotion.value}.{picked}"
        gone = [part for part, button in hidden.items() if button.value]
        hide = region_masks(points[None], tuple(gone))[0].any(0) if gone else None
        chosen = EMOTIONS.index(target.value) if target.value in EMOTIONS else label if target.value == "the label" else None
        try:
            looker = here[network.value]
            found, p = looker.see(face, method.value, chosen, hide)
            before = "" if hide is None else f" (whole: {guesses(looker.says(face))})"
        except ValueError as wrong:
            said.value = str(wrong)
            return
        shown = face if hide is None else np.where(hide, face[~hide].mean().astype(np.uint8), face)
        image.value = picture(shown, found)
        explained = EMOTIONS[int(p.argmax()) if chosen is None else chosen]
        said.value = f"{about} The network says {guesses(p)}{before}. The map explains {explained}."

    def load(change) -> None:
        if not own.value:
            return
        try:
            face, text = open_picture(bytes(own.value[0]["content"]))
            mine.update(face=face, points=detect(face[None]).points[0], said=text)
        except ValueError as wrong:
            said.value = str(wrong)
            return
        show()

    def leave(*_) -> None:
        mine.clear()
        show()

    for control in (network, method, emotion, which, number, variant, target, *hidden.values()):
        control.observe(show, "value")
    own.observe(load, "value")
    back.on_click(leave)
    show()
    return widgets.VBox([widgets.HBox([network, method, target]), widgets.HBox([emotion, which, number, variant]), widgets.HBox([own, back]),
                         widgets.HBox([widgets.Label("hide"), *hidden.values()]), image, said])
