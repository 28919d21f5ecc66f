"""Verify: every stored metric and every committed table, computed again from stored logits and measures, without Jupyter.

    found = verify(open_study("reduced", "fer2013.csv"))
    found.differences        # [] when all is as it was committed

Labels come from the data set, so the one that the runs were trained on is needed; weights are not.
"""
import math
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

from .runs import Run, stored_metrics
from .study import Study, to_csv
from .tables import TABLES  # study has loaded claims, whose table is among them

TOLERANCE = 1e-9  # relative; sums of float64 may differ in the last digits between machines


@dataclass
class Verdict:
    """What was computed again, and one line for each thing that differs or could not be checked."""

    runs: int = 0
    tables: int = 0
    differences: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def verify(study: Study) -> Verdict:
    """Compare the study's stored metrics.json and tables/*.csv with what its stored logits and measures give.

    Tables are compared byte for byte. Runs of other data and tables that no function of TABLES builds are listed as unchecked.
    Raises ValueError when nothing is stored, or nothing that belongs to the study's data.
    """
    found, stored = Verdict(), study.store.all()
    tables = sorted((study.root / "tables").glob("*.csv"))
    own = [run for run in stored if run.spec.data == study.data.fingerprint]
    if not stored and not tables:
        raise ValueError(f"Nothing is stored in {study.root}: run the study first, or name its folder by --results and --preset.")
    if stored and not own:
        raise ValueError(f"None of the {len(stored)} runs in {study.store.runs} belongs to this data ({study.data.faces.source}, "
                         f"{study.data.fingerprint}): give the data they were trained on by --data, or by the variable FER2013.")
    if len(own) < len(stored):
        found.unchecked.append(f"{len(stored) - len(own)} runs were trained on other data")
    for run in own:
        found.runs += 1
        found.differences += [f"runs/{run.key}: {line}" for line in _run(run, study)]
    for path in tables:
        if path.stem not in TABLES:
            found.unchecked.append(f"tables/{path.name}: no function of tables.py builds it")
            continue
        found.tables += 1
        found.differences += [f"tables/{path.name}: {line}" for line in _table(path.stem, path.read_text(), study)]
    return found


def _run(run: Run, study: Study) -> list[str]:
    if run.spec.key != run.key:
        return [f"its spec.json is that of {run.spec.key}"]
    try:
        with np.load(run.path / "logits.npz") as arrays:
            again = stored_metrics(dict(arrays), study.data)
        return list(_differences(run.metrics, again))
    except Exception as error:  # a damaged file may raise nearly anything; it is told and the others are still checked
        return [f"cannot be computed again ({type(error).__name__}: {error})"]


def _differences(stored, again, at: str = ""):
    """One line for each value of two JSON trees that differs."""
    if isinstance(stored, dict) and isinstance(again, dict):
        for name in {**stored, **again}:
            if name in stored and name in again:
                yield from _differences(stored[name], again[name], f"{at}.{name}".lstrip("."))
            else:
                yield f"{at}.{name}".lstrip(".") + (" is not stored" if name in again else " is stored, but nothing gives it")
    elif isinstance(stored, list) and isinstance(again, list) and len(stored) == len(again):
        for i, (a, b) in enumerate(zip(stored, again)):
            yield from _differences(a, b, f"{at}[{i}]")
    elif not _same(stored, again):
        yield f"{at} is stored as {stored} and computed as {again}"


def _same(a, b) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (math.isnan(a) and math.isnan(b))
    return a == b


def _table(name: str, stored: str, study: Study) -> list[str]:
    grid, build = TABLES[name]
    try:
        again = to_csv(build(study.finished(grid) if grid else {}, study.data))
    except Exception as error:  # a builder may raise anything on runs that are not there
        return [f"cannot be built again ({type(error).__name__}: {error})"]
    if again == stored:
        return []
    lines = [(i + 1, a, b) for i, (a, b) in enumerate(zip_longest(stored.splitlines(), again.splitlines())) if a != b]
    if not lines:
        return ["differs in its line ends"]
    line, a, b = lines[0]
    return [f"{len(lines)} lines differ, first line {line}: stored {'nothing' if a is None else a}, "
            f"computed {'nothing' if b is None else b}"]
