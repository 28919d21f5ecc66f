"""Figures: one function a kind, each takes a tidy frame (or maps) and returns a matplotlib Figure. Nothing is shown here, and
saved by `save_figure` alone.

One colour an emotion, one a model, across the study; both sets can be told apart by colour-blind readers. Fractions become percent here.
"""
import os
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .faces import EMOTIONS, SIZE, SPLITS
from .landmarks import TEMPLATE, region_masks
from .metrics import over_seeds
from .training import kept_epoch

# Okabe & Ito's eight colours for emotions, Paul Tol's "muted" for networks.
EMOTION_COLOURS = dict(zip(EMOTIONS, ("#D55E00", "#009E73", "#CC79A7", "#E6B800", "#0072B2", "#56B4E9", "#7F7F7F")))
MODEL_COLOURS = {"vgg16": "#332288", "resnet": "#CC6677", "densenet": "#117733", "dpn": "#88CCEE", "resmasking": "#AA4499", "ensemble": "#444444"}
SCHEME_COLOURS = {"baseline": "#777777", "perturb": "#0072B2", "published": "#E69F00"}
MODEL_NAMES = {"vgg16": "VGG", "resnet": "ResNet", "densenet": "DenseNet", "dpn": "DPN", "resmasking": "ResMasking", "ensemble": "Ensemble"}


def style() -> None:
    """The study's look; called once by each notebook."""
    sns.set_theme(context="notebook", style="whitegrid", rc={
        "figure.dpi": 80, "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False,
        "axes.spines.right": False, "grid.color": "#e6e6e6", "figure.constrained_layout.use": True, "legend.frameon": False})


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all; it is laid out then, and showing it need not do that again."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.png")
    figure.savefig(temporary, dpi=150, bbox_inches="tight")
    os.replace(temporary, path)
    figure.set_layout_engine("none")


def percent(axis) -> None:
    """Label a matplotlib axis (ax.xaxis or ax.yaxis) of fractions in percent."""
    axis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))


def points(axis) -> None:
    """Label a matplotlib axis of differences of fractions in percentage points."""
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{100 * value:+.3g}" if abs(value) > 1e-9 else "0"))


def note(figure: Figure, data) -> Figure:
    """Say below a figure that its faces are synthetic, where they are."""
    if data.faces.source == "synthetic":
        figure.supxlabel("synthetic faces", fontsize=8, color="#888888", x=0.99, ha="right")
    return figure


# ------------------------------------------------------------------------------------------------------------------- 01 the faces

REGION_COLOURS = {"brows": "#E69F00", "eyes": "#56B4E9", "nose": "#F0E442", "mouth": "#FF5A36", "cheeks": "#FF9BD2", "forehead": "#2FD6A3",
                  "jaw": "#B79CFF"}


def class_distribution(frame: pd.DataFrame) -> Figure:
    """The paper's Figure 3: faces of each emotion and split, the official number as a black stroke. `frame` is 01_integrity."""
    counts = frame[frame["check"] == "faces"]
    figure, axes = plt.subplots(1, len(SPLITS), figsize=(12, 3.6), sharey=True)
    for axis, split in zip(axes, SPLITS):
        part = counts[counts["split"] == split].set_index("emotion")
        here = part.loc[list(EMOTIONS)]
        axis.barh(EMOTIONS, here["value"], color=EMOTION_COLOURS.values(), height=0.75)
        axis.plot(here["expected"], range(len(EMOTIONS)), "|", color="black", markersize=17, markeredgewidth=1.6, label="official number")
        for i, (value, expected) in enumerate(zip(here["value"], here["expected"])):
            official = f", officially {expected:,.0f}" if np.isfinite(expected) and expected != value else ""
            axis.text(value, i, f"  {value:,.0f}{official}", va="center", fontsize=9)
        total = part.loc["all"]
        axis.set_title(f"{split}: {total['value']:,.0f} faces" + (f", officially {total['expected']:,.0f}" if np.isfinite(total["expected"]) else ""))
        axis.set(xlim=(0, 1.25 * max(here["value"].max(), 1)), xlabel="faces")
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4, integer=True))
        axis.grid(axis="y", visible=False)
    axes[0].invert_yaxis()
    every = counts[(counts["split"] == "all") & (counts["emotion"] != "all")].set_index("emotion")["value"]
    known = counts.dropna(subset="expected")
    if len(known):
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", fontsize=9)
    right = (known["value"] == known["expected"]).sum()
    official = "" if known.empty else f"; {'all' if right == len(known) else f'{right} of'} {len(known)} counts are the official ones"
    ratio = every.max() / max(every.min(), 1)
    title = (f"{every.idxmax()} is {ratio:.0f} times as frequent as {every.idxmin()}" if ratio >= 1.5 else "emotions are balanced").capitalize()
    return _headline(figure, title + official)


def leaks(frame: pd.DataFrame) -> Figure:
    """Left: test faces that have a pixel copy in training or validation. Right: test labels that FER+'s votes confirm. `frame` is 01_integrity."""
    test = frame[frame["split"] == "test"].pivot(index="check", columns="emotion", values="value")[[*EMOTIONS, "all"]]
    leaked, n = test.loc["faces"] - test.loc["clean"], test.loc["faces"]
    share = leaked / n
    voted = "ferplus_agree" in test.index
    figure, axes = plt.subplots(1, 1 + voted, figsize=(6 + 6 * voted, 4), sharey=True, squeeze=False)
    colours = [*EMOTION_COLOURS.values(), "#333333"]
    panels = [(share, 0 * share, [f"  {a:.0f} of {b:,.0f}" for a, b in zip(leaked, n)], 1.3 * max(share.max(), 0.1))]
    title = (f"{100 * share['all']:.1f} % of the test faces have" if leaked["all"] else "No test face has") + " a copy in training or validation"
    axes[0, 0].set_xlabel("test faces with a copy in training or validation")
    if leaked["all"]:
        title += "".join(f", {100 * value:.0f} % of {emotion}" for emotion, value in share[list(EMOTIONS)].nlargest(2).items())
    if voted:
        agree, tie = test.loc["ferplus_agree"], test.loc["ferplus_tie"]
        panels.append((agree, tie, [f"  {100 * a:.0f} %" for a in agree], 1.12))
        worst = agree[list(EMOTIONS)].idxmin()
        title += f";\nFER+ confirms {100 * agree['all']:.0f} % of the test labels, {100 * agree[worst]:.0f} % of {worst}"
        axes[0, 1].set_xlabel("test faces whose label FER+ confirms (light: its votes tie)")
    for axis, (values, light, texts, right) in zip(axes[0], panels):
        axis.barh(range(len(values)), values, color=colours, height=0.75)
        axis.barh(range(len(values)), light, left=values, color="#dddddd", height=0.75)
        for i, (value, text) in enumerate(zip(values + light, texts)):
            axis.text(value, i, text, va="center", fontsize=9)
        axis.set_xlim(0, right)
        percent(axis.xaxis)
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(len(share)), share.index)
    axes[0, 0].invert_yaxis()
    return _headline(figure, title)


def mask_coverage(frame: pd.DataFrame) -> Figure:
    """Left: share of each feature that the masks hide, per emotion. Right: how many faces' landmarks were found, and the first paper's masks.
    `frame` is 01_masks."""
    every = frame[frame["how"] == "all"].set_index("emotion")
    found = frame[frame["how"].isin(["detected", "exact"])].set_index("emotion")["share"].reindex(every.index).fillna(0)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, width_ratios=(4, 6))
    features = ["brows", "eyes", "nose", "mouth"]
    sns.heatmap(100 * every[features], ax=axes[0], cmap="Blues", vmin=0, vmax=100, annot=True, fmt=".1f", cbar=False)
    axes[0].set(xlabel="percent of the feature's pixels hidden", ylabel="")
    y = np.arange(len(every)) + 0.5
    exact = (frame["how"] == "exact").any()
    axes[1].plot(found, y, "o", color="#0072B2", markersize=9, label="here: exact landmarks" if exact else "here: landmarks detected")
    if every["author"].notna().any():
        axes[1].plot(every["author"], y, "D", color=SCHEME_COLOURS["published"], markersize=8, label="first paper: mask drawn")
    axes[1].set(xlim=(0, 1.04), xlabel="share of the emotion's faces")
    percent(axes[1].xaxis)
    axes[1].legend(loc="center left", fontsize=9)
    mean, emotions = every.loc["all"], every.drop(index="all")
    title = "Masks hide " + ", ".join(f"{100 * mean[name]:.1f} % of the {name}" for name in reversed(features))
    if every["author"].notna().any():
        least, most = emotions["author"].idxmin(), emotions["author"].idxmax()
        title += (f";\nthe first paper masked {100 * emotions['author'][least]:.0f} % of {least} and "
                  f"{100 * emotions['author'][most]:.0f} % of {most} faces, here every face has a mask")
    return _headline(figure, title)


def sheet(tiles: np.ndarray, rows: list[str], columns: list[str], title: str, points: np.ndarray | None = None, group: int = 1,
          zoom: float = 0.72) -> Figure:
    """Grey faces side by side: tiles [R, C, 48, 48], uint8 or, as mean faces, float with one scale a row. `points` [R, C, 68, 2] draws the
    regions and names their mean share of the picture; `group` sets that many columns together; `zoom` is a face's side in inches."""
    tiles = np.asarray(tiles)
    if tiles.dtype != np.uint8:
        low = tiles.min((1, 2, 3), keepdims=True)
        tiles = 255 * (tiles - low) / np.maximum(tiles.max((1, 2, 3), keepdims=True) - low, 1e-6)
    y0 = np.arange(len(rows)) * (SIZE + 3)
    x0 = np.arange(len(columns)) * (SIZE + 3) + 6 * (np.arange(len(columns)) // group) * (group > 1)

    def joined(parts: np.ndarray, between: float) -> np.ndarray:
        mosaic = np.full((y0[-1] + SIZE, x0[-1] + SIZE), between)
        for i, j in np.ndindex(len(rows), len(columns)):
            mosaic[y0[i]: y0[i] + SIZE, x0[j]: x0[j] + SIZE] = parts[i, j]
        return mosaic

    mosaic = joined(tiles, 255.0)
    figure, axis = plt.subplots(figsize=(mosaic.shape[1] / SIZE * zoom + 0.3 + 0.09 * max(map(len, rows)), mosaic.shape[0] / SIZE * zoom + 0.8))
    axis.imshow(mosaic, cmap="gray", vmin=0, vmax=255)
    axis.set_yticks(y0 + SIZE / 2, rows)
    axis.set_xticks(x0 + SIZE / 2, columns, fontsize=9)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    if points is not None:
        regions = region_masks(points.reshape(-1, 68, 2), tuple(REGION_COLOURS))  # (R*C, 7, 48, 48)
        for r, colour in reversed([*enumerate(REGION_COLOURS.values())]):  # small ones on top
            area = joined(regions[:, r].reshape(tiles.shape), 0.0)
            axis.contourf(area, [0.5, 1], colors=[colour], alpha=0.15)
            axis.contour(area, [0.5], colors=[colour], linewidths=1.2)
        handles = [Patch(color=colour, label=f"{name} {100 * share:.0f} %") for (name, colour), share in
                   zip(REGION_COLOURS.items(), regions.mean((0, 2, 3)))]
        axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 0), ncols=min(len(columns), len(handles)), fontsize=9, columnspacing=1,
                    handlelength=1)
    return _headline(figure, title)


def landmark_template(face: np.ndarray, points: np.ndarray, covered: np.ndarray) -> Figure:
    """Left: the template's 68 points and the median of these faces' `points` [N, 68, 2] on their mean face [48, 48]. Right: the share of faces
    `covered` [48, 48] by a mask at each pixel."""
    median = np.median(points, 0)
    gap = np.hypot(*(median - TEMPLATE).T).mean()
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.8))
    axes[0].imshow(face, cmap="gray")
    axes[0].plot(*median.T, "o", color="#56B4E9", markersize=5, label="median of these faces")
    axes[0].plot(*TEMPLATE.T, "x", color="#FF5A36", markersize=5, label="template")
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, fontsize=9)
    image = axes[1].imshow(covered, cmap="viridis", vmin=0, vmax=1)
    axes[1].contour(covered, [0.5], colors="white", linewidths=1.5)
    axes[1].plot(*TEMPLATE[17:].T, ".", color="#FF5A36", markersize=4)
    figure.colorbar(image, ax=axes[1], format=matplotlib.ticker.PercentFormatter(1.0), label="faces masked here (white line: half of them)")
    for axis in axes:
        axis.set(xlim=(-0.5, SIZE - 0.5), ylim=(SIZE - 0.5, -0.5), xticks=[], yticks=[])
        axis.grid(False)
    return _headline(figure, f"The template lies {gap:.1f} px from the median of these faces; a mask covers {100 * covered.mean():.0f} % of "
                             "the picture")


def truth(frame: pd.DataFrame) -> Figure:
    """Recall that a classifier on the action units loses when a region goes neutral, in points. `frame` is 01_truth."""
    table = 100 * frame.pivot(index="emotion", columns="region", values="loss").loc[list(EMOTIONS), frame["region"].unique()]
    figure, axis = plt.subplots(figsize=(7.5, 4.2))
    top = table.abs().max(axis=None)
    sns.heatmap(table, ax=axis, cmap="RdBu_r", vmin=-top, vmax=top, annot=True, fmt=".0f", cbar_kws={"label": "recall lost, points"})
    axis.set(xlabel="region whose action units go neutral", ylabel="")
    leading = table.loc[[emotion for emotion in EMOTIONS if emotion != "neutral"]].idxmax(axis=1)
    needs = "; ".join(f"{region}: {', '.join(leading.index[leading == region])}" for region in table.columns if (leading == region).any())
    return _headline(figure, f"The region each emotion needs most\n{needs}")


def _headline(figure: Figure, title: str) -> Figure:
    figure.suptitle(title, fontweight="bold", fontsize=12, x=0.01, ha="left")
    return figure


# ------------------------------------------------------------------------------------------------------------------- 02 baselines

def _bars(axis, x, values, low, high, width, **settings) -> None:
    """Bars with their interval as a thin line; a missing interval draws none."""
    axis.bar(x, values, width, **settings)
    error = np.abs(np.array([np.asarray(values) - low, np.asarray(high) - values]))
    axis.errorbar(x, values, yerr=np.nan_to_num(error), fmt="none", ecolor="#222222", elinewidth=1, capsize=2)


def model_scores(frame: pd.DataFrame) -> Figure:
    """Bars of macro accuracy a network, on all and on clean test faces, with intervals; a diamond where the paper published a number.
    `frame` is 02_table2_1."""
    models = [m for m in MODEL_NAMES if m in set(frame["model"])]
    figure, axis = plt.subplots(figsize=(8.5, 4))
    for i, (faces, alpha) in enumerate((("all", 1.0), ("clean", 0.55))):
        mean = frame[frame["faces"] == faces].groupby("model").mean(numeric_only=True).loc[models]
        _bars(axis, np.arange(len(models)) + 0.2 * (2 * i - 1), mean["macro_accuracy"], mean["macro_accuracy_low"], mean["macro_accuracy_high"],
              0.38, color=[MODEL_COLOURS[m] for m in models], alpha=alpha)
    paper = frame.groupby("model")["published_macro_accuracy"].first().loc[models]
    axis.plot(np.arange(len(models)), paper, "D", color=SCHEME_COLOURS["published"], markeredgecolor="white", markersize=8,
              label="published (full size)")
    axis.set_xticks(range(len(models)), [MODEL_NAMES[m] for m in models])
    axis.set_ylabel("macro accuracy, test split")
    percent(axis.yaxis)
    axis.grid(axis="x", visible=False)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    best = frame[frame["faces"] == "all"].groupby("model")["macro_accuracy"].mean()
    axis.set_title(f"{MODEL_NAMES[best.idxmax()]} leads with {best.max():.1%} (dark: all faces, light: clean ones)")
    return figure


def learning_curves(runs: dict) -> Figure:
    """Validation accuracy an epoch of every network; solid trained on unmasked, dashed on masked faces. `runs`: {"<model> <variant>": runs}."""
    figure, axis = plt.subplots(figsize=(8.5, 4))
    for name, several in runs.items():
        model, variant = name.split(" ")
        for run in several:
            axis.plot(run.history["epoch"], run.history["val_accuracy"], color=MODEL_COLOURS[model], lw=1.8,
                      ls="-" if variant == "unmasked" else "--", label=f"{MODEL_NAMES[model]}, {variant}" if run is several[0] else None)
    axis.set(xlabel="epoch", ylabel="validation accuracy (single view)", title="Learning curves, each on the faces it is trained on")
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    percent(axis.yaxis)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def recipe_curves(runs: dict) -> Figure:
    """Validation accuracy an epoch under each recipe, a panel a network, epochs on a logarithmic axis. `runs`: {"<model> <recipe>": runs}."""
    models = list(dict.fromkeys(name.split(" ")[0] for name in runs))
    figure, axes = plt.subplots(1, len(models), figsize=(4.6 * len(models) + 1.4, 3.6), sharey=True, squeeze=False)
    for axis, model in zip(axes[0], models):
        for recipe, colour, style in (("fast", MODEL_COLOURS[model], "-"), ("fast, twice", MODEL_COLOURS[model], ":"), ("paper", "#777777", "-")):
            for i, run in enumerate(runs.get(f"{model} {recipe}", [])):
                history = run.history
                axis.plot(history["epoch"], history["val_accuracy"], color=colour, ls=style, lw=1.8,
                          label=None if i else f"{run.spec.recipe.name}, {len(history)} epochs")
                kept = history[history["epoch"] == kept_epoch(run.spec.recipe, history)]
                axis.plot(kept["epoch"], kept["val_accuracy"], "o", color=colour)
        axis.set(xscale="log", xlabel="epoch", title=MODEL_NAMES[model])
        axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(base=2, numticks=12))
        axis.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%d"))
        axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.legend(loc="lower right", fontsize=8)
    axes[0, 0].set_ylabel("validation accuracy (single view)")
    percent(axes[0, 0].yaxis)
    return _headline(figure, "Two recipes, equal networks: the dot is what is kept")


def confusion_matrices(frame: pd.DataFrame) -> Figure:
    """One matrix a network: of each label's faces, the percentage that gets each prediction (mean over seeds). `frame` is 02_confusion."""
    models = [m for m in MODEL_NAMES if m in set(frame["model"])]
    columns = 3
    rows = -(-len(models) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.1 * columns, 3.9 * rows), squeeze=False)
    for axis, model in zip(axes.flat, models):
        table = frame[frame["model"] == model].pivot_table(values="share", index="label", columns="prediction").loc[list(EMOTIONS), list(EMOTIONS)]
        sns.heatmap(100 * table, ax=axis, cmap="Blues", vmin=0, vmax=100, annot=True, fmt=".0f", annot_kws={"size": 8}, cbar=False, square=True)
        axis.set(title=MODEL_NAMES[model], xlabel="prediction", ylabel="label" if axis in axes[:, 0] else "")
        axis.tick_params(labelsize=8)
        axis.set_xticklabels(axis.get_xticklabels(), rotation=45, ha="right")
    for axis in axes.flat[len(models):]:
        axis.set_visible(False)
    figure.suptitle("Where networks err: percent of each label's test faces", fontweight="bold", x=0.01, ha="left")
    return figure


def mask_changes(frame: pd.DataFrame) -> Figure:
    """Change of recall from train and test on unmasked faces, in points, a panel for each other cell of the train x test matrix; a diamond
    is the draft's value (train unmasked, test masked). `frame` is 02_table1."""
    cells = [("unmasked", "masked"), ("masked", "masked"), ("masked", "unmasked")]
    models = [m for m in MODEL_NAMES if m in set(frame["model"])]
    figure, axes = plt.subplots(len(cells), 1, figsize=(10, 9), sharex=True, sharey=True)
    width = 0.8 / len(models)
    for axis, (train, test) in zip(axes, cells):
        part = frame[(frame["train"] == train) & (frame["test"] == test)]
        for i, model in enumerate(models):
            mean = part[part["model"] == model].groupby("emotion").mean(numeric_only=True).loc[list(EMOTIONS)]
            x = np.arange(len(EMOTIONS)) + (i - (len(models) - 1) / 2) * width
            _bars(axis, x, mean["change"], mean["low"], mean["high"], width, color=MODEL_COLOURS[model], label=MODEL_NAMES[model])
            if (train, test) == cells[0]:
                axis.plot(x, mean["draft"], "D", color=SCHEME_COLOURS["published"], markeredgecolor="#333333", markersize=5,
                          label="paper's draft" if model == models[-1] else None)
        overall = part["change"].mean()
        axis.set_title(f"trained on {train}, tested on {test} faces: {100 * overall:+.0f} points on average")
        axis.axhline(0, color="#333333", lw=0.8)
        axis.set_ylabel("change of recall, points")
        points(axis.yaxis)
        axis.grid(axis="x", visible=False)
    axes[-1].set_xticks(range(len(EMOTIONS)), EMOTIONS)
    axes[0].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


VIEW_NAMES = {"all": "all test faces", "clean": "without copies", "agree": "FER+ agrees", "author": "first paper's rows",
              "author, masked": "the same, masked"}


def ranking_by_view(frame: pd.DataFrame) -> Figure:
    """Macro accuracy of every model, a panel (with its own scale) a view of the test split, with 95 % intervals over seeds and faces and the rank
    above, bold where it is not that of the first view; hollow where the view's first model is better by more than chance (paired).
    `frame` is 02_rankings."""
    views = [view for view in VIEW_NAMES if view in set(frame["view"])]
    first = frame[frame["view"] == views[0]].sort_values("rank").set_index("model")["rank"]
    models = list(first.index)
    figure, axes = plt.subplots(1, len(views), figsize=(2.6 * len(views) + 1.4, 1.5 + 0.42 * len(models)), sharey=True, squeeze=False)
    for axis, view in zip(axes[0], views):
        part = frame[frame["view"] == view].set_index("model").reindex(models)
        for y, (model, row) in enumerate(part.iterrows()):
            level = row["behind_low"] <= 0
            axis.errorbar(row["macro_accuracy"], y, xerr=[[row["macro_accuracy"] - row["low"]], [row["high"] - row["macro_accuracy"]]], fmt="o",
                          color=MODEL_COLOURS[model], markerfacecolor=MODEL_COLOURS[model] if level else "white", markersize=8, elinewidth=1.6)
            moved = row["rank"] != first[model]
            axis.text(row["macro_accuracy"], y - 0.2, f"{row['rank']:.0f}", ha="center", va="bottom", fontsize=12 if moved else 10,
                      fontweight="bold" if moved else "normal")
        axis.set_title(f"{VIEW_NAMES[view]}\n{part['n'].iloc[0]:,.0f} faces", fontsize=11, fontweight="normal")
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(3))
        percent(axis.xaxis)
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(len(models)), [MODEL_NAMES[model] for model in models])
    axes[0, 0].set_ylim(len(models) - 0.5, -0.8)
    axes[0, len(views) // 2].set_xlabel("macro accuracy; hollow: surely behind the first model (95 %, paired)", fontsize=10,
                                        x=0.5 if len(views) % 2 else 0)
    moved = frame[frame["rank"] != frame["model"].map(first)]["model"].nunique()
    return _headline(figure, f"{moved} of {len(models)} models have another rank in another view" if moved else "No view changes the ranking")


def reliability_curves(frame: pd.DataFrame) -> Figure:
    """Accuracy against confidence, a panel a model and a line a seed, with 95 % Wilson intervals; bars are the share of faces in each bin.
    Bins of fewer than five faces have no point. `frame` is 02_reliability."""
    models = [m for m in MODEL_NAMES if m in set(frame["model"])]
    columns = min(3, len(models))
    rows = -(-len(models) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.7 * columns, 3.3 * rows), sharex=True, sharey=True, squeeze=False)
    for axis, model in zip(axes.flat, models):
        own = frame[frame["model"] == model]
        share = own.groupby("bin")["n"].sum() / own["n"].sum()
        axis.bar((share.index + 0.5) / 15, share, 1 / 15, color="#e3e3e3")
        axis.plot([0, 1], [0, 1], color="#333333", lw=0.8, ls="--")
        name = f"ECE {100 * own.groupby('seed')['ece'].first().mean():.1f} %"
        for seed, part in own[own["n"] >= 5].groupby("seed"):
            error = np.abs([part["accuracy"] - part["low"], part["high"] - part["accuracy"]])
            axis.errorbar(part["confidence"], part["accuracy"], yerr=error, fmt="o-", color=MODEL_COLOURS[model], markersize=4, lw=1.4,
                          elinewidth=1, label=name if seed == own["seed"].iloc[0] else None)
        axis.set_title(MODEL_NAMES[model])
        axis.legend(loc="upper left", handlelength=1)
        percent(axis.xaxis)
        percent(axis.yaxis)
    for axis in axes.flat[len(models):]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("confidence")
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy")
    modest = ((frame["accuracy"] - frame["confidence"]) * frame["n"]).groupby(frame["model"]).sum() > 0
    return _headline(figure, f"Models more often right than confident (above the line): {modest.sum()} of {len(modest)}")


# ------------------------------------------------------------------------------------------------------------------- 03 attention

def face_maps(maps: np.ndarray, rows: list[str], columns: list[str], title: str, cmap: str = "viridis", vmin: float | None = None,
              vmax: float | None = None, under: np.ndarray | None = None, label: str = "") -> Figure:
    """A grid of 48x48 maps [R, C, 48, 48] on one scale, with row and column labels; `under` [R, C, 48, 48] lies beneath as grey faces."""
    figure, axes = plt.subplots(len(rows), len(columns), figsize=(1.35 * len(columns) + 1.4, 1.35 * len(rows) + 0.8), squeeze=False)
    vmin, vmax = np.nanmin(maps) if vmin is None else vmin, np.nanmax(maps) if vmax is None else vmax
    for i, j in np.ndindex(len(rows), len(columns)):
        axis = axes[i, j]
        if under is not None:
            axis.imshow(under[i, j], cmap="gray")
        image = axis.imshow(maps[i, j], cmap=cmap, vmin=vmin, vmax=vmax, alpha=None if under is None else 0.6)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(False)
        if i == 0:
            axis.set_title(columns[j], fontsize=10, fontweight="normal", loc="center")
        if j == 0:
            axis.set_ylabel(rows[i], fontsize=10, rotation=0, ha="right", va="center")
    if cmap != "gray":
        figure.colorbar(image, ax=axes, shrink=0.8, label=label)
    figure.suptitle(title, fontweight="bold", fontsize=12, x=0.01, ha="left")
    return figure


def gate_kernels(kernels: dict[str, np.ndarray]) -> Figure:
    """The input gate's 7x7 filter: the sum of its two channels, which see the same picture. {label: [2, 7, 7]}."""
    figure, axes = plt.subplots(1, len(kernels), figsize=(3.2 * len(kernels) + 0.6, 3), squeeze=False)
    top = max(np.abs(k.sum(0)).max() for k in kernels.values())
    for axis, (label, kernel) in zip(axes[0], kernels.items()):
        image = axis.imshow(kernel.sum(0), cmap="RdBu_r", vmin=-top, vmax=top)
        axis.set(title=label, xticks=[], yticks=[])
        axis.grid(False)
    figure.colorbar(image, ax=axes, label="weight on the pixel")
    return figure


# ---------------------------------------------------------------------------------------------------------------- 04 cluster sweep

def accuracy_by_clusters(frame: pd.DataFrame) -> Figure:
    """Macro accuracy over K, `clean` and `views`, with intervals, beside the published curve; the baseline as a band. `frame` is the table 04."""
    figure, axis = plt.subplots(figsize=(8.5, 4.2))
    all_ = frame[frame["faces"] == "all"]
    for evaluation, colour, shift in (("clean", "#0072B2", -0.06), ("views", "#009E73", 0.06)):
        part = all_[all_["arm"].str.startswith("K=") & (all_["evaluation"] == evaluation)].groupby("n_clusters").mean(numeric_only=True)
        axis.errorbar(part.index + shift, part["macro_accuracy"], yerr=[part["macro_accuracy"] - part["macro_accuracy_low"],
                      part["macro_accuracy_high"] - part["macro_accuracy"]], fmt="o-", color=colour, capsize=2, label=f"scheme, {evaluation}")
    paper = frame.dropna(subset="published_macro_accuracy").groupby("n_clusters")["published_macro_accuracy"].first()
    axis.plot(paper.index, paper, "D--", color=SCHEME_COLOURS["published"], label="published, VGG16")
    base = all_[all_["arm"] == "baseline"].mean(numeric_only=True)
    axis.axhline(base["macro_accuracy"], color="#777777", label="baseline")
    axis.axhspan(base["macro_accuracy_low"], base["macro_accuracy_high"], color="#777777", alpha=0.15, lw=0)
    axis.set(xlabel="number of clusters K", ylabel="macro accuracy, test split")
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    percent(axis.yaxis)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    clean = all_[all_["arm"].str.startswith("K=") & (all_["evaluation"] == "clean")].groupby("n_clusters")["macro_accuracy"].mean()
    axis.set_title(f"K = {int(clean.idxmax())} is highest here ({clean.max():.1%}); bars and band: 95 % over the test faces")
    return figure


def arms(frame: pd.DataFrame, baseline: str = "baseline") -> Figure:
    """Macro accuracy of each arm, `clean` and `views`, as points with intervals; the baseline's interval as a band."""
    all_ = frame[frame["faces"] == "all"]
    names = list(dict.fromkeys(all_["arm"]))
    figure, axis = plt.subplots(figsize=(8.5, 0.36 * len(names) + 1.4))
    for evaluation, colour, shift in (("clean", "#0072B2", -0.13), ("views", "#009E73", 0.13)):
        part = all_[all_["evaluation"] == evaluation].groupby("arm").mean(numeric_only=True).reindex(names)
        axis.errorbar(part["macro_accuracy"], np.arange(len(names)) + shift, fmt="o", color=colour, capsize=2, label=evaluation,
                      xerr=[part["macro_accuracy"] - part["macro_accuracy_low"], part["macro_accuracy_high"] - part["macro_accuracy"]])
    base = all_[(all_["arm"] == baseline) & (all_["evaluation"] == "clean")].mean(numeric_only=True)
    axis.axvspan(base["macro_accuracy_low"], base["macro_accuracy_high"], color="#777777", alpha=0.15, lw=0)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    clean = all_[all_["evaluation"] == "clean"].groupby("arm")["macro_accuracy"].mean()
    axis.set_title(f"Highest on whole faces: {clean.idxmax()} ({clean.max():.1%})")
    axis.set_xlabel(f"macro accuracy, test split (95 % over the faces; band: {baseline})")
    percent(axis.xaxis)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), title="evaluated on")
    return figure


def partition_maps(parts: dict[str, np.ndarray], face: np.ndarray, title: str) -> Figure:
    """Partitions uint8 [48, 48] in colour over a grey face [48, 48], one panel each, clusters numbered from the top."""
    columns = min(6, len(parts))
    rows = -(-len(parts) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.9 * columns + 0.4, 2.1 * rows + 0.5), squeeze=False)
    for axis, (name, part) in zip(axes.flat, parts.items()):
        axis.imshow(face, cmap="gray")
        axis.imshow(part, cmap="Set2", vmin=0, vmax=7, alpha=0.55, interpolation="nearest")
        axis.set_title(name, fontsize=10, fontweight="normal", loc="center")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle(title, fontweight="bold", fontsize=12, x=0.01, ha="left")
    return figure


# ---------------------------------------------------------------------------------------------------------------------- 05 perturb

def scheme_gains(frame: pd.DataFrame) -> Figure:
    """Gain of the scheme over its baseline in macro accuracy, same evaluation, with intervals, beside the published gain. `frame` is 05_table2_2."""
    gains = frame.dropna(subset="gain")
    models = list(dict.fromkeys(gains["model"]))
    figure, axis = plt.subplots(figsize=(8, 3.6))
    for evaluation, colour, shift in (("clean", "#0072B2", -0.12), ("views", "#009E73", 0.12)):
        part = gains[gains["evaluation"] == evaluation].groupby("model").mean(numeric_only=True).loc[models]
        axis.errorbar(np.arange(len(models)) + shift, part["gain"], yerr=[part["gain"] - part["gain_low"], part["gain_high"] - part["gain"]],
                      fmt="o", color=colour, capsize=3, label=evaluation)
    clean = frame[(frame["evaluation"] == "clean") & (frame["faces"] == "all")]
    wide = clean.groupby(["model", "scheme"])["published_macro_accuracy"].first().unstack()
    axis.plot(range(len(models)), (wide["perturb"] - wide["baseline"]).loc[models], "D", color=SCHEME_COLOURS["published"], label="published")
    axis.axhline(0, color="#333333", lw=0.8)
    axis.set_xticks(range(len(models)), [MODEL_NAMES[m] for m in models])
    axis.set_xlim(-0.6, len(models) - 0.4)
    axis.set_ylabel("gain in macro accuracy, points")
    points(axis.yaxis)
    axis.grid(axis="x", visible=False)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    above = int((gains[gains["evaluation"] == "clean"].groupby("model")["gain_low"].mean() > 0).sum())
    axis.set_title(f"The scheme gains beyond the faces' interval: {above} of {len(models)} networks (clean)")
    return figure


def _gains(axis, part: pd.DataFrame, y, colour: str, label: str | None = None, hollow: bool = False) -> None:
    """Paired changes at heights y: the seed-paired 95 % t interval thick, the two-level bootstrap over seeds and faces thin."""
    axis.hlines(y, part["two_level_low"], part["two_level_high"], color=colour, lw=1.2)
    axis.hlines(y, part["low"], part["high"], color=colour, lw=4, alpha=0.45)
    axis.plot(part["change"], y, "o", color=colour, mfc="white" if hollow else None, markersize=6, label=label)


def _gain_axis(axis) -> None:
    axis.axvline(0, color="#333333", lw=0.8)
    points(axis.xaxis)
    axis.grid(axis="y", visible=False)


def _seeds(frame: pd.DataFrame) -> str:
    many = int(frame["seeds"].max())
    return f"{many} seed{'s' * (many > 1)}"


def control_gains(frame: pd.DataFrame, measure: str = "macro_accuracy") -> Figure:
    """What the scheme gains over the baseline and each control, on whole and on masked test faces: the seed-paired 95 % t interval thick, the
    two-level bootstrap over seeds and faces thin. `frame` is 05_controls, of which all test faces are drawn; several networks lie in panels below
    each other."""
    frame = frame[(frame["measure"] == measure) & (frame["faces"] == "all")]
    arms_ = {model: list(dict.fromkeys(part["against"])) for model, part in frame.groupby("model", sort=False)}
    models, heights = list(arms_), [0.42 * len(names) + 1.3 for names in arms_.values()]
    figure, axes = plt.subplots(len(models), 2, figsize=(11, sum(heights)), height_ratios=heights, sharex=True, sharey="row", squeeze=False)
    for (i, model), (j, test) in ((a, b) for a in enumerate(models) for b in enumerate(("unmasked", "masked"))):
        axis, names = axes[i, j], arms_[model]
        for evaluation, colour, shift in (("clean", "#0072B2", -0.14), ("views", "#009E73", 0.14)):
            part = frame[(frame["model"] == model) & (frame["test"] == test) & (frame["evaluation"] == evaluation)].set_index("against")
            y = [names.index(name) + shift for name in part.index]
            _gains(axis, part, y, colour, evaluation)
        _gain_axis(axis)
        axis.set_title(f"{MODEL_NAMES[model]}, {test} test faces, {_seeds(frame[frame['model'] == model])}")
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.5, -0.5)
    for axis in axes[-1]:
        axis.set_xlabel(f"gain of the scheme, points of {measure.replace('_', ' ')}")
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1), title="evaluated on")
    whole = frame[(frame["test"] == "unmasked") & (frame["evaluation"] == "clean")]
    return _headline(figure, f"On whole faces the scheme beats {int((whole['low'] > 0).sum())} of {len(whole)} arms beyond the seeds' interval and "
                             f"loses to {int((whole['high'] < 0).sum())}")


def emotion_changes(frame: pd.DataFrame) -> Figure:
    """Change of each emotion's recall, perturb minus baseline, a panel a network, beside the published change. `frame` is 05_table3."""
    part = frame[frame["evaluation"] == "clean"]
    models = list(dict.fromkeys(part["model"]))
    figure, axes = plt.subplots(1, len(models), figsize=(4.2 * len(models) + 1, 3.8), sharey=True, squeeze=False)
    for axis, model in zip(axes[0], models):
        mean = part[part["model"] == model].groupby("emotion").mean(numeric_only=True).loc[list(EMOTIONS)]
        _bars(axis, np.arange(7), mean["change"], mean["low"], mean["high"], 0.7, color=[EMOTION_COLOURS[e] for e in EMOTIONS])
        axis.plot(range(7), mean["published"], "D", color="white", markeredgecolor="#333333", label="published")
        axis.set_xticks(range(7), EMOTIONS, rotation=45, ha="right")
        axis.set_title(MODEL_NAMES[model])
        axis.axhline(0, color="#333333", lw=0.8)
        axis.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel("change of recall, points")
    points(axes[0, 0].yaxis)
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def scheme_diagram(face: np.ndarray, attention: np.ndarray, parts: np.ndarray, views: list[np.ndarray]) -> Figure:
    """The paper's Figure 2 from the code's own stages: a face [48, 48], its attention, its clusters, and the K+1 views of it."""
    panels = [(face, "gray"), (attention, "viridis"), (parts, "Set2")] + [(view, "gray") for view in views]
    names = ["face", "1  attention of\nthe frozen gate", "2  clusters of\n(λx, λy, αS)"]
    names += [f"3  without\ncluster {i + 1}" for i in range(len(views) - 1)] + ["3  whole"]
    figure, axes = plt.subplots(1, len(panels), figsize=(1.75 * len(panels), 2.5))
    for axis, (image, cmap), name in zip(axes, panels, names):
        axis.imshow(image, cmap=cmap, interpolation="nearest" if cmap == "Set2" else None, vmin=0 if cmap in ("gray", "Set2") else None,
                    vmax={"gray": 255, "Set2": 7}.get(cmap))
        axis.set_title(name, fontsize=9, fontweight="normal", loc="center")
        axis.set_axis_off()
    for a, b in ((0, 1), (1, 2), (2, 3)):
        axes[b].annotate("", xy=(-0.02, 0.5), xytext=(-0.22, 0.5), xycoords="axes fraction",
                         arrowprops={"arrowstyle": "-|>", "color": "#444444", "lw": 1.5})
    figure.suptitle("The Perturb Scheme, drawn from its own stages", fontweight="bold", fontsize=12, x=0.01, y=1.1, ha="left")
    return figure


def attention_on_faces(runs: dict, images: np.ndarray, scaling: tuple[float, float]) -> Figure:
    """Attention of each placement's first run on single faces uint8 [n, 48, 48], each map on its own scale; needs the weights."""
    import torch

    from .augment import standardise, to_float

    x = standardise(to_float(torch.as_tensor(np.ascontiguousarray(images))), scaling)
    known = {name: several[0] for name, several in runs.items() if several[0].has_weights}
    stack = [images / 255.0]
    for run in known.values():
        maps = run.model().attention_maps(x).numpy()
        low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
        stack.append((maps - low) / np.maximum(high - low, 1e-9))
    return face_maps(np.stack(stack), ["face", *known], list(EMOTIONS), "Attention on single faces, each map scaled to 0..1", "gray")


# -------------------------------------------------------------------------------------------------------------------- 06 saliency

METHOD_NAMES = {"saliency": "gradient", "integrated_gradients": "integrated gradients", "smoothgrad": "SmoothGrad",
                "guided_backprop": "guided backprop (no evidence)", "grad_cam": "Grad-CAM", "occlusion": "occlusion"}
REFERENCE_COLOURS = {"untrained": "#D55E00", "edge_map": "#0072B2", "centre_prior": "#7F7F7F", "random_order": "#BBBBBB"}


def region_matrices(panels: dict[str, pd.DataFrame], title: str, measure: str = "separation") -> Figure:
    """Emotion x region, a panel a name, all on one scale: what hiding the region costs beyond the same mask at a random place, in points, the
    mean over the panel's runs; a dot where the interval over faces excludes 0 in every run, on the same side. Frames are parts of
    06_region_ablation, `measure` p, accuracy or separation."""
    rows = ["all", *EMOTIONS]
    order = list(dict.fromkeys(next(iter(panels.values()))["region"]))
    cells = {name: frame.groupby(["emotion", "region"], sort=False) for name, frame in panels.items()}
    values = {name: 100 * part[f"difference_{measure}"].mean().unstack().reindex(rows)[order] for name, part in cells.items()}
    sure = {name: ((part[f"difference_{measure}_low"].min() > 0) | (part[f"difference_{measure}_high"].max() < 0)).unstack().reindex(rows)[order]
            for name, part in cells.items()}
    reach = max(float(np.nanmax(np.abs(value.to_numpy()))) for value in values.values())
    columns = min(2, len(panels))  # in print more could not be read
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.6 * columns + 0.6, 3.2 * lines + 1), sharex=True, sharey=True, squeeze=False)
    for axis, name in zip(axes.flat, panels):
        text = values[name].map(lambda value: "" if np.isnan(value) else f"{round(value) + 0:.0f}")
        text += sure[name].map(lambda yes: "\u2022" if yes is True or yes == 1 else "")
        sns.heatmap(values[name], ax=axis, cmap="RdBu_r", vmin=-reach, vmax=reach, annot=text, fmt="", annot_kws={"fontsize": 8}, linewidths=0.5,
                    cbar=False)
        axis.set(xlabel="", ylabel="")
        axis.set_title(name, fontweight="normal", fontsize=11)
        axis.set_xticks(np.arange(len(order)) + 0.5, [region.replace("_", " ") for region in order], rotation=45, ha="right", fontsize=9)
        axis.tick_params(left=False, bottom=False, labelbottom=axis in axes.flat[len(panels) - columns: len(panels)])
        axis.axhline(1, color="#333333", lw=1)
        if "brows+eyes" in order:  # the three features of the primary endpoint come first
            axis.axvline(3, color="#333333", lw=1)
    for axis in axes.flat[len(panels):]:
        axis.set_visible(False)
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(-reach, reach), "RdBu_r")
    what = {"p": "p(label)", "accuracy": "accuracy"}.get(measure, measure)
    figure.colorbar(scale, ax=axes.ravel().tolist(), shrink=0.8, aspect=30, pad=0.01).set_label(f"points of {what} lost", fontsize=9)
    return _headline(figure, title)


TRAININGS = {("unmasked", "baseline"): ("trained on unmasked faces", "#777777"), ("masked", "baseline"): ("trained on masked faces", "#D55E00"),
             ("unmasked", "perturb"): ("Perturb Scheme", "#0072B2")}


def robustness(frame: pd.DataFrame, title: str) -> Figure:
    """Accuracy as faces lose light, contrast or area, a line a training, bands the 95 % intervals over faces (mean over runs). `frame` is one
    network's part of 06_robustness."""
    panels = {("area", "black", "unmasked"): "hidden, black", ("area", "mean", "unmasked"): "hidden, grey",
              ("area", "black", "masked"): "masked face, hidden, black", ("darkening", "none", "unmasked"): "less light",
              ("contrast", "none", "unmasked"): "less contrast"}
    figure, axes = plt.subplots(1, len(panels), figsize=(16, 3.9), sharey=True)
    every = frame[frame["emotion"] == "all"].groupby(["kind", "fill", "faces", "train", "scheme", "level"]).mean(numeric_only=True)
    for axis, (panel, name) in zip(axes, panels.items()):
        for training, (label, colour) in TRAININGS.items():
            if (*panel, *training) in every.index.droplevel("level"):
                part = every.loc[(*panel, *training)]
                axis.plot(part.index, part["accuracy"], "o-", color=colour, label=label, markersize=4, lw=1.8)
                axis.fill_between(part.index, part["low"], part["high"], color=colour, alpha=0.18, lw=0)
        hidden = panel[0] == "area"
        axis.axhline(1 / len(EMOTIONS), color="#333333", lw=0.8, ls=":")
        axis.set_title(name, fontweight="normal")
        axis.set_xlabel("share of the picture hidden" if hidden else "share left")
        axis.set_xlim((-0.02, 0.72) if hidden else (1.03, 0.05))
        percent(axis.xaxis)
        percent(axis.yaxis)
    axes[0].set_ylabel("accuracy on the fixed faces")
    axes[0].set_ylim(0, None)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=10)
    return _headline(figure, title)


def map_grid(rows: dict[str, np.ndarray], faces: np.ndarray, title: str, caption: str, signed: bool = True,
             columns: tuple[str, ...] = EMOTIONS, what: str = "attribution") -> Figure:
    """The paper's Figures 1 and 6: maps [C, 48, 48] of each row in colour over grey faces [C, 48, 48] (or [rows, C, 48, 48]), one scale.

    Signed maps from blue (against) to red (for), positive ones from clear to red; strong colour hides the face, none shows it. The
    scale's end is the 99.5th percentile of all maps shown and stands on the bar, in units of a face's mean absolute attribution.
    """
    stack = np.stack(list(rows.values()))  # [R, C, 48, 48]
    faces = np.broadcast_to(np.asarray(faces, float), stack.shape)
    reach = float(np.nanpercentile(np.abs(stack), 99.5)) or 1.0
    cmap = plt.get_cmap("RdBu_r" if signed else "Reds")
    figure, axes = plt.subplots(len(rows) + 1, stack.shape[1], figsize=(1.45 * stack.shape[1] + 2.6, 1.45 * (len(rows) + 1) + 0.6), squeeze=False)
    figure.get_layout_engine().set(hspace=0.01, wspace=0.01, h_pad=0.02, w_pad=0.02)
    for c, axis in enumerate(axes[0]):
        axis.imshow(faces[0, c], cmap="gray", vmin=0, vmax=255)
        axis.set_title(columns[c], loc="center", fontsize=11, fontweight="normal")
    for r in range(len(rows)):
        for c, axis in enumerate(axes[r + 1]):
            value = np.nan_to_num(stack[r, c]) / reach
            strength = np.clip(np.abs(value) if signed else value, 0, 1)[..., None]
            colour = cmap(np.clip(value / 2 + 0.5 if signed else value, 0, 1))[..., :3]
            grey = (0.35 + 0.65 * faces[r, c] / 255)[..., None] * np.ones(3)
            axis.imshow(np.clip((1 - strength ** 0.6) * grey + strength ** 0.6 * colour, 0, 1), interpolation="bilinear")
    for axis, name in zip(axes[:, 0], ["face", *rows]):
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        for side in axis.spines.values():
            side.set_visible(False)
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(-reach if signed else 0, reach), cmap)
    bar = figure.colorbar(scale, ax=axes.ravel().tolist(), shrink=0.7, aspect=25, pad=0.015)
    bar.set_label(f"against  \u2190   {what}   \u2192  for" if signed else what, fontsize=9)
    figure.text(0.01, -0.01, caption, fontsize=9, color="#555555", va="top")
    return _headline(figure, title)


def enrichment(frame: pd.DataFrame, title: str, measure: str = "enrichment") -> Figure:
    """A measure of each method and region minus that of the untrained net, the edge map and the centre prior, with intervals over faces.
    `frame` is part of 06_saliency_shares (one run, or the mean over runs is drawn); only what stays above 0 for all three was learnt."""
    part = frame[(frame["emotion"] == "all") & (frame["measure"] == measure)]
    names, methods = ["brows+eyes", "nose", "mouth", "background"], [m for m in METHOD_NAMES if m in set(part["method"])]
    figure, axes = plt.subplots(2, 3, figsize=(13, 6), sharey=True, sharex=True)
    for axis, method in zip(axes.flat, methods):
        mean = part[part["method"] == method].groupby("region").mean(numeric_only=True).reindex(names)
        for i, reference in enumerate(("untrained", "edge_map", "centre_prior")):
            column = f"minus_{reference}"
            _bars(axis, np.arange(len(names)) + 0.26 * (i - 1), mean[column], mean[f"{column}_low"], mean[f"{column}_high"], 0.24,
                  color=REFERENCE_COLOURS[reference], label=f"minus {reference.replace('_', ' ')}")
        axis.axhline(0, color="#333333", lw=0.8)
        axis.set_title(METHOD_NAMES[method], fontweight="normal")
        axis.set_xticks(range(len(names)), names)
        axis.grid(axis="x", visible=False)
    for axis in axes[:, 0]:
        axis.set_ylabel(f"difference in {measure.replace('_', ' ')}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return _headline(figure, title)


def order_curves(curves: np.ndarray, sources: list[str], frame: pd.DataFrame, title: str) -> Figure:
    """Left and middle: p(label) as pixels leave and enter in each map's order, curves [maps, 2, steps + 1]. Right: areas with intervals.
    `frame` is the same run's part of 06_curves."""
    looks = dict(zip(("integrated_gradients", "grad_cam", "occlusion"), ("#009E73", "#CC79A7", "#E69F00")))
    figure, axes = plt.subplots(1, 3, figsize=(14.5, 4), width_ratios=(1, 1, 1.15))
    share = np.linspace(0, 1, curves.shape[2])
    for k, (axis, kind) in enumerate(zip(axes, ("deletion", "insertion"))):
        for name, curve in zip(sources, curves[:, k]):
            axis.plot(share, curve, color=looks.get(name, REFERENCE_COLOURS.get(name)), ls="-" if name in looks else "--", lw=1.8)
        axis.set(title=kind, xlabel="pixels " + ("blurred" if k == 0 else "shown"), ylabel="mean p(label), intact face = 1" if k == 0 else "")
        percent(axis.xaxis)
    for k, (kind, marker) in enumerate((("deletion", "v"), ("insertion", "^"))):
        part = frame[frame["kind"] == kind].set_index("map").loc[sources]
        y = np.arange(len(sources)) + 0.16 * (2 * k - 1)
        for i, name in enumerate(sources):
            axes[2].errorbar(part["area"].iloc[i], y[i], xerr=[[part["area"].iloc[i] - part["area_low"].iloc[i]],
                             [part["area_high"].iloc[i] - part["area"].iloc[i]]], fmt=marker, color=looks.get(name, REFERENCE_COLOURS.get(name)))
    axes[2].set_yticks(range(len(sources)), [METHOD_NAMES.get(name, name.replace("_", " ")) for name in sources])
    axes[2].set(title="area: \u25bc deletion, \u25b2 insertion", xlabel="share of the intact p(label)")
    axes[2].invert_yaxis()
    return _headline(figure, title)


def randomisation(frame: pd.DataFrame, title: str) -> Figure:
    """Likeness of maps to the trained network's as layers are drawn anew from the top. `frame` is 06_randomised; thin lines are runs."""
    looks = {"saliency": "#0072B2", "guided_backprop": "#D55E00", "grad_cam": "#CC79A7"}
    figure, axis = plt.subplots(figsize=(9, 3.8))
    for method, part in frame.groupby("method", sort=False):
        for _, one in part.groupby(["model", "train", "scheme", "seed"]):
            axis.plot(one["share"], one["similarity"], color=looks[method], alpha=0.25, lw=0.9)
        mean = part.groupby("share")["similarity"].mean()
        axis.plot(mean.index, mean, "o-", color=looks[method], lw=2.2, label=METHOD_NAMES[method])
    axis.axhline(0, color="#333333", lw=0.8)
    axis.set(xlabel="layers drawn anew, from the logits down", ylabel="rank similarity to the intact net's")
    percent(axis.xaxis)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return _headline(figure, title)


def one_face(face: np.ndarray, overlaid: np.ndarray, p: np.ndarray, title: str) -> Figure:
    """A face uint8 [48, 48], its map over it [48, 48, 3], and the network's probabilities [7]."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), width_ratios=(1, 1, 1.2), layout="constrained")
    for axis, image, name in zip(axes, (face, overlaid), ("the face as the network sees it", title)):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        axis.set_title(name, fontsize=11, fontweight="normal", loc="center")
        axis.set_axis_off()
    axes[2].barh(EMOTIONS, p, color=[EMOTION_COLOURS[emotion] for emotion in EMOTIONS])
    axes[2].invert_yaxis()
    axes[2].set(xlim=(0, 1), xlabel="probability")
    axes[2].spines[["top", "right"]].set_visible(False)
    percent(axes[2].xaxis)
    axes[1].text(0.5, -0.03, "red speaks for it, blue against", transform=axes[1].transAxes, ha="center", va="top", fontsize=9)
    return figure


def map_similarities(frame: pd.DataFrame, floor: pd.DataFrame, title: str) -> Figure:
    """Left: rank correlation of the mean maps of two networks of different seeds (of one, where there is one), a dot a pair, a stroke the mean.
    Right: how far the scheme and masked training lie from the seed-to-seed floor, with 95 % intervals over seeds. `frame` is 06_seeds_similarity, `floor`
    06_seeds_floor."""
    kinds = {"seed": ("two seeds of the baseline (floor)", "#222222"), "perturb": ("scheme against baseline", "#0072B2"),
             "masked": ("trained on masked against unmasked", "#D55E00")}
    frame, floor = (part[part["emotion"] == "all"] for part in (frame, floor))
    apart = frame["seed"] != frame["other_seed"]
    frame = frame[apart] if apart.any() else frame
    methods = [m for m in METHOD_NAMES if m in set(frame["method"])]
    figure, axes = plt.subplots(1, 2, figsize=(13, 1.8 + 0.5 * max(len(methods), 1)), sharey=True)
    for i, (kind, (name, colour)) in enumerate(kinds.items()):
        for y, method in enumerate(methods):
            each = frame[(frame["comparison"] == kind) & (frame["method"] == method)]["similarity"]
            place = y + 0.24 * (i - 1)
            axes[0].plot(each, [place] * len(each), ".", color=colour, alpha=0.4, markersize=7, label=name if y == 0 else None)
            axes[0].plot(each.mean(), place, "|", color=colour, markersize=13, markeredgewidth=2)
            for _, row in floor[(floor["comparison"] == kind) & (floor["method"] == method)].iterrows():
                axes[1].errorbar(row["change"], place, xerr=np.nan_to_num([[row["change"] - row["low"]], [row["high"] - row["change"]]]), fmt="o",
                                 color=colour, markersize=6)
    axes[0].set_yticks(range(len(methods)), [METHOD_NAMES[m] for m in methods])
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    axes[0].set_xlabel("rank correlation of mean maps, mean over emotions")
    axes[1].set_xlabel("less the floor (left of 0: beyond the chance of training)")
    axes[1].axvline(0, color="#333333", lw=0.8)
    for axis in axes:
        axis.grid(axis="y", visible=False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=10)
    return _headline(figure, title)


def truth_and_found(rest: pd.DataFrame, hidden: pd.DataFrame, frame: pd.DataFrame, title: str) -> Figure:
    """Synthetic faces, two truths and what networks lose (mean over runs). Above: the region's units at rest, in the generator and with the face
    drawn again. Below: the region not seen, in the generator and with the region blurred or grey. `rest` and `hidden` are the generator's tables,
    `frame` part of 06_region_ablation. A panel has its own scale: compare patterns, not sizes."""
    names = list(dict.fromkeys(rest["region"]))

    def found(fill: str, measure: str) -> pd.DataFrame:
        return frame[frame["fill"] == fill].pivot_table(index="emotion", columns="region", values=f"difference_{measure}")

    panels = {"truth: units at rest, recall": rest.pivot(index="emotion", columns="region", values="loss"),
              "network: drawn again at rest, p(label)": found("neutral", "p"), "": None,
              "truth: units unseen, separation": hidden.pivot(index="emotion", columns="region", values="loss"),
              "network: blurred less control, separation": found("blur", "separation"), "network: grey less control, p(label)": found("mean", "p")}
    figure, axes = plt.subplots(2, 3, figsize=(13.5, 7), sharey=True, sharex=True)
    for axis, (name, values) in zip(axes.flat, panels.items()):
        if values is None:
            axis.set_visible(False)
            continue
        values = 100 * values.loc[list(EMOTIONS), names]
        reach = max(float(np.nanmax(np.abs(values.to_numpy()))), 1e-9)
        sns.heatmap(values, ax=axis, cmap="RdBu_r", vmin=-reach, vmax=reach, annot=values.map(lambda v: f"{round(v) + 0:.0f}"), fmt="",
                    linewidths=0.5, cbar=False)
        axis.set(xlabel="points lost", ylabel="")
        axis.set_xticks(np.arange(len(names)) + 0.5, names, rotation=35, ha="right")
        axis.set_title(name, fontweight="normal", fontsize=11)
        axis.tick_params(left=False, bottom=False)
    return _headline(figure, title)


# ------------------------------------------------------------------------------------------------- 07 faces with and without a mask

FACE_COLOURS = {"unmasked": "#0072B2", "masked": "#D55E00", "mean": "#333333"}


def _over_seeds(axis, frame: pd.DataFrame, value: str, ends: tuple[str, str], y: float, colour: str, marker: str = "o",
                label: str | None = None) -> float:
    """A mean over runs with its 95 % t interval and every run as a small dot; of a single run the interval over its faces
    (columns `ends`, where the frame has them). Returns the mean."""
    values = frame[value].to_numpy()
    if len(values) > 1:
        over = over_seeds(values)
        low, high = over["low"], over["high"]
        axis.plot(values, np.full(len(values), y), ".", color=colour, markersize=5, alpha=0.5)
    else:
        low, high = (frame[name].iloc[0] if name in frame else np.nan for name in ends)
    axis.hlines(y, low, high, color=colour, lw=3, alpha=0.45)
    axis.plot(values.mean(), y, marker, color=colour, markersize=7, markeredgecolor="white", label=label)
    return values.mean()


def paradigm_scores(frame: pd.DataFrame) -> Figure:
    """Macro accuracy of every row on unmasked and on masked faces, the gap as a line; runs as small dots. `frame` is 07_paradigms."""
    frame = frame[(frame["faces"] == "all") & frame["test"].isin(FACE_COLOURS)]
    rows = list(dict.fromkeys(frame["row"]))
    figure, axis = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.3))
    means = {}
    for (i, row), test in ((a, b) for a in enumerate(rows) for b in ("unmasked", "masked")):
        part = frame[(frame["row"] == row) & (frame["test"] == test)]
        means[row, test] = _over_seeds(axis, part, "macro_accuracy", ("macro_accuracy_low", "macro_accuracy_high"), i, FACE_COLOURS[test],
                                       "o" if test == "unmasked" else "s", f"{test} faces" if i == 0 else None)
    for i, row in enumerate(rows):
        axis.hlines(i, means[row, "masked"], means[row, "unmasked"], color="#999999", lw=0.8, zorder=0)
    both = frame[frame["test"] == "mean"].groupby("row", sort=False)["macro_accuracy"].mean()
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel("macro accuracy, test split")
    percent(axis.xaxis)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_title(f"Highest over both kinds of test face: {both.idxmax()} ({both.max():.1%})")
    return figure


def paradigm_gains(frame: pd.DataFrame, measure: str = "macro_accuracy") -> Figure:
    """What each row gains over plain training on mixed faces (filled) and over the same started from B1 (hollow), all test faces: the seed-paired
    95 % t interval thick, the two-level bootstrap over seeds and faces thin. `frame` is 07_against_mixed."""
    frame = frame[(frame["measure"] == measure) & (frame["faces"] == "all")]
    against = list(dict.fromkeys(frame["against"]))
    rows = list(dict.fromkeys(frame[frame["against"] == against[0]]["row"]))
    frame = frame[frame["row"].isin(rows)]
    figure, axes = plt.subplots(1, 3, figsize=(12, 0.5 * len(rows) + 1.7), sharex=True, sharey=True)
    for axis, (test, colour) in zip(axes, FACE_COLOURS.items()):
        for i, one in enumerate(against):
            part = frame[(frame["test"] == test) & (frame["against"] == one)].set_index("row")
            _gains(axis, part, [rows.index(row) + 0.3 * i - 0.15 * (len(against) - 1) for row in part.index], colour, hollow=i > 0)
        _gain_axis(axis)
        axis.set_title({"mean": "mean of both"}.get(test, f"{test} faces"))
        axis.set_xlabel(f"points of {measure.replace('_', ' ')}")
        axis.set_yticks(range(len(rows)), rows)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    for i, one in enumerate(against):
        axes[-1].plot([], [], "o", color="#333333", mfc="white" if i else None, label=f"over {one}")
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    sure = [frame[(frame["test"] == "mean") & (frame["low"] > 0) & (frame["against"] == one)]["row"] for one in against]
    return _headline(figure, f"Rows beyond chance over both kinds of face ({_seeds(frame)}): "
                             + "; ".join(f"{len(some)} of {len(rows)} over {one}" for one, some in zip(against, sure)))


def feature_pictures(places: dict[str, np.ndarray], labels: np.ndarray) -> Figure:
    """t-SNE of the same faces' features, a column a row of the table: [2, n, 2] each, unmasked above, masked below; labels [n]."""
    figure, axes = plt.subplots(2, len(places), figsize=(3 * len(places) + 1.4, 6.2), squeeze=False)
    for j, (name, both) in enumerate(places.items()):
        span = both.reshape(-1, 2)
        for i, kind in enumerate(("unmasked", "masked")):
            for c, emotion in enumerate(EMOTIONS):
                axes[i, j].scatter(*both[i][labels == c].astype(float).T, s=max(4, 3000 / len(labels)), color=EMOTION_COLOURS[emotion], alpha=0.6,
                                   lw=0, label=emotion)
            axes[i, j].set(xticks=[], yticks=[], xlim=(span[:, 0].min(), span[:, 0].max()), ylim=(span[:, 1].min(), span[:, 1].max()))
            axes[i, j].grid(False)
            axes[i, 0].set_ylabel(f"{kind} faces")
        axes[0, j].set_title(name, fontsize=11)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", markerscale=2)
    return _headline(figure, f"t-SNE of the features of {len(labels):,} test faces, each column one picture")


def visible_skin(frame: pd.DataFrame) -> Figure:
    """Share of Grad-CAM's mass on the pixels a mask leaves free, on the same faces without and with it; the line is the pixels' share of the picture.
    `frame` is 07_skin."""
    frame = frame[frame["emotion"] == "all"]
    rows = list(dict.fromkeys(frame["row"]))
    figure, axis = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.3))
    for (i, row), kind in ((a, b) for a in enumerate(rows) for b in ("unmasked", "masked")):
        _over_seeds(axis, frame[(frame["row"] == row) & (frame["faces"] == kind)], "share", ("low", "high"), i, FACE_COLOURS[kind],
                    "o" if kind == "unmasked" else "s", f"{kind} faces" if i == 0 else None)
    axis.axvline(frame["area"].mean(), color="#333333", lw=0.9, ls="--", label="share of the picture")
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel("share of Grad-CAM's mass outside the mask")
    percent(axis.xaxis)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    masked = frame[frame["faces"] == "masked"].groupby("row", sort=False)["share"].mean()
    return _headline(figure, f"On masked faces between {masked.min():.0%} and {masked.max():.0%} lies outside the mask, as do {frame['area'].mean():.0%} of the picture")


def paradigm_sweeps(frame: pd.DataFrame) -> Figure:
    """Validation macro accuracy over the second term's weight and over the share of masked faces, one run a point, bands the 95 % interval over
    the faces. `frame` is 07_sweeps."""
    frame = frame[frame["split"] == "val"]
    sweeps = list(dict.fromkeys(frame["sweep"]))
    names = {"contrastive": "weight of the contrast", "distillation": "weight of distillation", "masked": "share of faces shown masked"}
    figure, axes = plt.subplots(1, len(sweeps), figsize=(3.9 * len(sweeps) + 1, 3.5), sharey=True, squeeze=False)
    for axis, sweep in zip(axes[0], sweeps):
        for test, colour in FACE_COLOURS.items():
            part = frame[(frame["sweep"] == sweep) & (frame["test"] == test)].groupby("value").mean(numeric_only=True)
            axis.plot(range(len(part)), part["macro_accuracy"], "o-", color=colour, label="mean of both" if test == "mean" else f"{test} faces")
            axis.fill_between(range(len(part)), part["macro_accuracy_low"], part["macro_accuracy_high"], color=colour, alpha=0.12, lw=0)
        axis.set_xticks(range(len(part)), [f"{value:g}" for value in part.index])
        axis.set_xlabel(names[sweep])
        axis.set_title(f"best mean at {part['macro_accuracy'].idxmax():g}", fontweight="normal")
    axes[0, 0].set_ylabel("macro accuracy, validation")
    percent(axes[0, 0].yaxis)
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return _headline(figure, "Chosen on validation, one run a point: a step smaller than about two points is chance")


# ------------------------------------------------------------------------------------------------------- 08 privileged attribution

ARM_COLOURS = {"cross-entropy": "#777777", "all": "#E69F00", "mean": "#0072B2", "half": "#009E73", "shuffled prior": "#CC79A7"}
ARM_NAMES = {"all": "all channels", "mean": "mean of channels", "half": "half channels"}
ATTRIBUTION_COLOURS = {"feature x gradient": "#332288", "grad_cam": "#117733", "saliency": "#AA4499"}  # unlike those of faces and of arms


def privileged_gains(frame: pd.DataFrame, measure: str = "macro_accuracy") -> Figure:
    """What each way of holding the attributions gains over cross-entropy, a panel a network: the seed-paired 95 % t interval thick, the two-level
    bootstrap over seeds and faces thin. `frame` is 08_gains, all test faces of it."""
    frame = frame[(frame["measure"] == measure) & (frame["faces"] == "all")]
    models, arms_ = list(dict.fromkeys(frame["model"])), list(dict.fromkeys(frame["arm"]))
    figure, axes = plt.subplots(1, len(models), figsize=(5 * len(models) + 1, 0.5 * len(arms_) + 1.7), sharex=True, sharey=True, squeeze=False)
    for axis, model in zip(axes[0], models):
        part = frame[frame["model"] == model].set_index("arm")
        for arm in part.index:
            _gains(axis, part.loc[[arm]], [arms_.index(arm)], ARM_COLOURS[arm])
        _gain_axis(axis)
        axis.set_yticks(range(len(arms_)), [ARM_NAMES.get(arm, arm) for arm in arms_])
        axis.set_title(f"{MODEL_NAMES[model]}, {_seeds(part)}")
        axis.set_xlabel(f"points of {measure.replace('_', ' ')}")
    axes[0, 0].set_ylim(len(arms_) - 0.5, -0.5)
    return _headline(figure, f"Gain over cross-entropy: {int((frame['low'] > 0).sum())} of {len(frame)} beyond 0, {int((frame['high'] < 0).sum())} below")


def alignments(frame: pd.DataFrame, measure: str = "correlation") -> Figure:
    """How far attributions lie on a face's own landmarks, a panel a network, by attribution and way of training; hollow: on those of another face of
    the emotion. `frame` is 08_alignment."""
    frame = frame[(frame["measure"] == measure) & (frame["emotion"] == "all") & (frame["method"] != "uniform")]
    models, methods = list(dict.fromkeys(frame["model"])), list(dict.fromkeys(frame["method"]))
    names = [arm for arm in ARM_COLOURS if arm in set(frame["arm"])]
    figure, axes = plt.subplots(1, len(models), figsize=(5 * len(models) + 1.5, 0.85 * len(methods) + 1.6), sharex=True, sharey=True, squeeze=False)
    for axis, model in zip(axes[0], models):
        for (i, method), (j, arm) in ((a, b) for a in enumerate(methods) for b in enumerate(names)):
            part = frame[(frame["model"] == model) & (frame["method"] == method) & (frame["arm"] == arm)]
            if part.empty:
                continue
            y = i + 0.16 * (j - (len(names) - 1) / 2)
            axis.plot(part[part["prior"] == "another"]["value"].mean(), y, "o", mfc="white", color=ARM_COLOURS[arm], markersize=6)
            _over_seeds(axis, part[part["prior"] == "own"], "value", ("low", "high"), y, ARM_COLOURS[arm])
        axis.axvline(0, color="#333333", lw=0.8)
        axis.set_yticks(range(len(methods)), [METHOD_NAMES.get(method, method) for method in methods])
        axis.set_title(MODEL_NAMES[model])
        axis.set_xlabel(f"{measure} of attribution and landmarks")
    axes[0, 0].set_ylim(len(methods) - 0.5, -0.5)
    arms = [plt.Line2D([], [], marker="o", ls="", color=ARM_COLOURS[arm], label=ARM_NAMES.get(arm, arm)) for arm in names]
    seen = [plt.Line2D([], [], marker="o", ls="", color="#777777", mfc=fill, label=label) for fill, label in ((None, "its own"), ("white", "of another face"))]
    _legends(axes[0, -1], ("trained with", arms), ("measured on landmarks", seen))
    trained = frame[(frame["method"] == methods[0]) & (frame["prior"] == "own")].groupby("arm")["value"].mean()
    held = trained.drop(["cross-entropy", "shuffled prior"], errors="ignore").max()
    other = f", by another face's landmarks to {trained['shuffled prior']:.2f}" if "shuffled prior" in trained else ""
    return _headline(figure, f"Feature x gradient, which is trained, goes from {trained['cross-entropy']:.2f} to {held:.2f}{other}")


def _legends(axis, *parts: tuple[str, list]) -> None:
    """One legend right of an axis, in parts: (title, handles)."""
    handles = [handle for title, some in parts for handle in (plt.Line2D([], [], ls="", label=title), *some)]
    legend = axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1))
    for text in legend.get_texts():
        text.set_weight("bold" if text.get_text() in dict(parts) else "normal")


def privileged_ablations(scores: pd.DataFrame, aligned: pd.DataFrame) -> Figure:
    """One thing changed at a time: validation macro accuracy on unmasked and on masked faces with its interval over the faces (bands:
    cross-entropy), and the correlation of attribution and landmarks. `scores` is 08_ablations, `aligned` 08_ablations_alignment."""
    scores = scores[scores["split"] == "val"]
    names = list(dict.fromkeys(scores["arm"]))
    found = aligned[(aligned["measure"] == "correlation") & (aligned["emotion"] == "all") & (aligned["prior"] == "own") & (aligned["method"] != "uniform")]
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.36 * len(names) + 1.6), sharey=True)
    means = {test: part.groupby("arm").mean(numeric_only=True).loc[names] for test, part in scores.groupby("test")}
    for test, marker in (("unmasked", "o"), ("masked", "s")):
        value, low, high = (means[test][f"macro_accuracy{end}"] for end in ("", "_low", "_high"))
        axes[0].errorbar(value, range(len(names)), fmt=marker, color=FACE_COLOURS[test], capsize=2, xerr=[value - low, high - value], label=f"{test} faces")
        axes[0].axvspan(low["cross-entropy"], high["cross-entropy"], color=FACE_COLOURS[test], alpha=0.12, lw=0)
    for method, marker in zip(dict.fromkeys(found["method"]), "^Dv"):
        one = found[found["method"] == method].groupby("arm")[["value", "low", "high"]].mean().reindex(names)
        axes[1].errorbar(one["value"], range(len(names)), fmt=marker, label=METHOD_NAMES.get(method, method), markersize=5, capsize=2,
                         color=ATTRIBUTION_COLOURS[method], xerr=[one["value"] - one["low"], one["high"] - one["value"]])
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    axes[0].set_xlabel("macro accuracy, validation")
    axes[1].set_xlabel("correlation of attribution and landmarks")
    percent(axes[0].xaxis)
    _legends(axes[1], *((title, axis.get_legend_handles_labels()[0]) for title, axis in zip(("left", "right: attribution"), axes)))
    whole = means["unmasked"]["macro_accuracy"]
    beside = "" if whole.idxmax() == "cross-entropy" else f"; cross-entropy {whole['cross-entropy']:.1%}"
    return _headline(figure, f"Highest on unmasked validation faces: {whole.idxmax()} ({whole.max():.1%}{beside})")
