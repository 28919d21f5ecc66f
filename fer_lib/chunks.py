"""The runs of a study in order of worth, for as long as there is time: how a GPU machine that is lent for minutes is used.

    python -m fer_lib train --preset full --data fer2013.csv --minutes 8 --pack runs.tar      # again and again, until nothing is missing

No notebook runs and no table is made. What is being trained when time is up stands at its last epoch's checkpoint and goes on from there on the
same machine. The archive holds the finished runs' small files; unpacked into the results of another machine they are that machine's own:

    tar -xf runs.tar -C results
"""
import logging
import os
import tarfile
import time
from importlib.util import find_spec
from pathlib import Path

from .runs import RunSpec
from .schedule import Schedule
from .study import GRIDS, Study, telling

log = logging.getLogger(__name__)

# (grid, seeds): what is worth most comes first; a grid named twice goes on with its other seeds. What is not named comes last.
WORTH = (("02", 1), ("02", None), ("03", 1), ("05", 1), ("05_controls", 1), ("06_seeds", 1), ("05", None), ("05_controls", None), ("06_seeds", None),
         ("04", None), ("07", 1), ("08", 1), ("07", None), ("08", None), ("05_second", None))

NEEDED = ("captum", "loky", "pandas", "safetensors", "scipy", "sklearn", "statsmodels", "timm")  # some only when a run ends


def by_worth(study: Study, grids: tuple[str, ...] = ()) -> list[tuple[str, list[RunSpec]]]:
    """Chunks (name, specs) of the study's runs, each run once, where it is worth most; of all grids or of those named. Parents come with them."""
    found, known = [], set()
    for grid, seeds in (*WORTH, *((grid, None) for grid in GRIDS)):
        if not grids or grid in grids:
            specs = [spec for several in study.specs(grid).values() for spec in several[:seeds]]
            fresh = list({spec.key: spec for spec in specs if spec.key not in known}.values())
            known |= {spec.key for spec in fresh}
            found += [(f"{grid}, {seeds or 'all'} seed{'s' * (seeds != 1)}", fresh)] if fresh else []
    return found


def train(study: Study, minutes: float, grids: tuple[str, ...] = (), device: str | None = None, executor: str = "processes",
          address: str = "", archive: Path | None = None) -> tuple[list[RunSpec], dict[str, BaseException]]:
    """Train what the store lacks, most worth first, until `minutes` are over; returns what is still missing, or unmeasured, and what stopped runs.
    `archive` is packed anew after each run that ends, so that it is whole whenever the machine is taken away.

    Everything that any grid measures of a run is measured when it ends, while its weights are at hand. ValueError where a package that this takes is
    not installed.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ValueError(f"Not installed, and needed when a run ends: {', '.join(missing)}. Install them (pip install -e .) before training.")
    measures, chunks = study.measures(), by_worth(study, grids)
    groups = [[(spec, measures.get(spec.key, {})) for spec in specs] for _, specs in chunks]
    schedule = Schedule(groups, study.data, study.store, study.workers, device, time.time() + 60 * minutes, executor, address)
    if archive:
        schedule.ended = lambda: pack(study, archive)
    with telling(study.store, schedule):
        schedule.run()
    lacking = Schedule(groups, study.data, study.store).jobs
    for name, specs in chunks:
        log.info("%s: %d of %d runs are there", name, sum(spec.key not in lacking for spec in specs), len(specs))
    return [spec for _, specs in chunks for spec in specs if spec.key in lacking], schedule.failed


def pack(study: Study, path: Path) -> int:
    """Write the finished runs' files that live in git (no weights) into a tar, whole or not at all; returns how many runs."""
    runs = study.store.all()
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with tarfile.open(temporary, "w") as archive:
        for file in (file for run in runs for file in sorted(run.path.iterdir()) if file.suffix != ".safetensors"):
            archive.add(file, f"{study.name}/runs/{file.parent.name}/{file.name}")
    os.replace(temporary, path)
    return len(runs)
