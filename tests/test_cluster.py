"""Runs on a Ray cluster of several nodes, each a process group of its own on this machine; one is killed in the middle of a run."""
import json
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from fer_lib.runs import Store
from fer_lib.schedule import Schedule, complete

ray = pytest.importorskip("ray")


@pytest.fixture
def cluster():
    """A head that trains nothing and two nodes of one core."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    made.wait_for_nodes()
    yield made, nodes
    ray.shutdown()
    made.shutdown()


def test_a_node_that_is_killed_costs_a_second_try_of_its_run_and_nothing_else(cluster, tmp_path, few_faces, tiny_spec, caplog):
    made, nodes = cluster
    data, recipe = few_faces, replace(tiny_spec.recipe, epochs=60)
    base = replace(tiny_spec, recipe=recipe)
    short = replace(recipe, epochs=2)
    specs = [base, replace(base, seed=1), replace(base, seed=2, recipe=short), replace(base, seed=3, recipe=short),
             replace(base, seed=4, start=base, recipe=short)]  # the last waits for the first
    store = Store(tmp_path / "cluster")
    schedule = Schedule([[(spec, {}) for spec in specs]], data, store, executor="ray", address=made.address)
    thread = threading.Thread(target=schedule.run)
    caplog.set_level("INFO", "fer_lib")
    thread.start()
    while len(begun := store.interrupted()) < 2 or min(begun.values()) < 3:  # a long run on each node
        assert thread.is_alive()
        time.sleep(0.02)
    made.remove_node(nodes[0], allow_graceful=False)
    heard, until = {}, time.time() + 300
    while thread.is_alive() and time.time() < until:  # each epoch that ends adds a line; what begins anew would add its first again
        for key in begun:
            with suppress(FileNotFoundError):  # it ended
                heard[key] = [json.loads(line)["epoch"] for line in (store.training / key / "progress.jsonl").read_text().split("\n")[:-1]]
        time.sleep(0.02)
    assert heard.keys() == begun.keys() and all(len(set(epochs)) == len(epochs) and epochs[-1] > 50 for epochs in heard.values())
    assert not thread.is_alive() and not schedule.failed and all(store.get(spec) for spec in specs)
    said = [record.getMessage() for record in caplog.records]
    ended = [line.split("ended: ")[1].split(" ")[0] for line in said if " ended: " in line]
    assert sum("died" in line for line in said) == 1 and sorted(ended) == sorted(spec.key for spec in specs)  # each once
    alone = complete(specs, data, Store(tmp_path / "alone"), device="cpu")
    assert all((run.logits(name) == store.get(run.spec).logits(name)).all() for run in alone for name in ("val_unmasked", "test_masked"))


def test_a_gpu_that_is_asked_for_is_waited_for_and_not_replaced_by_cores(cluster, tmp_path, few_faces, tiny_spec, caplog):
    caplog.set_level("INFO", "fer_lib")
    schedule = Schedule([[(tiny_spec, {})]], few_faces, Store(tmp_path), 2, "cuda", time.time() + 12, "ray", cluster[0].address)
    schedule.run()
    assert not schedule.failed and not schedule.store.all() and not schedule.store.interrupted()
    assert "a run takes 0.5 gpus" in caplog.text and caplog.text.count("no free node: waiting") == 1
