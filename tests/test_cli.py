"""The command line and the driver, on made-up notebooks and a data set of 140 synthetic faces."""
import itertools
import json
import logging
import os
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import nbformat
import pandas as pd
import pytest
from PIL import Image

from fer_lib import study
from fer_lib.__main__ import main
from fer_lib.runs import COMPILE, stored_metrics
from fer_lib.study import declared, find_notebooks, open_study, to_csv, used, without_paths
from fer_lib.tables import TABLES, Table

PARAMETERS = """preset = "smoke"
data = ""
results = ""
votes = ""
maskfer_rows = ""
seeds: list = []
workers = 1
show_faces = True"""


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A smoke preset of few faces, no data in the environment, notebooks in a folder of their own that need no runs."""
    monkeypatch.delenv("FER2013", raising=False)
    monkeypatch.setattr(study, "_grids", lambda notebook: ())
    monkeypatch.setitem(study.PRESETS, "smoke", replace(study.PRESETS["smoke"], sizes=(70, 35, 35)))
    (tmp_path / "made_up").mkdir()
    monkeypatch.setattr(study.run_study, "__defaults__", (*study.run_study.__defaults__[:-1], tmp_path / "made_up"))
    monkeypatch.chdir(tmp_path)
    yield
    logging.getLogger("fer_lib").setLevel(logging.NOTSET)


def write(name: str, *sources: str, parameters: str = PARAMETERS) -> None:
    cells = [nbformat.v4.new_markdown_cell("# made up"), nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    nbformat.write(nbformat.v4.new_notebook(cells=cells + [nbformat.v4.new_code_cell(source) for source in sources],
                                            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}),
                   Path("made_up") / f"{name}.ipynb")


def one_sentence(capsys) -> str:
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.count("\n") == 1
    return said


# ---- run ----

def test_run_keeps_executed_copies_without_anything_of_the_machine(tmp_path, capsys, monkeypatch):
    foreign = tmp_path / "jupyter" / "kernels" / "python3"  # a `python3` of the user's that must not be taken
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "other", "language": "python"}))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    write("02_second", "import sys, fer_lib\nprint(sys.executable, fer_lib.__file__, results, seeds)")
    write("01_first", "import warnings\nwarnings.warn('careful')\nresults + '/smoke'", "show_faces")
    assert main(["run", "--results", str(tmp_path / "out"), "--seeds", "0", "1", "--no-faces"]) == 0
    assert "notebooks    2  out/smoke/notebooks" in capsys.readouterr().out
    copies = sorted((tmp_path / "out/smoke/notebooks").iterdir())
    assert [copy.name for copy in copies] == ["01_first.ipynb", "02_second.ipynb"]
    for copy in copies:
        text = copy.read_text()
        for private in (str(tmp_path), sys.prefix + "/", str(Path(study.__file__).parents[1]), "papermill", "iopub", "ipykernel_", "/false"):
            assert private not in text
    first, second = (nbformat.read(copy, 4) for copy in copies)
    assert [cell.id for cell in first.cells].count("injected-parameters") == 1
    assert "out/smoke" in str(first.cells[3].outputs) and first.cells[4].outputs[0].data["text/plain"] == "False"
    assert "fer_lib/__init__.py out [0, 1]" in second.cells[3].outputs[0].text
    manifest = json.loads((tmp_path / "out/smoke/manifest.json").read_text())
    assert list(manifest["notebooks"]) == ["01_first", "02_second"] and manifest["parameters"]["results"] == "out"
    assert manifest["data"]["source"] == "synthetic" and manifest["seeds"] == [0, 1] and manifest["packages"]["torch"]
    assert str(tmp_path) not in json.dumps(manifest)
    assert os.environ.get("JUPYTER_PATH") is None or str(tmp_path) not in os.environ["JUPYTER_PATH"]


def test_run_stops_at_the_failing_cell_and_names_it(tmp_path, capsys):
    write("01_good", "1")
    write("02_bad", "1", "numbers = {}\nnumbers['seven']", "print('never')")
    write("03_after", "1")
    assert main(["run", "--results", "out"]) == 1
    said = capsys.readouterr().err
    assert "02_bad stopped at cell 4 of 5 (`numbers = {}`): KeyError: 'seven'" in said and "Traceback" not in said
    assert {path.name for path in Path("out/smoke/notebooks").iterdir()} == {"01_good.ipynb", "02_bad.failed.ipynb"}
    manifest = json.loads(Path("out/smoke/manifest.json").read_text())
    assert list(manifest["notebooks"]) == ["01_good", "02_bad"] and "cell 4 of 5" in manifest["notebooks"]["02_bad"]["failed"]
    write("02_bad", "1")
    assert main(["run", "--results", "out", "--only", "2"]) == 0
    assert {path.name for path in Path("out/smoke/notebooks").iterdir()} == {"01_good.ipynb", "02_bad.ipynb"}
    manifest = json.loads(Path("out/smoke/manifest.json").read_text())
    assert list(manifest["notebooks"]) == ["01_good", "02_bad"] and "failed" not in manifest["notebooks"]["02_bad"]


def test_a_notebook_begins_when_its_runs_are_there(monkeypatch, caplog):
    monkeypatch.setattr(study, "_grids", lambda notebook: ("03_seeds",) if notebook.stem == "03_needs" else ())
    write("01_first", "1")
    write("03_needs", "from fer_lib.study import Store\nrun, = Store(f'{results}/smoke').all()\nassert run.measured('attention')")
    caplog.set_level(logging.INFO, "fer_lib")
    assert main(["run", "--results", "out"]) == 0
    said = [record.getMessage() for record in caplog.records]
    ended, = (i for i, line in enumerate(said) if line.startswith("run 1 of 1 ended: vgg16-unmasked-s0-"))
    assert said.index("01_first begins (1 of 2)") < said.index("03_needs begins (2 of 2)") and ended < said.index("03_needs begins (2 of 2)")


def test_run_tells_a_kernel_that_died(capsys):
    write("01_dies", "import os\nos._exit(1)")
    assert main(["run", "--results", "out"]) == 1
    assert "01_dies stopped at cell 3 of 3 (`import os`): the kernel died" in capsys.readouterr().err


def test_parameter_that_a_notebook_does_not_declare_is_refused_before_anything_runs(capsys):
    write("01_good", "1")
    write("02_old", "1", parameters=PARAMETERS.replace("workers = 1", ""))
    assert main(["run", "--results", "out"]) == 2
    assert "02_old.ipynb declares no parameter workers" in one_sentence(capsys)
    assert not Path("out").exists()


@pytest.mark.parametrize("words, says", [
    (["run", "--preset", "huge"], "smoke, reduced, full, paper"),
    (["runs", "--preset", "huge"], "smoke, reduced, full, paper"),
    (["verify", "--preset", "huge"], "smoke, reduced, full, paper"),
    (["run", "--only", "99"], "choose from 01_good"),
    (["run", "--data", "nowhere.csv"], "nowhere.csv does not exist"),
    (["run", "--votes", "nowhere.csv"], "nowhere.csv"),
    (["run", "--maskfer-rows", "nowhere.csv"], "nowhere.csv"),
    (["run", "--workers", "0"], "workers must be at least 1"),
    (["run", "--seeds", "1", "1"], "every seed stand once"),
    (["data"], "FER2013"),
    (["data", "nowhere.csv"], "nowhere.csv does not exist"),
    (["verify"], "Nothing is stored"),
])
def test_bad_input_is_one_sentence_and_exit_code_two(words, says, capsys):
    write("01_good", "1")
    assert main(words + ([] if words[0] == "data" else ["--results", "out"])) == 2
    assert says in one_sentence(capsys)
    assert not Path("out/smoke").exists()


def test_variable_fer2013_stands_for_data(monkeypatch, capsys):
    write("01_good", "1")
    monkeypatch.setenv("FER2013", "nowhere.csv")
    for words in (["run"], ["data"], ["runs"], ["verify"]):
        assert main(words) == 2
        assert "nowhere.csv does not exist" in one_sentence(capsys)


def test_train_hands_on_what_trains_and_the_minutes_that_the_data_left(monkeypatch, capsys):
    given = []
    monkeypatch.setenv(COMPILE, "")
    monkeypatch.setattr("fer_lib.__main__.open_study", lambda *_: time.sleep(0.06))
    monkeypatch.setattr("fer_lib.chunks.train", lambda study, *rest: (given.extend(rest), ([], {}))[1])
    assert main(["train", "--minutes", "2", "--grids", "03", "--device", "cpu", "--executor", "ray", "--address", "auto", "--compile"]) == 0
    assert 1.9 < given[0] < 1.9991 and given[1:] == [("03",), "cpu", "ray", "auto", None] and os.environ[COMPILE] == "1"


def test_folder_without_notebooks_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no notebooks in"):
        find_notebooks(tmp_path)


def test_only_takes_numbers_and_names_and_keeps_the_order():
    for name in ("01_a", "02_b", "10_c"):
        write(name)
    assert [path.stem for path in find_notebooks(Path("made_up"), ("10", "1"))] == ["01_a", "10_c"]
    assert [path.stem for path in find_notebooks(Path("made_up"), ("02_b", "02"))] == ["02_b"]


def test_declared_reads_plain_and_annotated_parameters():
    write("01_a", "other = 1", parameters="a = 1  # why\nb: list = []")
    assert declared(Path("made_up/01_a.ipynb")) == {"a", "b"}


def test_paths_are_shortened_whole_only():
    parameters = {"data": "/far/faces.csv", "preset": "smoke"}
    assert without_paths("open('/far/faces.csv')", parameters) == "open('faces.csv')"
    assert without_paths("/far/faces.csv2 /very/far/faces.csv", parameters) == "/far/faces.csv2 /very/far/faces.csv"
    assert without_paths("/tmp/ipykernel_12/345.py:1: UserWarning", parameters) == "cell.py:1: UserWarning"
    assert without_paths(f"{Path(study.__file__)}:3", parameters) == "./fer_lib/study.py:3"


# ---- data ----

@pytest.fixture
def csv(tmp_path) -> str:
    """A file like fer2013.csv with two faces of each emotion in each split."""
    rng = np.random.default_rng(0)
    lines = [f"{label},{' '.join(map(str, rng.integers(0, 256, 2304)))},{usage}"
             for usage in ("Training", "PublicTest", "PrivateTest") for label in range(7) for _ in range(2)]
    (tmp_path / "few.csv").write_text("emotion,pixels,Usage\n" + "\n".join(lines) + "\n")
    return str(tmp_path / "few.csv")


def test_data_reports_counts_in_words_and_as_json(csv, capsys):
    assert main(["data", csv]) == 0
    said = capsys.readouterr().out
    assert "42 faces" in said and "disgust" in said and "Differs from FER2013 itself" in said
    assert main(["data", csv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["faces"] == 42 and found["counts"][0]["happy"] == 2 and {"copies", "integrity", "fingerprint"} <= set(found)


# ---- folds ----

@pytest.fixture
def paired(tmp_path) -> Path:
    """A csv of four people, each once happy and once sad, in a folder whose name has a space."""
    folder, rng = tmp_path / "my faces", np.random.default_rng(0)
    folder.mkdir()
    lines = ["person,emotion,unmasked,masked"]
    for person, emotion in itertools.product("abcd", ("happy", "sad")):
        names = [f"{person}_{emotion}_{kind}.png" for kind in ("unmasked", "masked")]
        lines.append(",".join((person, emotion, *names)))
        for name in names:
            Image.fromarray(rng.integers(0, 256, (48, 48), dtype=np.uint8)).save(folder / name)
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


def test_folds_names_its_files_and_a_command_that_runs(paired, capsys):
    assert main(["folds", "my faces/pairs.csv", "--folds", "4"]) == 0
    *files, _, command = capsys.readouterr().out.splitlines()
    assert files == [f"my faces/pairs_fold{k}.csv" for k in range(4)] and all(Path(file).is_file() for file in files)
    python, _, package, *words = shlex.split(command)
    assert (python, package) == ("python", "fer_lib") and words[-3:] == ["my faces/pairs_fold0.csv", "--results", "my faces/results_fold0"]
    write("01_reads", "from fer_lib.study import open_study\nopen_study(preset, data, results).data.faces.counts().sum(1).tolist()")
    assert main([*(word.replace("reduced", "smoke") for word in words), "--no-faces"]) == 0
    copy = nbformat.read("my faces/results_fold0/smoke/notebooks/01_reads.ipynb", 4)
    assert copy.cells[-1].outputs[-1].data["text/plain"] == "[4, 2, 2]"
    assert json.loads(Path("my faces/results_fold0/smoke/manifest.json").read_text())["data"]["source"] == "my faces"


@pytest.mark.parametrize("words, says", [(["folds", "nowhere.csv"], "nowhere.csv does not exist"), (["folds", "my faces/pairs.csv"], "10 folds"),
                                         (["run", "--data", "my faces/pairs.csv"], "fer_lib folds")])
def test_bad_pairs_are_one_sentence_and_exit_code_two(words, says, paired, capsys):
    write("01_good", "1")
    before = sorted(paired.parent.iterdir())
    assert main(words) == 2 and says in one_sentence(capsys)
    assert sorted(paired.parent.iterdir()) == before


# ---- runs and verify ----

@pytest.fixture
def stored(tmp_path):
    """A study in out/ with one finished run of made-up logits, another one begun."""
    opened = open_study("smoke", results="out")
    finished, begun = used(opened)[:2]
    folder = opened.store.runs / finished.key
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    logits = {f"{split}_{variant}": rng.normal(size=(35, 7)).astype(np.float16) for split in ("val", "test") for variant in ("unmasked", "masked")}
    np.savez_compressed(folder / "logits.npz", **logits)
    (folder / "metrics.json").write_text(json.dumps(stored_metrics(logits, opened.data)))
    (folder / "machine.json").write_text(json.dumps({"seconds": 90.0, "device": "a machine", "threads": 1, "torch": "2"}))
    (folder / "spec.json").write_text(json.dumps(finished.to_json()))
    (opened.store.training / begun.key).mkdir(parents=True)
    row = {"epochs": 3, "seconds": 1.0, "val_accuracy": 0.5}
    (opened.store.training / begun.key / "progress.jsonl").write_text("".join(json.dumps({"epoch": i, **row}) + "\n" for i in (1, 2)))
    return opened


def test_runs_lists_finished_begun_and_missing(stored, capsys):
    assert main(["runs", "--results", "out"]) == 0
    said = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in said.splitlines() if line}
    finished, begun, missing = (spec.key for spec in used(stored)[:3])
    assert lines[finished][1] == "finished" and "1.5" in lines[finished]
    assert lines[begun][1:5] == ["begun", "2", "of", "3"] and lines[missing][1] == "missing"
    assert f"1 finished, 1 begun, {len(used(stored)) - 2} missing in out/smoke; the finished ones took 1.5 min." in said


def test_runs_without_data_lists_what_is_stored(stored, capsys):
    (Path("out") / "smoke").rename(Path("out") / "reduced")
    assert main(["runs", "--preset", "reduced", "--results", "out"]) == 0
    said = capsys.readouterr().out
    assert "1 finished, 1 begun in out/reduced" in said and "give --data" in said
    assert main(["runs", "--preset", "full", "--results", "out"]) == 0
    assert "0 finished, 0 begun" in capsys.readouterr().out


def test_verify_computes_metrics_again_and_says_what_differs(stored, capsys):
    assert main(["verify", "--results", "out"]) == 0
    assert "1 runs and 0 tables of out/smoke computed again: all as stored." in capsys.readouterr().out
    run, = stored.store.all()
    metrics = run.metrics
    metrics["test_masked"]["clean"]["recall"][3] += 0.001
    (run.path / "metrics.json").write_text(json.dumps(metrics))
    assert main(["verify", "--results", "out"]) == 1
    assert f"runs/{run.key}: test_masked.clean.recall[3] is stored as" in capsys.readouterr().out
    (run.path / "logits.npz").write_bytes(b"damaged")
    assert main(["verify", "--results", "out"]) == 1
    assert "cannot be computed again" in capsys.readouterr().out


def test_verify_builds_tables_again_byte_for_byte(stored, capsys, monkeypatch):
    build = lambda runs, data: pd.DataFrame({"run": list(runs), "faces": len(data.faces), "share": 1 / 3})
    monkeypatch.setitem(TABLES, "02_made_up", Table("02", build))
    stored.table(build(stored.finished("02"), stored.data), "02_made_up")
    (stored.root / "tables" / "02_stray.csv").write_text("a\n1\n")
    assert main(["verify", "--results", "out"]) == 0
    said = capsys.readouterr().out
    assert "1 runs and 1 tables" in said and "not checked: tables/02_stray.csv" in said
    path = stored.root / "tables" / "02_made_up.csv"
    path.write_text(path.read_text().replace("0.333333", "0.333334"))
    assert main(["verify", "--results", "out"]) == 1
    assert "tables/02_made_up.csv: 1 lines differ, first line 2: stored vgg16 unmasked,140,0.333334, computed" in capsys.readouterr().out


def test_verify_refuses_data_that_no_run_was_trained_on(stored, csv, capsys):
    assert main(["verify", "--results", "out", "--data", csv]) == 2
    assert "belongs to this data" in capsys.readouterr().err


def test_tables_are_written_with_six_digits():
    assert to_csv(pd.DataFrame({"share": [2 / 3]})) == "share\n0.666667\n"
