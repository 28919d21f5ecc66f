"""Runs and their store: keys, what is trained and what is not, parents, measures, interruption, errors."""
import json
import multiprocessing
import os
import signal
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fer_lib import runs, training
from fer_lib.dataset import Dataset
from fer_lib.fer2013 import Votes
from fer_lib.objectives import Term
from fer_lib.perturb import Perturb
from fer_lib.runs import FILES, RunSpec, Store, execute, stored_metrics
from fer_lib.schedule import complete
from fer_lib.training import RECIPES, Recipe

PLAIN = ["val_unmasked", "val_masked", "test_unmasked", "test_masked"]


def stored(run) -> dict[str, np.ndarray]:
    with np.load(run.path / "logits.npz") as arrays:
        return dict(arrays)


def same_logits(a, b) -> bool:
    first, second = stored(a), stored(b)
    return list(first) == list(second) and all((first[name] == second[name]).all() for name in first)


def same_weights(a, b) -> bool:
    first, second = (load_file(run.path / "weights.safetensors") for run in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def brightness(model, spec, data) -> dict[str, np.ndarray]:
    """A measure that runs the network forward."""
    x = torch.randn(8, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return {"logits": model(x).numpy(), "training": np.array(model.training)}


def broken(model, spec, data):
    raise RuntimeError("this measure does not work")


@pytest.fixture(scope="module")
def data(few_faces) -> Dataset:
    return few_faces


@pytest.fixture(scope="module")
def spec(tiny_spec) -> RunSpec:
    return tiny_spec


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Keys in the order in which networks were trained; loading and measuring leave no trace here."""
    keys, real = [], runs._trained
    monkeypatch.setattr(runs, "_trained", lambda spec, *rest: (keys.append(spec.key), real(spec, *rest))[1])
    return keys


@pytest.fixture(scope="module")
def family(spec) -> dict[str, RunSpec]:
    """A baseline, a gate, a run of the scheme with the gate, and the baseline shown the scheme's views."""
    gate = replace(spec, attention="input", recipe=replace(spec.recipe, epochs=1))
    perturb = Perturb(source="attention")
    return {"baseline": spec, "gate": gate, "scheme": replace(spec, perturb=perturb, gate=gate, recipe=gate.recipe),
            "views": replace(spec, perturb=replace(perturb, views="none"), gate=gate, start=spec, recipe=replace(spec.recipe, epochs=0))}


@pytest.fixture(scope="module")
def store(tmp_path_factory, data, family) -> Store:
    """A store that holds the family. Tests that change a store make one of their own."""
    store = Store(tmp_path_factory.mktemp("store"))
    complete(family.values(), data, store)
    return store


# --- keys ---

OTHER = {"schedule": "plateau", "augment": "paper", "test": "ten_crop", "keep": "best", "precision": "bf16", "grow": (32, 48),
         "source": "cuts", "signal": "both", "clusters_per": "dataset", "views": "keep_one", "fill": "mean",
         "channels": "all", "target": "sum", "form": "literal", "prior": "visible"}


def changed(values, name: str):
    """A copy of a dataclass in which one field has another value of its kind."""
    old = getattr(values, name)
    return replace(values, **{name: OTHER[name] if name in OTHER else old + "2" if isinstance(old, str) else old + 1})


def test_key_changes_with_every_field(spec):
    base = replace(spec, perturb=Perturb())
    others = {"data": "0" * 12, "variant": "masked", "model": "resnet", "width": 0.5, "depth": 16, "stem": "pooled", "attention": "input",
              "objective": "other", "perturb": None, "gate": spec, "start": spec, "recipe": RECIPES["paper"], "seed": 1, "versions": (),
              "rows": "unleaked", "labels": "votes-01234567", "masked_share": 0.25}
    assert others.keys() | {"term", "teacher"} == {field.name for field in fields(RunSpec)}
    specs = [base, *(replace(base, **{name: value}) for name, value in others.items())]
    specs += [replace(base, recipe=changed(base.recipe, field.name)) for field in fields(Recipe)]
    specs += [replace(base, perturb=changed(base.perturb, field.name)) for field in fields(Perturb)]
    specs += [replace(base, gate=replace(spec, seed=1)), replace(base, start=replace(spec, seed=1))]
    taught = replace(spec, variant="mixed", objective="distillation", term=Term(), teacher=spec)
    specs += [taught, replace(taught, teacher=replace(spec, seed=1)), replace(taught, variant="pairs"), replace(taught, masked_share=0.25)]
    held = replace(spec, objective="privileged", term=Term())
    specs += [held, *(replace(held, term=changed(held.term, field.name)) for field in fields(Term))]
    assert len({one.key for one in specs}) == len(specs)


def test_specs_that_make_no_sense_are_refused_with_the_reason(spec):
    for values, why in (({"objective": "contrastive", "term": Term()}, "needs faces with and without a mask: set variant='pairs'"),
                        ({"objective": "distillation", "variant": "mixed", "term": Term()}, "distillation has none"),
                        ({"teacher": spec}, "cross_entropy has one"), ({"objective": "privileged"}, "privileged has none"),
                        ({"term": Term()}, "and for no other"), ({"variant": "mixed", "perturb": Perturb()}, "train them apart")):
        with pytest.raises(ValueError, match=why):
            replace(spec, **values)


def test_specs_with_a_teacher_and_a_term_come_back_from_json(spec):
    taught = replace(spec, variant="pairs", objective="distillation", term=Term(weight=2.0), teacher=replace(spec, start=replace(spec, seed=1)))
    assert RunSpec.from_json(taught.to_json()) == taught and taught.parents == [taught.teacher] and "-distillation-" in taught.key


def test_key_of_equal_specs_is_equal_and_says_what_it_is(spec):
    assert replace(spec).key == spec.key
    assert spec.key.startswith("vgg16-unmasked-s0-")
    assert replace(spec, variant="masked", seed=3, perturb=Perturb(n_clusters=5)).key.startswith("vgg16-masked-attention5-s3-")


def test_key_of_a_given_spec_stays_what_it_was():
    """Runs that are committed are found by their key: a change here means that every one of them is trained again."""
    plain = RunSpec(data="0123456789ab", model="resnet", width=0.5, depth=10, stem="pooled", versions=(("masks", 1), ("training", 1)))
    assert plain.key == "resnet-unmasked-s0-cada7aea18bc"
    family = replace(plain, perturb=Perturb(), gate=plain, start=plain, recipe=RECIPES["paper"])
    assert family.key == "resnet-unmasked-attention3-s0-3f1d2507a2c4"


def test_fields_that_came_later_are_left_out_at_their_default(spec):
    assert "rows" not in spec.to_json() and "labels" not in spec.to_json()
    assert replace(spec, rows="unleaked").to_json()["rows"] == "unleaked"
    child = replace(spec, start=replace(spec, labels="votes-01234567"))
    assert child.to_json()["start"]["labels"] == "votes-01234567" and "labels" not in child.to_json()


def test_specs_survive_json(family):
    specs = [*family.values(), replace(family["scheme"], rows="unleaked"),
             replace(family["views"], recipe=replace(RECIPES["paper"], grow=(32, 40, 48)), start=family["scheme"])]
    for spec in specs:
        again = RunSpec.from_json(json.loads(json.dumps(spec.to_json())))
        assert again == spec and again.key == spec.key


# --- what a run holds ---

def test_a_finished_run_has_every_file_and_nothing_temporary_is_left(store, family):
    assert set(FILES) == {"spec.json", "history.csv", "metrics.json", "logits.npz", "measures.npz", "machine.json", "weights.safetensors"}
    for spec in family.values():
        assert {path.name for path in store.get(spec).path.iterdir()} == set(FILES)
    assert {path.name for path in store.root.iterdir()} == {"runs", "training"} and not list(store.training.iterdir())
    assert {path.name for path in store.runs.iterdir()} == {spec.key for spec in family.values()}


def test_logits_are_float16_of_every_split_and_variant(store, family, data):
    found = stored(store.get(family["baseline"]))
    assert sorted(found) == sorted(PLAIN) and all(a.dtype == np.float16 and a.shape == (21, 7) for a in found.values())
    run = store.get(family["scheme"])
    assert sorted(stored(run)) == sorted([*PLAIN, "test_masked_views", "test_unmasked_views"])
    assert run.logits("test_masked_views").dtype == np.float32
    with pytest.raises(KeyError, match="has no logits 'test'; it has val_unmasked"):
        run.logits("test")


def test_a_run_without_a_region_is_tested_without_it_too(spec, data, tmp_path):
    run, = complete([replace(spec, variant="no_mouth", recipe=replace(spec.recipe, epochs=1))], data, Store(tmp_path))
    assert sorted(stored(run)) == sorted([*PLAIN, "val_no_mouth", "test_no_mouth"])
    assert not np.array_equal(run.logits("test_no_mouth"), run.logits("test_unmasked"))


def test_training_without_leaked_faces_and_on_votes_differs_from_the_baseline(spec, data, tmp_path):
    faces = data.faces.images.copy()
    faces[3] = faces[data.faces.where("test")[0]]
    votes = Votes(np.eye(10, dtype=np.int64)[(data.faces.labels + 3) % 10], *[np.zeros(len(data.faces), np.int64)] * 2)
    leaky = replace(data, faces=replace(data.faces, images=faces), votes=votes)
    base = replace(spec, data=leaky.fingerprint, recipe=replace(spec.recipe, epochs=1))
    arms = [base, replace(base, rows="unleaked"), replace(base, labels=f"votes-{votes.fingerprint}")]
    found = complete(arms, leaky, Store(tmp_path))
    assert len({run.logits("test_unmasked").tobytes() for run in found}) == 3
    with pytest.raises(ValueError, match="need the FER\\+ votes of that fingerprint"):
        complete([replace(base, labels="votes-00000000")], leaky, Store(tmp_path))


def test_stored_logits_are_the_networks_predictions(store, family, data):
    run = store.get(family["baseline"])
    x = torch.as_tensor(data.masked[data.faces.where("test")])[:, None] / 255
    with torch.no_grad():
        logits = run.model()((x - data.scaling[0]) / data.scaling[1])
    assert np.allclose(run.logits("test_masked"), logits, atol=2e-3) and not run.model().training


def test_stored_logits_reproduce_the_metrics_exactly(store, family, data):
    for spec in family.values():
        run = store.get(spec)
        assert stored_metrics(stored(run), data) == run.metrics
        assert run.metrics["test_unmasked"]["all"]["accuracy"] == (run.logits("test_unmasked").argmax(1) == data.labels("test")).mean()


def test_history_has_a_row_an_epoch(store, family):
    history = store.get(family["baseline"]).history
    assert history.epoch.tolist() == [1, 2]
    assert list(history.columns) == ["epoch", "lr", "loss", "val_loss", "val_accuracy", "val_macro_accuracy"]


def test_history_of_a_run_without_epochs_is_empty(store, family):
    history = store.get(family["views"]).history
    assert len(history) == 0 and list(history.columns) == list(store.get(family["baseline"]).history.columns)


def test_machine_is_told_apart_from_results(store, family):
    run = store.get(family["baseline"])
    assert run.machine.keys() >= {"device", "threads", "seconds", "torch"} and run.machine["threads"] == 1


def test_the_last_clusters_are_stored(store, family):
    parts = store.get(family["scheme"]).measured("clusters")["parts"]
    assert parts.shape == (1, 48, 48) and set(np.unique(parts)) == {0, 1, 2}
    assert not store.get(family["baseline"]).measured("clusters")


def test_all_gives_every_run_with_the_spec_it_was_trained_from(store, family):
    found = store.all()
    assert {run.spec for run in found} == set(family.values()) and [run.key for run in found] == sorted(run.key for run in found)


# --- complete ---

def test_runs_come_back_in_the_order_asked_for_and_nothing_is_trained_twice(store, family, data, trained):
    wanted = [family["views"], family["baseline"], family["scheme"], family["baseline"]]
    assert [run.spec for run in complete(wanted, data, store)] == wanted and trained == []


def test_only_what_is_missing_is_trained(store, family, data, trained, tmp_path):
    other = Store(tmp_path)
    os.makedirs(other.runs)
    os.symlink(store.get(family["baseline"]).path, other.runs / family["baseline"].key)  # a folder from another machine
    quick = replace(family["gate"], seed=5)
    complete([family["baseline"], quick], data, other)
    assert trained == [quick.key]


def test_parents_are_trained_first_and_once(family, data, tmp_path, trained):
    gate, start = (replace(family[name], recipe=family["gate"].recipe, seed=7) for name in ("gate", "baseline"))
    children = [replace(family["scheme"], seed=seed, gate=gate, perturb=Perturb("thirds")) for seed in (7, 8)]
    child = replace(children[0], start=start)
    complete([child, *children], data, Store(tmp_path))
    assert set(trained[:2]) == {gate.key, start.key} and set(trained[2:]) == {one.key for one in [child, *children]} and len(trained) == 5


def test_a_run_of_no_epochs_has_its_parents_logits_exactly(store, family):
    parent, child = stored(store.get(family["baseline"])), stored(store.get(family["views"]))
    assert all((child[name] == parent[name]).all() for name in PLAIN)
    assert not (child["test_unmasked_views"] == parent["test_unmasked"]).all()
    assert same_weights(store.get(family["baseline"]), store.get(family["views"]))


def test_a_warm_start_begins_with_its_parents_weights(store, family, data, tmp_path):
    still = replace(family["baseline"], start=family["baseline"], recipe=replace(family["baseline"].recipe, epochs=1, lr=1e-12, ema=0.0))
    run, = complete([still], data, store)
    ours, theirs = (load_file(r.path / "weights.safetensors") for r in (run, store.get(family["baseline"])))
    assert torch.allclose(ours["head.2.weight"], theirs["head.2.weight"], atol=1e-6)


def test_specs_of_other_data_are_refused(spec, data, tmp_path):
    with pytest.raises(ValueError, match=f"1 specs were made for data 000000000000, not for {data.fingerprint}"):
        complete([spec, replace(spec, data="0" * 12)], data, Store(tmp_path))
    assert not list(tmp_path.iterdir())


def test_clusters_per_image_work_end_to_end(store, family, data):
    spec = replace(family["scheme"], perturb=Perturb(clusters_per="image", n_clusters=2))
    run, = complete([spec], data, store)
    assert sorted(stored(run)) == sorted([*PLAIN, "test_masked_views", "test_unmasked_views"]) and not run.measured("clusters")


# --- measures and weights ---

@pytest.fixture
def own(store, family, tmp_path) -> Store:
    """A copy of the store to change."""
    import shutil

    shutil.copytree(store.root, tmp_path / "own")
    return Store(tmp_path / "own")


def test_measures_are_added_later_without_training(own, family, data, trained):
    before = stored(own.get(family["baseline"])), (own.get(family["baseline"]).path / "machine.json").read_text()
    run, = complete([family["baseline"]], data, own, {"brightness": brightness})
    assert trained == [] and run.measured("brightness")["logits"].shape == (8, 7)
    assert all((a == b).all() for a, b in zip(before[0].values(), stored(run).values()))
    assert (run.path / "machine.json").read_text() == before[1] and {p.name for p in run.path.iterdir()} == set(FILES)
    scheme, = complete([family["scheme"]], data, own, {"brightness": brightness})
    assert set(scheme.measures) == {"clusters.parts", "brightness.logits", "brightness.training"}  # those stored before stay
    assert not list(own.training.iterdir())


def test_a_measure_taken_when_the_run_ends_equals_one_taken_later_and_leaves_the_weights_alone(store, family, data, tmp_path):
    at_end, = complete([family["baseline"]], data, Store(tmp_path / "fresh"), {"brightness": brightness})
    assert not at_end.measured("brightness")["training"]
    assert same_weights(at_end, store.get(family["baseline"]))
    assert np.allclose(at_end.measured("brightness")["logits"], brightness(at_end.model(), None, data)["logits"], atol=1e-5)


def test_measures_are_taken_of_the_runs_asked_for_and_not_of_their_parents(own, family, data):
    complete([family["scheme"]], data, own, {"brightness": brightness})
    assert not own.get(family["gate"]).measured("brightness")


def test_a_measure_that_fails_costs_no_training(family, data, tmp_path):
    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="does not work"):
        complete([family["gate"]], data, store, {"broken": broken})
    assert store.get(family["gate"]) is None and store.interrupted() == {family["gate"].key: 1}
    written = (store.training / family["gate"].key / "checkpoint.pt").stat().st_mtime_ns
    seen = []
    complete([family["gate"]], data, store, {"seen": lambda *_: {"time": np.array(seen.append(
        (store.training / family["gate"].key / "checkpoint.pt").stat().st_mtime_ns) or 1)}})
    assert seen == [written]  # no epoch was trained again


def test_a_run_whose_last_epoch_ends_after_the_deadline_is_predicted_at_the_next_call_and_not_trained(store, family, data, tmp_path, monkeypatch):
    late, spec = Store(tmp_path), family["baseline"]
    monkeypatch.setattr(runs, "train", lambda *args, real=runs.train, **named: (time.sleep(0.3), real(*args, **named))[1])
    one = replace(spec, recipe=replace(spec.recipe, epochs=1))
    assert not execute(one, data, late, deadline=time.time() + 0.2) and late.get(one) is None and late.interrupted() == {one.key: 1}
    assert not execute(spec, data, late, deadline=time.time() + 0.2) and late.interrupted()[spec.key] == 1  # at its first
    assert not execute(spec, data, late, deadline=time.time() + 0.2) and late.interrupted()[spec.key] == 2  # and at its last
    monkeypatch.setattr(training, "save", lambda *_: pytest.fail("an epoch was trained"))
    assert execute(spec, data, late) and same_logits(late.get(spec), store.get(spec)) and execute(one, data, late)


def test_missing_weights_are_a_clear_error(own, family):
    run = own.get(family["baseline"])
    (run.path / "weights.safetensors").unlink()
    assert not run.has_weights
    with pytest.raises(FileNotFoundError, match=f"weights of {run.key} are not on this machine: train it again with `complete`"):
        run.model()


def test_a_run_without_weights_is_trained_again_only_to_be_measured(own, store, family, data, trained):
    run = own.get(family["baseline"])
    (run.path / "weights.safetensors").unlink()
    complete([family["baseline"]], data, own)
    assert trained == [] and not run.has_weights
    complete([family["baseline"]], data, own, {"brightness": brightness})
    assert trained == [run.key] and same_weights(run, store.get(family["baseline"])) and {p.name for p in run.path.iterdir()} == set(FILES)


def test_a_parent_without_weights_is_trained_again_once_before_its_children(own, store, family, data, trained):
    gate = own.get(family["gate"])
    (gate.path / "weights.safetensors").unlink()
    children = [replace(family["scheme"], seed=seed, perturb=Perturb("thirds")) for seed in (1, 2)]
    complete(children, data, own)
    assert trained == [gate.key, *(child.key for child in children)]
    assert same_weights(gate, store.get(family["gate"])) and {p.name for p in gate.path.iterdir()} == set(FILES)
    assert not list(own.training.iterdir())


def test_a_run_whose_parents_are_not_there_says_which(family, data, tmp_path):
    with pytest.raises(ValueError, match=f"needs the weights of {family['gate'].key}: train these first"):
        execute(family["scheme"], data, Store(tmp_path))


# --- interruption ---

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def killed_after_an_epoch(spec, data, store):
    """Begin a run in a process of its own, which is killed as soon as its first epoch is over."""
    real = runs.train
    runs.train = lambda *args, **named: real(*args[:-1], lambda row: (args[-1](row), die()), **named)
    execute(spec, data, store)


def killed_while_writing(spec, data, store):
    """Begin a run in a process of its own, which is killed in the middle of writing its second checkpoint."""
    real = training.save
    training.save = lambda path, state: (real(path, state), setattr(training.torch, "save", lambda _, to: (to.write_bytes(b"half"), die())))
    execute(spec, data, store)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process to kill is made by fork")
@pytest.mark.parametrize("killed", [killed_after_an_epoch, killed_while_writing])
def test_a_killed_run_is_completed_bit_equal_to_one_left_alone(killed, family, data, tmp_path):
    spec = replace(family["baseline"], recipe=replace(family["baseline"].recipe, epochs=4))
    straight, = complete([spec], data, Store(tmp_path / "straight"))
    store = Store(tmp_path / "killed")
    process = multiprocessing.get_context("fork").Process(target=killed, args=(spec, data, store))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and store.get(spec) is None and store.interrupted() == {spec.key: 1}
    run, = complete([spec], data, store)
    assert run.history.epoch.tolist() == [1, 2, 3, 4]
    assert same_logits(run, straight) and same_weights(run, straight) and run.history.equals(straight.history)
    assert run.metrics == straight.metrics and {p.name for p in run.path.iterdir()} == set(FILES) and not list(store.training.iterdir())
