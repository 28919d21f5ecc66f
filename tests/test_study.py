"""The whole study from nothing on synthetic faces: all notebooks at `smoke`, by the command a stranger gives. Runs last."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fer_lib.study import GRIDS, NOTEBOOKS, find_notebooks
from fer_lib.tables import TABLES

pytestmark = pytest.mark.study
ROOT = NOTEBOOKS.parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """results/smoke of one run of the whole study."""
    results = tmp_path_factory.mktemp("study")
    said = command("run", "--workers", "2", "--results", str(results))
    assert said.returncode == 0, said.stderr[-2000:]
    return results / "smoke"


def command(*words: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "FER2013"}
    search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run([sys.executable, "-m", "fer_lib", *words], cwd=ROOT, env={**environment, "PYTHONPATH": search},
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_every_notebook_is_executed_and_in_the_manifest(finished):
    names = [path.stem for path in find_notebooks(NOTEBOOKS)]
    manifest = json.loads((finished / "manifest.json").read_text())
    assert list(manifest["notebooks"]) == names
    assert sorted(path.stem for path in (finished / "notebooks").glob("*.ipynb")) == names
    assert not any("failed" in entry for entry in manifest["notebooks"].values())
    assert manifest["data"]["source"] == "synthetic" and manifest["runs"]


def test_every_run_is_stored_whole(finished):
    for folder in (finished / "runs").iterdir():
        assert {"spec.json", "history.csv", "metrics.json", "logits.npz", "measures.npz", "machine.json", "weights.safetensors"} == \
            {path.name for path in folder.iterdir()}
    assert not list((finished / "training").glob("*"))


def test_every_table_and_figure_is_written(finished):
    written = {path.stem for path in (finished / "tables").glob("*.csv")}
    assert written == set(TABLES)
    for text in ((finished / "tables" / f"{name}.csv").read_text() for name in written):
        assert "source" in text.split("\n", 1)[0].split(",") and "synthetic" in text
    for path in find_notebooks(NOTEBOOKS):
        asked = set(re.findall(r'"(\d\d_\w+)"', path.read_text().replace('\\"', '"')))
        figures = {figure.stem for figure in (finished / "figures").glob(f"{path.stem[:2]}_*.png")}
        assert figures and asked <= figures | written | set(GRIDS), path.name


def test_verify_gives_every_metric_and_table_again(finished):
    said = command("verify", "--results", str(finished.parent))
    assert said.returncode == 0, said.stdout + said.stderr
    assert f"{len(list((finished / 'runs').iterdir()))} runs and {len(TABLES)} tables" in said.stdout and "all as stored" in said.stdout


def test_runs_says_that_nothing_is_missing(finished):
    said = command("runs", "--results", str(finished.parent))
    assert said.returncode == 0 and " 0 begun, 0 missing" in said.stdout


def test_copies_and_manifest_hold_no_path(finished):
    for path in [*(finished / "notebooks").iterdir(), finished / "manifest.json"]:
        assert str(finished.parent) not in path.read_text() and str(ROOT) + "/" not in path.read_text()
