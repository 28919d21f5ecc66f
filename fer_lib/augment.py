"""Batched augmentation: whole batches as tensors, the image and everything drawn on it moved together.

    x, maps = augment(images, "light", generator, maps)   # images uint8 (B, 48, 48) -> x float (B*V, 1, H, W) in [0, 1]

`maps` (B, M, 48, 48), cluster masks or landmark priors, move with their face; V is the number of crops a face becomes (1, or 5 in "paper").
Images (B, C, 48, 48), a face unmasked and masked, become x (B*V, C, H, W): one draw a face, whatever it wears.
"""
import math

import torch
from torch.nn import functional as F

CROP = 40  # pixels, side of the author's crops


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 (B, 48, 48) or (B, C, 48, 48) -> float (B, 1 or C, 48, 48) in [0, 1]."""
    return (images if images.ndim == 4 else images[:, None]).float().div_(255)


def standardise(x: torch.Tensor, scaling: tuple[float, float]) -> torch.Tensor:
    """Subtract the training split's scalar mean and divide by its standard deviation, both in [0, 1] pixels."""
    return (x - scaling[0]) / scaling[1]


def none(images, generator, maps):
    """The faces as they are."""
    return to_float(images), maps


def light(images, generator, maps, pad: int = 4):
    """Horizontal flip and a random crop after reflecting `pad` pixels: one gather, no interpolation."""
    b, size = images.shape[0], images.shape[-1]
    device = images.device
    shift = torch.randint(-pad, pad + 1, (2, b, 1), generator=generator, device=device)
    flip = torch.rand((b, 1), generator=generator, device=device) < 0.5
    grid = torch.arange(size, device=device)
    reflect = lambda i: (size - 1) - ((size - 1) - i.abs()).abs()
    rows = reflect(grid + shift[0])                                      # (B, H)
    cols = reflect(torch.where(flip, size - 1 - grid, grid) + shift[1])  # (B, W)
    face = torch.arange(b, device=device)[:, None, None]
    move = lambda m: m.permute(0, 2, 3, 1)[face, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)
    x = to_float(images[face, rows[:, :, None], cols[:, None, :]] if images.ndim == 3 else move(images))  # (B, C, H, W)
    return x, None if maps is None else move(maps)


def paper(images, generator, maps):
    """The author's: random resized crop (area 0.8 to 1.2), brightness and contrast 0.5, shift 0.2, flip, rotation 10 degrees (each of
    probability 0.5 but the crop), five 40x40 crops of each, random erasing (0.5). The geometric part is one affine map."""
    b, device = images.shape[0], images.device
    uniform = lambda low, high, *shape: torch.empty(shape or (b,), device=device).uniform_(low, high, generator=generator)
    half = lambda: (uniform(0, 1) < 0.5).float()
    side = uniform(0.8, 1.2).sqrt()                                      # of the window, relative to the image
    aspect = uniform(math.log(3 / 4), math.log(4 / 3)).exp().sqrt()
    sx, sy = side * aspect * (1 - 2 * half()), side / aspect             # a negative sx mirrors
    angle = uniform(-10, 10) * half() * math.pi / 180
    room = (1 - side).abs()
    tx = uniform(-1, 1) * room + uniform(-0.4, 0.4) * (moved := half())  # grid units: the image is 2 wide
    ty = uniform(-1, 1) * room + uniform(-0.4, 0.4) * moved
    theta = torch.stack([torch.stack([sx * angle.cos(), -sy * angle.sin(), tx], 1),
                         torch.stack([sx * angle.sin(), sy * angle.cos(), ty], 1)], 1)  # (B, 2, 3)
    grid = F.affine_grid(theta, (b, 1, *images.shape[-2:]), align_corners=False)
    x = F.grid_sample(to_float(images), grid, align_corners=False)
    jitter = half()[:, None, None, None]
    x = x * (1 + (uniform(-0.5, 0.5, b, 1, 1, 1)) * jitter)
    mean = x.mean((2, 3), keepdim=True)
    x = (mean + (x - mean) * (1 + uniform(-0.5, 0.5, b, 1, 1, 1) * jitter)).clamp(0, 1)
    if maps is not None:
        how = "bilinear" if maps.is_floating_point() else "nearest"
        maps = F.grid_sample(maps.float(), grid, mode=how, align_corners=False).to(maps.dtype)
        maps = five_crops(maps)
    x = five_crops(x)                                                    # (5B, C, 40, 40)
    return _erase(x, generator), maps


def five_crops(x: torch.Tensor, size: int = CROP) -> torch.Tensor:
    """Four corners and the centre, face by face: (B, C, H, W) -> (5B, C, size, size)."""
    h, w = x.shape[-2] - size, x.shape[-1] - size
    places = ((0, 0), (0, w), (h, 0), (h, w), (h // 2, w // 2))
    return torch.stack([x[..., i : i + size, j : j + size] for i, j in places], 1).flatten(0, 1)


def _erase(x, generator, share=(0.02, 0.4)):
    """Random erasing (Zhong et al. 2020), probability 0.5: a rectangle of 2 to 40 % of the area goes black."""
    b, size, device = x.shape[0], x.shape[-1], x.device
    draw = torch.rand((5, b, 1), generator=generator, device=device)
    area = (share[0] + (share[1] - share[0]) * draw[0]) * size**2
    aspect = torch.exp((2 * draw[1] - 1) * math.log(1 / 0.3))
    h, w = (area * aspect).sqrt().clamp(max=size), (area / aspect).sqrt().clamp(max=size)
    top, left = draw[2] * (size - h), draw[3] * (size - w)
    grid = torch.arange(size, device=device)
    rows, cols = (grid >= top) & (grid < top + h), (grid >= left) & (grid < left + w)  # (B, size)
    hole = rows[:, None, :, None] & cols[:, None, None, :] & (draw[4] < 0.5)[:, :, None, None]
    return x.masked_fill(hole, 0.0)


AUGMENTATIONS = {"none": none, "light": light, "paper": paper}


def augment(images: torch.Tensor, name: str, generator: torch.Generator, maps: torch.Tensor | None = None):
    """Augment a batch, uint8 (B, 48, 48) or (B, C, 48, 48); `maps` (B, M, 48, 48) may be None. ValueError for an unknown name."""
    if name not in AUGMENTATIONS:
        raise ValueError(f"Unknown augmentation {name!r}: use one of {', '.join(AUGMENTATIONS)}.")
    return AUGMENTATIONS[name](images, generator, maps)


def test_views(x: torch.Tensor, name: str) -> list[torch.Tensor]:
    """What a face is shown as at test time: float (B, 1, 48, 48) -> a list of batches whose logits are averaged."""
    if name == "single":
        return [x]
    if name == "flip":
        return [x, x.flip(-1)]
    if name == "ten_crop":
        h = x.shape[-1] - CROP
        places = ((0, 0), (0, h), (h, 0), (h, h), (h // 2, h // 2))
        crops = [x[..., i : i + CROP, j : j + CROP] for i, j in places]
        return crops + [crop.flip(-1) for crop in crops]
    raise ValueError(f"Unknown test averaging {name!r}: use single, flip or ten_crop.")
