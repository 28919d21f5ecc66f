"""Benches: what they compare, on a few faces; how fast this machine is, no test says."""
import numpy as np
import pandas as pd
import pytest

from fer_lib import bench
from fer_lib.__main__ import main


def test_k_means_is_set_beside_torch_scikit_learn_and_its_best_of_ten():
    pytest.importorskip("numba")
    rows = pd.DataFrame(bench._kmeans("cpu", 520, 8), columns=bench.COLUMNS[1:]).set_index("what")
    assert rows.loc["compiled (numba)", "value"] > 0 and {"plain torch", "scikit-learn, an image at a time"} <= set(rows.index)
    speeds = rows[rows["unit"] == "maps/s"].iloc[1:]
    assert np.allclose(speeds["ratio"] * speeds["value"], rows.loc["compiled (numba)", "value"])
    assert 0.99 < rows.loc["best of ten starts", "value"] < 1.01


def test_training_is_set_beside_a_loader_and_the_matrix_product(monkeypatch):
    monkeypatch.setattr(bench, "NETWORKS", {"cpu": {"resnet": (0.125, 10, "pooled")}})
    rows = pd.DataFrame(bench._training("cpu", 128), columns=bench.COLUMNS[1:])
    ours = rows["value"][0]
    assert rows["what"].str.contains("DataLoader").sum() >= 1 and 0 < rows["ratio"][0] < 1
    assert np.allclose(rows["ratio"][1:] * rows["value"][1:], ours)


def test_the_table_is_printed_and_kept_and_another_bench_joins_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "BENCHES", {name: lambda device, name=name: [(name, 1.0, "images/s", "", np.nan, "")] for name in ("first", "second")})
    for name in ("first", "second", "second"):
        assert main(["bench", name, "--results", str(tmp_path)]) == 0
    kept, = (tmp_path / "bench").glob("*.csv")
    assert pd.read_csv(kept)["bench"].tolist() == ["first", "second"] and "images/s" in capsys.readouterr().out
    assert main(["bench", "third", "--results", str(tmp_path)]) == 2 and "choose from first, second" in capsys.readouterr().err
