"""How fast the study is, as ratios measured side by side in one process: `python -m fer_lib bench`.

    frame = measure(("kmeans", "training"))     # one row a measurement, and its ratio to what it is compared with
"""
import logging
import os
import tempfile
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from . import lloyd
from .clustering import _draws, kmeans, pixel_features
from .dataset import open_dataset
from .faces import EMOTIONS, SIZE
from .models import build_model, forward_flops
from .objectives import OBJECTIVES, Batch, Term
from .runs import RunSpec, Store, device_name
from .schedule import Schedule
from .training import RECIPES, Recipe, attributed_stages, train

log = logging.getLogger(__name__)

SCALING = (0.508, 0.255)  # of FER2013's training split
TRAIN_FACES = 28709       # of FER2013
COLUMNS = ["bench", "what", "value", "unit", "against", "ratio", "note"]


def measure(benches: tuple[str, ...] = (), device: str | None = None) -> pd.DataFrame:
    """Rows of the benches named, all by default, columns COLUMNS, device, threads, torch: `ratio` is how many times slower than
    `against` it is, unless the note says otherwise.

    Raises ValueError for an unknown bench.
    """
    if unknown := [name for name in benches if name not in BENCHES]:
        raise ValueError(f"Unknown bench {', '.join(unknown)}: choose from {', '.join(BENCHES)}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for name in benches or BENCHES:
        log.info("bench %s", name)
        rows += [(name, *row) for row in BENCHES[name](device)]
    return pd.DataFrame(rows, columns=COLUMNS).assign(device=device_name(device), threads=torch.get_num_threads(), torch=torch.__version__)


def _timed(work, device: str, repeats: int = 3) -> tuple[float, object]:
    """Seconds of the fastest of some calls, after one that warms up, and what the last gave."""
    found = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        result = work()
        if device != "cpu":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found[1:]), result


# ---- k-means of every face's own map, three clusters, ten iterations of one start ----

def _kmeans(device: str, faces: int = TRAIN_FACES, few: int = 256) -> list[tuple]:
    from sklearn.cluster import KMeans

    coarse = torch.rand(faces, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    maps = F.interpolate(coarse, (SIZE, SIZE), mode="bicubic").to(device)
    points, draws = pixel_features(maps[:few, 0]), _draws(1, 3, 0)
    if lloyd.fit(maps, draws, 1.5, 1.2, 1) is None:
        return [("compiled", np.nan, "maps/s", "", np.nan, "not measured: neither numba nor Triton can run here")]
    seconds, (_, _, inertia) = _timed(lambda: lloyd.fit(maps, draws, 1.5, 1.2, 10), device)
    ours, inertia = faces / seconds, inertia[:few].mean().item()
    rows = [("compiled" + (" (Triton)" if device != "cpu" else " (numba)"), ours, "maps/s", "", np.nan, f"all {faces} in {faces / ours:.3f} s")]

    def theirs(name, work) -> tuple:  # work() gives the mean inertia of the first few
        seconds, found = _timed(work, device, 1)
        return name, few / seconds, "maps/s", "compiled", ours * seconds / few, f"inertia {found / inertia:.4f} of ours"

    rows.append(theirs("plain torch", lambda: kmeans(points, 3, 1, 10).inertia.mean().item()))
    arrays = points.cpu().numpy()

    def per_image(n_init, max_iter):
        return np.mean([KMeans(3, n_init=n_init, max_iter=max_iter, random_state=0).fit(one).inertia_ for one in arrays])

    rows.append(theirs("scikit-learn, an image at a time", lambda: per_image(1, 10)))
    restarted = lloyd.fit(maps[: max(few, lloyd.LEAST)], _draws(10, 3, 0), 1.5, 1.2, 50)[2][:few].mean().item()
    rows.append(("best of ten starts", restarted / per_image(10, 300), "inertia", "scikit-learn's best of ten", np.nan, "1 is equal"))
    try:
        from torch_kmeans import KMeans as Batched
    except ImportError:
        return rows
    batched = Batched(n_clusters=3, num_init=1, max_iter=10, init_method="k-means++", seed=0, verbose=False)
    return [*rows, theirs("torch_kmeans, batched", lambda: batched(points).inertia.sum().item() / few)]


# ---- training: our loop against a DataLoader of PIL pictures, same network, same augmentation ----

NETWORKS = {"cpu": {"vgg16": (0.5, 8, "pooled"), "resnet": (0.375, 10, "pooled")}}  # width, depth, stem; elsewhere the author's own size
FULL = {"vgg16": (1.0, 0, "pooled"), "resnet": (1.0, 0, "pooled")}


class _Pictures(torch.utils.data.Dataset):
    """Faces as PIL pictures, one at a time, through torchvision's transforms: how the author and most others feed a network."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        from torchvision import transforms

        self.images, self.labels = images, labels
        self.transform = transforms.Compose([transforms.RandomCrop(SIZE, padding=4, padding_mode="reflect"), transforms.RandomHorizontalFlip(),
                                             transforms.ToTensor(), transforms.Normalize(*([value] for value in SCALING))])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int):
        from PIL import Image

        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])


def _loaded(model, images, labels, recipe, device: str, workers: int) -> float:
    """Images a second of a training epoch fed by a DataLoader."""
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)
    loader = torch.utils.data.DataLoader(_Pictures(images, labels), recipe.batch, shuffle=True, drop_last=True, num_workers=workers,
                                         pin_memory=device != "cpu", persistent_workers=workers > 0)

    def epoch():
        for x, y in loader:
            x, y = x.to(device, non_blocking=True, memory_format=torch.channels_last), y.to(device, non_blocking=True)
            with torch.autocast(device, torch.bfloat16, enabled=recipe.precision == "bf16"):
                loss = nn.functional.cross_entropy(model(x), y, label_smoothing=recipe.label_smoothing)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return len(loader) * recipe.batch / _timed(epoch, device, 1)[0]


def _resident(build, images, labels, recipe, device: str, compiled: bool = False) -> float:
    """Images a second of an epoch of `train`, the data set resident."""
    x, y, found = torch.as_tensor(images).to(device), torch.as_tensor(labels).to(device), []
    train(build(), x, y, x[:64], y[:64], recipe, 0, SCALING, report=lambda row: found.append(row["seconds"]), compiled=compiled)
    return len(x) // recipe.batch * recipe.batch / min(found[1:])


def _peak(device: str, precision: str) -> float:
    """FLOP/s of a large matrix product, the floor that training is measured against."""
    n, dtype = (8192 if device != "cpu" else 2048), torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / _timed(lambda: a @ b, device)[0]


def _training(device: str, faces: int | None = None) -> list[tuple]:
    faces = faces or (TRAIN_FACES if device != "cpu" else 2048)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (faces, SIZE, SIZE), np.uint8), rng.integers(0, len(EMOTIONS), faces)
    precision = "bf16" if device != "cpu" else "fp32"
    recipe = replace(RECIPES["fast"], epochs=3, precision=precision, **({"batch": 64} if device == "cpu" else {}))  # as `reduced` and `full` train
    peak, rows = _peak(device, precision), []
    for name, network in NETWORKS.get(device, FULL).items():
        build = partial(build_model, name, *network, seed=0)
        ours = _resident(build, images, labels, recipe, device)
        floor = 3 * forward_flops(name, *network) / peak
        best, against = ours, "resident"
        rows.append((f"{name}, resident", ours, "images/s", f"{precision} matrix product", floor * ours, "share of its FLOP/s, not a ratio of times"))
        if device != "cpu":
            value = _resident(build, images, labels, recipe, device, True)
            rows.append((f"{name}, resident, compiled", value, "images/s", "resident", ours / value, f"{floor * value:.2f} of the matrix product's FLOP/s"))
            best, against = max((best, against), (value, "resident, compiled"))
        else:
            value = _resident(build, images, labels, replace(recipe, precision="bf16"), device)
            rows.append((f"{name}, resident, bf16", value, "images/s", "resident", ours / value, ""))
        for workers in dict.fromkeys((1, min(16, os.cpu_count() or 1))):
            theirs = _loaded(build(), images, labels, recipe, device, workers)
            rows.append((f"{name}, DataLoader + PIL, {workers} worker{'s' * (workers > 1)}", theirs, "images/s", against, best / theirs, ""))
    return rows


# ---- what the second derivative of privileged attribution costs ----

def privileged_step(model, recipe: Recipe = RECIPES["fast"], term: Term = Term(), batch: int = 64, repeats: int = 10, device: str = "cpu") -> float:
    """Time of a training step with the privileged attribution loss (its gradient is a second derivative) over one with cross-entropy,
    on faces of full size: forward and backward, the two in turn, the median of each."""
    model = model.to(device, memory_format=torch.channels_last).train()
    x = torch.randn(batch, 1, SIZE, SIZE, device=device, generator=torch.Generator(device).manual_seed(0)).to(memory_format=torch.channels_last)
    shown = Batch(x, torch.arange(batch, device=device) % len(EMOTIONS), torch.ones(len(EMOTIONS), device=device), prior=torch.rand_like(x),
                  term=term, stages=attributed_stages(model, recipe, term))
    times: dict[str, list[float]] = {"cross_entropy": [], "privileged": []}
    for _ in range(repeats + 1):
        for objective, found in times.items():
            began = time.perf_counter()
            OBJECTIVES[objective](model, shown, recipe).backward()
            if device != "cpu":
                torch.cuda.synchronize()
            found.append(time.perf_counter() - began)
            model.zero_grad(set_to_none=True)
    medians = {objective: torch.tensor(found[1:]).median().item() for objective, found in times.items()}  # the first warms up
    return medians["privileged"] / medians["cross_entropy"]


def _privileged(device: str) -> list[tuple]:
    return [(f"{name}, step with privileged attribution after stage {k}", np.nan, "", "step with cross-entropy",
             privileged_step(build_model(name, *network), term=Term(stages=k), device=device), "time over time")
            for name, network in NETWORKS.get(device, FULL).items() for k in (2, 3)]  # 3 on faces of 48 pixels, 2 where they grow from 32


# ---- several runs at once ----

def _scaling(device: str, runs: int = 4, epochs: int = 15) -> list[tuple]:
    """Equal runs of the small VGG by one worker and by more, start-up included."""
    data = open_dataset(None, (1050, 210, 210))
    recipe = replace(RECIPES["fast"], epochs=epochs, batch=64, precision="bf16" if device != "cpu" else "fp32")
    specs = [RunSpec(data=data.fingerprint, model="vgg16", width=0.5, depth=8, recipe=recipe, seed=seed) for seed in range(runs)]

    def timed(workers: int, executor: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            Schedule([[(spec, {}) for spec in specs]], data, Store(folder), workers, device, executor=executor).run()
            return time.perf_counter() - began

    most, rows = (os.cpu_count() or 1) if device == "cpu" else 4, []
    first = timed(1, "processes")
    rows.append((f"{runs} runs, 1 worker of all threads", first, "s", "", np.nan, ""))
    for workers in dict.fromkeys((2, most)):
        rows.append((f"{runs} runs, {workers} workers", second := timed(workers, "processes"), "s", "1 worker", second / first, "time over time"))
    try:
        import ray
    except ImportError:
        return rows
    times = []
    for slots in (1, 2):  # nodes would be the same: a task a core, or two tasks a GPU
        ray.init(num_cpus=slots, num_gpus=int(device != "cpu"), log_to_driver=False, include_dashboard=False)
        times.append(timed(slots, "ray"))
        ray.shutdown()
    return [*rows, (f"{runs} runs, Ray, 1 slot", times[0], "s", "", np.nan, ""),
            (f"{runs} runs, Ray, 2 slots", times[1], "s", "1 slot", times[1] / times[0], f"efficiency {times[0] / times[1] / 2:.2f}")]


BENCHES = {"kmeans": _kmeans, "training": _training, "privileged": _privileged, "scaling": _scaling}
