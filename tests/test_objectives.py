"""Objectives: gradients against finite differences, known values, and what each is not allowed to touch."""
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fer_lib.augment import augment, standardise, to_float
from fer_lib.dataset import Dataset
from fer_lib.landmarks import HOW, heatmaps
from fer_lib.models import build_model, wide_stages
from fer_lib.objectives import CHANNELS, OBJECTIVES, Batch, Term, apart, attributed, prior_distance
from fer_lib.study import PRESETS, privileged_ablations
from fer_lib.training import RECIPES, _batch, attributed_stages, train

RECIPE = replace(RECIPES["fast"], epochs=1, batch=16, precision="fp32", label_smoothing=0.0)


def network(seed: int = 0, **values):
    return build_model("vgg16", 0.25, 8, seed=seed, **values)


def faces(n: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 1, 48, 48, generator=torch.Generator().manual_seed(seed))


def batch(x: torch.Tensor, **values) -> Batch:
    return Batch(x, torch.arange(len(x)) % 7, torch.ones(7), **values)


@pytest.fixture(scope="module")
def prior(data) -> torch.Tensor:
    return torch.as_tensor(data.priors(np.arange(8))[:, :1])


# ------------------------------------------------------------------------------------------------------- privileged attribution

@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("form", ["correlation", "literal"])
@pytest.mark.parametrize("target", ["label", "sum"])
def test_gradients_of_the_privileged_loss_match_finite_differences(prior, channels, form, target):
    model = network().double().eval()
    weights = [model.stages[0][0].weight, model.stages[2][0].weight, model.head[-1].weight]
    term = Term(weight=3.0, channels=channels, form=form, target=target)
    shown = batch(faces(4).double(), prior=prior[:4].double(), term=term, stages=2)
    for module in model.modules():  # smooth, so that a finite difference crosses no kink
        if isinstance(module, torch.nn.Sequential):
            for i, part in enumerate(module):
                module[i] = torch.nn.Softplus() if isinstance(part, torch.nn.ReLU) else torch.nn.AvgPool2d(2) if isinstance(part, torch.nn.MaxPool2d) else part

    def loss():
        return prior_distance(CHANNELS[channels](attributed(model, shown.x, shown.labels, 2, target)[0]), shown.prior, form).sum()
    found = torch.autograd.grad(loss(), weights)
    for weight, gradient in zip(weights, found):
        place = gradient.abs().flatten().argmax()
        step = 1e-6 * max(1.0, weight.abs().max().item())
        flat, values = weight.data.view(-1), []
        for move in (step, -2 * step):
            flat[place] += move
            values.append(loss().item())
        flat[place] += step
        assert gradient.flatten()[place].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3) != 0


def test_privileged_loss_reaches_weights_of_every_stage_and_stays_finite(prior):
    model = network()
    OBJECTIVES["privileged"](model, batch(faces(), prior=prior, term=Term(weight=1e6), stages=3), RECIPE).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all(), name
    assert model.stages[0][0].weight.grad.abs().max() > 0


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (1e-3, 5.0), (400.0, -7.0)])
def test_a_positive_affine_copy_of_the_prior_is_a_perfect_match(prior, scale, shift):
    small = F.adaptive_avg_pool2d(prior.float(), 12)
    copy = (scale * small + scale * shift).expand(-1, 5, -1, -1)
    assert prior_distance(copy, prior).numpy() == pytest.approx(-1, abs=1e-4)
    assert prior_distance(-copy, prior).numpy() == pytest.approx(1, abs=1e-4)


def test_literal_form_is_the_standardised_attribution_times_the_prior():
    a, h = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.rand(2, 1, 6, 6, dtype=torch.float64)
    known = [-np.mean([(c - c.mean()) / c.std() * h_[0] for c in a_]) for a_, h_ in zip(a.numpy(), h.numpy())]
    assert prior_distance(a, h, "literal").numpy() == pytest.approx(known, rel=1e-4)


def test_attribution_is_the_map_times_the_slope_of_the_labels_logit():
    model, x, labels = network().eval(), faces(3), torch.tensor([0, 4, 6])
    maps = model.forward_features(x)
    weight = model.head[-1].weight[labels] / maps.shape[-1] ** 2  # (3, C): global average pooling
    found, logits = attributed(model, x, labels, len(model.stages))
    assert torch.allclose(found, maps * weight[:, :, None, None], atol=1e-6) and torch.allclose(logits, model(x), atol=1e-5)
    shares = F.one_hot(labels, 7).float()
    assert torch.allclose(attributed(model, x, shares, len(model.stages))[0], found, atol=1e-6)


def test_in_training_a_face_is_attributed_by_its_own_label_and_the_statistics_of_use():
    model, x, labels = network().train(), faces(), torch.arange(8) % 7
    known = {name: value.clone() for name, value in model.named_buffers()}
    own, logits = attributed(model, x, labels, 2)
    model.load_state_dict(known, strict=False)
    others = attributed(model, x, torch.cat([labels[:1], labels[1:].flip(0)]), 2)[0]
    assert torch.allclose(own[0], others[0], atol=1e-7) and not torch.allclose(own[1], others[1], atol=1e-5) and model.training
    model.load_state_dict(known, strict=False)
    assert torch.equal(logits, model(x))                                    # cross-entropy's are those of training
    once = {name: value.clone() for name, value in model.named_buffers()}   # and the statistics move once a step
    model.load_state_dict(known, strict=False)
    attributed(model, x, labels, 2)
    assert all(torch.equal(value, once[name]) for name, value in model.named_buffers())


def test_faces_without_landmarks_add_nothing():
    model, blank = network(), torch.zeros(8, 1, 48, 48)
    shown = batch(faces(), prior=blank, term=Term(weight=5.0), stages=3)
    assert OBJECTIVES["privileged"](model, shown, RECIPE).item() == pytest.approx(OBJECTIVES["cross_entropy"](model, shown, RECIPE).item(), rel=1e-5)
    assert (prior_distance(torch.randn(8, 2, 6, 6), blank) == 0).all() and (prior_distance(torch.zeros(8, 2, 6, 6), blank) == 0).all()


def test_a_target_without_gradient_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="gradient is 0 everywhere"):
        Term(target="sum of probabilities")
    with pytest.raises(ValueError, match="Unknown channels 'some': use one of all, mean, half"):
        Term(channels="some")


def test_weight_grows_over_the_warmup(prior):
    model, term = network().eval(), Term(weight=2.0, warmup=0.5)
    losses = [OBJECTIVES["privileged"](model, batch(faces(), prior=prior, term=term, stages=3, done=done), RECIPE).item() for done in (0, 0.25, 0.5, 1)]
    assert losses[1] - losses[0] == pytest.approx((losses[2] - losses[0]) / 2, rel=1e-3) and losses[2] == losses[3] != losses[0]


def test_the_attributed_map_is_the_last_that_is_never_below_six_pixels():
    small = replace(RECIPE, grow=(32, 40, 48))
    assert [attributed_stages(network(), recipe, Term(stages=k)) for recipe, k in ((RECIPE, 0), (small, 0), (small, 4))] == [3, 2, 4]
    assert wide_stages(network()) == 3 and wide_stages(network(), least=20) == 1
    assert network().forward_features(faces(1), 3).shape[-1] == 6 and wide_stages(build_model("resnet", 0.125, 10, "pooled")) == 3


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_stages_of_the_ablation_are_others_than_the_default(preset):
    arms = privileged_ablations(replace(preset, arms=()), SimpleNamespace(fingerprint="", versions={}))
    stages = [attributed_stages(arms["mean"].build(), arms["mean"].recipe, arm.term) for name, arm in arms.items() if name == "mean" or "stage" in name]
    assert sorted(stages) == [1, 2, 3, 4]


def test_bf16_keeps_the_privileged_term_in_fp32(prior):
    model = network()
    with torch.autocast("cpu", torch.bfloat16):
        found, logits = attributed(model, faces(), torch.zeros(8, dtype=torch.int64), 3)
    assert found.dtype == logits.dtype == torch.float32


# ------------------------------------------------------------------------------------------------------- the prior

def test_prior_is_one_at_every_landmark_but_the_jaw(data):
    points = data.landmarks.points[:4].copy()
    points[:, 17:] = np.clip(points[:, 17:].round(), 0, 47)
    maps = heatmaps(points)
    x, y = points[:, 17:].astype(int).transpose(2, 0, 1)
    assert (maps[np.arange(4)[:, None], y, x] == 1).all() and maps.dtype == np.float16 and maps.min() >= 0
    assert maps[0, int(points[0, 8, 1].clip(0, 47)), int(points[0, 8, 0])] < 0.5  # the chin


def test_flips_move_the_prior_with_the_face(data):
    images, maps = torch.as_tensor(data.faces.images[:32]), torch.as_tensor(data.faces.images[:32].astype(np.float16))[:, None] / 255
    for name in ("light", "paper"):
        x, moved = augment(images, name, torch.Generator().manual_seed(0), maps)
        if name == "light":
            assert torch.allclose(x, moved.float(), atol=1e-3)
        assert moved.shape == x.shape and moved.dtype == torch.float16


def test_pairs_share_every_draw(data):
    images = torch.as_tensor(data.faces.images[:16])
    for name in ("none", "light", "paper"):
        x, _ = augment(torch.stack([images, images], 1), name, torch.Generator().manual_seed(3))
        assert x.shape[1] == 2 and torch.equal(x[:, 0], x[:, 1])
        alone, _ = augment(images, name, torch.Generator().manual_seed(3))
        assert torch.equal(alone[:, 0], x[:, 0])


def test_visible_prior_has_no_mouth_under_the_mask_and_shuffled_is_anothers(data):
    index = np.arange(12)
    full, visible, shuffled = (data.priors(index, name).astype(np.float32) for name in ("full", "visible", "shuffled"))
    mouth = data.regions(index, ("mouth",))[:, 0]
    assert (full[:, 0] == full[:, 1]).all() and (visible[:, 0] == full[:, 0]).all()
    assert visible[:, 1][mouth].mean() < 0.2 < full[:, 1][mouth].mean()
    assert not (shuffled == full).all((1, 2, 3)).any() and sorted(shuffled.sum((1, 2, 3))) == sorted(full.sum((1, 2, 3)))


def test_faces_of_the_template_have_no_prior(data):
    how = data.landmarks.how.copy()
    how[:3] = HOW.index("template")
    some = replace(data, landmarks=replace(data.landmarks, how=how))
    assert (some.priors(np.arange(6))[:3] == 0).all() and (some.priors(np.arange(6))[3:].max((1, 2, 3)) > 0.5).all()
    with pytest.raises(ValueError, match="No landmarks are known"):
        some.priors(np.arange(3))


# ------------------------------------------------------------------------------------------------------- with and without a mask

def test_contrast_of_identical_maps_is_zero_and_scale_does_not_matter():
    maps = torch.rand(4, 6, 3, 3) + 0.1
    assert apart(maps, 3 * maps).item() == pytest.approx(0, abs=1e-6) and apart(maps, -maps).item() == pytest.approx(2)
    a, b = (F.normalize(m, dim=1) for m in (maps, maps.flip(0)))
    assert apart(maps, maps.flip(0)).item() == pytest.approx(6 / 2 * F.mse_loss(a, b).item(), rel=1e-5)
    model, x = network().eval(), faces(4)
    shown = Batch(torch.cat([x, x]), torch.arange(4).repeat(2), torch.ones(7), term=Term(weight=9.0))
    assert OBJECTIVES["contrastive"](model, shown, RECIPE).item() == pytest.approx(OBJECTIVES["cross_entropy"](model, shown, RECIPE).item())


@pytest.mark.parametrize("name", ["distillation", "logit_distillation"])
def test_distillation_moves_the_student_and_never_the_teacher(name):
    model, teacher = network(0), network(1).eval()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    loss = OBJECTIVES[name](model, batch(faces(), whole=faces(seed=1), teacher=teacher, term=Term()), RECIPE)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters()) and all((before[k] == v).all() for k, v in teacher.state_dict().items())
    assert model.stages[0][0].weight.grad.abs().max() > 0
    same = OBJECTIVES[name](teacher, batch(faces(), whole=faces(), teacher=teacher, term=Term(weight=50.0)), RECIPE)
    assert same.item() == pytest.approx(OBJECTIVES["cross_entropy"](teacher, batch(faces()), RECIPE).item(), abs=1e-4)


def test_supervised_contrast_falls_as_an_emotion_draws_together():
    apart_, labels = torch.randn(8, 4, 1, 1, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3] * 2)
    together = torch.eye(4)[labels][:, :, None, None]

    class Maps(torch.nn.Module):
        forward_features = staticmethod(lambda x: x)
        head = staticmethod(lambda x: torch.zeros(len(x), 7))
    losses = [OBJECTIVES["supervised_contrastive"](Maps(), Batch(x, labels, torch.ones(7), head=torch.nn.Identity(), term=Term()), RECIPE).item()
              for x in (apart_, together)]
    assert losses[1] == pytest.approx(np.log(7) + np.log(1 + 6 * np.exp(-10)), abs=1e-4) and losses[0] > losses[1] + 1


# ------------------------------------------------------------------------------------------------------- in the training loop

def fit(data: Dataset, objective: str, variant: str, epochs: int = 1, recipe=RECIPE, **values) -> tuple:
    index, val = data.faces.where("train")[:64], data.faces.where("val")[:8]
    model, tensor = network(), lambda a: torch.as_tensor(np.ascontiguousarray(a))
    history = train(model, tensor(data.images(variant)[index]), tensor(data.faces.labels[index].astype(np.int64)), tensor(data.faces.images[val]),
                    tensor(data.faces.labels[val].astype(np.int64)), replace(recipe, epochs=epochs), 0, data.scaling, objective, **values)
    return model, history


@pytest.mark.parametrize("objective, variant", [("cross_entropy", "mixed"), ("cross_entropy", "pairs"), ("contrastive", "pairs"),
                                                ("supervised_contrastive", "pairs"), ("distillation", "mixed"), ("logit_distillation", "mixed"),
                                                ("privileged", "unmasked"), ("privileged", "mixed")])
def test_every_objective_trains_and_continues_from_its_checkpoint(data, tmp_path, objective, variant):
    values = {"masked_share": 0.5 if variant == "mixed" else None, "term": Term(weight=0.5)}
    if objective == "privileged":
        values["priors"] = torch.as_tensor(data.priors(data.faces.where("train")[:64], "visible"))[:, : 2 if variant == "mixed" else 1]
    if "distillation" in objective:
        values["teacher"] = network(1).eval()
    whole, history = fit(data, objective, variant, 2, **values)
    assert np.isfinite([row["loss"] for row in history]).all()

    class Stop(Exception):
        pass

    def stop(row):
        raise Stop
    with pytest.raises(Stop):
        fit(data, objective, variant, 2, checkpoint=tmp_path / "c.pt", report=stop, **values)
    again, _ = fit(data, objective, variant, 2, checkpoint=tmp_path / "c.pt", **values)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))


def test_a_step_shows_each_face_masked_by_chance_or_both_pictures(data):
    both, labels = torch.as_tensor(data.images("mixed")[:6]), torch.arange(6)
    priors = torch.as_tensor(data.priors(np.arange(6), "visible"))
    unmasked, masked = (standardise(to_float(both[:, i]), data.scaling) for i in (0, 1))
    recipe, generator = replace(RECIPE, augment="none"), torch.Generator().manual_seed(0)

    def step(share):
        return _batch(both, labels, torch.arange(6), recipe, data.scaling, generator, None, 0, 1, None, share, priors, True)
    worn, bare, pair = step(1.0), step(0.0), step(None)
    assert torch.equal(worn["x"], masked) and torch.equal(worn["whole"], unmasked) and torch.equal(worn["prior"], priors[:, 1:])
    assert torch.equal(bare["x"], unmasked) and torch.equal(bare["prior"], priors[:, :1])
    assert torch.equal(pair["x"], torch.cat([unmasked, masked])) and pair["labels"].tolist() == [*range(6)] * 2
    some = torch.stack([(step(0.25)["x"] == masked).all((1, 2, 3)) for _ in range(200)]).float().mean()
    assert some == pytest.approx(0.25, abs=0.06)


def test_a_thousand_steps_with_missing_landmarks_stay_finite(data):
    how = data.landmarks.how.copy()
    how[::3] = HOW.index("template")
    some = replace(data, landmarks=replace(data.landmarks, how=how))
    priors = torch.as_tensor(some.priors(some.faces.where("train")[:64]))[:, :1]
    model, history = fit(some, "privileged", "unmasked", 250, recipe=replace(RECIPE, grow=(16,)), priors=priors, term=Term(weight=1.0))
    assert len(history) == 250 and np.isfinite([row["loss"] for row in history]).all()
    assert all(torch.isfinite(p).all() for p in model.parameters())
