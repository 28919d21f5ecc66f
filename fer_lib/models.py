"""The five architectures of the study, trained from scratch on 48x48 grey faces, and their ensemble.

    model = build_model("resnet", width=0.5, depth=10, stem="pooled")
    logits = model(x)                      # x: float (B, 1, H, W), standardised -> (B, 7)

Every network is stem -> stages -> head. `forward_features` gives the last stage's map, `attention_maps` the spatial attention where the
network has gates. Every non-linearity is an `nn.ReLU` module of its own, none in place: Captum needs that.
A new architecture is one function and one entry in `MODELS`.
"""
from functools import lru_cache
from importlib import import_module

import torch
from torch import nn
from torch.nn import functional as F

from .attention import CBAM, PLACEMENTS, SpatialGate

MINIMUM_MAP = 6             # pixels a side: a map below 6x6 says little on a 48x48 face
STEMS = ("cifar", "pooled")  # 3x3 stride 1; the same, then 2x2 max-pool: a quarter of the cost


class Network(nn.Module):
    """stem -> stages (each followed by its CBAM where `attention` is "blocks") -> head."""

    def __init__(self, stem: nn.Module, stages: list[nn.Module], head: nn.Module, attention: str, channels: list[int]):
        super().__init__()
        self.input_gate = SpatialGate() if attention == "input" else None
        self.stem, self.stages, self.head = stem, nn.ModuleList(stages), head
        self.gates = nn.ModuleList(CBAM(c) for c in channels) if attention == "blocks" else None

    def forward_features(self, x: torch.Tensor, stages: int | None = None) -> torch.Tensor:
        """(B, 1, H, W) -> (B, C, h, w), the map after so many stages, all of them by default."""
        if self.input_gate is not None:
            x = x * self.input_gate(x)
        return self._through(self.stem(x), 0, stages)

    def classify(self, maps: torch.Tensor, stages: int) -> torch.Tensor:
        """Logits (B, 7) of the map after so many stages (B, C, h, w): the rest of `forward`."""
        return self.head(self._through(maps, stages, None))

    def _through(self, x, first: int, last: int | None) -> torch.Tensor:
        for i in range(len(self.stages))[first:last]:
            x = self.stages[i](x)
            if self.gates is not None:
                x = self.gates[i](x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, 1, H, W) -> (B, 7)
        return self.head(self.forward_features(x))

    @torch.no_grad()
    def attention_maps(self, x: torch.Tensor) -> torch.Tensor:
        """Spatial attention of each face, (B, H, W) in [0, 1]; the gates' maps enlarged to HxW and averaged for "blocks"."""
        if self.input_gate is not None:
            return self.input_gate(x)[:, 0]
        if self.gates is None:
            raise ValueError('This network has no spatial gate: build it with attention="input" or "blocks".')
        self.forward_features(x)
        maps = [F.interpolate(g.attention.float(), x.shape[-2:], mode="bilinear", align_corners=False) for g in self.gates]
        return torch.cat(maps, 1).mean(1)


class MaskingBlock(nn.Module):
    """Residual masking: x * (1 + m), m a U-Net of basic blocks over x with a softmax over channels.

    Pham et al. 2020, ICPR; `depth` levels of 2, 4, 8, 16 times the channels, as in its public code. The map's side must be
    divisible by 2 ** (depth - 1).
    """

    def __init__(self, channels: int, depth: int):
        super().__init__()
        c = [channels * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(_basic(a, b) for a, b in zip(c, c[1:]))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(c[i + 1], c[i], 2, stride=2) for i in range(1, depth))
        self.up = nn.ModuleList(_basic(2 * c[i], c[i]) for i in range(1, depth))
        self.last = _basic(c[1], c[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, h, w) -> (B, C, h, w)
        levels = [self.down[0](x)]
        for block in self.down[1:]:
            levels.append(block(F.max_pool2d(levels[-1], 2)))
        m = levels.pop()
        for grow, block in zip(reversed(self.grow), reversed(self.up)):
            m = block(torch.cat([levels.pop(), grow(m)], 1))
        return x * (1 + self.last(m).softmax(1))


def _timm(part: str):
    """A file of timm's models, imported when a network needs its blocks: the import costs every process two seconds."""
    return import_module(f"timm.models.{part}")


def _basic(c_in: int, c_out: int, stride: int = 1, block=None) -> nn.Module:
    block = block or _timm("resnet").BasicBlock
    planes = c_out // block.expansion
    shortcut = _timm("resnet").downsample_conv(c_in, c_out, kernel_size=1, stride=stride) if stride > 1 or c_in != c_out else None
    return block(c_in, planes, stride, shortcut)


def _conv_stem(channels: int, stem: str) -> nn.Sequential:
    layers = [nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if stem == "pooled" else []))


def _pool_head(channels: int, num_classes: int, norm: bool = False) -> nn.Sequential:
    before = [nn.BatchNorm2d(channels), nn.ReLU()] if norm else []  # for blocks that normalise on the way in
    return nn.Sequential(*before, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def _wide(channels: int, width: float) -> int:
    return max(8, round(channels * width / 8) * 8)


def vgg(width, depth, stem, num_classes):
    """VGG16 with batch norm (Simonyan & Zisserman 2014), dropout 0.4 after each conv block and two 4096-unit layers as the author has it.

    Depth 8 is the small net of the CPU preset: four stages of conv-pool-BN-ReLU-conv-BN-ReLU, 32-64-128-256 channels, global average pool.
    It has no stem of its own, so `stem` changes nothing.
    """
    if depth == 8:
        c = [1] + [_wide(n, width) for n in (32, 64, 128, 256)]
        stages = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(b), nn.ReLU(),
                                nn.Conv2d(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b in zip(c, c[1:])]
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c[-1], num_classes))
        return nn.Identity(), stages, head, c[1:]
    c = [1] + [_wide(n, width) for n in (64, 128, 256, 512, 512)]
    stages = []
    for a, b, convs in zip(c, c[1:], (2, 2, 3, 3, 3)):
        layers = []
        for i in range(convs):
            layers += [nn.Conv2d(b if i else a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        stages.append(nn.Sequential(*layers, nn.Dropout(0.4), nn.MaxPool2d(2)))
    hidden = _wide(4096, width)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c[-1], hidden), nn.ReLU(), nn.Dropout(0.5),
                         nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, num_classes))
    return nn.Identity(), stages, head, c[1:]


RESNETS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # blocks a stage; 50 has bottlenecks


def resnet(width, depth, stem, num_classes):
    """ResNet (He et al. 2015); 50 is the author's."""
    block = _timm("resnet").Bottleneck if depth >= 50 else _timm("resnet").BasicBlock
    first = _wide(64, width)
    channels = [first * 2**i * block.expansion for i in range(4)]
    stages = []
    for i, blocks in enumerate(RESNETS[depth]):
        before = channels[i - 1] if i else first
        stages.append(nn.Sequential(*[_basic(channels[i] if j else before, channels[i], 2 if i and not j else 1, block)
                                      for j in range(blocks)]))
    return _conv_stem(first, stem), stages, _pool_head(channels[-1], num_classes), channels


DENSENETS = {29: (2, 4, 4, 2), 121: (6, 12, 24, 16)}


def densenet(width, depth, stem, num_classes):
    """DenseNet (Huang et al. 2016) with growth 12, the author's; `width` scales the growth. A stage is a dense block, halved before the next."""
    growth = max(4, round(12 * width))
    c, stages, channels = 2 * growth, [], []
    for i, layers in enumerate(DENSENETS[depth]):
        halve = [_timm("densenet").DenseTransition(c, c // 2)] if i else []
        c = c // 2 if i else c
        stages.append(nn.Sequential(*halve, _timm("densenet").DenseBlock(layers, c, bn_size=4, growth_rate=growth)))
        c += layers * growth
        channels.append(c)
    return _conv_stem(2 * growth, stem), stages, _pool_head(c, num_classes, norm=True), channels


DPNS = {26: (2, 2, 2, 2), 92: (3, 4, 20, 3)}


def dpn(width, depth, stem, num_classes):
    """Dual path network (Chen et al. 2017): 256-512-1024-2048 residual channels, dense increments 16-32-24-128, 32 groups, all times `width`."""
    groups = max(1, round(32 * width))
    first, c, stages, channels = _wide(64, width), _wide(64, width), [], []
    for i, (blocks, increment) in enumerate(zip(DPNS[depth], (16, 32, 24, 128))):
        inner, outer, inc = 3 * groups * 2**i, _wide(256 * 2**i, width), _wide(increment, width)
        layers = []
        for j in range(blocks):
            kind = "normal" if j else ("down" if i else "proj")
            layers.append(_timm("dpn").DualPathBlock(c, inner, inner, outer, inc, groups, kind))
            c = c + inc if j else outer + 3 * inc
        stages.append(nn.Sequential(*layers))
        channels.append(c)
    return _conv_stem(first, stem), stages, _pool_head(c, num_classes, norm=True), channels


def resmasking(width, depth, stem, num_classes):
    """Residual masking network (Pham et al. 2020): a ResNet with a masking block of depth 4, 3, 2, 1 after its stages."""
    stem_, stages, head, channels = resnet(width, depth, stem, num_classes)
    stages = [nn.Sequential(*stage, MaskingBlock(c, levels)) for stage, c, levels in zip(stages, channels, (4, 3, 2, 1))]
    return stem_, stages, head, channels


MODELS = {"vgg16": vgg, "resnet": resnet, "densenet": densenet, "dpn": dpn, "resmasking": resmasking}
DEPTHS = {"vgg16": (16, 8), "resnet": (50, 10, 18, 34), "densenet": (121, 29), "dpn": (26, 92), "resmasking": (34, 10, 18)}  # the author's first


def build_model(name: str, width: float = 1.0, depth: int = 0, stem: str = "cifar", attention: str = "none",
                num_classes: int = 7, seed: int | None = None) -> Network:
    """A network by name; `depth` 0 is the author's. `seed` makes the initial weights a function of the arguments alone.

    Raises ValueError for an unknown name, depth, stem or attention, with the known ones.
    """
    for what, value, known in (("model", name, MODELS), ("depth", depth or DEPTHS.get(name, (0,))[0], DEPTHS.get(name, ())),
                               ("stem", stem, STEMS), ("attention", attention, PLACEMENTS)):
        if value not in known:
            raise ValueError(f"Unknown {what} {value!r} for {name}: use one of {', '.join(map(str, known))}.")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        stem_, stages, head, channels = MODELS[name](width, depth or DEPTHS[name][0], stem, num_classes)
        model = Network(stem_, stages, head, attention, channels)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.ReLU):
                module.inplace = False
    return model


@lru_cache
def forward_flops(name: str, width: float = 1.0, depth: int = 0, stem: str = "cifar", attention: str = "none", size: int = 48) -> int:
    """Floating-point operations of one face's way through a network (a multiplication and an addition are two)."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        build_model(name, width, depth, stem, attention).eval()(torch.empty(1, 1, size, size))
    return counter.get_total_flops()


@torch.no_grad()
def stage_maps(model: Network, size: int = 48) -> list[tuple[int, int]]:
    """(channels, side in pixels) of the map after each stage, of faces `size` pixels wide."""
    weight, was_training, found = next(model.parameters()), model.training, []
    maps = model.eval().forward_features(weight.new_zeros(1, 1, size, size), 0)
    for i in range(len(model.stages)):
        maps = model._through(maps, i, i + 1)
        found.append((maps.shape[1], maps.shape[-1]))
    model.train(was_training)
    return found


def wide_stages(model: Network, least: int = MINIMUM_MAP, size: int = 48) -> int:
    """How many stages lead to the last map of at least `least` pixels a side (STUDY section 5), of faces `size` pixels wide."""
    return max((i + 1 for i, (_, side) in enumerate(stage_maps(model, size)) if side >= least), default=1)


def ensemble(logits: list[torch.Tensor], rule: str = "mean_softmax") -> torch.Tensor:
    """Log-probabilities of the mean softmax of several networks' logits [N, 7] (default, fixed beforehand), or `sum_logits`, the author's."""
    stacked = torch.stack([torch.as_tensor(one, dtype=torch.float32) for one in logits])  # (M, N, 7)
    if rule == "sum_logits":
        return stacked.sum(0)
    if rule != "mean_softmax":
        raise ValueError(f"Unknown rule {rule!r}: use mean_softmax or sum_logits.")
    return stacked.softmax(-1).mean(0).clamp_min(1e-12).log()
