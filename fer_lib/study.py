"""The study: which runs each notebook needs at each strength, and the driver that runs the notebooks in order.

    open_study("smoke").specs("02")                             # {name: one RunSpec a seed}
    run_study("smoke")                                          # what `python -m fer_lib run` does

Presets differ in values and in how much of each grid they run, never in code path.
"""
import ast
import json
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import torch

from .claims import claims
from .dataset import Dataset, open_dataset
from .measures import MEASURES
from .objectives import CHANNELS, Term
from .perturb import Perturb
from .runs import Measure, Run, RunSpec, Store, device_name, spec_versions
from .schedule import Schedule, complete
from .training import RECIPES, Recipe

log = logging.getLogger(__name__)

REPLICATED = ("02_leak", "03_seeds", "05_controls", "05_second", "06_seeds", "07", "08")  # grids that are run over several seeds
FULL_MODELS = {"vgg16": {}, "resnet": {}, "densenet": {}, "dpn": {}, "resmasking": {}}


@dataclass(frozen=True)
class Preset:
    """How strong a study is. `models` holds what a network departs by from the author's variant; "epochs", "grow" and "batch" go to its recipe."""

    about: str
    recipe: Recipe
    models: dict[str, dict] = field(default_factory=lambda: FULL_MODELS)
    stem: str = "pooled"
    scheme: tuple[str, ...] = ("vgg16", "resnet", "dpn")      # networks trained with the scheme, the paper's three
    longer: dict = field(default_factory=lambda: {"epochs": 80})  # the VGG's baseline trained longer: what a point costs otherwise
    views: str = "one_random"
    sweep: dict = field(default_factory=dict)                 # what the cluster sweep's VGG departs by
    n_clusters: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    seeds: tuple[int, ...] = (0,)
    second: str = "resnet"                                    # network on which the controls are run once more
    arms: tuple[str, ...] = ()                                # controls and ablations that are run; () is all of them
    occluded: tuple[str, ...] = ("brows", "eyes", "nose", "mouth", "upper_half", "lower_half")  # regions left out of training
    explained: tuple[str, ...] = ()                           # networks of 06; () is all of them
    paired: dict = field(default_factory=lambda: {"depth": 18})  # what the ResNet of 07 and 08 departs by
    privileged: tuple[str, ...] = ("vgg16", "resnet")         # networks of 08
    compared: dict[str, dict] = field(default_factory=lambda: {"vgg16": {}, "resnet": {}})  # networks the two recipes are compared on, changed so
    grid_seeds: dict[str, tuple[int, ...]] = field(default_factory=dict)  # grids with seeds of their own
    sizes: tuple[int, int, int] = (2100, 700, 700)            # synthetic faces a split, when no data is given


PRESETS = {
    "smoke": Preset(
        "synthetic faces, seconds a run: proves the wiring",
        replace(RECIPES["fast"], epochs=2, batch=64, lr=0.05, precision="fp32"),
        {"vgg16": {"depth": 8, "width": 0.5, "epochs": 7, "batch": 32}, "resnet": {"depth": 10, "width": 0.125},
         "densenet": {"depth": 29, "width": 0.4, "epochs": 1}, "dpn": {"depth": 26, "width": 0.0625, "epochs": 1},
         "resmasking": {"depth": 10, "width": 0.0625, "epochs": 1}},
        scheme=("vgg16",), longer={"epochs": 9}, sweep={"depth": 8, "width": 0.25, "epochs": 3, "batch": 32}, n_clusters=(2, 3),
        sizes=(1050, 210, 210),
        arms=("C4 coordinates", "fill mean", "B1 unmasked", "B4 mixed", "contrastive", "distillation", "contrastive 10", "masked 0.25",
              "cross-entropy", "mean", "shuffled prior"),
        occluded=("mouth",), explained=("vgg16",), paired={"depth": 10, "width": 0.125}, privileged=("vgg16",), compared={"vgg16": {}},
        grid_seeds={grid: (0, 1) for grid in ("05_controls", "06_seeds")}),
    # Widths, depths and epochs so that a run takes 5 to 13 minutes on one core; fp32 because bf16 was measured slower on that machine.
    "reduced": Preset(
        "FER2013 on a CPU: narrow versions of the same architectures, few epochs",
        replace(RECIPES["fast"], epochs=12, batch=64, lr=0.05, grow=(32, 32, 40, 48), precision="fp32"),
        {"vgg16": {"depth": 8}, "resnet": {"depth": 10, "width": 0.375, "epochs": 10}, "densenet": {"depth": 29, "width": 0.67, "epochs": 10},
         "dpn": {"depth": 26, "width": 0.125, "epochs": 8},
         "resmasking": {"depth": 10, "width": 0.125, "epochs": 5, "grow": (32, 32, 32, 48)}},  # its map must divide by 8
        longer={"epochs": 16, "grow": (32, 40, 48, 48)}, sweep={"depth": 8, "width": 0.5, "epochs": 8},
        paired={"depth": 18, "width": 0.25, "epochs": 10}, compared={"vgg16": {}, "resnet": {"width": 0.125}},
        grid_seeds={grid: (0, 1, 2) if grid in ("02_leak", "05_second", "07", "08") else (0, 1, 2, 3, 4) for grid in REPLICATED}),
    "full": Preset("FER2013 on one GPU: full width, several seeds", replace(RECIPES["fast"], epochs=34), seeds=(0, 1, 2), grid_seeds={"02_recipes": (0,)}),
    "paper": Preset("the author's protocol, 200 epochs", RECIPES["paper"], stem="cifar", longer={"epochs": 400}, views="leave_one_out", compared={}),
}


def spec(preset: Preset, data: Dataset, model: str, seed: int = 0, settings: dict | None = None, **values) -> RunSpec:
    """A run of one network at a preset's strength."""
    settings = dict(preset.models[model] if settings is None else settings)
    recipe = replace(preset.recipe, **{name: settings.pop(name) for name in ("epochs", "grow", "batch") if name in settings})
    return RunSpec(**{"data": data.fingerprint, "model": model, "stem": preset.stem, "recipe": recipe, "seed": seed,
                      "versions": spec_versions(data), **settings, **values})


def small(preset: Preset, data: Dataset, seed: int = 0, **values) -> RunSpec:
    """A run of the sweep's small VGG, which carries whatever is run many times."""
    return spec(preset, data, "vgg16", seed, preset.sweep or None, **values)


def paired(preset: Preset, data: Dataset, seed: int = 0) -> RunSpec:
    """A run of 07's ResNet on unmasked faces, its B1."""
    return spec(preset, data, "resnet", seed, preset.paired)


def _shared(preset: Preset, data: Dataset, model: str, seed: int) -> RunSpec:
    """The baseline of a network that other grids train as well."""
    return small(preset, data, seed) if model == "vgg16" else paired(preset, data, seed)


def baselines(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """02: every network on unmasked and on masked faces, named "<model> <variant>"."""
    return {f"{model} {variant}": spec(preset, data, model, seed, variant=variant)
            for variant in ("unmasked", "masked") for model in preset.models}


def gates(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """03: the attention classifiers, one for each placement of the gate."""
    return {placement: small(preset, data, seed, attention=placement) for placement in ("input", "blocks")}


def sweep(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """04: the scheme on one small VGG over K, alpha = 0, and what clusters are fitted to."""
    gate = gates(preset, data, seed)["input"]
    base = small(preset, data, seed)
    middle = Perturb(views=preset.views)
    arms = {f"K={k}": replace(middle, n_clusters=k) for k in preset.n_clusters}
    arms |= {"alpha=0": replace(middle, source="coordinates")}
    if len(preset.n_clusters) > 2:
        arms |= {"per dataset": replace(middle, clusters_per="dataset"), "per image": replace(middle, clusters_per="image"),
                 "leave one out": replace(middle, views="leave_one_out")}
    return {"baseline": base, "baseline, views": _shown_views(base, gate),
            **{name: replace(base, perturb=arm, gate=gate) for name, arm in arms.items()}}


def _shown_views(base: RunSpec, gate: RunSpec) -> RunSpec:
    """Control C0: a trained baseline, shown the scheme's views at test time."""
    return replace(base, perturb=Perturb(views="none"), gate=gate, start=base, recipe=replace(base.recipe, epochs=0))


def scheme(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """05: the scheme on the preset's networks, each baseline shown the same views (control C0), and one baseline trained longer."""
    gate = gates(preset, data, seed)["input"]
    found = {}
    for model in preset.scheme:
        base = spec(preset, data, model, seed)
        found[f"{model} baseline"] = base
        found[f"{model} perturb"] = replace(base, perturb=Perturb(views=preset.views), gate=gate)
        found[f"{model} baseline, views"] = _shown_views(base, gate)
    first = preset.scheme[0]
    found[f"{first} baseline, longer"] = spec(preset, data, first, seed, {**preset.models[first], **preset.longer})
    return found


def explained(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """06: the baselines of 02 on both kinds of face, and the networks of 05 trained with the scheme; it adds no run of its own."""
    perturbed = {name: one for name, one in scheme(preset, data, seed).items() if name.endswith(" perturb")}
    found = {**baselines(preset, data, seed), **perturbed}
    return {name: one for name, one in found.items() if not preset.explained or name.split(" ")[0] in preset.explained}


CONTROLS = {"C1 cuts": "cuts", "C2 rectangles": "rectangles", "C4 coordinates": "coordinates", "C5 rolled": "rolled"}  # the obligatory ones


def controls(preset: Preset, data: Dataset, seed: int = 0, base: RunSpec | None = None) -> dict[str, RunSpec]:
    """05: the scheme against its controls, on the small VGG by default: equal images seen, equal updates, equal views at test."""
    gate = gates(preset, data, seed)["input"]
    base = base or small(preset, data, seed)
    arms = {"perturb": Perturb(views=preset.views), **{name: Perturb(source=source, views=preset.views) for name, source in CONTROLS.items()}}
    return {"baseline": base, "C0 baseline, views": _shown_views(base, gate),
            **{name: replace(base, perturb=arm, gate=gate) for name, arm in _chosen(preset, arms).items()}}


def second(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """05: the same on a second network, at its size of 02."""
    return controls(preset, data, seed, spec(preset, data, preset.second, seed))


def ablations(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """05: one thing of the scheme changed at a time, and the other controls; on the small VGG."""
    gate = gates(preset, data, seed)
    base = controls(preset, data, seed)["perturb"]
    blank = replace(gate["input"], recipe=replace(gate["input"].recipe, epochs=0))
    middle = base.perturb
    arms = {
        "signal intensity (C6)": replace(middle, signal="intensity"), "signal both": replace(middle, signal="both"),
        "alpha 0.6": replace(middle, alpha=0.6), "alpha 3": replace(middle, alpha=3.0),
        "fill mean": replace(middle, fill="mean"), "fill noise": replace(middle, fill="noise"), "keep one": replace(middle, views="keep_one"),
        "C3 centre": replace(middle, source="centre"), "C3 thirds": replace(middle, source="thirds"), "C5 permuted": replace(middle, source="permuted"),
        "C7 landmarks": replace(middle, source="landmarks", clusters_per="image")}
    found = {name: replace(base, perturb=arm) for name, arm in arms.items()}
    found |= {"gate in blocks": replace(base, gate=gate["blocks"]), "untrained gate (C6)": replace(base, gate=blank)}
    return {"perturb": base, **_chosen(preset, found)}


def costs(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """05: what a point costs otherwise, on the small VGG: trained twice as long, with balanced loss, on FER+ votes where they are given."""
    arms = controls(preset, data, seed)
    base = arms["baseline"]
    found = {"baseline": base, "perturb": arms["perturb"], "twice as long": replace(base, recipe=replace(base.recipe, epochs=2 * base.recipe.epochs)),
             "balanced loss": replace(base, objective="balanced")}
    return found if data.votes is None else {**found, "FER+ votes": replace(base, labels=f"votes-{data.votes.fingerprint}")}


def leak(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """02: what the copies between the splits are worth: the small VGG trained with and without those of validation and test faces."""
    base = controls(preset, data, seed)["baseline"]
    return {"with copies": base, "without copies": replace(base, rows="unleaked")}


def recipes(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """02: the recipe `fast`, and for twice its epochs, against `paper`, the author's, at six times the epochs: equal networks and faces."""
    found = {}
    for model, settings in preset.compared.items():
        fast = replace(_shared(preset, data, model, seed), **settings)
        epochs = fast.recipe.epochs
        ways = {"fast": fast.recipe, "fast, twice": replace(fast.recipe, epochs=2 * epochs), "paper": replace(RECIPES["paper"], epochs=6 * epochs)}
        found |= {f"{model} {name}": replace(fast, recipe=recipe) for name, recipe in ways.items()}
    return found


def gate_seeds(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """03: the input gate once more for each seed; the scheme's runs of that seed cluster its maps."""
    return {"input": gates(preset, data, seed)["input"]}


def explained_seeds(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """06: the small VGG over seeds: trained on unmasked faces, on masked ones, and with the scheme."""
    arms = controls(preset, data, seed)
    return {"vgg16 unmasked": arms["baseline"], "vgg16 masked": replace(arms["baseline"], variant="masked"), "vgg16 perturb": arms["perturb"]}


def occluded(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """06: the small VGG trained and tested without a region of the face, and without the same shape at a random place."""
    base = controls(preset, data, seed)["baseline"]
    variants = [f"{kind}_{region}" for region in preset.occluded for kind in ("no", "rolled")]
    return {"whole": base, **{variant: replace(base, variant=variant) for variant in variants}}


WEIGHTS = {"contrastive": 0.1, "distillation": 100.0,  # best mean of both kinds of validation face at `reduced`: 07_sweeps
           "logit distillation": 1.0, "supervised contrastive": 0.1}  # set beforehand


def paradigms(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """07: the ways of the masked-student paper to train one network for faces with and without a mask, and more: equal images seen by each, but for
    those that B1 saw before where it is the start or the teacher. B4 from B1 is the control of these."""
    b1 = paired(preset, data, seed)
    b2, mixed, pairs = (replace(b1, variant=variant) for variant in ("masked", "mixed", "pairs"))
    term = {name: Term(weight) for name, weight in WEIGHTS.items()}
    distilled = replace(mixed, objective="distillation", teacher=b1, term=term["distillation"])
    return _chosen(preset, {
        "B1 unmasked": b1, "B2 masked": b2, "B3 masked, from B1": replace(b2, start=b1), "B4 mixed": mixed,
        "B4 mixed, from B1": replace(mixed, start=b1),
        "contrastive": replace(pairs, objective="contrastive", term=term["contrastive"]),
        "distillation": distilled, "distillation, from B1": replace(distilled, start=b1),
        "logit distillation": replace(mixed, objective="logit_distillation", teacher=b1, term=term["logit distillation"]),
        "supervised contrastive": replace(pairs, objective="supervised_contrastive", term=term["supervised contrastive"])})


def paradigm_sweeps(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """07: how much of the second term, and how many of the faces masked, on one network."""
    b1 = paired(preset, data, seed)
    mixed, pairs = replace(b1, variant="mixed"), replace(b1, variant="pairs")
    found = {"contrastive 0": pairs} | {f"contrastive {w:g}": replace(pairs, objective="contrastive", term=Term(w)) for w in (0.01, 0.1, 1.0, 10.0)}
    found |= {"distillation 0": mixed}
    found |= {f"distillation {w:g}": replace(mixed, objective="distillation", teacher=b1, term=Term(w)) for w in (0.1, 1.0, 10.0, 100.0)}
    found |= {"masked 0": b1, **{f"masked {p:g}": replace(mixed, masked_share=p) for p in (0.25, 0.5, 0.75)},
              "masked 1": replace(b1, variant="masked")}
    return _chosen(preset, found)


def privileged(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """08: attributions of all channels, of their mean and of half of them held to the landmarks, beside plain cross-entropy, and on the first network
    a control whose prior is another face's."""
    found = {}
    for model in preset.privileged:
        base = _shared(preset, data, model, seed)
        terms = {channels: replace(HELD, channels=channels) for channels in CHANNELS}
        terms |= {"shuffled prior": replace(HELD, prior="shuffled")} if model == preset.privileged[0] else {}
        arms = {"cross-entropy": base, **{name: replace(base, objective="privileged", term=term) for name, term in terms.items()}}
        found |= {f"{model} {name}": arm for name, arm in _chosen(preset, arms).items()}
    return found


HELD = Term(weight=0.1, warmup=0.1)  # best on validation at `reduced`: 08_ablations


def privileged_ablations(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """08: one thing of the privileged loss changed at a time, a control whose prior is another face's, and its combination with masked faces."""
    base = small(preset, data, seed)
    other_stages = (1, 3, 4) if base.recipe.grow else (1, 2, 4)  # the default is 2 where faces grow, else 3
    arms = {"mean": HELD, **{f"weight {w:g}": replace(HELD, weight=w) for w in (1.0, 10.0)},
            **{f"sigma {s:g}": replace(HELD, sigma=s) for s in (1.0, 4.0)}, **{f"after stage {k}": replace(HELD, stages=k) for k in other_stages},
            "sum of logits": replace(HELD, target="sum"), "literal": replace(HELD, form="literal"), "shuffled prior": replace(HELD, prior="shuffled")}
    found = {"cross-entropy": base, **{name: replace(base, objective="privileged", term=term) for name, term in arms.items()}}
    mixed = replace(base, variant="mixed")
    found |= {"mixed faces": mixed, "mixed faces, full": replace(mixed, objective="privileged", term=HELD),
              "mixed faces, visible": replace(mixed, objective="privileged", term=replace(HELD, prior="visible"))}
    return _chosen(preset, found)


def _chosen(preset: Preset, arms: dict) -> dict:
    """The arms that a preset runs; the scheme itself always."""
    return {name: arm for name, arm in arms.items() if not preset.arms or name in ("perturb", *preset.arms)}


# By notebook: what stands before "_" is its number.
GRIDS = {"02": baselines, "02_leak": leak, "02_recipes": recipes, "03": gates, "03_seeds": gate_seeds, "04": sweep, "05": scheme, "05_controls": controls,
         "05_second": second, "05_ablations": ablations, "05_costs": costs, "06": explained, "06_seeds": explained_seeds, "06_occluded": occluded,
         "07": paradigms, "07_sweeps": paradigm_sweeps, "08": privileged, "08_ablations": privileged_ablations}


# What a grid's tables and figures need beside predictions: taken while the weights are at hand, stored with the run (names of MEASURES).
MEASURED = {"03": ("attention",), "03_seeds": ("attention",), **dict.fromkeys(("06", "06_seeds"), ("regions", "saliency", "robustness")),
            "07": ("pairs",), **dict.fromkeys(("08", "08_ablations"), ("alignment",))}


class Study:
    """One study at one strength: its data, its store of runs, and the folder its tables and figures go to. Made by `open_study`."""

    def __init__(self, preset: str, data: Dataset, root: Path, seeds: tuple[int, ...], workers: int, show_faces: bool):
        self.name, self.preset, self.data, self.root, self.seeds = preset, PRESETS[preset], data, root, seeds
        self.store, self.workers, self.show_faces = Store(root), workers, show_faces

    def specs(self, grid: str) -> dict[str, list[RunSpec]]:
        """The runs of a grid: {name: one spec a seed}. Seeds that were asked for go before a grid's own."""
        seeds = self.preset.grid_seeds.get(grid, self.seeds) if self.seeds == self.preset.seeds else self.seeds
        per_seed = [GRIDS[grid](self.preset, self.data, seed) for seed in seeds]
        return {name: [specs[name] for specs in per_seed] for name in per_seed[0]}

    def measures(self, grids: tuple[str, ...] = tuple(GRIDS)) -> dict[str, dict[str, Measure]]:
        """What these grids need of their runs beside predictions: {key: {name: function}}."""
        found: dict[str, dict[str, Measure]] = {}
        for grid in grids:
            for spec in self.flat(grid):
                found.setdefault(spec.key, {}).update({name: MEASURES[name] for name in MEASURED.get(grid, ())})
        return found

    def flat(self, grid: str) -> list[RunSpec]:
        """The specs of a grid, each once."""
        return list({spec.key: spec for several in self.specs(grid).values() for spec in several}.values())

    def complete(self, grid: str) -> dict[str, list[Run]]:
        """Train what the store lacks of a grid, take its measures (MEASURED), and return {name: one run a seed}."""
        flat, measures = self.flat(grid), {name: MEASURES[name] for name in MEASURED.get(grid, ())}
        runs = {run.key: run for run in complete(flat, self.data, self.store, measures, self.workers)}
        return {name: [runs[spec.key] for spec in several] for name, several in self.specs(grid).items()}

    def finished(self, grid: str) -> dict[str, list[Run]]:
        """The runs of a grid that the store holds, by name; trains nothing. "*" gives {grid: its runs}."""
        if grid == "*":
            return {name: self.finished(name) for name in GRIDS}
        found = {name: [self.store.get(spec) for spec in several] for name, several in self.specs(grid).items()}
        return {name: [run for run in several if run] for name, several in found.items() if any(several)}

    def table(self, frame: pd.DataFrame, name: str) -> pd.DataFrame:
        """Write a tidy frame to tables/<name>.csv (fractions, six digits) and return it."""
        path = self.root / "tables" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, to_csv(frame))
        return frame

    def figure(self, figure, name: str, faces: bool = False):
        """Write a figure to figures/<name>.png and return it, to be shown as the cell's result.

        `faces` marks one that shows individual faces: those of a real data set are drawn only where `show_faces` is set, into
        figures/faces/, which git ignores. A sentence is returned in their place otherwise.
        """
        import matplotlib.pyplot as plt

        from .plots import save_figure

        plt.close(figure)
        private = faces and self.data.faces.source != "synthetic"
        if private and not self.show_faces:
            return "This figure shows individual faces of the data set: it is drawn on your own machine only (show_faces=True)."
        path = self.root / "figures" / ("faces" if private else "") / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path)
        return figure


def to_csv(frame: pd.DataFrame) -> str:
    """The text of a committed table."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def results_folder(results: str = "") -> Path:
    """The folder that holds a study a preset; "" is results/ beside fer_lib."""
    return Path(results).expanduser() if results else Path(__file__).resolve().parents[1] / "results"


def _be_heard() -> None:
    """Show the few progress lines of training in a notebook run by hand; the driver's kernels stay quiet, it tells them itself."""
    if not logging.getLogger("fer_lib").hasHandlers() and "FER_LIB_DRIVEN" not in os.environ:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M"))
        logging.getLogger("fer_lib").addHandler(handler)
        logging.getLogger("fer_lib").setLevel(logging.INFO)


def open_study(preset: str = "smoke", data: str = "", results: str = "", votes: str = "", maskfer_rows: str = "", seeds: list[int] | None = None,
               workers: int = 1, show_faces: bool = True) -> Study:
    """Open the study at a preset's strength, as every notebook's first cell does.

    data          path of FER2013 in any form, or "": the environment variable FER2013, else synthetic faces
    results       folder; "" is results/ beside fer_lib
    votes         FER+'s fer2013new.csv, or "";  maskfer_rows   the first paper's rows, or ""
    seeds         None: the preset's
    Raises ValueError for an unknown preset, fer2013.DataError for bad data.
    """
    if preset not in PRESETS:
        raise ValueError(f"Unknown preset {preset!r}: use one of {', '.join(PRESETS)}.")
    if workers < 1 or len(set(seeds or ())) < len(seeds or ()):
        raise ValueError(f"workers must be at least 1 and every seed stand once, not workers={workers} and seeds={seeds}.")
    _be_heard()
    root = results_folder(results)
    path = data or os.environ.get("FER2013") or None
    dataset = open_dataset(path, PRESETS[preset].sizes, votes or None, maskfer_rows or None, cache=root / "cache")
    return Study(preset, dataset, root / preset, tuple(PRESETS[preset].seeds if seeds is None else seeds), workers, show_faces)


# ---- the driver: notebooks in order, one kernel each ----

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pandas", "scipy", "scikit-learn", "statsmodels", "captum", "matplotlib", "seaborn", "papermill")


class NotebookFailed(RuntimeError):
    """A notebook stopped: the message names it, its cell, the error, and the copy that shows how far it came."""


def run_study(preset: str = "smoke", data: str = "", results: str = "", votes: str = "", maskfer_rows: str = "",
              seeds: list[int] | None = None, workers: int = 1, show_faces: bool = True, only: tuple[str, ...] = (),
              executor: str = "processes", address: str = "", device: str | None = None, notebooks: Path = NOTEBOOKS) -> Study:
    """Run the notebooks in order, one kernel each, up to the first that fails; the arguments are those of `open_study`.

    only        numbers or names of notebooks; () is all of them
    executor    what trains: "processes" of this machine, or "ray": the nodes of the cluster at `address`
    device      "cpu" or "cuda": what runs are trained on; None takes a GPU where there is one
    What the store lacks is trained beside, by worker processes: a notebook begins when its runs are there, those of the next ones go on.
    Writes executed copies without anything of this machine into notebooks/ of the study's folder (into notebooks/faces/, which git
    ignores, where they show individual faces of a real data set), manifest.json and, at the end, the page of the whole study,
    report.html (likewise in faces/). Finished runs are never trained again.
    Raises ValueError for arguments that do not fit, NotebookFailed.
    """
    todo = find_notebooks(Path(notebooks), only)
    given = {"data": data or os.environ.get("FER2013", ""), "results": results, "votes": votes, "maskfer_rows": maskfer_rows}
    paths = {name: os.path.abspath(os.path.expanduser(value)) if value else "" for name, value in given.items()}
    parameters = {"preset": preset, **paths, "seeds": list(seeds or []), "workers": workers, "show_faces": show_faces}
    for notebook in todo:
        if unknown := [name for name in parameters if name not in declared(notebook)]:
            raise ValueError(f"{notebook.name} declares no parameter {', '.join(unknown)}: name it in the cell tagged `parameters`.")
    study = open_study(preset, **paths, seeds=seeds, workers=workers, show_faces=show_faces)
    private = show_faces and study.data.faces.source != "synthetic"
    folder = study.root / "notebooks" / ("faces" if private else "")
    folder.mkdir(parents=True, exist_ok=True)
    state = {"commit": _git("rev-parse", "HEAD"), "clean": _git("status", "--porcelain", "--", ".", ":!results") == ""}
    with tempfile.TemporaryDirectory() as scratch, _kernel_of_this_python(Path(scratch)), _training(study, todo, executor, address, device) as schedule:
        for i, notebook in enumerate(todo):
            keys = {key for key, job in schedule.jobs.items() if job.group == i}  # those of the notebooks before have ended
            if awaited := keys & schedule.open:
                log.info("%s waits for %d runs", notebook.stem, len(awaited))
            while keys & schedule.open:
                time.sleep(0.2)
            if schedule.error is not None:
                raise schedule.error
            log.info("%s begins (%d of %d)", notebook.stem, i + 1, len(todo))
            began, entry = time.perf_counter(), dict(state)
            try:
                _execute(notebook, parameters, Path(scratch), folder)
            except BaseException as error:
                entry["failed"] = without_paths(str(error) or type(error).__name__, parameters)
                raise
            finally:
                entry["minutes"] = round((time.perf_counter() - began) / 60, 2)
                _write_manifest(study, parameters, state, {notebook.stem: entry})
            log.info("%s ended after %.1f min", notebook.stem, entry["minutes"])
    study.table(claims(study.finished("*"), study.data), "00_claims")
    from .report import write_report  # it knows studies, so it comes after this file

    write_report(study)
    return study


def find_notebooks(folder: Path, only: tuple[str, ...] = ()) -> list[Path]:
    """The notebooks NN_name.ipynb of a folder in order, or those of them whose number or name is in `only`; else ValueError."""
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise ValueError(f"There are no notebooks in {folder}: run from a checkout of the project, installed by `pip install -e .`.")
    known = {name for path in found for name in (path.stem, path.stem[:2])}
    wanted = [name.zfill(2).removesuffix(".ipynb") for name in only]
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"There is no notebook {', '.join(unknown)}: choose from {', '.join(path.stem for path in found)}.")
    return [path for path in found if not only or path.stem in wanted or path.stem[:2] in wanted]


def declared(notebook: Path) -> set[str]:
    """Names that a notebook's cells tagged `parameters` assign."""
    cells = json.loads(notebook.read_text())["cells"]
    tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    found = [node for source in tagged for node in ast.parse(source).body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    return {target.id for node in found for target in (node.targets if isinstance(node, ast.Assign) else [node.target])}


@contextmanager
def _kernel_of_this_python(scratch: Path):
    """Make `python3` the kernel of this interpreter and this checkout, whatever kernels the user's folders hold. Its idle threads sleep, for
    runs are trained beside it."""
    kernel, before = scratch / "kernels" / "python3" / "kernel.json", os.environ.get("JUPYTER_PATH")
    search = os.pathsep.join(filter(None, (str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH"))))
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({
        "argv": [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "--log-level=50", "-f", "{connection_file}"],
        "display_name": "Python 3 (ipykernel)", "language": "python", "env": {"PYTHONPATH": search, "FER_LIB_DRIVEN": "1", "OMP_WAIT_POLICY": "PASSIVE"}}))
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, (str(scratch), before)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["JUPYTER_PATH"]
        else:
            os.environ["JUPYTER_PATH"] = before


def _execute(notebook: Path, parameters: dict, scratch: Path, folder: Path) -> None:
    """Run one notebook in its own kernel and keep the executed copy, whole; one that failed as <name>.failed.ipynb."""
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    out, failed = scratch / notebook.name, folder / f"{notebook.stem}.failed.ipynb"
    try:
        papermill.execute_notebook(notebook, out, parameters, kernel_name="python3", language="python", cwd=notebook.parent,
                                   progress_bar=False, start_timeout=300)
        error = None
    except papermill.PapermillExecutionError as raised:
        error = f"{raised.ename}: {raised.evalue}".strip().split("\n")[0]
    except DeadKernelError:
        error = "the kernel died, as it does when memory runs out"
    executed = nbformat.read(out, 4)
    own = [cell for cell in executed.cells if not {"papermill-error-cell-tag", "injected-parameters"} & set(cell.metadata.get("tags", []))]
    begun = [i for i, cell in enumerate(own) if cell.metadata.get("papermill", {}).get("status") != "pending"]
    _make_portable(executed, parameters)
    write_whole(failed if error else folder / notebook.name, nbformat.writes(executed) + "\n")
    if error:
        first = (own[begun[-1]].source.strip().splitlines() or [""])[0]
        log.error("%s as far as it came: %s", notebook.stem, failed)
        raise NotebookFailed(f"{notebook.stem} stopped at cell {begun[-1] + 1} of {len(own)} (`{first}`): {error}")
    failed.unlink(missing_ok=True)


def without_paths(text: str, parameters: dict) -> str:
    """A text in which the absolute paths of this machine are shortened: the parameters' to their names, the checkout's to "."."""
    names = {value: Path(value).name for value in parameters.values() if isinstance(value, str) and os.path.isabs(value)}
    environment = [(Path(sys.prefix), ".venv")] if sys.prefix != sys.base_prefix else []
    for folder, name in ((Path(__file__).resolve().parents[1], "."), (Path.home(), "~"), *environment):
        names |= {str(folder): name, str(folder.resolve()): name} if len(folder.parts) > 1 else {}
    known = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.sub(rf"(?<![\w/+])(?:(?:{known})(?![\w+-])|/\S*/ipykernel_\d+/\d+\.py)", lambda match: names.get(match[0], "cell.py"), text)


def _make_portable(notebook, parameters: dict) -> None:
    """Take out of an executed notebook what belongs to this machine or moment: absolute paths, times, papermill's own notes."""
    def clean(value):
        return [clean(each) for each in value] if isinstance(value, list) else without_paths(value, parameters)

    notebook.metadata.pop("papermill", None)
    notebook.cells = [cell for cell in notebook.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        if not cell.metadata.get("tags", True):  # papermill gives every cell a list
            del cell.metadata["tags"]
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id, cell.source = "injected-parameters", clean(cell.source)
        for output in cell.get("outputs", []):
            for name in {"text", "evalue", "traceback"} & set(output):
                output[name] = clean(output[name])
            if "data" in output:
                output.data = {kind: clean(value) if kind.startswith("text/") else value for kind, value in output.data.items()}


def _grids(notebook: Path) -> tuple[str, ...]:
    """The grids of a notebook: those of its number, and what else it asks for."""
    asked = re.findall(r'study\.complete\(\\?"(\w+)', notebook.read_text())
    return tuple(name for name in GRIDS if name[:2] == notebook.stem[:2] or name in asked)


def used(study: Study, grids: tuple[str, ...] = tuple(GRIDS)) -> list[RunSpec]:
    """The specs that grids ask for, each once, parents before children."""
    found: dict[str, RunSpec] = {}

    def add(spec: RunSpec) -> None:
        for parent in spec.parents:
            add(parent)
        found.setdefault(spec.key, spec)

    for grid in grids:
        for spec in study.flat(grid):
            add(spec)
    return list(found.values())


@contextmanager
def _training(study: Study, notebooks: list[Path], executor: str, address: str, device: str | None):
    """Train what these notebooks lack while they run, and tell how far it is."""
    measures = study.measures(tuple(grid for notebook in notebooks for grid in _grids(notebook)))
    groups = [[(spec, measures.get(spec.key, {})) for spec in used(study, _grids(notebook))] for notebook in notebooks]
    schedule = Schedule(groups, study.data, study.store, study.workers, device, executor=executor, address=address)

    def run() -> None:
        with suppress(Exception):  # kept in schedule.error, which the notebooks' loop looks at
            schedule.run()

    thread = threading.Thread(target=run, daemon=True)
    with telling(study.store, schedule):
        thread.start()
        try:
            yield schedule
        finally:
            schedule.stop()
            thread.join()


@contextmanager
def telling(store: Store, schedule: Schedule):
    """Log how far a schedule's training is."""
    thread = threading.Thread(target=_tell, args=(store, schedule), daemon=True)
    thread.start()
    try:
        yield
    finally:
        schedule.stop()
        thread.join()


def _tell(store: Store, schedule: Schedule) -> None:
    """Log how far training is: a line for every 10 % of a run, at most one in 30 s."""
    told = {key: (row["epoch"], time.monotonic()) for key, row in store.progress().items()}
    while not schedule.stopped.wait(2):
        for key, row in store.progress().items():
            epoch, at = told.setdefault(key, (0, time.monotonic()))
            if 10 * row["epoch"] // row["epochs"] > 10 * epoch // row["epochs"] and time.monotonic() - at >= 30:
                told[key] = (row["epoch"], time.monotonic())
                log.info("    %s: epoch %d of %d, validation accuracy %.1f %%, about %.1f min left", key, row["epoch"], row["epochs"],
                         100 * row["val_accuracy"], (row["epochs"] - row["epoch"]) * row["seconds"] / 60)


def _git(*words: str) -> str | None:
    """What git says about the checkout, None where there is none."""
    try:
        said = subprocess.run(["git", *words], cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True)
    except OSError:
        return None
    return said.stdout.strip() if said.returncode == 0 else None


def _write_manifest(study: Study, parameters: dict, state: dict, entries: dict) -> None:
    """manifest.json: on what and from what the study ran. Notebooks not run this time keep their entries of the same data."""
    path = study.root / "manifest.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    about = {"source": study.data.faces.source, "faces": len(study.data.faces), "fingerprint": study.data.fingerprint}
    kept = before["notebooks"] if before.get("data") == about else {}
    runs = [run for spec in used(study) if (run := study.store.get(spec))]
    write_whole(path, json.dumps({
        "preset": study.name, "data": about, **state,
        "parameters": {name: Path(value).name if isinstance(value, str) else value for name, value in parameters.items()},
        "seeds": list(study.seeds), "device": device_name("cuda" if torch.cuda.is_available() else "cpu"), "cores": os.cpu_count(),
        "python": platform.python_version(), "packages": {name: _version(name) for name in PACKAGES},
        "notebooks": dict(sorted({**kept, **entries}.items())),
        "runs": {run.key: {name: run.machine[name] for name in ("seconds", "device", "threads", "torch")} for run in runs}}, indent=1) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
