"""The README: its worked examples run, its citation is complete."""
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from fer_lib import models, objectives
from fer_lib.claims import points

ROOT = Path(__file__).parents[1]


def test_the_worked_examples_run_in_their_order(tmp_path, monkeypatch, capsys):
    for known in (models.MODELS, models.DEPTHS, objectives.OBJECTIVES):
        for name in ("small_net", "focal"):
            monkeypatch.setitem(known, name, None)  # what the examples add is taken away again
    monkeypatch.chdir(tmp_path)
    blocks, names = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S), {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert len(blocks) == 5 and names["run"].spec.model == "small_net" and "test_masked" in capsys.readouterr().out
    assert not (names["data"].masked[names["covered"]]).any()


def test_headline_is_the_ledgers():
    first = pd.read_csv(ROOT / "results" / "reduced" / "tables" / "00_claims.csv").iloc[0]
    said = " ".join((ROOT / "README.md").read_text().split())
    assert f"macro accuracy by {points(first['value'])} points (95 % over {first['seeds']} seeds: {points(first['low'])} to " \
           f"{points(first['high'])}); the paper reports {points(first['published'])}." in said
    clean = pd.read_csv(ROOT / "results" / "reduced" / "tables" / "05_controls.csv").query(
        "against == 'baseline' and test == 'unmasked' and faces == 'clean' and measure == 'macro_accuracy'").iloc[0]
    assert f"copy in training or validation it is {points(clean['change'])} ({points(clean['low'])} to {points(clean['high'])})." in said


def test_speeds_are_those_of_the_bench():
    bench = pd.read_csv(ROOT / "results" / "bench" / "intel-r-xeon-r-processor.csv").set_index("what")
    said, ratio, seconds = " ".join((ROOT / "README.md").read_text().split()), bench["ratio"], 28709 / bench.loc["compiled (numba)", "value"]
    for words in (f"take {ratio['4 runs, 2 workers']:.2f} of the time of one with two",
                  f"k-means of 28,709 smooth random maps (not of faces: as many as FER2013 has for training) takes {seconds:.2f} s",
                  f"{ratio['scikit-learn, an image at a time']:.0f} times scikit-learn's speed an image",
                  f"{ratio['torch_kmeans, batched']:.0f} times a batched package's", f"take {ratio['4 runs, Ray, 2 slots']:.2f} of the time of one slot",
                  f"A step costs {ratio['resnet, step with privileged attribution after stage 2']:.1f} to "
                  f"{ratio['vgg16, step with privileged attribution after stage 2']:.1f} times cross-entropy's",
                  f"an efficiency of {bench.loc['4 runs, Ray, 2 slots', 'note'].split()[-1]}"):
        assert words in said


def test_every_pod_of_the_ray_cluster_mounts_the_shared_volume():
    spec = yaml.safe_load(re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1])["spec"]
    for pod in (group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])):
        assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": "fer"}}]
        assert pod["containers"][0]["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]


def test_citation_has_what_the_format_asks_for():
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license", "version"} <= about.keys()
    assert about["version"] == re.search(r'version = "(.+)"', (ROOT / "pyproject.toml").read_text())[1]


@pytest.mark.parametrize("path", re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "README.md").read_text()))
def test_pictures_are_there_and_none_is_of_a_person(path):
    assert (ROOT / path).exists() and "faces" not in path
