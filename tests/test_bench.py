"""Benches: what they compare, on a few faces; how fast this machine is, no test says."""
import numpy as np
import pandas as pd
import pytest

from fer_lib import bench
from fer_lib.__main__ import main
from fer_lib.study import PRESETS


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
    assert rows["what"][1] == "resnet, resident, bf16" and rows["what"].str.contains("DataLoader").sum() >= 1 and 0 < rows["ratio"][0] < 1
    assert np.allclose(rows["ratio"][1:] * rows["value"][1:], ours)


def test_on_a_gpu_a_loader_is_set_beside_the_faster_of_eager_and_compiled(monkeypatch):
    """Speeds are made up here: what is compared with what, at which batch."""
    batches, speeds = [], iter((100.0, 200.0, 300.0, 150.0))  # of eager and compiled, of two networks
    monkeypatch.setattr(bench, "_peak", lambda device, precision: 1e9)
    monkeypatch.setattr(bench, "_resident", lambda build, images, labels, recipe, *how: (batches.append((recipe.batch, recipe.precision)), next(speeds))[1])
    monkeypatch.setattr(bench, "_loaded", lambda *_: 50.0)
    monkeypatch.setattr(bench, "FULL", {"resnet": (0.125, 10, "pooled"), "vgg16": (0.125, 8, "pooled")})
    rows = pd.DataFrame(bench._training("cuda", 128), columns=bench.COLUMNS[1:]).set_index("what")
    loaders = rows[rows.index.str.contains("DataLoader")]
    assert set(batches) == {(PRESETS["full"].recipe.batch, "bf16")} and loaders["ratio"].unique().tolist() == [4.0, 6.0]
    assert loaders["against"].unique().tolist() == ["resident, compiled", "resident"]
    said = rows.loc["resnet, resident, compiled"]
    assert said["ratio"] == 0.5 and said["note"].startswith(f"{2 * rows.loc['resnet, resident', 'ratio']:.2f} of the matrix product")


def test_the_table_is_printed_and_kept_and_another_bench_joins_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "BENCHES", {name: lambda device, name=name: [(name, 1.0, "images/s", "", np.nan, "")] for name in ("first", "second")})
    for name in ("first", "second", "second"):
        assert main(["bench", name, "--results", str(tmp_path)]) == 0
    kept, = (tmp_path / "bench").glob("*.csv")
    assert pd.read_csv(kept)["bench"].tolist() == ["first", "second"] and "images/s" in capsys.readouterr().out
    assert main(["bench", "third", "--results", str(tmp_path)]) == 2 and "choose from first, second" in capsys.readouterr().err
