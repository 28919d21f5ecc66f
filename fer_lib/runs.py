"""RunSpec -> Run: what makes a trained model what it is, and the store that never trains the same thing twice.

    spec = RunSpec(data=data.fingerprint, model="vgg16", recipe=RECIPES["fast"], seed=0)
    execute(spec, data, store := Store("results/reduced"))     # or schedule.complete: several, parents first
    store.get(spec).logits("test_unmasked")                    # float32 [n, 7]

A run is a folder `runs/<key>/` of small files that live in git (spec.json, history.csv, metrics.json, logits.npz, measures.npz,
machine.json) and one that does not (weights.safetensors). Folders from other machines merge by copying.
"""
import dataclasses
import hashlib
import json
import logging
import os
import platform
import shutil
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Callable

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from .dataset import BOTH, OCCLUDED, VARIANTS, Dataset
from .metrics import measures as measure_logits
from .metrics import per_class
from .models import Network, build_model
from .objectives import PAIRED, TAUGHT, Term
from .perturb import Perturb, Views, cut
from .training import RECIPES, TRAINING_VERSION, Recipe, predict, train

log = logging.getLogger(__name__)

COMPILE = "FER_LIB_COMPILE"  # environment variable: train through torch.compile (`--compile` sets it, worker processes inherit it)
FILES = ("spec.json", "history.csv", "metrics.json", "logits.npz", "measures.npz", "machine.json", "weights.safetensors")
LATER = {"rows": "all", "labels": "given", "masked_share": 0.5, "term": None, "teacher": None}  # fields that came after the first stored runs
PARENTS = ("gate", "start", "teacher")
HISTORY = ["epoch", "lr", "loss", "val_loss", "val_accuracy", "val_macro_accuracy"]


@dataclass(frozen=True)
class RunSpec:
    """Plain values that decide a trained model; `key` is a hash of them all."""

    data: str                                   # Dataset.fingerprint
    variant: str = "unmasked"                   # what it is trained on: one of VARIANTS, BOTH or OCCLUDED
    model: str = "vgg16"
    width: float = 1.0                          # of the author's channels
    depth: int = 0                              # 0: the author's
    stem: str = "cifar"
    attention: str = "none"                     # where gates stand
    objective: str = "cross_entropy"
    perturb: Perturb | None = None              # the scheme, or a control
    gate: "RunSpec | None" = None               # parent: the attention classifier whose maps are clustered
    start: "RunSpec | None" = None              # parent: the run whose weights training starts from
    recipe: Recipe = RECIPES["fast"]
    seed: int = 0
    rows: str = "all"                           # training faces: a key of TRAIN_ROWS
    labels: str = "given"                       # what is learnt of them: given | votes-<fingerprint of the FER+ votes>
    versions: tuple[tuple[str, int], ...] = ()  # of mask drawing, synthetic generator and training code
    masked_share: float = 0.5                   # "mixed": how often a face is shown masked
    term: Term | None = None                    # what the objective adds to cross-entropy
    teacher: "RunSpec | None" = None            # parent: the frozen network that distillation learns from

    def __post_init__(self):
        needed = ("pairs",) if self.objective in PAIRED else BOTH if self.objective in TAUGHT else (self.variant,)
        if self.variant not in needed:
            raise ValueError(f"The objective {self.objective} needs faces with and without a mask: set variant={' or '.join(map(repr, needed))}.")
        if (self.objective in TAUGHT) != (self.teacher is not None):
            raise ValueError(f"A teacher belongs to {' and '.join(TAUGHT)}, and to them alone: {self.objective} has "
                             f"{'none' if self.teacher is None else 'one'}.")
        if (self.objective in (*PAIRED, *TAUGHT, "privileged")) != (self.term is not None):
            raise ValueError(f"Set `term` for an objective with a second term, and for no other: {self.objective} has "
                             f"{'none' if self.term is None else 'one'}.")
        if self.objective == "privileged" and self.variant in OCCLUDED:
            raise ValueError(f"No landmarks are held to on {self.variant} faces: train with privileged attribution on {', '.join((*VARIANTS, *BOTH))}.")
        if self.perturb is not None and (self.variant in BOTH or self.term is not None):
            raise ValueError("The scheme's views do not go together with masked pairs or with a second term: train them apart.")

    @cached_property
    def key(self) -> str:
        """Folder name: what a person looks for, then twelve digits of the hash of every value."""
        digest = hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]
        scheme = "" if self.perturb is None else f"-{self.perturb.source}{self.perturb.n_clusters}"
        objective = "" if self.term is None else f"-{self.objective}"
        return f"{self.model}-{self.variant}{scheme}{objective}-s{self.seed}-{digest}"

    @property
    def parents(self) -> list["RunSpec"]:
        return [parent for name in PARENTS if (parent := getattr(self, name)) is not None]

    def to_json(self) -> dict:
        """Plain JSON values; `RunSpec.from_json` reads them back. Fields of LATER are left out at their default, so that a run stored
        before there were such fields keeps its key."""
        values = json.loads(json.dumps({f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in PARENTS},
                                       default=dataclasses.asdict))
        values |= {name: parent.to_json() if (parent := getattr(self, name)) else None for name in PARENTS}
        return {name: value for name, value in values.items() if LATER.get(name, ...) != value}

    @staticmethod
    def from_json(values: dict) -> "RunSpec":
        recipe = {**values["recipe"], "grow": tuple(values["recipe"]["grow"])}
        parents = {name: RunSpec.from_json(values[name]) if values.get(name) else None for name in PARENTS}
        return RunSpec(**{**values, **parents, "recipe": Recipe(**recipe),
                          "perturb": Perturb(**values["perturb"]) if values["perturb"] else None,
                          "term": Term(**values["term"]) if values.get("term") else None,
                          "versions": tuple((name, version) for name, version in values["versions"])})

    def build(self) -> Network:
        """The untrained network of this spec, its weights a function of the seed."""
        return build_model(self.model, self.width, self.depth, self.stem, self.attention, seed=self.seed)


@dataclass(frozen=True)
class Run:
    """A finished run in a store."""

    path: Path
    spec: RunSpec = field(repr=False)

    @property
    def key(self) -> str:
        return self.path.name

    def logits(self, name: str) -> np.ndarray:
        """Stored logits as float32 [n, 7]: val_unmasked, test_unmasked, val_masked, test_masked, test_unmasked_views, test_masked_views."""
        with np.load(self.path / "logits.npz") as arrays:
            if name not in arrays:
                raise KeyError(f"Run {self.key} has no logits {name!r}; it has {', '.join(arrays)}.")
            return arrays[name].astype(np.float32)

    @cached_property
    def measures(self) -> dict[str, np.ndarray]:
        """What needed weights and was measured when the run ended: {"measure.array": values}."""
        with np.load(self.path / "measures.npz") as arrays:
            return dict(arrays)

    def measured(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of one measure."""
        return {key.split(".", 1)[1]: value for key, value in self.measures.items() if key.startswith(f"{name}.")}

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row an epoch: epoch, lr, loss, val_loss, val_accuracy, val_macro_accuracy."""
        try:
            return pd.read_csv(self.path / "history.csv")
        except pd.errors.EmptyDataError:  # no epochs
            return pd.DataFrame(columns=HISTORY)

    @cached_property
    def metrics(self) -> dict:
        return json.loads((self.path / "metrics.json").read_text())

    @cached_property
    def machine(self) -> dict:
        """Where and how long it ran; never part of a table."""
        return json.loads((self.path / "machine.json").read_text())

    @property
    def has_weights(self) -> bool:
        return (self.path / "weights.safetensors").exists()

    def model(self, device: str | torch.device = "cpu") -> Network:
        """The trained network in eval mode. FileNotFoundError when its weights are not on this machine (they are not in git)."""
        if not self.has_weights:
            raise FileNotFoundError(f"The weights of {self.key} are not on this machine: train it again with "
                                    f"`complete` or copy weights.safetensors into {self.path}.")
        model = self.spec.build()
        model.load_state_dict(load_file(self.path / "weights.safetensors"))
        return model.to(device).eval()


class Store:
    """A folder of runs: `<root>/runs/<key>/`; what is being trained lies in `<root>/training/<key>/` (ignored by git)."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.runs = self.root / "runs"
        self.training = self.root / "training"

    def get(self, spec: RunSpec) -> Run | None:
        """The finished run of a spec, or None."""
        path = self.runs / spec.key
        return Run(path, spec) if (path / "spec.json").exists() else None

    def has_weights(self, spec: RunSpec) -> bool:
        run = self.get(spec)
        return run is not None and run.has_weights

    def all(self) -> list[Run]:
        """Every finished run, by name."""
        return [Run(f.parent, RunSpec.from_json(json.loads(f.read_text()))) for f in sorted(self.runs.glob("*/spec.json"))]

    def interrupted(self) -> dict[str, int]:
        """Keys of runs that were begun and not ended, with the epochs done."""
        return {key: row["epoch"] for key, row in self.progress().items()}

    def progress(self) -> dict[str, dict]:
        """The same runs with their last epoch's row (epoch, epochs, seconds, val_accuracy, ...), while they may be training."""
        found = {}
        for file in sorted(self.training.glob("*/progress.jsonl")):
            try:
                found[file.parent.name] = json.loads(file.read_text().splitlines()[-1])
            except (OSError, ValueError, IndexError):  # just ended, or a line half written
                continue
        return found


Measure = Callable[[Network, RunSpec, Dataset], dict[str, np.ndarray]]


def execute(spec: RunSpec, data: Dataset, store: Store, measures: dict[str, Measure] | None = None, device: str = "cpu",
            threads: int | None = None, deadline: float | None = None) -> bool:
    """Train one run (or load it), predict, measure, and put the folder into the store in one move.

    The weights of its parents must be there. `measures` {name: function} are taken and stored with it.

    After `deadline` (time.time()) nothing is begun, and what is being trained stops at its checkpoint; False then. ValueError when a parent is
    lacking.
    """
    if deadline is not None and time.time() > deadline:
        return False
    if threads:
        torch.set_num_threads(threads)
    began = time.perf_counter()
    finished = store.get(spec)
    if finished is not None and finished.has_weights:
        model = finished.model(device)
    else:
        if lacking := [parent.key for parent in spec.parents if not store.has_weights(parent)]:
            raise ValueError(f"{spec.key} needs the weights of {', '.join(lacking)}: train these first, or let schedule.complete do it.")
        views = _views(spec, data, store, device)
        if finished is not None:
            log.warning("%s is stored without its weights, which are needed: it is trained again.", spec.key)
        try:
            model, history = _trained(spec, data, store, views, device, deadline)
        except OutOfTime:
            return False
    work = store.training / spec.key
    work.mkdir(parents=True, exist_ok=True)
    arrays = finished.measures if finished is not None else {}
    if finished is None:
        logits = _logits(model, spec, data, views, device)
        _write_npz(work / "logits.npz", {name: values.astype(np.float16) for name, values in logits.items()})
        pd.DataFrame(history, columns=HISTORY).to_csv(work / "history.csv", index=False)
        (work / "metrics.json").write_text(json.dumps(stored_metrics(logits, data), indent=1))
        if views is not None and views.parts is not None and len(views.parts) < len(data.faces.where("train")):
            arrays["clusters.parts"] = views.parts.cpu().numpy()
    for name, measure in (measures or {}).items():
        if not any(key.startswith(f"{name}.") for key in arrays):
            arrays.update({f"{name}.{key}": value for key, value in measure(model.to(device), spec, data).items()})
    _write_npz(work / "measures.npz", arrays)
    save_file({name: value.contiguous() for name, value in model.cpu().state_dict().items()}, work / "weights.safetensors")
    if finished is None:
        (work / "machine.json").write_text(json.dumps(_machine(device, time.perf_counter() - began), indent=1))
        (work / "spec.json").write_text(json.dumps(spec.to_json(), indent=1))
        for path in work.iterdir():  # checkpoint and progress, and what a process left half written when it was killed
            if path.name not in FILES:
                path.unlink()
        store.runs.mkdir(parents=True, exist_ok=True)
        os.replace(work, store.runs / spec.key)
    else:
        for name in ("measures.npz", "weights.safetensors"):
            os.replace(work / name, finished.path / name)
        shutil.rmtree(work)
    return True


class OutOfTime(Exception):
    """Training stopped at a checkpoint because its time was over."""


def _trained(spec, data, store, views, device, deadline=None):
    faces, tensor = data.faces, lambda array: torch.as_tensor(np.ascontiguousarray(array)).to(device)
    train_, val = data.train_rows(spec.rows), faces.where("val")
    images = data.images(spec.variant)
    model = spec.build()
    if spec.start is not None:
        model.load_state_dict(store.get(spec.start).model().state_dict())
    teacher = None if spec.teacher is None else store.get(spec.teacher).model(device).requires_grad_(False)
    val_images, val_labels, priors = images[val], data.labels("val"), None
    if spec.variant in BOTH:
        val_images, val_labels = val_images.swapaxes(0, 1).reshape(-1, *val_images.shape[2:]), np.tile(val_labels, 2)
    if spec.objective == "privileged":
        priors = data.priors(train_, spec.term.prior, spec.term.sigma)
        priors = tensor(priors if spec.variant in BOTH else priors[:, [VARIANTS.index(spec.variant)]])
    work = store.training / spec.key
    work.mkdir(parents=True, exist_ok=True)
    heard = [time.perf_counter()]

    def report(row):
        with (work / "progress.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if time.perf_counter() - heard[0] > 30 or row["epoch"] == row["epochs"]:
            heard[0] = time.perf_counter()
            log.info("%s: epoch %d of %d, validation accuracy %.1f %%, about %.1f min left", spec.key, row["epoch"], row["epochs"],
                     100 * row["val_accuracy"], (row["epochs"] - row["epoch"]) * row["seconds"] / 60)
        if deadline is not None and time.time() > deadline:  # after the last epoch too: predictions and measures take their time
            raise OutOfTime

    history = train(model, tensor(images[train_]), tensor(data.train_labels(spec.rows, spec.labels)), tensor(val_images),
                    tensor(val_labels), spec.recipe, spec.seed, data.scaling, spec.objective, views, work / "checkpoint.pt", report,
                    compiled=bool(os.environ.get(COMPILE)), masked_share=spec.masked_share if spec.variant == "mixed" else None,
                    priors=priors, teacher=teacher, term=spec.term or Term())
    return model.eval(), history


def _views(spec, data, store, device) -> Views | None:
    if spec.perturb is None:
        return None
    gate = store.get(spec.gate).model(device) if spec.gate is not None else None
    images = torch.as_tensor(np.ascontiguousarray(data.images(spec.variant)[data.train_rows(spec.rows)])).to(device)
    return Views(spec.perturb, gate, images, data.scaling, spec.seed, data.landmarks.points[data.train_rows(spec.rows)])


def _logits(model, spec, data, views, device) -> dict[str, np.ndarray]:
    """Every prediction a run stores; `_views`, of test faces, averages the K+1 views of the frozen last partition."""
    found = {}
    if views is not None and views.parts is None:  # nothing was trained on views (C0): the first batch's partition
        views.refit(0, torch.arange(min(spec.recipe.batch, len(views.images))))
    for variant in dict.fromkeys((*VARIANTS, *([] if spec.variant in BOTH else [spec.variant]))):
        every = data.images(variant)
        for split in ("val", "test"):
            index = data.faces.where(split)
            images = torch.as_tensor(np.ascontiguousarray(every[index])).to(device)
            found[f"{split}_{variant}"] = predict(model, images, data.scaling, spec.recipe.test).cpu().numpy()
            if views is not None and split == "test":
                parts = views.partition(images, data.landmarks.points[index]) if spec.perturb.clusters_per == "image" else views.parts
                found[f"{split}_{variant}_views"] = predict(model, images, data.scaling, spec.recipe.test,
                                                            cut(parts, spec.perturb.n_clusters), spec.perturb.fill).cpu().numpy()
    return found


def stored_metrics(logits: dict[str, np.ndarray], data: Dataset) -> dict:
    """metrics.json: {logits: {subset: {measure: value, "recall": [7], "precision": [7]}}} on all and clean rows, from float16 logits."""
    result = {}
    for name, values in logits.items():
        split = name.split("_")[0]
        labels, values = data.labels(split), values.astype(np.float16).astype(np.float32)
        result[name] = {}
        for subset in ("all", "clean"):
            rows = data.subsets(split)[subset]
            classes = per_class(values[rows], labels[rows])
            result[name][subset] = {**measure_logits(values[rows], labels[rows]), "recall": classes["recall"].round(6).tolist(),
                                    "precision": classes["precision"].round(6).tolist()}
    return result


def _machine(device: str, seconds: float) -> dict:
    return {"device": device_name(device), "threads": torch.get_num_threads(), "compiled": bool(os.environ.get(COMPILE)),
            "seconds": round(seconds, 1), "python": platform.python_version(), "torch": torch.__version__,
            "ended": time.strftime("%Y-%m-%d %H:%M", time.gmtime())}


def device_name(device: str) -> str:
    """What the GPU (for "cuda") or the CPU calls itself."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.npz")
    np.savez_compressed(temporary, **arrays)
    os.replace(temporary, path)


def spec_versions(data: Dataset) -> tuple[tuple[str, int], ...]:
    """The `versions` a spec for this data set carries."""
    return tuple(sorted({**data.versions, "training": TRAINING_VERSION}.items()))
