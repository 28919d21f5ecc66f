"""The report: one self-contained HTML page of a whole study, read as a paper, with a gallery of saliency maps.

    write_report(open_study("smoke"))     # results/smoke/report.html; `python -m fer_lib run` ends with it

Ledger, tables, figures and captions come from the study's folder, maps from the runs' stored measures: nothing is trained, no number is typed.
What is missing leaves its part out. Faces of real people are in a page only where the study shows faces, and then in faces/report.html, which
git ignores.
"""
import base64
import html
import io
import json
import re
import zlib
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.special import softmax

from .claims import interval, points, shown
from .dataset import LEAST_IN_MEAN, VARIANTS, Dataset
from .faces import EMOTIONS
from .measures import MAP_ROWS, METHODS, SETTINGS, fixed_faces, mean_faces
from .plots import EMOTION_COLOURS, METHOD_NAMES, MODEL_NAMES, TRAININGS
from .runs import Run
from .saliency import align, attribute, cam_layer, edge_map, mean_maps
from .study import NOTEBOOKS, Study, write_whole

SHOWN, KEPT = 8, 300     # rows of a table at first, and in the page at all
HEADLINE = 1             # the claim, by its number in claims.csv, that the page opens with
VERDICTS = ("reproduced", "not reproduced", "inconclusive", "not testable")
PAPERS = {"P": "", "M": "MSD-E, ", "A": "PAL, "}  # before the place of a claim
FACES = 3                # single faces an emotion
FAST = ("saliency", "guided_backprop", "grad_cam")                            # drawn of every untrained net; of the first one
SINGLE = {**dict.fromkeys(FAST, {}), "integrated_gradients": {"n_steps": 8}}  # and of single faces these, with their settings
ARMS = {"unmasked": ("unmasked", "baseline"), "masked": ("masked", "baseline"), "perturb": ("unmasked", "perturb")}  # of 06, as in TRAININGS


def write_report(study: Study) -> Path:
    """Write a study's page, whole or not at all: report.html in its folder, or in its faces/ where single faces of a real data set are shown.
    Returns the path."""
    private = study.show_faces and study.data.faces.source != "synthetic"
    path, manifest = study.root / ("faces" if private else "") / "report.html", study.root / "manifest.json"
    ledger = study.root / "tables" / "00_claims.csv"
    claims = pd.read_csv(ledger, keep_default_na=False, na_values=[""]).fillna({"note": ""}).to_dict("records") if ledger.exists() else []
    gallery = _gallery(study)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")).render(
        preset=study.name, about=study.preset.about, data=study.data, seeds=study.seeds, private=private, shown=SHOWN, papers=PAPERS, prose=prose,
        run=_provenance(json.loads(manifest.read_text())) if manifest.exists() else None, points=points, unit=shown, interval=interval,
        claims=claims, verdicts={name: n for name in VERDICTS if (n := sum(claim["verdict"] == name for claim in claims))},
        headline=next((claim for claim in claims if claim["id"] == HEADLINE and claim["seeds"]), None), parts=_parts(study, private),
        gallery=gallery, gallery_json=json.dumps(gallery).replace("<", "\\u003c"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.encode("ascii", "xmlcharrefreplace").decode())  # the same bytes in every locale
    return path


def _provenance(manifest: dict) -> dict:
    runs = manifest["runs"].values()
    machines = {f"{manifest['device']}, {manifest['cores']} cores"} | {run["device"] for run in runs if run["device"] != manifest["device"]}
    return {**manifest, "machines": sorted(machines), "training": sum(run["seconds"] for run in runs) / 60,
            "minutes": sum(entry.get("minutes", 0) for entry in manifest["notebooks"].values())}


# ------------------------------------------------------------------------------------------------- notebooks, tables and figures

MARKUP = re.compile(r"`([^`]+)`|\*\*(.+?)\*\*|\*(.+?)\*|\[([^\]]+)\]\([^)]*\)")  # code, strong, emphasis, link
EMPTY = {"heading": "", "text": "", "said": "", "missing": ()}                  # of a group of results


def prose(markdown: str) -> str:
    """HTML of a notebook's markdown: paragraphs, code, strong, emphasis; of a link its words."""
    def mark(match: re.Match) -> str:
        tag, text = next((tag, text) for tag, text in zip(("code", "strong", "em", "span"), match.groups()) if text)
        return f"<{tag}>{text if tag == 'code' else MARKUP.sub(mark, text)}</{tag}>"

    parts = [part.strip() for part in re.split(r"\n\s*\n", html.escape(markdown, quote=False)) if part.strip()]
    return "".join(f"<p>{MARKUP.sub(mark, part)}</p>" for part in parts)


def _first_sentence(markdown: str) -> str:
    plain = MARKUP.sub(lambda match: next(filter(None, match.groups())), markdown.strip().split("\n\n")[0])
    return re.split(r"(?<=[.?!])\s", plain.replace("\n", " "))[0]


def _parts(study: Study, private: bool) -> list[dict]:
    """One part a notebook, executed or not: title, question, groups of prose and results. Whatever else is stored closes the part of its number."""
    folders = [study.root / "notebooks", *[study.root / "notebooks" / "faces"] * private]
    executed = {path.stem: path for folder in folders for path in folder.glob("[0-9][0-9]_*.ipynb") if not path.stem.endswith(".failed")}
    paths = {path.stem: path for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")} | executed
    patterns = [("figure", "figures/*.png"), *[("figure", "figures/faces/*.png")] * private, ("table", "tables/*.csv")]
    stored = {(kind, path.stem): path for kind, pattern in patterns for path in sorted(study.root.glob(pattern)) if path.stem != "00_claims"}
    parts = []
    for stem in sorted({*paths, *(name[:2] for _, name in stored if not any(stem.startswith(name[:2]) for stem in paths))}):
        cells = json.loads(paths[stem].read_text(encoding="utf-8"))["cells"] if stem in paths else []
        first = next(("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"), "# Without a notebook")
        title, _, rest = first.partition("\n")
        title, question = re.sub(r"^#\s*\d*\W*", "", title), rest.strip().split("\n\n")[0]
        parts.append({"number": stem[:2], "stem": stem, "title": title, "question": question, "executed": stem in executed,
                      "groups": _groups(cells, stored, title, question) if stem in executed else []})
    for part in parts:
        left = [_item(*key, stored.pop(key), part["title"], part["question"]) for key in list(stored) if key[1][:2] == part["number"]]
        part["groups"] += [{**EMPTY, "heading": "Also stored", "text": "No notebook executed here names these.", "items": left}] * bool(left)
    return parts


def _groups(cells: list[dict], stored: dict, title: str, question: str) -> list[dict]:
    """A notebook's results in its order: a markdown cell, then the figures and tables that the cells after it name; takes them out of `stored`."""
    groups, about = [{**EMPTY, "items": [], "missing": []}], title
    for cell in cells[1:]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading, text = re.match(r"(?:#+ ([^\n]*))?\n?(.*)", source, re.S).groups()
            groups.append({**EMPTY, "heading": heading or "", "text": text, "items": [], "missing": []})
            about = heading or about
            continue
        group, names = groups[-1], re.findall(r'"(\d\d_\w+)(["{])', source)  # "05_arms" or f"05_arms{...}"
        for key in sorted(stored, key=lambda key: key[0]):
            if any(key[1] == name or end == "{" and key[1].startswith(name) for name, end in names):
                group["items"].append(_item(*key, stored.pop(key), about, group["text"] or question))
        known = {item["name"] for one in groups for item in one["items"]}
        group["missing"] += [name for name in re.findall(r'study\.figure\(.*"(\d\d_\w+)"', source) if name not in known]
        group["said"] += "".join("".join(out["text"]) for out in cell.get("outputs", []) if out.get("name") == "stdout")
    return [group for group in groups if group["text"] or group["items"]]


def _item(kind: str, name: str, path: Path, about: str, caption: str) -> dict:
    """A table or a figure for the template."""
    found = _table(path) if kind == "table" else _figure(path, f"{_first_sentence(caption)} ({about})")
    return {"kind": kind, "name": name, "about": about, **found}


def _figure(path: Path, alt: str) -> dict:
    """A figure as WebP: exact where it has few colours, as line drawings have, else lossy."""
    image, buffer = Image.open(path).convert("RGB"), io.BytesIO()
    image.save(buffer, "WEBP", **{"lossless": True, "quality": 40, "method": 1} if image.getcolors(600) else {"quality": 76, "method": 2})
    return {"alt": alt, "width": round(0.6 * image.width), "height": round(0.6 * image.height), "webp": base64.b64encode(buffer.getvalue()).decode()}


def _table(path: Path) -> dict:
    """A table's rounded cells. Columns of one value are said once; of a long table the rows for all emotions are kept, and of these the first."""
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    total, pooled = len(frame), len(frame) > KEPT and "emotion" in frame and bool((frame["emotion"] == "all").any())
    frame = frame[frame["emotion"] == "all"] if pooled else frame
    first, frame = "the first " * (len(frame) > KEPT), frame.iloc[:KEPT]
    columns = {name: _cells(frame[name]) for name in frame}
    same = {name: cells[0][1] for name, cells in columns.items() if len(frame) > 1 and len(set(cells)) == 1}
    columns = {name: cells for name, cells in columns.items() if name not in same} or columns
    cut = f"{first}{len(frame):,} rows{' for all emotions together' * pooled}, of {total:,}" if len(frame) < total else ""
    return {"columns": [(name.replace("_", " "), all(number for number, _ in cells)) for name, cells in columns.items()],
            "rows": list(zip(*columns.values())), "same": {name.replace("_", " "): text for name, text in same.items() if text}, "cut": cut}


def _cells(column: pd.Series) -> list[tuple[bool, str]]:
    """(is a number, text) of each cell: whole numbers whole, others with as many digits as the column's size asks for."""
    if not pd.api.types.is_numeric_dtype(column) or column.dtype == bool:
        return [(False, "" if pd.isna(value) else str(value)) for value in column]
    size, whole = column.abs().max(), bool((column.dropna() % 1 == 0).all())
    digits = 0 if whole else 4 if size < 10 else 2 if size < 1000 else 1
    tiny = (column != 0) & (column.abs() < 0.5 * 10.0**-digits)
    return [(True, "" if pd.isna(value) else f"{value:.0e}" if small else f"{value:.{digits}f}") for value, small in zip(column, tiny)]


# --------------------------------------------------------------------------------------------------------------------- the gallery

def _gallery(study: Study) -> dict:
    """What the page's gallery draws: sources "mean" and "faces" (None where there is nothing; `why` says why no faces), names and colours."""
    first, real = study.preset.scheme[0], study.data.faces.source != "synthetic"
    runs = {name.removeprefix(f"{first} "): several[0] for name, several in study.finished("06").items()}
    arms = {arm: runs[arm] for arm in ARMS if arm in runs and runs[arm].has_weights}
    why = ("Single faces of a real data set are left out of a page that may be passed on: run the study without --no-faces, and they are in "
           "faces/report.html on your own machine." if real and not study.show_faces else
           "" if arms else f"Single faces are left out: their maps need the weights of the {MODEL_NAMES[first]}s, which are not on this machine.")
    return {"emotions": EMOTIONS, "colours": list(EMOTION_COLOURS.values()), "methods": METHOD_NAMES, "why": why,
            "trainings": {arm: TRAININGS[key][0] for arm, key in ARMS.items()}, "short": {**{arm: arm for arm in ARMS}, "perturb": "scheme"},
            "lut": _packed(255 * matplotlib.colormaps["RdBu_r"](np.arange(256))[:, :3]),
            "mean": _means(study, LEAST_IN_MEAN if real and not study.show_faces else 1), "faces": None if why else _singles(study.data, first, arms)}


def _packed(values: np.ndarray) -> str:
    """Values 0 to 255 as bytes, deflated, in base64."""
    return base64.b64encode(zlib.compress(np.clip(np.round(values), 0, 255).astype(np.uint8).tobytes(), 9)).decode()


def _source(items: list[dict], faces: dict, edges: dict, networks: dict[str, dict]) -> dict:
    """One source for the page. `faces`, `edges` (by kind of face) and the maps of a training (by method and kind) are float [n, 48, 48]; all maps
    of a method have one scale, whatever their network and training: the 99.5th percentile of their absolute values, as in figure 06_maps."""
    def end(maps: list[np.ndarray]) -> float:
        return float(np.nanpercentile(np.abs(np.concatenate(maps)), 99.5)) or 1.0

    def signed(maps: np.ndarray, reach: float) -> str:  # 1 to 127, 64 is zero
        return _packed(63 * np.clip(np.nan_to_num(maps) / reach, -1, 1) + 64)

    trainings = [training for network in networks.values() for training in network["trainings"].values()]
    every = {method: [maps for one in trainings for (name, _), maps in one["maps"].items() if name == method] for method in METHODS}
    reach, edge = {method: end(maps) for method, maps in every.items() if maps}, end(list(edges.values()))
    for one in trainings:
        one["maps"] = {f"{method} {kind}": signed(maps, reach[method]) for (method, kind), maps in one["maps"].items()}
    return {"items": items, "reach": reach, "edge_reach": edge, "edges": {kind: signed(maps, edge) for kind, maps in edges.items()},
            "faces": {kind: _packed(images) for kind, images in faces.items()}, "networks": networks}


def _means(study: Study, least: int) -> dict | None:
    """Mean maps over the mean faces of emotions with at least so many faces, from stored measures; those of untrained nets are drawn now."""
    data, networks, index = study.data, {}, fixed_faces(study.data, MAP_ROWS)
    labels, points, frame = data.faces.labels[index].astype(np.int64), data.landmarks.points[index], data.landmarks.points.mean(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, faces = data.inputs(index, device=device), mean_faces(data)
    some = [c for c in range(len(EMOTIONS)) if (labels == c).sum() >= least and np.ptp(faces[c]) > 0]
    rows = [data.labels("test") == c for c in some]
    for grid, size in (("06", ""), ("06_seeds", ", small")):
        for name, several in study.finished(grid).items():
            (model, arm), runs = name.split(" "), [run for run in several if run.measured("saliency")]
            if not runs or not some:
                continue
            known = networks.setdefault(f"{grid} {model}", {"name": MODEL_NAMES[model] + size, "trainings": {}})["trainings"]
            measured = [run.measured("saliency") for run in runs]
            maps = [dict(zip(one["methods"].tolist(), one["maps"].astype(np.float32)[:, some])) for one in measured]
            known[arm] = {"seeds": len(runs), **_predictions(runs, data, rows),
                          "maps": {(method, "unmasked"): np.mean([one[method] for one in maps], 0) for method in METHODS}}
            if "untrained" not in known:
                untrained, layer = runs[0].spec.build().to(device).eval(), str(measured[0]["layer"]).split(",")[0]
                known["untrained"] = {"maps": {}}
                for method in SINGLE if (grid, model) == ("06", study.preset.scheme[0]) else FAST:
                    found = attribute(untrained, x, labels, method, **{"grad_cam": {"layer": layer}, **SETTINGS}.get(method, {}))
                    known["untrained"]["maps"][method, "unmasked"] = mean_maps(align(found, points, frame), labels)[0][some].cpu().numpy()
    if not networks:
        return None
    edges = data.mean_faces("unmasked", move=lambda images, at: align(_unit(edge_map(data.standardised(images)).numpy()), at, frame).numpy())
    return _source([{"emotion": c, "n": int((labels == c).sum())} for c in some], {"unmasked": faces[some]}, {"unmasked": edges[some]}, networks)


def _singles(data: Dataset, model: str, arms: dict[str, Run]) -> dict:
    """A few fixed test faces an emotion, unmasked and masked, as the trainings of one network see them; needs their weights."""
    test = data.faces.where("test")
    index = fixed_faces(data, max(1, len(test) // FACES))
    index = index[np.argsort(data.faces.labels[index], kind="stable")]
    faces = {kind: data.images(kind)[index] for kind in VARIANTS}
    x, labels = torch.cat([data.inputs(index, kind) for kind in faces]), np.tile(data.faces.labels[index].astype(np.int64), len(faces))
    models = {arm: run.model() for arm, run in arms.items()}
    models["untrained"] = next(iter(arms.values())).spec.build().eval()
    layer, trainings, rows = cam_layer(next(iter(models.values())), x)[0], {}, [[place] for place in np.searchsorted(test, index)]
    for arm, network in models.items():
        trainings[arm] = {"maps": {}} | ({} if arm == "untrained" else {"seeds": 1, **_predictions([arms[arm]], data, rows, VARIANTS)})
        for method, settings in ({**SINGLE, "grad_cam": {"layer": layer}}).items():
            maps = _unit(attribute(network, x, labels, method, **settings).cpu().numpy())
            trainings[arm]["maps"] |= {(method, kind): part for kind, part in zip(faces, np.split(maps, len(faces)))}
    return _source([{"emotion": int(c), "n": 1} for c in data.faces.labels[index]], faces,
                   dict(zip(faces, np.split(_unit(edge_map(x.cpu()).numpy()), len(faces)))),
                   {f"06 {model}": {"name": MODEL_NAMES[model], "trainings": trainings}})


def _unit(maps: np.ndarray) -> np.ndarray:
    """Maps [n, 48, 48] scaled to a mean absolute value of 1 each, as mean_maps does; zero maps stay zero."""
    size = np.abs(maps).mean((1, 2), keepdims=True)
    return maps / np.where(size > 0, size, 1)


def _predictions(runs: list[Run], data: Dataset, rows: list, kinds: tuple[str, ...] = ("unmasked",)) -> dict:
    """By kind of face: mean probabilities [n][7] over each of `rows`, places in the test split, and the share of them answered right [n]."""
    found, labels = {"probs": {}, "right": {}}, data.labels("test")
    for kind in kinds:
        p = np.mean([softmax(run.logits(f"test_{kind}"), 1) for run in runs], 0)
        right = np.mean([run.logits(f"test_{kind}").argmax(1) == labels for run in runs], 0)
        found["probs"][kind] = [p[at].mean(0).round(3).tolist() for at in rows]
        found["right"][kind] = [round(float(right[at].mean()), 3) for at in rows]
    return found
