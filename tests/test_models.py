"""The five architectures: shapes, parameter counts, Captum's demand on non-linearities, seeds; and their ensemble."""
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fer_lib.attention import PLACEMENTS
from fer_lib.models import DEPTHS, MODELS, STEMS, MaskingBlock, build_model, ensemble

TINY = {"vgg16": (0.03125, 16), "resnet": (0.0625, 50), "densenet": (0.34, 29), "dpn": (0.0625, 26), "resmasking": (0.0625, 10)}


def tiny(name: str, stem: str = "pooled", attention: str = "none", depth: int | None = None, seed: int | None = 0) -> nn.Module:
    width, default = TINY[name]
    return build_model(name, width, depth or default, stem, attention, seed=seed)


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("name", MODELS)
def test_every_network_takes_faces_and_every_weight_gets_a_gradient(name, stem):
    network = tiny(name, stem, attention="blocks" if stem == "pooled" else "input")
    x = torch.randn(2, 1, 48, 48)
    logits = network(x)
    assert logits.shape == (2, 7) and network.forward_features(x).ndim == 4
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name, stem", [(name, stem) for name in MODELS for stem in STEMS if (name, stem) != ("resmasking", "pooled")])
@torch.no_grad()
def test_every_network_takes_the_authors_crops(name, stem):
    assert tiny(name, stem).eval()(torch.randn(2, 1, 40, 40)).shape == (2, 7)


@torch.no_grad()
def test_the_pooled_stem_halves_every_map():
    x = torch.randn(1, 1, 48, 48)
    for name in set(MODELS) - {"vgg16"}:
        sides = [tiny(name, stem).eval().forward_features(x).shape[-1] for stem in STEMS]
        assert sides == [6, 3], name


def parameters(name: str, depth: int = 0) -> float:
    """Millions at full width, counted without memory or arithmetic."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(name, depth=depth).parameters()) / 1e6


@pytest.mark.parametrize("name, depth, millions", [("dpn", 92, 35.0), ("dpn", 26, 12.0), ("resmasking", 34, 137.8), ("resnet", 50, 23.5),
                                                   ("resnet", 34, 21.3), ("resnet", 18, 11.2), ("densenet", 121, 1.0), ("vgg16", 16, 33.6)])
def test_parameter_counts_are_those_of_the_papers(name, depth, millions):
    assert parameters(name, depth) == pytest.approx(millions, abs=0.05)


def test_depth_0_is_the_authors():
    assert {name: depths[0] for name, depths in DEPTHS.items()} == {"vgg16": 16, "resnet": 50, "densenet": 121, "dpn": 26, "resmasking": 34}
    assert parameters("dpn") == parameters("dpn", 26)


class CountRelu(TorchDispatchMode):
    """Counts what the arithmetic really runs, however it was called."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("relu", "relu_", "clamp_min", "gelu", "silu", "threshold", "leaky_relu", "hardtanh"):
            self.count[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("attention", ["none", "blocks"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_every_nonlinearity_is_its_own_relu_called_once_and_not_in_place(name, attention):
    network = tiny(name, attention=attention, depth=8 if name == "vgg16" and attention == "blocks" else None).eval()
    relus = [(path, module) for path, module in network.named_modules(remove_duplicate=False) if isinstance(module, nn.ReLU)]
    calls = Counter()
    for path, module in relus:
        module.register_forward_hook(lambda *_, path=path: calls.update([path]))
    with CountRelu() as mode:
        network(torch.randn(1, 1, 48, 48))
    assert len({id(module) for _, module in relus}) == len(relus) and not any(module.inplace for _, module in relus)
    assert calls == {path: 1 for path, _ in relus}
    assert mode.count == {"relu": len(relus)}


@pytest.mark.parametrize("name, attention", [*((name, "none") for name in MODELS), ("vgg16", "input"), ("vgg16", "blocks")])
def test_every_network_is_captured_as_one_graph_that_trains_the_same(name, attention):
    torch.compiler.reset()
    x, found = torch.randn(4, 1, 48, 48), []
    for compiled in (False, True):
        network = tiny(name, attention=attention, depth=10 if name == "resnet" else None).train()
        forward = torch.compile(network, backend="eager", fullgraph=True) if compiled else network  # an error where the graph would break
        torch.manual_seed(0)  # dropout
        logits = forward(x)
        logits.square().sum().backward()
        found.append([logits, *(parameter.grad for parameter in network.parameters()), *network.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@torch.no_grad()
def test_masking_block_multiplies_by_between_one_and_two():
    torch.manual_seed(0)
    block, x = MaskingBlock(8, 3).eval(), torch.rand(2, 8, 12, 12) + 0.1
    ratio = block(x) / x
    assert ratio.shape == x.shape and ratio.min() >= 1 and ratio.max() <= 2
    assert torch.allclose((ratio - 1).sum(1), torch.ones(2, 12, 12), atol=1e-4)  # a softmax over channels


def test_same_seed_gives_same_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = tiny("resnet", seed=3), tiny("resnet", seed=3)
    assert torch.equal(before, torch.get_rng_state())
    other = tiny("resnet", seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    assert not torch.equal(first.stem[0].weight, other.stem[0].weight)


def test_without_a_seed_weights_come_from_the_global_generator():
    torch.manual_seed(1)
    first, second = tiny("vgg16", depth=8, seed=None), tiny("vgg16", depth=8, seed=None)
    assert not torch.equal(first.stages[0][0].weight, second.stages[0][0].weight)


@pytest.mark.parametrize("arguments, known", [({"name": "alexnet"}, list(MODELS)), ({"name": "resnet", "depth": 99}, DEPTHS["resnet"]),
                                              ({"name": "resnet", "stem": "imagenet"}, STEMS),
                                              ({"name": "resnet", "attention": "everywhere"}, PLACEMENTS)])
def test_unknown_names_list_the_known_ones(arguments, known):
    with pytest.raises(ValueError, match=", ".join(map(str, known))):
        build_model(**arguments)


def test_ensemble_is_the_log_of_the_mean_softmax():
    logits = [torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.0, 3.0, 0.0]])]
    mean = sum(torch.exp(one) / torch.exp(one).sum() for one in logits) / 2
    assert torch.allclose(ensemble(logits).exp(), mean) and torch.allclose(ensemble(logits).softmax(-1), mean)


def test_ensemble_rules_differ_where_one_network_is_very_sure():
    logits = [torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.0, 4.0, 0.0]]), torch.tensor([[0.0, 4.0, 0.0]])]
    assert ensemble(logits).argmax() == 1
    assert torch.equal(ensemble(logits, "sum_logits"), torch.tensor([[9.0, 8.0, 0.0]]))


def test_ensemble_takes_the_stored_arrays_and_refuses_other_rules():
    stored = torch.randn(2, 5, 7).numpy().astype("float16")
    assert ensemble(list(stored)).dtype == torch.float32
    with pytest.raises(ValueError, match="mean_softmax or sum_logits"):
        ensemble(list(stored), "vote")
