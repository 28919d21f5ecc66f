"""Chunks: runs in order of worth, stopped by the clock, packed and unpacked."""
import tarfile
from dataclasses import replace

import pytest
import torch

from fer_lib import chunks
from fer_lib.__main__ import main
from fer_lib.chunks import by_worth, pack, train
from fer_lib.runs import Store
from fer_lib.schedule import Schedule
from fer_lib.study import GRIDS, PRESETS, open_study, used


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return open_study("smoke", results=str(tmp_path_factory.mktemp("chunks")))


def test_every_run_of_the_study_comes_once_and_baselines_first(study):
    chunks = by_worth(study)
    keys = [spec.key for _, specs in chunks for spec in specs]
    asked = {spec.key for grid in GRIDS for several in study.specs(grid).values() for spec in several}
    assert len(keys) == len(set(keys)) and set(keys) == asked and {spec.key for spec in used(study)} >= asked
    assert chunks[0][0] == "02, 1 seed" and all(spec.perturb is None and spec.term is None for spec in chunks[0][1])
    assert [name for name, _ in by_worth(study, ("04", "03"))] == ["03, 1 seed", "04, all seeds"]


def test_training_stops_at_a_checkpoint_and_goes_on(study, tmp_path):
    missing, failed = train(study, 0.01, ("04",))  # 0.6 s: an epoch of the gate, on which the others wait
    begun = study.store.interrupted()
    assert len(missing) == len(study.specs("04")) and not study.store.all()
    assert list(begun) in ([], [study.specs("03")["input"][0].key], [study.specs("04")["baseline"][0].key]) and set(begun.values()) <= {1, 2}
    assert not failed and train(study, 60, ("03",), archive=tmp_path / "runs.tar") == ([], {})
    assert not set(study.store.interrupted()) - {study.specs("04")["baseline"][0].key}
    assert study.store.get(study.specs("03")["input"][0]).measured("attention")
    with tarfile.open(tmp_path / "runs.tar") as archive:  # packed when the last run ended
        assert {name.split("/")[2] for name in archive.getnames()} == {run.key for run in study.store.all()}


def test_a_machine_without_a_gpu_may_hand_runs_to_a_cluster_that_has_some(study, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Schedule, "run", lambda schedule: None)
    missing, failed = train(study, 5, ("02",), "cuda", "ray")
    assert len(missing) == len(study.specs("02")) and not failed


def test_packed_runs_are_runs_elsewhere(study, tmp_path):
    study.complete("03")
    count = pack(study, tmp_path / "runs.tar")
    with tarfile.open(tmp_path / "runs.tar") as archive:
        assert not [name for name in archive.getnames() if name.endswith(".safetensors")]
        archive.extractall(tmp_path / "results", filter="data")
    there = Store(tmp_path / "results" / "smoke").all()
    assert count == len(there) == len(study.store.all()) and {run.key for run in there} == {run.key for run in study.store.all()}
    assert not there[0].has_weights and (there[0].logits("test_unmasked") == study.store.get(there[0].spec).logits("test_unmasked")).all()


def test_the_command_given_again_trains_what_is_missing_and_its_tar_unpacks_to_the_same_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(PRESETS, "smoke", replace(PRESETS["smoke"], sizes=(70, 35, 35)))
    tar, said = tmp_path / "runs.tar", []
    for minutes in (0, 0.2, 0.4, 0.8, 1.6):  # a worker's start takes some of them
        assert main(["train", "--preset", "smoke", "--results", str(tmp_path / "here"), "--minutes", str(minutes), "--grids", "03",
                     "--pack", str(tar)]) == 0
        said.append(capsys.readouterr().out)
        if said[-1].startswith("0 runs are still missing."):
            break
    assert said[0].startswith("2 runs are still missing: give the same command again.\n0 runs packed")
    assert said[-1].startswith("0 runs are still missing.\n2 runs packed")
    with tarfile.open(tar) as archive:
        archive.extractall(tmp_path / "there", filter="data")
    here, there = (Store(tmp_path / folder / "smoke").all() for folder in ("here", "there"))
    assert [run.key for run in here] == [run.key for run in there] and [run.has_weights for run in there] == [False, False]
    assert all((a.logits("test_masked") == b.logits("test_masked")).all() and a.metrics == b.metrics for a, b in zip(here, there))


def test_a_missing_package_is_told_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(chunks, "NEEDED", (*chunks.NEEDED, "no_such_package"))
    with pytest.raises(ValueError, match="needed when a run ends: no_such_package"):
        train(None, 1.0)
