"""Saliency on models small enough that the right answer is known by hand."""
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from captum.attr import FeatureAblation

from fer_lib.saliency import (ATTRIBUTIONS, REFERENCES, ablation_frame, agreement_with_truth, align, attribute, cam_layer,
                              cascade_randomise, compare_orders, curve_frame, interval, join_regions, mass_frame,
                              mean_maps, perturbation_curve, pixel_order, region_ablation, region_mass, similarity,
                              weight_layers)

SCALING = (0.5, 0.25)  # mean and standard deviation of [0, 1] pixels


class Linear(nn.Module):
    """logits = pixels @ weight.T, 48x48."""

    def __init__(self, seed=0, size=48):
        super().__init__()
        self.fc = nn.Linear(size * size, 7)
        with torch.no_grad():
            self.fc.weight.copy_(torch.randn(7, size * size, generator=torch.Generator().manual_seed(seed)) / size)

    def forward(self, x):
        return self.fc(x.flatten(1))

    def map(self, target, size=48):
        return self.fc.weight.detach()[target].view(-1, size, size)


class Block(nn.Module):
    """Shortcut plus branch; with stride 2 the branch still has a map of the full size inside."""

    def __init__(self, channels, stride):
        super().__init__()
        self.inside = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.last = nn.Conv2d(channels, channels, 3, stride, 1)
        self.short = nn.Conv2d(channels, channels, 1, stride) if stride > 1 else nn.Identity()
        self.relu2 = nn.ReLU()

    def forward(self, x):
        return self.relu2(self.short(x) + self.last(self.relu1(self.inside(x))))


class Small(nn.Module):
    """A residual network of three stages: maps of 12, 6 and 3 pixels."""

    def __init__(self, seed=0, act=nn.ReLU):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 4, 1), nn.BatchNorm2d(8), act(), nn.Dropout(0.5))
        self.stages = nn.Sequential(Block(8, 1), Block(8, 2), Block(8, 2))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7))

    def forward_features(self, x):
        return self.stages(self.stem(x))

    def forward(self, x):
        return self.head(self.forward_features(x))


class ReadsOnePatch(nn.Module):
    """Class 3 when rows 30-39, columns 16-31 are bright, class 0 when dark; blind elsewhere."""

    def forward(self, x):
        patch = x[:, 0, 30:40, 16:32].mean((1, 2))
        logits = torch.zeros(len(x), 7, device=x.device)
        logits[:, 3], logits[:, 0] = 4 * patch, -4 * patch
        return logits


def faces(n=6, seed=0):
    return torch.randn(n, 1, 48, 48, generator=torch.Generator().manual_seed(seed))


def two_regions(n):
    regions = torch.zeros(n, 2, 48, 48, dtype=torch.bool)
    regions[:, 0, 10:20, 10:38], regions[:, 1, 18:40, 16:32] = True, True
    return regions


def test_saliency_of_a_linear_model_is_its_weights_with_sign():
    model, target = Linear(), torch.tensor([0, 3, 6])
    assert torch.allclose(attribute(model, faces(3), target), model.map(target))


def test_integrated_gradients_of_a_linear_model_are_weight_times_change_and_complete():
    model, x, target = Linear(), faces(3), torch.tensor([0, 3, 6])
    for baseline, value in (("mean", 0.0), ("black", -2.0)):
        maps, gap = attribute(model, x, target, "integrated_gradients", baseline=baseline, scaling=SCALING,
                              return_gap=True)
        assert torch.allclose(maps, model.map(target) * (x[:, 0] - value), atol=1e-5)
        assert gap.abs().max() < 1e-4
    blurred = attribute(model, x, target, "integrated_gradients", baseline="blur")
    assert not torch.allclose(blurred, attribute(model, x, target, "integrated_gradients"))


def test_integrated_gradients_of_a_relu_network_are_nearly_complete():
    _, gap = attribute(Small(), faces(), 2, "integrated_gradients", n_steps=64, return_gap=True)
    assert gap.shape == (6,) and gap.abs().max() < 0.02


def test_smoothgrad_of_a_linear_model_is_its_gradient_and_too_much_noise_is_refused():
    model = Linear()
    assert torch.allclose(attribute(model, faces(2), 1, "smoothgrad"), model.map([1, 1]), atol=1e-5)
    with pytest.raises(ValueError, match="between 0 and 0.05"):
        attribute(model, faces(2), 1, "smoothgrad", noise=0.2)


def test_smoothgrad_noise_is_a_share_of_each_face_range():
    class Square(nn.Module):  # gradient 2x: the mean gradient tells the mean noise
        def forward(self, x):
            return (x**2).flatten(1).sum(1, keepdim=True).expand(-1, 7)

    x = faces(2)
    x[1] *= 10
    moved = attribute(Square(), x, 0, "smoothgrad", n_steps=1) / 2 - x[:, 0]
    reach = x.flatten(1).amax(1) - x.flatten(1).amin(1)
    assert torch.allclose(moved.flatten(1).std(1), 0.05 * reach, rtol=0.05)


def test_guided_backprop_drops_negative_gradients_at_each_relu():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.relu = nn.Linear(2304, 2, bias=False), nn.ReLU()
            self.second = nn.Linear(2, 7, bias=False)
            with torch.no_grad():
                self.first.weight.fill_(1.0)
                self.first.weight[1] = 2.0
                self.second.weight.fill_(0.0)
                self.second.weight[5] = torch.tensor([3.0, -1.0])

        def forward(self, x):
            return self.second(self.relu(self.first(x.flatten(1))))

    x = faces(2).abs()
    assert torch.allclose(attribute(Two(), x, 5, "saliency"), torch.tensor(1.0))         # 3 * 1 - 1 * 2
    assert torch.allclose(attribute(Two(), x, 5, "guided_backprop"), torch.tensor(3.0))  # the -1 is dropped


def test_guided_backprop_raises_where_no_relu_module_exists():
    with pytest.raises(ValueError, match="nn.ReLU"):
        attribute(Linear(), faces(2), 0, "guided_backprop")


def test_grad_cam_of_one_convolution_is_its_weighted_positive_map():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = nn.Conv2d(1, 2, 8, 8, bias=False), nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(2, 7)

        def forward_features(self, x):
            return self.conv(x)

        def forward(self, x):
            return self.fc(self.pool(self.forward_features(x)).flatten(1))

    torch.manual_seed(0)
    model, x = One(), faces(3)
    own = model.conv(x).detach()  # [3, 2, 6, 6]
    weights = model.fc.weight.detach()[4] / 36
    known = torch.relu((own * weights.view(1, 2, 1, 1)).sum(1, keepdim=True))
    known = nn.functional.interpolate(known, (48, 48), mode="bilinear", align_corners=False)[:, 0]
    assert cam_layer(model, x) == ("conv", (2, 6, 6))
    for layer in (None, "conv", model.conv):
        assert torch.allclose(attribute(model, x, 4, "grad_cam", layer=layer), known, atol=1e-6)
    with pytest.raises(ValueError, match="such|named_modules"):
        attribute(model, x, 4, "grad_cam", layer="nowhere")


def test_default_grad_cam_layer_is_the_last_map_of_six_pixels_that_no_shortcut_passes_by():
    assert cam_layer(Small(), faces(1)) == ("stages.1", (8, 6, 6))  # stages.2.inside has 6x6 too, but beside a shortcut
    assert cam_layer(Small(), faces(1), least=3)[1] == (8, 3, 3)
    after = nn.Sequential(nn.Conv2d(1, 4, 8, 8), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.MaxPool2d(6))
    assert cam_layer(after, faces(1)) == ("1", (4, 6, 6))  # not the convolution after it, whose map is not rectified
    with pytest.raises(ValueError, match="100x100"):
        cam_layer(Small(), faces(1), least=100)


def test_occlusion_of_a_linear_model_is_the_logit_that_the_window_held():
    model, x = Linear(), faces(2)
    maps = attribute(model, x, 2, "occlusion", window=8, stride=8)
    held = nn.functional.avg_pool2d(model.map([2, 2])[:, None] * x, 8) * 64
    assert torch.allclose(maps, nn.functional.interpolate(held, scale_factor=8)[:, 0], atol=1e-4)


@pytest.mark.parametrize("method", [*ATTRIBUTIONS, *REFERENCES])
def test_a_map_does_not_depend_on_batch_order_or_chunk(method):
    model, x, target = Small(), faces(5), torch.tensor([0, 1, 2, 3, 4])
    together = attribute(model, x, target, method)
    assert together.shape == (5, 48, 48) and together.dtype == torch.float32 and not together.requires_grad
    one = attribute(model, x[3:4], target[3:4], method)
    back = attribute(model, x.flip(0), target.flip(0), method, batch=64).flip(0)
    scale = together.abs().max()
    assert (one[0] - together[3]).abs().max() < 1e-4 * scale
    assert (back - together).abs().max() < 1e-4 * scale
    assert torch.equal(attribute(model, x, target, method), together)


@pytest.mark.parametrize("method", ATTRIBUTIONS)
def test_the_model_and_the_random_state_are_left_as_they_were(method):
    model = Small().train()
    model.stages[0].eval()
    model.stem[0].weight.requires_grad_(False)
    model.to(memory_format=torch.channels_last)
    places = [p.data_ptr() for p in model.parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, grads = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    random = torch.random.get_rng_state()
    attribute(model, faces(2), 1, method)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == grads
    assert [p.data_ptr() for p in model.parameters()] == places and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_the_model_is_left_as_it_was_when_a_method_fails():
    model = Linear().train()
    with pytest.raises(ValueError):
        attribute(model, faces(2), 0, "guided_backprop")
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_autocast_and_channels_last_do_not_change_a_map():
    model, x = Small(), faces(3)
    plain = attribute(model, x, 1, "guided_backprop")
    last = model.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attribute(last, x.to(memory_format=torch.channels_last), 1, "guided_backprop")
    assert torch.allclose(plain, mixed, atol=1e-6)
    with pytest.raises(ValueError, match="bfloat16"):
        attribute(Small().bfloat16(), x, 1)


def test_unknown_names_and_shapes_are_refused_in_one_sentence():
    for wrong in (dict(method="gradcam"), dict(method="occlusion", baseline="white"),
                  dict(method="occlusion", baseline="black"), dict(method="saliency", return_gap=True)):
        with pytest.raises(ValueError):
            attribute(Linear(), faces(2), 0, **wrong)
    with pytest.raises(ValueError, match=r"\[B, 1, H, W\]"):
        attribute(Linear(), faces(2)[:, 0], 0)
    with pytest.raises(ValueError, match="one per face"):
        attribute(Linear(), faces(2), [0, 1, 2])


def test_references_see_edges_the_centre_or_nothing():
    x = torch.zeros(2, 1, 48, 48)
    x[:, :, :, 24:] = 1
    edges = attribute(None, x, 0, "edge_map")
    assert edges[0, 10, 23] > 0 and edges[0, 10, 5] == 0 and edges[0].flatten().argmax() % 48 in (23, 24)
    centre = attribute(None, x, 0, "centre_prior")
    assert centre[0, 24, 24] == centre.max() and torch.equal(centre[0], centre[0].flip(0))
    noise = attribute(None, x, 0, "random_order", seed=3)
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise, attribute(None, x, 0, "random_order", seed=4))


def test_an_even_map_has_enrichment_one_and_a_map_on_the_region_points_at_it():
    regions = np.zeros((3, 2, 48, 48), bool)
    regions[:, 0, :12], regions[:, 1, 24:] = True, True
    maps = np.ones((3, 48, 48), np.float32)
    maps[1] = regions[1, 0] * 2.0 - 1.0  # positive only in the first region
    maps[2] = 0
    mass = region_mass(maps, regions)
    assert np.allclose(mass["enrichment"][0], 1) and np.allclose(mass["share"][0], [0.25, 0.5])
    assert np.allclose(mass["share"][1], [1, 0]) and np.allclose(mass["enrichment"][1], [4, 0])
    assert np.allclose(mass["pointing"][1], [1, 0]) and np.allclose(mass["rank_accuracy"][1, 0], 1)
    assert all(np.isnan(values[2]).all() for values in mass.values())
    assert np.allclose(region_mass(maps, regions, "absolute")["share"][1], [0.25, 0.5])
    assert np.allclose(mass["rank_accuracy"][0], [0.25, 0.5], atol=0.05)  # ties fall at random
    regions[0, 0] = False
    assert np.isnan(region_mass(maps, regions)["share"][0, 0])


def test_pixel_order_is_by_value_and_breaks_ties_without_reading_order():
    maps = torch.zeros(1, 48, 48)
    maps[0, 40, 5], maps[0, 1, 2] = 2.0, -1.0
    order = pixel_order(maps)[0]
    assert order[0] == 40 * 48 + 5 and order[-1] == 50 and sorted(order.tolist()) == list(range(2304))
    assert abs(float((order[1:500] // 48).float().mean()) - 23.5) < 2


def test_mass_frame_gives_paired_differences_to_the_references():
    labels = np.array([3, 3, 0, 0])
    x, regions = faces(4), two_regions(4)
    maps, edges = attribute(Linear(), x, labels), attribute(None, x, labels, "edge_map")
    frame = mass_frame(maps, {"itself": maps, "edge_map": edges}, regions, ("eyes", "mouth"), labels)
    assert set(frame["emotion"]) == {"all", "happy", "angry"} and len(frame) == 3 * 2 * 4
    one = frame.set_index(["emotion", "region", "measure"]).loc[("happy", "mouth", "share")]
    known, other = region_mass(maps, regions)["share"][:2, 1], region_mass(edges, regions)["share"][:2, 1]
    assert np.isclose(one["value"], known.mean()) and one["n"] == 2
    assert np.isclose(one["minus_edge_map"], (known - other).mean())
    half = 1.96 * np.std(known - other, ddof=1) / np.sqrt(2)
    assert np.isclose(one["minus_edge_map_high"] - one["minus_edge_map"], half, rtol=1e-3)
    assert (frame["minus_itself"] == 0).all()


def patches(n):
    regions = np.zeros((n, 3, 48, 48), bool)
    regions[:, 0, 5:15, 16:32] = True   # seen by nobody
    regions[:, 1, 30:40, 16:32] = True  # what ReadsOnePatch reads
    return regions                      # the third is empty


def test_only_the_region_that_the_model_reads_costs_anything():
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat([0, 3], 40))
    images = generator.integers(0, 256, (80, 48, 48)).astype(np.uint8)
    images[:, 30:40, 16:32] = np.where(labels == 3, 230, 20)[:, None, None]
    result = region_ablation(ReadsOnePatch(), images, labels, patches(80), "black", SCALING, n_controls=4)
    assert result.correct.all() and (result.p > 0.9).all()
    assert np.allclose(result.p_region[:, 0], result.p, atol=1e-6)
    assert np.isnan(result.p_region[:, 2]).all() and np.isnan(result.p_control[:, 2]).all()

    frame = ablation_frame(result, ("brows", "mouth", "nose")).set_index(["emotion", "region"])
    happy = frame.loc[("happy", "mouth")]  # black where it was bright: gone
    assert happy["n"] == 40 and happy["drop_p"] > 0.9 and happy["drop_accuracy"] == 1
    assert 0 < happy["control_p"] < happy["drop_p"] / 2  # a rolled mask seldom covers the patch
    assert happy["difference_p_low"] > 0.3 and np.isclose(happy["difference_p"], happy["drop_p"] - happy["control_p"])
    assert abs(frame.loc[("all", "brows"), "drop_p"]) < 1e-6 and frame.loc[("angry", "mouth"), "drop_accuracy"] == 0
    assert frame.loc[("all", "nose"), "n"] == 0 and np.isnan(frame.loc[("all", "nose"), "drop_p"])


def test_region_ablation_does_not_depend_on_batch_and_follows_its_seed():
    model, images = Small(), (faces(8).sigmoid() * 255).byte()[:, 0].numpy()
    labels, regions = np.arange(8) % 7, patches(8)
    one = region_ablation(model, images, labels, regions, "mean", SCALING, n_controls=2, batch=3)
    two = region_ablation(model, images, labels, regions, "mean", SCALING, n_controls=2, batch=8)
    other = region_ablation(model, images, labels, regions, "mean", SCALING, n_controls=2, seed=1)
    patch = region_ablation(model, images, labels, regions, "mean", SCALING, n_controls=2, control="patch")
    assert np.allclose(patch.p_region, one.p_region, atol=1e-5, equal_nan=True)
    assert not np.allclose(patch.p_control[:, 0], one.p_control[:, 0], atol=1e-7)
    assert np.allclose(one.p_control, two.p_control, atol=1e-5, equal_nan=True)
    assert not np.allclose(one.p_control[:, 0], other.p_control[:, 0], atol=1e-7)
    assert np.isnan(region_ablation(model, images, labels, regions, "mean", SCALING, n_controls=0).p_control).all()
    with pytest.raises(ValueError, match="uint8"):
        region_ablation(model, images / 255, labels, regions)


def test_region_ablation_without_control_is_captums_feature_ablation_of_p():
    model, images = Small().eval(), (faces(3).sigmoid() * 255).byte()[:, 0].numpy()
    labels, regions = torch.tensor([0, 3, 6]), patches(3)
    ours = region_ablation(model, images, labels, regions, "black", SCALING, n_controls=0)
    x = (torch.as_tensor(images)[:, None] / 255 - SCALING[0]) / SCALING[1]
    number = torch.as_tensor(regions[:1, :2] * np.array([1, 2])[:, None, None]).sum(1, keepdim=True)
    maps = FeatureAblation(lambda x: model(x).softmax(1)).attribute(
        x, baselines=-SCALING[0] / SCALING[1], target=labels, feature_mask=number)
    assert np.allclose(maps[:, 0, [6, 32], 20], ours.p[:, None] - ours.p_region[:, :2], atol=1e-5)


def test_the_interval_covers_the_true_mean_at_its_nominal_rate():
    generator = np.random.default_rng(0)
    values = generator.normal(0.1, 0.3, (200, 300))
    values[generator.random(values.shape) < 0.1] = np.nan
    low, high = interval(values)
    assert 0.92 <= ((low < 0.1) & (0.1 < high)).mean() <= 0.98


def test_join_regions_takes_the_union():
    regions = np.zeros((2, 4, 48, 48), bool)
    for k in range(4):
        regions[:, k, k] = True
    joined, names = join_regions(regions, ("brows", "eyes", "nose", "mouth"))
    assert names == ("brows+eyes", "nose", "mouth") and joined[0, 0, :2].all() and joined.sum() == 2 * 4 * 48
    with pytest.raises(ValueError, match="Unknown region ear"):
        join_regions(regions, ("brows", "eyes", "nose", "mouth"), {"ears": ("ear",)})


def test_deletion_by_the_true_order_falls_faster_than_by_edges_centre_or_chance():
    model, x = Linear(), faces(20)
    target = model(x).argmax(1)
    true = model.map(target) * x[:, 0]
    curves = compare_orders(model, x, target, {"true": true}, baseline="mean")
    frame = curve_frame(curves).set_index(["kind", "map"])
    for reference in REFERENCES:
        for kind, sign in (("deletion", -1), ("insertion", 1)):
            row = frame.loc[(kind, "true")]
            assert np.isclose(row[f"minus_{reference}"], row["area"] - frame.loc[(kind, reference), "area"], atol=1e-5)
            assert sign * row[f"minus_{reference}"] > 0.1
            assert row[f"minus_{reference}_low"] < row[f"minus_{reference}"] < row[f"minus_{reference}_high"]
    deletion, insertion = curves["true", "deletion"], curves["true", "insertion"]
    p = model(x).softmax(1).gather(1, target[:, None])[:, 0].detach().numpy()
    assert deletion.shape == (20, 25) and np.allclose(deletion[:, 0], p, atol=1e-6)
    assert np.allclose(insertion[:, -1], p, atol=1e-6) and np.allclose(deletion[:, -1], insertion[:, 0], atol=1e-6)
    flat = {(name, kind): np.full((2, 25), 0.3, np.float32) for name in REFERENCES for kind in ("deletion", "insertion")}
    assert np.allclose(curve_frame(flat)["area"], 1)  # a share of the model's own p


def test_deletion_steps_take_equal_shares_of_the_pixels():
    class Sum(nn.Module):
        def forward(self, x):
            left = x.flatten(1).mean(1)
            return torch.stack([left.logit(), *[torch.full_like(left, -30)] * 5, torch.zeros_like(left)], 1)

    curve = perturbation_curve(Sum(), torch.full((1, 1, 48, 48), 0.5), 0, torch.rand(1, 48, 48), baseline="mean")[0]
    assert np.allclose(curve, np.linspace(0.5, 0, 25), atol=1e-3)


def test_similarity_is_a_rank_correlation():
    a = torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0))
    b = torch.stack([a[0] ** 3, -a[1], torch.zeros(48, 48)])
    rank = similarity(a, b)
    assert np.allclose(rank[:2], [1, -1]) and np.isnan(rank[2])
    assert np.isclose(similarity(a, -a, "absolute")[0], 1)


def test_randomising_layers_from_the_top_moves_maps_away_and_leaves_the_model():
    model, x = Small(), faces(6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frame = cascade_randomise(model, x, 2, "saliency", stages=4)
    assert frame["step"].tolist() == [0, 1, 2, 3, 4] and np.isclose(frame["rank"][0], 1)
    assert frame["layer"].iloc[-1] == "stem.0" and abs(frame["rank"].iloc[-1]) < 0.4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    pd.testing.assert_frame_equal(frame, cascade_randomise(model, x, 2, "saliency", stages=4))
    assert len(cascade_randomise(model, x, 2, "grad_cam", stages=2)) == 3


def test_an_edge_map_survives_randomisation_as_it_sees_no_model():
    frame = cascade_randomise(Small(), faces(2), 0, "edge_map", stages=2)
    assert np.allclose(frame["rank"], 1)


def test_layers_come_in_the_order_of_the_forward_pass():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Linear(4, 7), nn.Conv2d(1, 4, 48)

        def forward(self, x):
            return self.head(self.body(x).flatten(1))

    assert weight_layers(Backwards(), faces(1)) == ["body", "head"]


def test_mean_maps_weigh_faces_equally_and_leave_absent_emotions_empty():
    maps = torch.ones(3, 48, 48)
    maps[1] *= 100
    maps[1, 0, 0] = -100
    mean, count = mean_maps(maps, np.array([3, 3, 6]))
    assert count.tolist() == [0, 0, 0, 2, 0, 0, 1] and mean[0].isnan().all()
    assert torch.allclose(mean[3, 1:], torch.tensor(1.0)) and torch.allclose(mean[3, 0, 0], torch.tensor(0.0))
    assert torch.allclose(mean_maps(maps, [3, 3, 6], equal=False)[0][3, 5, 5], torch.tensor(50.5))


def test_align_undoes_turn_scale_and_shift():
    generator = torch.Generator().manual_seed(0)
    template = torch.rand(68, 2, generator=generator) * 20 + 14
    template[36:42] += torch.tensor([-8.0, -8.0])
    template[42:48] += torch.tensor([8.0, -8.0])
    turn = 0.9 * torch.polar(torch.tensor(1.0), torch.tensor(0.3))
    linear = torch.stack([torch.stack([turn.real, -turn.imag]), torch.stack([turn.imag, turn.real])])
    shift = torch.tensor([9.0, -5.0])

    def moved(xy):  # template frame -> face
        return xy @ linear.T + shift

    def scene(xy):
        return torch.exp(-((xy - torch.tensor([26.0, 20.0])) ** 2).sum(-1) / 40)

    grid = torch.stack(torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="xy"), -1)  # [48, 48, 2]: x, y
    face = scene((grid - shift) @ torch.linalg.inv(linear).T)
    points = torch.stack([moved(template), template])
    aligned = align(torch.stack([face, scene(grid)]), points, template)
    inside = scene(grid) > 0.05
    assert (aligned[0] - scene(grid))[inside].abs().max() < 0.02
    assert torch.allclose(aligned[1], scene(grid), atol=1e-4)  # already in the frame


def test_agreement_finds_the_true_order_and_the_top_region():
    regions = ["brows", "eyes", "nose", "mouth"]
    losses = [[0.3, 0.1, 0.0, 0.2], [0.0, 0.1, 0.05, 0.6], [0.0] * 4]
    wide = pd.DataFrame(losses, ["angry", "happy", "neutral"], regions)
    truth = wide.rename_axis(index="emotion", columns="region").stack().rename("loss").reset_index()
    importance = truth.rename(columns={"loss": "difference_p"})
    importance.loc[importance["emotion"] == "angry", "difference_p"] *= -1
    importance = pd.concat([importance, importance.assign(emotion="all")])
    frame = agreement_with_truth(importance, truth).set_index("emotion")
    assert frame.index.tolist() == ["angry", "happy", "neutral", "all"]
    assert np.isclose(frame.loc["happy", "rank"], 1) and frame.loc["happy", "top"] == 1
    assert np.isclose(frame.loc["angry", "rank"], -1) and frame.loc["angry", "top"] == 0
    assert np.isnan(frame.loc["neutral", "rank"]) and frame.loc["all", "n_regions"] == 12
    with pytest.raises(ValueError, match="no pair"):
        agreement_with_truth(importance.assign(region="ear"), truth)
