"""The report: one self-contained HTML page of a whole study, read as a paper, with a gallery of saliency maps.

    write_report(open_study("smoke"))     # results/smoke/report.html; `python -m fer_lib run` ends with it

Ledger, tables, figures and their captions are read from the study's folder (tables/, figures/, executed notebooks/, manifest.json), maps from
the runs' stored measures: nothing is trained, and no number is typed here. What is missing leaves its part out. Faces of real people are in
the page only where the study shows faces, and then in faces/report.html, which git ignores.
"""
import base64
import html
import io
import json
import re
from collections import Counter
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.special import softmax

from .augment import standardise, to_float
from .dataset import VARIANTS, Dataset
from .faces import EMOTIONS
from .measures import MAP_ROWS, METHODS, SETTINGS, fixed_faces, mean_faces
from .plots import EMOTION_COLOURS, METHOD_NAMES, MODEL_NAMES, TRAININGS
from .runs import Run
from .saliency import align, attribute, cam_layer, edge_map, mean_maps
from .study import GRIDS, NOTEBOOKS, Study, write_whole

SHOWN, KEPT = 8, 200     # rows of a table at first, and in the page at all
HEADLINE = 1             # the claim, by its number in claims.csv, that the page opens with
LEAST = 20               # real faces in a mean, as Dataset.mean_faces has it
FACES = 3                # single faces an emotion
FAST = ("saliency", "guided_backprop", "grad_cam")                    # of untrained nets; the first network's by every method
SINGLE = {**dict.fromkeys(FAST, {}), "integrated_gradients": {"n_steps": 8}}  # methods of single faces, with their settings
SHORT = {"unmasked": "unmasked", "masked": "masked", "perturb": "scheme"}     # arms of 06, on a small picture


def write_report(study: Study) -> Path:
    """Write the page of a study, whole or not at all, and return its path: report.html in the study's folder, or in its faces/ where single
    faces of a real data set are shown."""
    private = study.show_faces and study.data.faces.source != "synthetic"
    path = study.root / ("faces" if private else "") / "report.html"
    manifest, ledger = study.root / "manifest.json", study.root / "tables" / "00_claims.csv"
    claims = pd.read_csv(ledger, keep_default_na=False, na_values=[""]) if ledger.exists() else None
    gallery = _gallery(study)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")).render(
        preset=study.name, about=study.preset.about, prose=prose, data=study.data, seeds=study.seeds, private=private, shown=SHOWN,
        run=_provenance(json.loads(manifest.read_text())) if manifest.exists() else None,
        claims=None if claims is None else claims.to_dict("records"), points=_points,
        verdicts={} if claims is None else Counter(claims["verdict"]),
        headline=next(iter([] if claims is None else claims[(claims["id"] == HEADLINE) & (claims["seeds"] > 0)].to_dict("records")), None),
        parts=_parts(study, private), gallery=gallery, gallery_json=json.dumps(gallery).replace("<", "\\u003c"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.encode("ascii", "xmlcharrefreplace").decode())  # the same bytes in every locale
    return path


def _points(value: float) -> str:
    """A difference of fractions in points, "" where there is none."""
    return f"{100 * value:+.1f}" if np.isfinite(value) else ""


def _provenance(manifest: dict) -> dict:
    runs = manifest["runs"].values()
    machines = {f"{manifest['device']}, {manifest['cores']} cores"} | {run["device"] for run in runs if run["device"] != manifest["device"]}
    return {**manifest, "machines": sorted(machines), "training": sum(run["seconds"] for run in runs) / 60,
            "minutes": sum(entry.get("minutes", 0) for entry in manifest["notebooks"].values())}


# ------------------------------------------------------------------------------------------------- notebooks, tables and figures

MARKUP = re.compile(r"`([^`]+)`|\*\*(.+?)\*\*|\*(.+?)\*|\[([^\]]+)\]\([^)]*\)")  # code, strong, emphasis, link


def prose(markdown: str) -> str:
    """HTML of a notebook's markdown: paragraphs, code, strong, emphasis; of a link its words."""
    def mark(match: re.Match) -> str:
        tag, text = next((tag, text) for tag, text in zip(("code", "strong", "em", ""), match.groups()) if text)
        inner = text if tag == "code" else MARKUP.sub(mark, text)
        return f"<{tag}>{inner}</{tag}>" if tag else inner

    return "".join(f"<p>{MARKUP.sub(mark, html.escape(part.strip(), quote=False))}</p>" for part in re.split(r"\n\s*\n", markdown) if part.strip())


def _first_sentence(markdown: str) -> str:
    plain = MARKUP.sub(lambda match: next(filter(None, match.groups())), markdown.strip().split("\n\n")[0])
    return re.split(r"(?<=[.?!])\s", plain.replace("\n", " "))[0]


def _parts(study: Study, private: bool) -> list[dict]:
    """One part a notebook, executed or not, and one for whatever else is stored: title, question, groups of prose and what it is about."""
    folders = [study.root / "notebooks" / "faces", study.root / "notebooks"] if private else [study.root / "notebooks"]
    executed = {path.stem: path for folder in reversed(folders) for path in folder.glob("[0-9][0-9]_*.ipynb") if not path.stem.endswith(".failed")}
    paths = {path.stem: path for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")} | executed
    stored = {(kind, path.stem): path for kind, pattern in (("figure", "figures/*.png"), ("table", "tables/*.csv"))
              for path in sorted(study.root.glob(pattern)) if not path.stem.startswith("00_")}
    if private:
        stored |= {("figure", path.stem): path for path in sorted(study.root.glob("figures/faces/*.png"))}
    parts = []
    for stem in sorted({*paths, *(name[:2] for _, name in stored if not any(stem.startswith(name[:2]) for stem in paths))}):
        cells = json.loads(paths[stem].read_text(encoding="utf-8"))["cells"] if stem in paths else []
        first = next(("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"), "# Without a notebook")
        title, _, rest = first.partition("\n")
        title, question = re.sub(r"^#\s*\d*\W*", "", title), rest.strip().split("\n\n")[0]
        parts.append({"number": stem[:2], "stem": stem, "title": title, "question": question, "executed": stem in executed,
                      "groups": _groups(cells, stored, title, question) if stem in executed else []})
    for part in parts:  # what no executed notebook names: of an older version, or copied here
        left = [_item(*key, stored.pop(key), part["title"], part["question"]) for key in list(stored) if key[1][:2] == part["number"]]
        part["groups"] += [{**EMPTY, "heading": "Also stored", "text": "No notebook executed here names these.", "items": left}] * bool(left)
    return parts


EMPTY = {"heading": "", "text": "", "said": "", "missing": []}  # a group of results


def _groups(cells: list[dict], stored: dict, title: str, question: str) -> list[dict]:
    """The notebook's results in its order: a markdown cell, then the figures and tables that the cells after it name. Takes them out of `stored`."""
    groups, about = [{**EMPTY, "items": [], "missing": []}], title
    for cell in cells[1:]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading, text = re.match(r"(?:#+ ([^\n]*))?\n?(.*)", source, re.S).groups()
            groups.append({**EMPTY, "heading": heading or "", "text": text, "items": [], "missing": []})
            about = heading or about
            continue
        group, names = groups[-1], list(dict.fromkeys(re.findall(r'"(\d\d_\w+)"', source)))
        for key in [(kind, name) for kind in ("figure", "table") for name in names]:
            if key in stored:
                group["items"].append(_item(*key, stored.pop(key), about, group["text"] or question))
        known = {item["name"] for one in groups for item in one["items"]}
        group["missing"] += [name for name in re.findall(r'study\.figure\(.*"(\d\d_\w+)"', source) if name not in known]
        group["said"] += "".join("".join(out["text"]) for out in cell.get("outputs", []) if out.get("name") == "stdout")
    return [group for group in groups if group["text"] or group["items"]]


def _item(kind: str, name: str, path: Path, about: str, caption: str) -> dict:
    """A table or a figure for the template."""
    item = {"kind": kind, "name": name, "about": about}
    return item | (_table(path) if kind == "table" else _figure(path, f"{_first_sentence(caption)} ({about})"))


def _figure(path: Path, alt: str) -> dict:
    """A figure as WebP: exact where it has few colours, as line drawings have, else lossy."""
    image, buffer = Image.open(path).convert("RGB"), io.BytesIO()
    image.save(buffer, "WEBP", **({"lossless": True, "quality": 40, "method": 1} if image.getcolors(1500) else {"quality": 78, "method": 4}))
    return {"alt": alt, "width": round(0.6 * image.width), "height": round(0.6 * image.height), "webp": base64.b64encode(buffer.getvalue()).decode()}


def _table(path: Path) -> dict:
    """A table's rounded cells. Columns of one value are said once; of a long table the rows for all emotions are kept, and of these the first."""
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    total, long = len(frame), len(frame) > KEPT
    pooled = long and "emotion" in frame and (frame["emotion"] == "all").any()
    frame = (frame[frame["emotion"] == "all"] if pooled else frame).iloc[:KEPT]
    columns = {name: _cells(frame[name]) for name in frame}
    same = {name: cells[0][1] for name, cells in columns.items() if len(frame) > 1 and len(set(cells)) == 1}
    columns = {name: cells for name, cells in columns.items() if name not in same} or columns
    cut = f"{len(frame):,} of {total:,} rows" + (", those for all emotions together" if pooled else "") if long else ""
    return {"columns": list(columns), "rows": list(zip(*columns.values())), "same": {name: text for name, text in same.items() if text}, "cut": cut}


def _cells(column: pd.Series) -> list[tuple[bool, str]]:
    """(is a number, text) of each cell: whole numbers whole, others with as many digits as the column's size asks for."""
    if not pd.api.types.is_numeric_dtype(column) or column.dtype == bool:
        return [(False, "" if pd.isna(value) else str(value)) for value in column]
    size, whole = column.abs().max(), bool((column.dropna() % 1 == 0).all())
    digits = 0 if whole else 4 if size < 10 else 2 if size < 1000 else 1

    def text(value: float) -> str:
        tiny = not whole and 0 < abs(value) < 0.5 * 10.0**-digits
        return "" if pd.isna(value) else f"{value:.0e}" if tiny else f"{value:.{digits}f}"

    return [(True, text(value)) for value in column]


# --------------------------------------------------------------------------------------------------------------------- the gallery

def _gallery(study: Study) -> dict:
    """What the page's gallery draws: sources "mean" and "faces" (None where there is nothing, `why` says why), names and colours."""
    first = study.preset.scheme[0]
    arms = {name.split(" ")[1]: several[0] for name, several in study.finished("06").items() if name.split(" ")[0] == first}
    arms = {training: run for training, run in arms.items() if run.has_weights}
    real = study.data.faces.source != "synthetic"
    why = ("Single faces of a real data set are left out of a page that may be passed on: run the study without --no-faces, and they are in "
           "faces/report.html on your own machine." if real and not study.show_faces else
           "" if arms else f"Single faces are left out: their maps need the weights of the {MODEL_NAMES[first]}s, which are not on this machine.")
    return {"emotions": EMOTIONS, "colours": list(EMOTION_COLOURS.values()), "methods": METHOD_NAMES, "short": SHORT, "why": why,
            "trainings": {name: TRAININGS["unmasked", name] if name == "perturb" else TRAININGS[name, "baseline"] for name in SHORT},
            "lut": _base64(np.round(255 * matplotlib.colormaps["RdBu_r"](np.arange(256))[:, :3])),
            "mean": _means(study, LEAST if real and not study.show_faces else 1), "faces": None if why else _singles(study.data, first, arms)}


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, np.uint8).tobytes()).decode()


def _signed(maps: np.ndarray, reach: float) -> str:
    """Maps as bytes 1 to 255, 128 is zero, +-reach the ends."""
    return _base64(np.round(127 * np.clip(np.nan_to_num(maps) / reach, -1, 1)) + 128)


def _unit(maps: np.ndarray) -> np.ndarray:
    """Maps [n, 48, 48] scaled to a mean absolute value of 1 each, as in measures; zero maps stay zero."""
    size = np.abs(maps).mean((1, 2), keepdims=True)
    return maps / np.where(size > 0, size, 1)


def _source(items: list[dict], faces: dict, edges: dict, networks: dict[str, dict]) -> dict:
    """One source for the page. `faces`, `edges` and the maps of a training are float [n, 48, 48] by kind of face (and method); all maps of a
    method have one scale, whatever their network and training: the 99.5th percentile of their absolute values, as in figure 06_maps."""
    every: dict[str, list] = {}
    for network in networks.values():
        for training in network["trainings"].values():
            for key, maps in training["maps"].items():
                every.setdefault(key.split(" ")[0], []).append(np.abs(maps).ravel())
    reach = {method: float(np.nanpercentile(np.concatenate(every[method]), 99.5)) or 1.0 for method in METHODS if method in every}
    for training in (training for network in networks.values() for training in network["trainings"].values()):
        training["maps"] = {key: _signed(maps, reach[key.split(" ")[0]]) for key, maps in training["maps"].items()}
    end = max(float(np.percentile(maps, 99.5)) for maps in edges.values()) or 1.0
    return {"items": items, "reach": reach, "edge_reach": end, "edges": {kind: _signed(maps, end) for kind, maps in edges.items()},
            "faces": {kind: _base64(np.clip(np.round(images), 0, 255)) for kind, images in faces.items()}, "networks": networks}


def _means(study: Study, least: int) -> dict | None:
    """Mean maps over mean faces of the emotions with at least so many faces, from stored measures; untrained nets are drawn now."""
    data, networks, index = study.data, {}, fixed_faces(study.data, MAP_ROWS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    labels, points, frame = data.faces.labels[index].astype(np.int64), data.landmarks.points[index], data.landmarks.points.mean(0)
    x, faces = _input(data, data.faces.images[index], device), mean_faces(data)
    some = [c for c in range(len(EMOTIONS)) if (labels == c).sum() >= least and np.ptp(faces[c]) > 0]
    for grid in ("06", "06_seeds"):
        for name, several in study.finished(grid).items():
            model, training = name.split(" ")
            runs = [run for run in several if run.measured("saliency")]
            if not runs or not some:
                continue
            known = networks.setdefault(f"{grid} {model}", {"name": MODEL_NAMES[model] + ", small" * (grid != "06"), "trainings": {}})["trainings"]
            measured = [run.measured("saliency") for run in runs]
            maps = {method: np.mean([one["maps"][one["methods"].tolist().index(method)][some] for one in measured], 0, np.float32) for method in METHODS}
            known[training] = {"seeds": len(runs), "maps": {f"{method} unmasked": one for method, one in maps.items()},
                               **_predictions(runs, data, {c: data.labels("test") == c for c in some})}
            if "untrained" in known:
                continue
            untrained, layer = runs[0].spec.build().to(device).eval(), str(measured[0]["layer"]).split(",")[0]
            known["untrained"] = {"maps": {}}
            for method in METHODS if (grid, model) == ("06", study.preset.scheme[0]) else FAST:
                found = attribute(untrained, x, labels, method, **{"grad_cam": {"layer": layer}, **SETTINGS}.get(method, {}))
                known["untrained"]["maps"][f"{method} unmasked"] = mean_maps(align(found, points, frame), labels)[0].cpu().numpy()[some]
    if not networks:
        return None
    edges = data.mean_faces("unmasked", move=lambda images, at: align(_unit(edge_map(_input(data, images)).numpy()), at, frame).numpy())
    return _source([{"emotion": c, "n": int((labels == c).sum())} for c in some], {"unmasked": faces[some]}, {"unmasked": edges[some]}, networks)


def _input(data: Dataset, images: np.ndarray, device: str = "cpu") -> torch.Tensor:
    return standardise(to_float(torch.as_tensor(np.ascontiguousarray(images)).to(device)), data.scaling)  # (n, 1, 48, 48)


def _predictions(runs: list[Run], data: Dataset, rows: dict, kinds: tuple[str, ...] = ("unmasked",)) -> dict:
    """By kind of face the mean probabilities [n][7] over `rows`, {class: places in the test split}, and the share answered right [n]."""
    found = {"probs": {}, "right": {}}
    for kind in kinds:
        p = [softmax(run.logits(f"test_{kind}"), 1) for run in runs]
        found["probs"][kind] = [np.mean([one[at].mean(0) for one in p], 0).round(3).tolist() for at in rows.values()]
        found["right"][kind] = [round(float(np.mean([(one[at].argmax(1) == data.labels("test")[at]).mean() for one in p])), 3) for at in rows.values()]
    return found


def _singles(data: Dataset, model: str, arms: dict[str, Run]) -> dict:
    """A few fixed test faces an emotion, unmasked and masked, as the first network's trainings see them; needs their weights."""
    test, device = data.faces.where("test"), "cuda" if torch.cuda.is_available() else "cpu"
    index = fixed_faces(data, max(1, len(test) // FACES))
    index = index[np.argsort(data.faces.labels[index], kind="stable")]
    faces = {kind: data.images(kind)[index] for kind in VARIANTS}
    x, labels = _input(data, np.concatenate(list(faces.values())), device), np.tile(data.faces.labels[index].astype(np.int64), len(faces))
    models = {training: run.model(device) for training, run in arms.items()} | {"untrained": next(iter(arms.values())).spec.build().to(device).eval()}
    layer, trainings = cam_layer(next(iter(models.values())), x)[0], {}
    places = {i: [place] for i, place in enumerate(np.searchsorted(test, index))}
    for training, network in models.items():
        trainings[training] = {"maps": {}} if training == "untrained" else {"seeds": 1, "maps": {}, **_predictions([arms[training]], data, places, VARIANTS)}
        for method, settings in SINGLE.items():
            maps = _unit(attribute(network, x, labels, method, **settings, **({"layer": layer} if method == "grad_cam" else {})).cpu().numpy())
            trainings[training]["maps"] |= {f"{method} {kind}": maps[i * len(index):(i + 1) * len(index)] for i, kind in enumerate(faces)}
    edges = _unit(edge_map(x.cpu()).numpy())
    return _source([{"emotion": int(data.faces.labels[i]), "n": 1} for i in index], faces,
                   {kind: edges[i * len(index):(i + 1) * len(index)] for i, kind in enumerate(faces)}, {f"06 {model}": {"name": MODEL_NAMES[model], "trainings": trainings}})
