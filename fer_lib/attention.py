"""CBAM, the convolutional block attention module, and where its gates stand in a network.

    gate = SpatialGate();  y = x * gate(x)      # gate(x): (B, 1, H, W) in [0, 1], the spatial attention map

Woo et al. 2018, https://arxiv.org/abs/1807.06521, sections 3.1 and 3.2. On the one-channel input the channel maximum and mean are
the pixel itself, so the gate there is a learned 7x7 filter of brightness: the study measures what that means (notebook 04).
"""
import torch
from torch import nn

PLACEMENTS = ("none", "input", "blocks")  # no gate; a spatial gate on the raw image (the author's code); CBAM after each stage


class ChannelGate(nn.Module):
    """sigmoid(MLP(avg pool) + MLP(max pool)), one weight a channel: (B, C, H, W) -> (B, C, 1, 1)."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.stack([x.mean((2, 3)), x.amax((2, 3))])  # (2, B, C): one call, so the ReLU runs once
        return torch.sigmoid(self.mlp(pooled).sum(0))[:, :, None, None]  # (B, C, 1, 1)


class SpatialGate(nn.Module):
    """sigmoid(BN(conv7x7([max over C; mean over C]))): (B, C, H, W) -> (B, 1, H, W)."""

    def __init__(self, kernel_size: int = 7):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)  # (B, 2, H, W)
        return torch.sigmoid(self.bn(self.conv(pooled)))


class CBAM(nn.Module):
    """Channel gate, then spatial gate; the last spatial map is kept in `attention` (B, 1, H, W), detached."""

    def __init__(self, channels: int):
        super().__init__()
        self.channel, self.spatial = ChannelGate(channels), SpatialGate()
        self.attention: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.channel(x)
        gate = self.spatial(x)
        self.attention = gate.detach()
        return x * gate
