"""The command line of the study: run it, look at a data set, fold paired pictures, list what is stored, check what is committed.

    python -m fer_lib run --preset smoke                      # synthetic faces, no data needed
    python -m fer_lib run --preset reduced --data fer2013.csv --only 02 05
    python -m fer_lib data fer2013.csv
    python -m fer_lib explain me.jpg --out me_map.png         # one picture, with a network that comes along
    python -m fer_lib folds msd_e/pairs.csv                   # real masked faces, see pairs.py
    python -m fer_lib train --preset full --data fer2013.csv --minutes 8 --pack runs.tar      # see chunks.py
    python -m fer_lib runs --preset reduced --data fer2013.csv
    python -m fer_lib verify --preset reduced --data fer2013.csv

The variable FER2013 stands for --data. Exit codes: 0 all well, 1 a notebook failed or something differs, 2 bad input, 130 stopped.
"""
import argparse
import json
import logging
import os
import re
import shlex
import sys
import time
from pathlib import Path

import pandas as pd

from . import bench, chunks, fer2013, pairs
from .runs import COMPILE, Store
from .study import GRIDS, PRESETS, NotebookFailed, open_study, results_folder, run_study, to_csv, used, write_whole
from .verify import verify


def run(args) -> int:
    """Run the notebooks and say where everything lies."""
    study = run_study(args.preset, args.data, args.results, args.votes, args.maskfer_rows, args.seeds, args.workers, not args.no_faces,
                      tuple(args.only), args.executor, args.address, args.device)
    print(f"The study at preset {args.preset!r} on {study.data.faces.source} faces is complete.")
    for what, pattern in {"tables": "*.csv", "figures": "*.png", "notebooks": "*.ipynb"}.items():
        for folder in (study.root / what, study.root / what / "faces"):
            if count := len(list(folder.glob(pattern))):
                print(f"  {what:<10} {count:>3}  {_short(folder)}" + ("  (individual faces: not to be published)" if folder.name == "faces" else ""))
    print(f"  manifest        {_short(study.root / 'manifest.json')}")
    for page in (study.root / "report.html", study.root / "faces" / "report.html"):
        if page.exists():
            print(f"  report          {_short(page)}" + ("  (individual faces: not to be published)" if page.parent.name == "faces" else ""))
    return 0


def data(args) -> int:
    """Report what a data set holds."""
    path = args.path or os.environ.get("FER2013")
    if not path:
        raise ValueError("No data: give a path, or set the variable FER2013.")
    faces = fer2013.load(path)
    frames = fer2013.report(faces, fer2013.votes(args.votes, faces) if args.votes else None)
    about = frames.pop("source").to_dict("records")[0]
    tidy = frames["integrity"]
    if args.json:
        print(json.dumps({**about, **{name: _records(frame) for name, frame in frames.items()}}, indent=1))
        return 0
    print(f"{about['source']}: {about['faces']} faces, fingerprint {about['fingerprint']}\n")
    titles = {"counts": "Faces", "copies": "Copies (blank images set apart), conflicting labels, blanks", "agreement": "Share that agrees with FER+"}
    for name, title in titles.items():
        if name in frames:
            print(f"{title}\n{frames[name].to_string(float_format='%.3f')}\n")
    off = tidy[(tidy["value"] - tidy["expected"]).abs() > 0.0051]  # expected shares are rounded to 0.01
    if len(off):
        print(f"Differs from FER2013 itself in\n{off.to_string(index=False)}")
    elif tidy["expected"].notna().any():
        print("All as in FER2013 itself.")
    return 0


def explain(args) -> int:
    """Draw what a network sees in one picture."""
    from .explore import explain_file  # captum takes a second to come

    print(explain_file(args.picture, args.out, args.model, args.method, args.target, args.results))
    print(f"  {args.out}")
    return 0


def folds(args) -> int:
    """Split paired pictures into folds by person and say how the study is run on one."""
    files = pairs.write_folds(args.path, args.folds)
    print(*map(_short, files), sep="\n")
    print("Run the study on one of them, each with results of its own, or the tables of one replace another's:\n"
          f"  python -m fer_lib run --preset reduced --data {shlex.quote(_short(files[0]))} "
          f"--results {shlex.quote(_short(files[0].with_name('results_fold0')))}")
    return 0


def measure(args) -> int:
    """Measure, print the table, and keep it by the machine's name."""
    frame = bench.measure(tuple(args.benches))
    print(frame.drop(columns=["device", "threads", "torch"]).to_string(index=False, float_format="%.3g", na_rep=""))
    print(f"{frame['device'][0]}, {frame['threads'][0]} threads, torch {frame['torch'][0]}")
    path = results_folder(args.results) / "bench" / f"{re.sub('[^a-z0-9]+', '-', frame['device'][0].lower()).strip('-')}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        before = pd.read_csv(path)
        frame = pd.concat([before[~before["bench"].isin(frame["bench"])], frame])
    write_whole(path, to_csv(frame))
    print(f"kept in {_short(path)}")
    return 0


def train(args) -> int:
    """Train what is missing, most worth first, for some minutes."""
    if unknown := [grid for grid in args.grids if grid not in GRIDS]:
        raise ValueError(f"There is no grid {', '.join(unknown)}: choose from {', '.join(GRIDS)}.")
    began = time.time()
    study = open_study(args.preset, args.data, args.results, args.votes, args.maskfer_rows, args.seeds, args.workers)
    minutes = args.minutes - (time.time() - began) / 60  # to read the data takes some of them
    left, failed = chunks.train(study, minutes, tuple(args.grids), args.device, args.executor, args.address, Path(args.pack) if args.pack else None)
    for key, error in failed.items():
        print(f"{key} stopped: {type(error).__name__}: {error}", file=sys.stderr)
    again = ": mend what stopped, then give the same command again." if failed else ": give the same command again." if left else "."
    print(f"{len(left)} runs are still missing{again}")
    if args.pack:
        print(f"{chunks.pack(study, Path(args.pack))} runs packed into {args.pack}: unpack with tar -xf {args.pack} -C results")
    return 1 if failed else 0


def runs(args) -> int:
    """List the store of a preset: finished, begun and missing runs."""
    if args.preset not in PRESETS:
        raise ValueError(f"Unknown preset {args.preset!r}: use one of {', '.join(PRESETS)}.")
    known = args.data or os.environ.get("FER2013") or args.preset == "smoke"
    study = _study(args) if known else None
    store = study.store if study else Store(results_folder(args.results) / args.preset)
    frame = listing(store, used(study) if study else [])
    if len(frame):
        print(frame.to_string(index=False, na_rep=""))
    counts = frame["state"].value_counts()
    print(", ".join(f"{counts.get(state, 0)} {state}" for state in ("finished", "begun", *(["missing"] if study else []))),
          f"in {_short(store.root)}; the finished ones took {frame['minutes'].sum():.1f} min.")
    if not study:
        print("What is missing is known with the data: give --data, or the variable FER2013.")
    return 0


def listing(store: Store, wanted: list) -> pd.DataFrame:
    """One line a run, columns run, state (finished, begun, missing), epochs ("3 of 12"), minutes, device: the wanted specs first, then
    whatever else the store holds."""
    finished, begun = {run.key: run for run in store.all()}, store.progress()
    epochs = {spec.key: spec.recipe.epochs for spec in [*wanted, *(run.spec for run in finished.values())]}
    lines = []
    for key in dict.fromkeys([*epochs, *begun]):
        if key in finished:
            machine = finished[key].machine
            lines.append((key, "finished", f"{epochs[key]}", machine["seconds"] / 60, machine["device"]))
        elif key in begun:
            lines.append((key, "begun", f"{begun[key]['epoch']} of {begun[key]['epochs']}", None, ""))
        else:
            lines.append((key, "missing", f"0 of {epochs[key]}", None, ""))
    return pd.DataFrame(lines, columns=["run", "state", "epochs", "minutes", "device"]).astype({"minutes": float}).round({"minutes": 1})


def check(args) -> int:
    """Compute stored metrics and tables again and say what differs."""
    manifest = results_folder(args.results) / args.preset / "manifest.json"
    made = json.loads(manifest.read_text()) if manifest.exists() else {"seeds": None, "parameters": {}}
    study = _study(args, args.seeds or made["seeds"])
    print(f"Labels come from {study.data.faces.source} faces, {study.data.fingerprint}.")
    found = verify(study)
    for line in found.unchecked:
        print(f"not checked: {line}")
    for line in found.differences:
        print(f"differs: {line}")
    print(f"{found.runs} runs and {found.tables} tables of {_short(study.root)} computed again: "
          + (f"{len(found.differences)} differences." if found.differences else "all as stored."))
    lacking = [f"--{name.replace('_', '-')} {made['parameters'][name]}" for name in ("votes", "maskfer_rows")
               if made["parameters"].get(name) and not getattr(args, name)]
    if lacking and any(line.startswith("tables/") for line in found.differences):
        print(f"The tables were made with {' '.join(lacking)}: give the same.")
    return 1 if found.differences else 0


def _study(args, seeds: list[int] | None = None):
    """The study that the arguments name."""
    return open_study(args.preset, args.data, args.results, args.votes, args.maskfer_rows, seeds or args.seeds)


def _records(frame: pd.DataFrame) -> list[dict]:
    flat = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
    return json.loads(flat.to_json(orient="records"))


def _short(path: Path) -> str:
    """A path as seen from the working directory."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m fer_lib", description="Facial expressions behind masks: the study's command line.")
    commands = top.add_subparsers(required=True, metavar="run | data | explain | folds | train | runs | verify | bench")
    about_study = argparse.ArgumentParser(add_help=False)
    about_study.add_argument("--preset", default="smoke", help=f"how strong: {', '.join(PRESETS)} (default: smoke)")
    about_study.add_argument("--data", default="", help="FER2013 in any form (default: the variable FER2013, else synthetic faces)")
    about_study.add_argument("--results", default="", help="folder of results (default: results/ of the checkout)")
    about_study.add_argument("--seeds", type=int, nargs="+", help="seeds of every run (default: the preset's)")
    about_study.add_argument("--votes", default="", help="FER+'s fer2013new.csv")
    about_study.add_argument("--maskfer-rows", default="", help="the rows of the first paper's MaskFer")

    command = commands.add_parser("run", parents=[about_study], help="run the notebooks in order")
    command.add_argument("--only", nargs="+", default=[], help="numbers of notebooks: 02 05")
    command.add_argument("--workers", type=int, default=1, help="runs trained at a time (default: 1)")
    _where(command)
    command.add_argument("--no-faces", action="store_true", help="show no individual face of a real data set, as in committed copies")
    command.set_defaults(do=run)
    command = commands.add_parser("train", parents=[about_study], help="train what is missing, most worth first, for some minutes")
    command.add_argument("--minutes", type=float, default=8.0,
                         help="after so many no epoch is begun: what stops at its checkpoint may take an epoch longer (default: 8)")
    command.add_argument("--grids", nargs="+", default=[], help=f"of {', '.join(GRIDS)} (default: all)")
    command.add_argument("--workers", type=int, default=1, help="runs trained at a time (default: 1)")
    _where(command)
    command.add_argument("--pack", default="", help="tar to write the finished runs into, without weights")
    command.set_defaults(do=train)
    command = commands.add_parser("data", help="report what a data set holds")
    command.add_argument("path", nargs="?", default="", help="FER2013 in any form (default: the variable FER2013)")
    command.add_argument("--votes", default="", help="FER+'s fer2013new.csv")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(do=data)
    command = commands.add_parser("explain", help="what a network sees in one picture: its map and the probabilities")
    command.add_argument("picture", help="PNG or JPEG with a face")
    command.add_argument("--out", required=True, help="PNG to write")
    command.add_argument("--model", default="unmasked", help="unmasked, masked or perturb, or a file kept by notebook 06 (default: unmasked)")
    command.add_argument("--method", default="integrated_gradients", help="saliency, integrated_gradients, smoothgrad, guided_backprop, grad_cam, occlusion")
    command.add_argument("--target", default="", help="emotion to explain (default: the one the network gives)")
    command.add_argument("--results", default="", help="folder of results (default: results/ of the checkout)")
    command.set_defaults(do=explain)
    command = commands.add_parser("folds", help="split paired pictures, with and without a real mask, into folds by person")
    command.add_argument("path", help="csv with the columns person,emotion,unmasked,masked beside the pictures")
    command.add_argument("--folds", type=int, default=10, help="how many (default: 10)")
    command.set_defaults(do=folds)
    commands.add_parser("runs", parents=[about_study], help="list finished, begun and missing runs").set_defaults(do=runs)
    command = commands.add_parser("bench", help="how fast the study is, as ratios measured side by side")
    command.add_argument("benches", nargs="*", help=f"of {', '.join(bench.BENCHES)} (default: all)")
    command.add_argument("--results", default="", help="folder of results (default: results/ of the checkout)")
    command.set_defaults(do=measure)
    commands.add_parser("verify", parents=[about_study], help="compute stored metrics and tables again").set_defaults(do=check)
    return top


def _where(command: argparse.ArgumentParser) -> None:
    """The arguments that say what trains."""
    command.add_argument("--executor", default="processes", choices=("processes", "ray"), help="what trains: processes of this machine (default), or ray")
    command.add_argument("--address", default="", help="of a running Ray cluster, or auto: the one this machine is part of (default: this machine alone)")
    command.add_argument("--device", choices=("cpu", "cuda"), help="what runs are trained on (default: a GPU where there is one)")
    command.add_argument("--compile", action="store_true", help="train through torch.compile (may pay on a GPU, does not on a CPU)")


def main(words: list[str] | None = None) -> int:
    args = parser().parse_args(words)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("fer_lib").setLevel(logging.INFO)
    if getattr(args, "compile", False):
        os.environ[COMPILE] = "1"
    try:
        return args.do(args)
    except NotebookFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:  # DataError is a ValueError
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. Finished runs and checkpoints are kept: the same command goes on from there.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
