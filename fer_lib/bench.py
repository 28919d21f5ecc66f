"""How fast the study is, as ratios measured side by side in one process: `python -m fer_lib bench`.

    privileged_step(build_model("vgg16", 0.5, 8), 64)       # a training step with privileged attribution over one with cross-entropy
"""
import time

import torch

from .faces import EMOTIONS, SIZE
from .models import wide_stages
from .objectives import OBJECTIVES, Batch, Term
from .training import RECIPES


def privileged_step(model, batch: int = 64, repeats: int = 10, device: str = "cpu") -> float:
    """Time of a training step with the privileged attribution loss (its gradient is a second derivative) over one with cross-entropy:
    forward and backward, the two in turn, the median of each."""
    model = model.to(device, memory_format=torch.channels_last).train()
    x = torch.randn(batch, 1, SIZE, SIZE, device=device, generator=torch.Generator(device).manual_seed(0)).to(memory_format=torch.channels_last)
    shown = Batch(x, torch.arange(batch, device=device) % len(EMOTIONS), torch.ones(len(EMOTIONS), device=device), prior=torch.rand_like(x),
                  term=Term(), stages=wide_stages(model))
    times: dict[str, list[float]] = {"cross_entropy": [], "privileged": []}
    for _ in range(repeats + 1):
        for objective, found in times.items():
            began = time.perf_counter()
            OBJECTIVES[objective](model, shown, RECIPES["fast"]).backward()
            if device != "cpu":
                torch.cuda.synchronize()
            found.append(time.perf_counter() - began)
            model.zero_grad(set_to_none=True)
    medians = {objective: torch.tensor(found[1:]).median().item() for objective, found in times.items()}  # the first warms up
    return medians["privileged"] / medians["cross_entropy"]
