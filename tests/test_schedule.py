"""Schedules: order, several workers, what an error and what a worker's death cost."""
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fer_lib.dataset import Dataset
from fer_lib.perturb import Perturb
from fer_lib.runs import RunSpec, Store
from fer_lib.schedule import EXECUTORS, Schedule, _Here, _jobs, complete


@pytest.fixture(scope="module")
def data(few_faces) -> Dataset:
    return few_faces


@pytest.fixture(scope="module")
def spec(tiny_spec) -> RunSpec:
    return tiny_spec


def seen(model, spec, data):
    """A measure that leaves the worker's number."""
    return {"process": np.array(os.getpid())}


def fails(model, spec, data):
    raise RuntimeError("this measure does not work")


def dies_once(model, spec, data):
    """Kill the worker of seed 1 when it comes here first."""
    mark = Path(os.environ["FER_TEST_MARK"])
    if spec.seed == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"tries": np.array(1)}


def dies(model, spec, data):
    if spec.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"tries": np.array(1)}


# --- what is done, and in which order ---

def test_the_longest_chain_goes_first_and_groups_before_length(spec, tmp_path):
    gate = replace(spec, attention="input", recipe=replace(spec.recipe, epochs=1))
    child = replace(spec, perturb=Perturb(), gate=gate)
    long, short = replace(spec, recipe=replace(spec.recipe, epochs=9), seed=3), replace(spec, seed=4)
    jobs = _jobs([[(s, {}) for s in (short, child, long)]], Store(tmp_path))
    assert jobs[child.key].parents == {gate.key} and list(jobs).index(gate.key) < list(jobs).index(child.key)
    assert jobs[long.key].chain > jobs[gate.key].chain > jobs[child.key].chain >= jobs[short.key].chain  # the gate with its child
    assert _jobs([[(short, {})], [(long, {})]], Store(tmp_path))[long.key].group == 1
    wide = replace(spec, width=0.5)
    assert _jobs([[(wide, {})]], Store(tmp_path))[wide.key].chain > 10 * jobs[short.key].chain


def test_measures_that_several_groups_want_of_a_run_are_all_taken(spec, data, tmp_path):
    store = Store(tmp_path)
    Schedule([[(spec, {})], [(spec, {"seen": seen})]], data, store, device="cpu", executor="here").run()
    assert store.get(spec).measured("seen")["process"] == os.getpid()


def test_an_error_costs_the_runs_that_wait_for_it_and_no_other(spec, data, tmp_path):
    gate = replace(spec, attention="input", recipe=replace(spec.recipe, epochs=1))
    child, grandchild = replace(spec, perturb=Perturb(), gate=gate), replace(spec, start=replace(spec, perturb=Perturb(), gate=gate), seed=9)
    other, store = replace(spec, seed=2), Store(tmp_path)
    schedule = Schedule([[(gate, {"fails": fails}), (child, {}), (grandchild, {}), (other, {})]], data, store, device="cpu", executor="here")
    assert schedule.open == {one.key for one in (gate, child, grandchild, other)}
    schedule.run()
    assert list(schedule.failed) == [gate.key] and not schedule.open
    assert [store.get(one) is not None for one in (gate, child, grandchild, other)] == [False, False, False, True]
    with pytest.raises(RuntimeError, match="does not work") as raised:
        complete([gate], data, store, {"fails": fails})
    assert raised.value.__notes__ == [f"It stopped {gate.key}."]


def test_nothing_begins_after_the_deadline(spec, data, tmp_path):
    schedule = Schedule([[(spec, {})]], data, Store(tmp_path), device="cpu", deadline=time.time() - 1, executor="here")
    schedule.run()
    assert not schedule.failed and not schedule.open and not (tmp_path / "runs").exists()


def test_a_cluster_without_a_node_is_waited_for_until_the_deadline_and_that_is_said_once_each_time(spec, data, tmp_path, monkeypatch, caplog):
    class Cluster(_Here):
        """Has a node at every 60th look."""

        looks = 0

        @property
        def slots(self) -> int:
            self.looks += 1
            return int(self.looks % 60 == 0)

    monkeypatch.setitem(EXECUTORS, "here", Cluster)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    schedule = Schedule([[(spec, {}), (replace(spec, seed=1), {})]], data, Store(tmp_path / "two"), device="cpu", executor="here")
    schedule.run()
    assert not schedule.failed and len(schedule.store.all()) == 2 and caplog.text.count("no free node: waiting") == 2
    Cluster.slots = 0
    Schedule([[(spec, {})]], data, Store(tmp_path / "none"), device="cpu", executor="here", deadline=time.time() + 0.1).run()
    assert not Store(tmp_path / "none").all()


# --- workers ---

def test_two_workers_give_the_logits_of_one(spec, data, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)  # one thread each
    specs = [spec, replace(spec, seed=1), replace(spec, seed=2)]
    found = complete(specs, data, Store(tmp_path / "two"), {"seen": seen}, workers=2, device="cpu")
    assert [run.spec for run in found] == specs and all(run.machine["threads"] == 1 for run in found)
    assert len({int(run.measured("seen")["process"]) for run in found}) == 2  # two processes for three runs
    alone = complete(specs, data, Store(tmp_path / "one"), device="cpu")
    assert all((a.logits(name) == b.logits(name)).all() for a, b in zip(found, alone) for name in ("val_unmasked", "test_masked"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a process is killed")
def test_a_dead_worker_costs_a_second_try_of_its_run_and_nothing_else(spec, data, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FER_TEST_MARK", str(tmp_path / "mark"))
    specs = [replace(spec, seed=seed) for seed in range(3)]
    found = complete(specs, data, Store(tmp_path / "runs"), {"tries": dies_once}, workers=2, device="cpu")
    assert all(run.measured("tries") for run in found) and caplog.text.count("died") == 1 and specs[1].key in caplog.text


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a process is killed")
def test_a_run_whose_worker_dies_twice_is_given_up_and_the_grid_is_not(spec, data, tmp_path):
    specs, store = [replace(spec, seed=seed) for seed in range(3)], Store(tmp_path)
    with pytest.raises(Exception) as raised:
        complete(specs, data, store, {"tries": dies}, workers=2, device="cpu")
    assert specs[1].key in raised.value.__notes__[0]
    assert [store.get(one) is not None for one in specs] == [True, False, True] and store.interrupted() == {specs[1].key: 2}


def test_a_schedule_that_is_stopped_leaves_a_checkpoint(spec, data, tmp_path):
    long, store = replace(spec, recipe=replace(spec.recipe, epochs=2000)), Store(tmp_path)
    schedule = Schedule([[(long, {})]], data, store, device="cpu")
    thread = threading.Thread(target=schedule.run)
    thread.start()
    while not store.interrupted():
        assert thread.is_alive()
        time.sleep(0.1)
    schedule.stop()
    thread.join(10)
    assert not thread.is_alive() and store.interrupted()[long.key] >= 1 and store.get(long) is None


DRIVER = """
import sys
from fer_lib.dataset import open_dataset
from fer_lib.runs import RunSpec, Store
from fer_lib.schedule import complete
from fer_lib.training import Recipe
data = open_dataset(None, (70, 21, 21))
recipe = Recipe("tiny", epochs=5000, batch=32, test="single", precision="fp32")
specs = [RunSpec(data.fingerprint, model="vgg16", width=0.1, depth=8, recipe=recipe, seed=seed) for seed in range(2)]
complete(specs, data, Store(sys.argv[1]), workers=2, device="cpu")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a process is killed")
def test_workers_leave_when_their_driver_is_killed(tmp_path):
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL)
    store, deadline = Store(tmp_path), time.time() + 120
    while len(store.interrupted()) < 2 and time.time() < deadline:
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    time.sleep(3)
    before = store.interrupted()
    time.sleep(2)
    assert len(before) == 2 and store.interrupted() == before  # no epoch was trained any more


def test_a_schedule_that_cannot_begin_says_so_and_leaves_nothing_open(spec, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    schedule = Schedule([[(spec, {})]], data, Store(tmp_path), executor="ray")
    with pytest.raises(ValueError, match="Ray is not installed"):
        schedule.run()
    assert not schedule.open and schedule.error
    with pytest.raises(ValueError, match="give --executor ray"):
        Schedule([[(spec, {})]], data, Store(tmp_path), address="auto")
    with pytest.raises(ValueError, match="Unknown executor 'threads'"):
        Schedule([[(spec, {})]], data, Store(tmp_path), executor="threads")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU here"):
        Schedule([[(spec, {})]], data, Store(tmp_path), device="cuda")
