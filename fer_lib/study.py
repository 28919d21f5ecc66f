"""The study: which runs each notebook needs at each strength, and the driver that runs the notebooks in order.

    grid = runs_of("02", PRESETS["reduced"], data, seed=0)      # {name: RunSpec}
    run_study("smoke", results="results")                       # what `python -m fer_lib run` does

Presets differ in values and in how much of each grid they run, never in code path.
"""
from dataclasses import dataclass, field, replace

from .dataset import Dataset
from .perturb import Perturb
from .runs import RunSpec, spec_versions
from .training import RECIPES, Recipe

FULL_MODELS = {"vgg16": {}, "resnet": {}, "densenet": {}, "dpn": {}, "resmasking": {}}


@dataclass(frozen=True)
class Preset:
    """How strong a study is. `models` holds what a network departs by from the author's variant; "epochs" and "grow" go to its recipe."""

    about: str
    recipe: Recipe
    models: dict[str, dict] = field(default_factory=lambda: FULL_MODELS)
    stem: str = "pooled"
    scheme: tuple[str, ...] = ("vgg16", "resnet", "dpn")      # networks trained with the scheme, the paper's three
    views: str = "one_random"
    sweep: dict = field(default_factory=dict)                 # what the cluster sweep's VGG departs by
    n_clusters: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    seeds: tuple[int, ...] = (0,)
    sizes: tuple[int, int, int] = (2100, 700, 700)            # synthetic faces a split, when no data is given
    saliency_faces: int = 50                                  # test faces an emotion that maps are measured on


PRESETS = {
    "smoke": Preset(
        "synthetic faces, seconds a run: proves the wiring",
        replace(RECIPES["fast"], epochs=3, batch=32, lr=0.05, precision="fp32"),
        {"vgg16": {"depth": 8, "width": 0.5, "epochs": 8}, "resnet": {"depth": 10, "width": 0.125}, "densenet": {"depth": 29, "width": 0.4},
         "dpn": {"depth": 26, "width": 0.0625}, "resmasking": {"depth": 10, "width": 0.0625, "epochs": 1}},
        scheme=("vgg16",), sweep={"depth": 8, "width": 0.25}, n_clusters=(2, 3), sizes=(1400, 350, 350), saliency_faces=4),
    # Widths, depths and epochs so that a run takes 5 to 13 minutes on one core; fp32 because bf16 was measured slower on that machine.
    "reduced": Preset(
        "FER2013 on a CPU: narrow versions of the same architectures, few epochs",
        replace(RECIPES["fast"], epochs=12, batch=64, lr=0.05, grow=(32, 32, 40, 48), precision="fp32"),
        {"vgg16": {"depth": 8}, "resnet": {"depth": 10, "width": 0.375}, "densenet": {"depth": 29, "width": 0.67, "epochs": 10},
         "dpn": {"depth": 26, "width": 0.125, "epochs": 8},
         "resmasking": {"depth": 10, "width": 0.125, "epochs": 8, "grow": (32, 32, 32, 48)}},  # its map must divide by 8
        sweep={"depth": 8, "width": 0.5, "epochs": 8}),
    "full": Preset("FER2013 on one GPU: full width, several seeds", replace(RECIPES["fast"], epochs=40), seeds=(0, 1, 2)),
    "paper": Preset("the author's protocol, 200 epochs", RECIPES["paper"], stem="cifar", views="leave_one_out"),
}


def spec(preset: Preset, data: Dataset, model: str, seed: int = 0, settings: dict | None = None, **values) -> RunSpec:
    """A run of one network at a preset's strength."""
    settings = dict(preset.models[model] if settings is None else settings)
    recipe = replace(preset.recipe, **{name: settings.pop(name) for name in ("epochs", "grow") if name in settings})
    return RunSpec(**{"data": data.fingerprint, "model": model, "stem": preset.stem, "recipe": recipe, "seed": seed,
                      "versions": spec_versions(data), **settings, **values})


def baselines(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """02: every network on unmasked and on masked faces, named "<model> <variant>"."""
    return {f"{model} {variant}": spec(preset, data, model, seed, variant=variant)
            for variant in ("unmasked", "masked") for model in preset.models}


def gates(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """03: the attention classifiers, one for each placement of the gate; the sweep's small VGG carries them."""
    return {placement: spec(preset, data, "vgg16", seed, preset.sweep or None, attention=placement) for placement in ("input", "blocks")}


def sweep(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """04: the scheme on one small VGG over K, alpha = 0, and what clusters are fitted to."""
    gate = gates(preset, data, seed)["input"]
    base = spec(preset, data, "vgg16", seed, preset.sweep or None)
    middle = Perturb(views=preset.views)
    arms = {f"K={k}": replace(middle, n_clusters=k) for k in preset.n_clusters}
    arms |= {"alpha=0": replace(middle, source="coordinates")}
    if len(preset.n_clusters) > 2:
        arms |= {"per dataset": replace(middle, clusters_per="dataset"), "per image": replace(middle, clusters_per="image"),
                 "leave one out": replace(middle, views="leave_one_out")}
    whole = replace(base, perturb=replace(middle, views="none"), gate=gate, start=base, recipe=replace(base.recipe, epochs=0))
    return {"baseline": base, "baseline, views": whole, **{name: replace(base, perturb=arm, gate=gate) for name, arm in arms.items()}}


def scheme(preset: Preset, data: Dataset, seed: int = 0) -> dict[str, RunSpec]:
    """05: the scheme on the preset's networks, and each baseline shown the same views (control C0)."""
    gate = gates(preset, data, seed)["input"]
    found = {}
    for model in preset.scheme:
        base = spec(preset, data, model, seed)
        found[f"{model} baseline"] = base
        found[f"{model} perturb"] = replace(base, perturb=Perturb(views=preset.views), gate=gate)
        found[f"{model} baseline, views"] = replace(base, perturb=Perturb(views="none"), gate=gate, start=base,
                                                    recipe=replace(base.recipe, epochs=0))
    return found


GRIDS = {"02": baselines, "03": gates, "04": sweep, "05": scheme}
