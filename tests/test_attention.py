"""CBAM's gates against its formulas written out, and where they stand in a network."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d

from fer_lib.attention import CBAM, PLACEMENTS, ChannelGate, SpatialGate
from fer_lib.models import build_model
from fer_lib.tables import enrichment


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def batch(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_spatial_gate_matches_formula():
    torch.manual_seed(0)
    gate = SpatialGate().eval()
    gate.bn.running_mean.fill_(0.3), gate.bn.running_var.fill_(2.0), gate.bn.weight.fill_(1.5), gate.bn.bias.fill_(-0.2)
    x = batch(3, 5, 12, 10)
    weight = gate.conv.weight.numpy().astype(float)[0]  # (2, 7, 7): maximum, mean
    for face, found in zip(x.numpy().astype(float), gate(x).numpy()):
        filtered = correlate2d(face.max(0), weight[0], "same") + correlate2d(face.mean(0), weight[1], "same")
        expected = sigmoid(1.5 * (filtered - 0.3) / np.sqrt(2.0 + gate.bn.eps) - 0.2)
        assert found.shape == (1, 12, 10) and np.allclose(found[0], expected, atol=1e-5)


@torch.no_grad()
def test_channel_gate_matches_formula():
    torch.manual_seed(0)
    gate = ChannelGate(32).eval()
    x = batch(3, 32, 6, 5)
    (w1, b1), (w2, b2) = ((gate.mlp[i].weight.numpy().astype(float), gate.mlp[i].bias.numpy().astype(float)) for i in (0, 2))
    mlp = lambda v: w2 @ np.maximum(w1 @ v + b1, 0) + b2
    assert w1.shape == (2, 32)  # reduction 16
    for face, found in zip(x.numpy().astype(float), gate(x).numpy()):
        expected = sigmoid(mlp(face.mean((1, 2))) + mlp(face.max((1, 2))))
        assert found.shape == (32, 1, 1) and np.allclose(found[:, 0, 0], expected, atol=1e-5)


@torch.no_grad()
def test_cbam_is_the_channel_gate_then_the_spatial_gate():
    torch.manual_seed(0)
    block = CBAM(16).eval()
    x = batch(2, 16, 6, 6)
    y = x * block.channel(x)
    assert torch.allclose(block(x), y * block.spatial(y)) and torch.equal(block.attention, block.spatial(y))


@torch.no_grad()
def test_on_one_channel_the_spatial_gate_is_one_filter_of_brightness():
    torch.manual_seed(0)
    gate = SpatialGate().eval()
    x = batch(2, 1, 12, 12)
    filtered = torch.conv2d(x, gate.conv.weight.sum(1, keepdim=True), padding=3)
    assert torch.allclose(gate(x), torch.sigmoid(gate.bn(filtered)), atol=1e-6)


def small(attention: str):
    return build_model("vgg16", width=0.25, depth=8, attention=attention, seed=0).eval()


def test_placement_decides_which_gates_a_network_has():
    networks = {placement: small(placement) for placement in PLACEMENTS}
    assert {p: n.input_gate is not None for p, n in networks.items()} == {"none": False, "input": True, "blocks": False}
    assert {p: len(n.gates or []) for p, n in networks.items()} == {"none": 0, "input": 0, "blocks": 4}
    assert not any(isinstance(m, ChannelGate) for m in networks["input"].modules())


@torch.no_grad()
def test_the_input_gate_weighs_the_raw_face():
    network, x = small("input"), batch(2, 1, 48, 48)
    plain = small("none")
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("input_gate")})
    assert torch.allclose(network(x), plain(x * network.input_gate(x)), atol=1e-5)


@pytest.mark.parametrize("placement", ["input", "blocks"])
def test_attention_maps_are_one_map_a_face_between_0_and_1(placement):
    network, x = small(placement), batch(3, 1, 48, 48)
    maps = network.attention_maps(x)
    assert maps.shape == (3, 48, 48) and maps.min() >= 0 and maps.max() <= 1 and not maps.requires_grad
    assert maps.std() > 0 and torch.allclose(maps[1], network.attention_maps(x[1:2])[0], atol=1e-6)


def test_attention_maps_of_the_input_gate_are_the_gate():
    network, x = small("input"), batch(3, 1, 48, 48)
    assert torch.equal(network.attention_maps(x), network.input_gate(x)[:, 0])


@torch.no_grad()
def test_attention_maps_of_blocks_are_the_mean_of_the_enlarged_gates():
    network, x = small("blocks"), batch(2, 1, 48, 48)
    network(x)
    assert [gate.attention.shape[-1] for gate in network.gates] == [24, 12, 6, 3]
    enlarged = [torch.nn.functional.interpolate(g.attention, (48, 48), mode="bilinear") for g in network.gates]
    assert torch.allclose(network.attention_maps(x), sum(enlarged)[:, 0] / 4, atol=1e-6)


def test_attention_maps_without_gates_say_how_to_get_them():
    with pytest.raises(ValueError, match='attention="input" or "blocks"'):
        small("none").attention_maps(batch(1, 1, 48, 48))


def test_enrichment_is_that_of_attention_on_the_scale_it_is_clustered_on():
    where = np.zeros((48, 48))
    where[:12] = 1  # a quarter of the picture
    data = SimpleNamespace(region_shares={"brows": where, "mouth": where[::-1]})
    for low, high in ((0.0, 1.0), (0.60, 0.61)):  # sigmoids lie close together
        run = SimpleNamespace(measured=lambda name: {"overall": np.where(where > 0, high, low)})
        assert enrichment(run, data, ("brows", "mouth")) == pytest.approx([4, 0])
