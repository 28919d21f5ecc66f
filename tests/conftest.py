"""What the tests share: one thread and a tiny synthetic data set. The whole study, which takes minutes, runs after every other test."""
import pytest
import torch

from fer_lib.dataset import Dataset, open_dataset
from fer_lib.runs import RunSpec, spec_versions
from fer_lib.training import Recipe

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("study") is not None)  # stable: all else keeps its order


@pytest.fixture(scope="session")
def data() -> Dataset:
    """210 training, 70 validation and 70 test faces, synthetic, an equal number of each emotion."""
    return open_dataset(None, (210, 70, 70))


@pytest.fixture(scope="session")
def few_faces() -> Dataset:
    """70 training, 21 validation and 21 test faces."""
    return open_dataset(None, (70, 21, 21))


@pytest.fixture(scope="session")
def tiny_spec(few_faces) -> RunSpec:
    """Two epochs of two steps of the smallest network on few faces."""
    recipe = Recipe("tiny", epochs=2, batch=32, lr=0.02, ema=0.9, test="single", precision="fp32")
    return RunSpec(data=few_faces.fingerprint, model="vgg16", width=0.1, depth=8, recipe=recipe, versions=spec_versions(few_faces))
