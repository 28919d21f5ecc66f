"""The training loop: it learns, repeats itself to the bit, survives interruption, and predicts each face on its own."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import swa_utils

from fer_lib.models import build_model
from fer_lib.objectives import OBJECTIVES, Batch
from fer_lib.perturb import Perturb, Views, fill
from fer_lib.synthetic import make_faces
from fer_lib.training import RECIPES, Averaged, Recipe, Stream, learning_rate, predict, save, train


class Tiny(nn.Module):
    """A network of milliseconds that has all that makes resuming hard: batch statistics, dropout, momentum."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 5, stride=4, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3),
                                    nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 7))

    def forward(self, x):
        return self.layers(x)


def tiny(seed: int = 0) -> Tiny:
    torch.manual_seed(seed)
    return Tiny()


@pytest.fixture(scope="module")
def tensors(data):
    """images, labels, val_images, val_labels."""
    faces = data.faces
    return [torch.as_tensor(a) for split in ("train", "val") for a in (faces.images[faces.where(split)], data.labels(split))]


BASE = Recipe("tiny", epochs=4, batch=40, lr=0.05, ema=0.9, test="single", precision="fp32")
RESUMED = {
    "one cycle and averaged weights": (BASE, None),
    "plateau and best epoch": (replace(BASE, schedule="plateau", keep="best", ema=0.0, lr=0.02, augment="paper"), None),
    "best of averaged weights": (replace(BASE, keep="best"), None),
    "growing and bf16": (replace(BASE, grow=(24, 48), precision="bf16"), None),
    "one random view": (BASE, Perturb(source="attention")),
    "leave one out": (BASE, Perturb(source="cuts", views="leave_one_out")),
    "clusters per data set": (BASE, Perturb(clusters_per="dataset")),
}


def run(tensors, data, recipe, perturb=None, checkpoint=None, report=None, seed: int = 0):
    """Train the tiny network: its history and final weights."""
    gate = build_model("vgg16", 0.1, 8, attention="input", seed=1).eval()
    views = Views(perturb, gate, tensors[0], data.scaling, seed) if perturb else None
    network = tiny(seed)
    history = train(network, *tensors, recipe, seed, data.scaling, views=views, checkpoint=checkpoint, report=report)
    return history, network.state_dict(), views.parts if views else None


def assert_same(first, second):
    assert first[0] == second[0]
    assert list(first[1]) == list(second[1]) and all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    assert first[2] is None or torch.equal(first[2], second[2])


def test_loss_falls_and_a_small_network_learns_synthetic_faces_above_chance(data):
    faces = make_faces(840, 140, 1).faces
    images, labels = torch.as_tensor(faces.images), torch.as_tensor(faces.labels.astype("int64"))
    torch.manual_seed(0)
    layers = [layer for a, b in ((1, 16), (16, 32), (32, 64))
              for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())]
    network = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64 * 9, 7))
    recipe = replace(BASE, epochs=5, batch=30, lr=0.1, augment="none", label_smoothing=0.0)
    history = train(network, images[:840], labels[:840], images[840:980], labels[840:980], recipe, 0, data.scaling)
    losses = [row["loss"] for row in history]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.5
    assert history[-1]["val_accuracy"] > 0.3  # chance is 0.14
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert set(history[0]) == {"epoch", "lr", "loss", "val_loss", "val_accuracy", "val_macro_accuracy"}


def test_history_describes_the_weights_that_are_kept(tensors, data):
    history, weights, _ = run(tensors, data, BASE)
    network = tiny()
    network.load_state_dict(weights)
    logits = predict(network, tensors[2], data.scaling, "single")
    assert history[-1]["val_accuracy"] == pytest.approx((logits.argmax(1) == tensors[3]).float().mean().item())
    assert history[-1]["val_loss"] == pytest.approx(F.cross_entropy(logits, tensors[3]).item(), abs=1e-5)


def test_same_seed_is_bit_equal_and_another_seed_is_not(tensors, data):
    first, second, other = (run(tensors, data, replace(BASE, epochs=2), Perturb(), seed=seed) for seed in (0, 0, 1))
    assert_same(first, second)
    assert not torch.equal(first[1]["layers.6.weight"], other[1]["layers.6.weight"])


@pytest.mark.parametrize("name", RESUMED)
def test_interrupted_and_resumed_is_bit_equal(name, tensors, data, tmp_path):
    recipe, perturb = RESUMED[name]
    straight = run(tensors, data, recipe, perturb)

    def interrupt(row):
        if row["epoch"] in (1, 3):
            torch.manual_seed(99)  # whatever else happens to the global generator in between
            raise KeyboardInterrupt

    checkpoint = tmp_path / "checkpoint.pt"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tensors, data, recipe, perturb, checkpoint, interrupt)
    assert_same(straight, run(tensors, data, recipe, perturb, checkpoint))
    assert_same(straight, run(tensors, data, recipe, perturb, checkpoint))  # interrupted after its last epoch: nothing is trained
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_report_hears_every_epoch_with_its_time(tensors, data):
    rows = []
    run(tensors, data, BASE, report=rows.append)
    assert [(row["epoch"], row["epochs"]) for row in rows] == [(i, 4) for i in (1, 2, 3, 4)] and all(row["seconds"] > 0 for row in rows)


def test_best_keeps_the_epoch_best_on_validation(tensors, data):
    recipe = replace(BASE, keep="best", ema=0.0, lr=0.5, epochs=5, warmup=0.9)
    history, weights, _ = run(tensors, data, recipe)
    network = tiny()
    network.load_state_dict(weights)
    accuracy = (predict(network, tensors[2], data.scaling, "single").argmax(1) == tensors[3]).float().mean().item()
    assert accuracy == pytest.approx(max(row["val_accuracy"] for row in history))


def test_zero_epochs_leave_the_network_as_it_is(tensors, data):
    history, weights, _ = run(tensors, data, replace(BASE, epochs=0))
    assert history == [] and all(torch.equal(a, b) for a, b in zip(weights.values(), tiny().state_dict().values()))


def test_one_cycle_rises_over_the_warmup_and_falls_to_zero():
    recipe, steps = Recipe(lr=0.4, warmup=0.25), 200
    rates = [learning_rate(recipe, step, steps) for step in range(steps)]
    middles = (np.arange(steps) + 0.5) / steps
    assert np.allclose(rates, np.interp(middles, [0, 0.25, 1], [0, 0.4, 0]))
    assert max(rates) <= 0.4 and rates[0] < 0.01 and rates[-1] < 0.01 and min(rates) > 0


def test_one_cycle_without_warmup_starts_at_its_peak():
    assert learning_rate(Recipe(lr=0.4, warmup=0.0), 0, 1000) == pytest.approx(0.4, rel=1e-2)


def test_plateau_lowers_the_rate_by_a_quarter_when_validation_stops_gaining(tensors, data):
    images, labels, *val = (tensor[:40] for tensor in tensors)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48 * 48, 7))  # nothing in it changes at this rate
    recipe = replace(BASE, schedule="plateau", lr=1e-6, ema=0.0, epochs=16)
    history = train(network, images, labels, *val, recipe, 0, data.scaling)
    rates = [row["lr"] / 1e-6 for row in history]
    assert rates[:7] == pytest.approx([1.0] * 7) and rates[7:13] == pytest.approx([0.75] * 6) and rates[13] == pytest.approx(0.75**2)


def test_faces_grow_in_equal_phases(tensors, data):
    seen = []

    class Watch(Tiny):
        def forward(self, x):
            seen.append((self.training, x.shape[-1]))
            return super().forward(x)

    train(Watch(), *tensors, replace(BASE, epochs=4, grow=(24, 48), batch=210), 0, data.scaling)
    assert [side for training, side in seen if training] == [24, 24, 48, 48]
    assert {side for training, side in seen if not training} == {48}


def test_a_pass_shows_every_face_once_and_no_step_is_short():
    stream = Stream(10, torch.Generator().manual_seed(0))
    steps = [stream.next(4) for _ in range(5)]
    assert all(len(step) == 4 for step in steps)
    both = torch.cat(steps)
    assert both[:10].sort().values.tolist() == both[10:].sort().values.tolist() == list(range(10))
    assert both[:10].tolist() != both[10:].tolist()


def test_a_step_may_be_larger_than_the_data():
    assert torch.bincount(Stream(3, torch.Generator().manual_seed(0)).next(9)).tolist() == [3, 3, 3]


def test_averaged_weights_follow_their_formula_and_begin_with_the_first_update():
    network = nn.BatchNorm1d(2)
    averaged, expected = Averaged(network, 0.6), None
    for step in range(1, 13):
        with torch.no_grad():
            network.weight.fill_(step), network.running_mean.fill_(step), network.num_batches_tracked.fill_(step)
        decay = min(0.6, step / (9 + step))
        expected = step if expected is None else decay * expected + (1 - decay) * step
        averaged.update()
        assert averaged.module.weight.tolist() == averaged.module.running_mean.tolist() == pytest.approx([expected] * 2, rel=1e-5)
        assert averaged.module.num_batches_tracked == step


def test_averaged_weights_are_torchs_and_go_on_from_its_checkpoints():
    """Bit for bit, as stored runs were trained with torch's class; half of the way from a checkpoint that holds its state."""
    ema = swa_utils.AveragedModel(network := tiny(), multi_avg_fn=lambda a, b, n: torch._foreach_lerp_(a, b, 1 - min(0.9, (1 + int(n)) / (10 + int(n))))
                                  if a[0].is_floating_point() else torch._foreach_copy_(a, b), use_buffers=True)
    ours = Averaged(network, 0.9)
    for step in range(8):
        if step == 4:
            ours = Averaged(network, 0.9)
            ours.load_state_dict(ema.state_dict())
        network.train()(torch.randn(8, 1, 48, 48)).sum().backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= 0.01 * parameter.grad
        ema.update_parameters(network)
        ours.update()
        assert all(torch.equal(a, b) for a, b in zip(ours.module.state_dict().values(), ema.module.state_dict().values(), strict=True))


def test_weight_decay_spares_biases_and_batch_norm(tensors, data):
    """With a gradient of zero only decayed weights shrink."""

    class Deaf(Tiny):
        def forward(self, x):
            return super().forward(x) * 0

    network = Deaf()
    nn.init.constant_(network.layers[6].bias, 0.3)
    before = {name: value.clone() for name, value in network.named_parameters()}
    train(network, *tensors, replace(BASE, epochs=1, ema=0.0, weight_decay=0.1), 0, data.scaling)
    kept = {name: (value / before[name]).nanmedian().item() for name, value in network.named_parameters()}
    assert 0.9 < kept["layers.0.weight"] < 0.999 and kept["layers.0.weight"] == pytest.approx(kept["layers.6.weight"], abs=1e-4)
    assert kept["layers.6.bias"] == kept["layers.1.weight"] == 1


def test_label_smoothing_reaches_the_loss(tensors, data):
    """A silent network's loss is log 7 with or without; a sure one's is larger with."""
    images, labels, *val = tensors

    class Sure(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([20.0]))

        def forward(self, x):
            return F.one_hot(torch.zeros(len(x), dtype=torch.long), 7) * self.scale

    losses = [train(Sure(), images[:40], labels[:40] * 0, *val, replace(BASE, epochs=1, lr=1e-9, ema=0.0, label_smoothing=s), 0,
                    data.scaling)[0]["loss"] for s in (0.0, 0.1)]
    assert losses == pytest.approx([0.0, 0.1 * 6 / 7 * 20], abs=1e-3)


def test_fast_and_paper_recipes_say_what_the_study_says():
    paper = RECIPES["paper"]
    assert (paper.epochs, paper.lr, paper.weight_decay, paper.schedule, paper.test) == (200, 0.01, 1e-4, "plateau", "ten_crop")
    assert RECIPES["fast"] == Recipe()


@pytest.mark.parametrize("values, known", [({"schedule": "cosine"}, "one_cycle, plateau"), ({"augment": "mixup"}, "none, light, paper"),
                                           ({"test": "five"}, "single, flip, ten_crop"), ({"keep": "first"}, "last, best"),
                                           ({"precision": "fp8"}, "bf16, fp32")])
def test_unknown_values_of_a_recipe_list_the_known_ones(values, known):
    with pytest.raises(ValueError, match=known):
        Recipe(**values)


def test_balanced_loss_gives_a_rare_emotion_the_weight_of_the_others():
    labels, logits = torch.tensor([0] * 9 + [1]), torch.randn(10, 7, generator=torch.Generator().manual_seed(0))
    weights = 10 / (7 * torch.bincount(labels, minlength=7).clamp(min=1))
    loss = OBJECTIVES["balanced"](lambda x: x, Batch(logits, labels, weights), Recipe(label_smoothing=0.0))
    each = F.cross_entropy(logits, labels, reduction="none")
    assert loss.item() == pytest.approx((each[:9].mean() + each[9]).item() / 2, rel=1e-5)


def test_labels_may_be_shares_and_one_hot_shares_are_labels(tensors, data):
    images, labels, *val = tensors
    plain, shares = tiny(), tiny()
    histories = [train(model, images, given, *val, BASE, 0, data.scaling) for model, given in ((plain, labels), (shares, F.one_hot(labels, 7).float()))]
    assert histories[0][-1]["loss"] == pytest.approx(histories[1][-1]["loss"], rel=1e-3)


def test_compiled_training_runs_the_network_through_torch_compile(tensors, data, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda model, mode=None: (seen.append(model), model)[1])
    monkeypatch.setattr(torch.compiler, "reset", lambda: seen.append("forgets the networks before"))
    model = tiny()
    train(model, *tensors, BASE, 0, data.scaling)
    assert not seen
    train(model, *tensors, BASE, 0, data.scaling, compiled=True)
    assert seen == ["forgets the networks before", model]


def test_unknown_objective_lists_the_known_ones(tensors, data):
    with pytest.raises(ValueError, match="Unknown objective 'hinge': use one of .*cross_entropy"):
        train(tiny(), *tensors, BASE, 0, data.scaling, objective="hinge")


# --- predict ---

@pytest.fixture(scope="module")
def network():
    """A small network whose batch norms have seen something."""
    found = build_model("resnet", 0.0625, 10, "pooled", "blocks", seed=0)
    with torch.no_grad():
        for i in range(2):
            found(torch.randn(16, 1, 48, 48, generator=torch.Generator().manual_seed(i)))
    return found.eval()


@pytest.mark.parametrize("test", ["single", "flip", "ten_crop"])
def test_a_prediction_depends_on_neither_batch_nor_order(test, network, tensors, data):
    images = tensors[2][:24]
    whole = predict(network, images, data.scaling, test, batch=64)
    assert whole.shape == (24, 7) and whole.dtype == torch.float32
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert (predict(network, images, data.scaling, test, batch=1) - whole).abs().max() < 1e-4
    assert (predict(network, images[order], data.scaling, test, batch=7) - whole[order]).abs().max() < 1e-4


@pytest.mark.parametrize("shared", [True, False])
def test_a_prediction_with_views_is_the_mean_over_holes_and_the_whole_face(shared, network, tensors, data):
    images, mean, sd = tensors[2][:10], *data.scaling
    masks = torch.rand(1 if shared else 10, 2, 48, 48, generator=torch.Generator().manual_seed(0)) < 0.4
    found = predict(network, images, data.scaling, "flip", masks, batch=4)
    x = images[:, None] / 255
    shown = [x] + [fill(x, masks[:, k].expand(10, 48, 48), "black", data.scaling) for k in range(2)]
    with torch.no_grad():
        logits = [network((v - mean) / sd) for s in shown for v in (s, s.flip(-1))]
    assert torch.allclose(found, sum(logits) / 6, atol=1e-4)
    assert (predict(network, images, data.scaling, "flip", masks, batch=1) - found).abs().max() < 1e-4


def test_predict_leaves_the_network_as_it_found_it(network, tensors, data):
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    predict(network, tensors[2][:4], data.scaling)
    assert network.training and all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    network.eval()


def test_save_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save(path, {"epoch": 1})
    with pytest.raises(Exception):
        save(path, {"epoch": lambda: 0})
    assert torch.load(path) == {"epoch": 1}


def test_costly_checkpoints_are_written_seldom_and_when_stopped(tensors, data, tmp_path, monkeypatch):
    written, now, recipe = [], [0.0], replace(BASE, epochs=6)

    def slow(path, state):
        written.append(state["epoch"])
        now[0] += 1  # seconds

    monkeypatch.setattr("fer_lib.training.save", slow)
    monkeypatch.setattr("fer_lib.training.time.perf_counter", lambda: now[0])

    def epoch(row):
        now[0] += 5  # so that two epochs are ten times a writing
        if row["epoch"] == stop:
            raise KeyboardInterrupt

    stop = 0
    run(tensors, data, recipe, checkpoint=tmp_path / "checkpoint.pt", report=epoch)
    assert written == [1, 3, 5, 6]
    written.clear()
    stop = 4
    with pytest.raises(KeyboardInterrupt):
        run(tensors, data, recipe, checkpoint=tmp_path / "checkpoint.pt", report=epoch)
    assert written[-1] == 4


def test_training_that_diverges_is_stopped_and_told(tensors, data):
    with pytest.raises(FloatingPointError, match="no longer a number in epoch 1: lower the learning rate"):
        run(tensors, data, replace(BASE, epochs=1, warmup=0.01, lr=1e30))
