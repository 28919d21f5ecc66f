"""What the tests share: one thread and a tiny synthetic data set. The whole study, which takes minutes, runs after every other test."""
import pytest
import torch

from fer_lib.dataset import Dataset, open_dataset

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("study") is not None)  # stable: all else keeps its order


@pytest.fixture(scope="session")
def data() -> Dataset:
    """210 training, 70 validation and 70 test faces, synthetic, an equal number of each emotion."""
    return open_dataset(None, (210, 70, 70))
