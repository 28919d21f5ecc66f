"""What a stranger gets: the lists of packages agree, commands that are named exist, and what is committed holds nothing private."""
import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from fer_lib.__main__ import parser

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {"triton": "torch", "torch_kmeans": "torch-kmeans", "sklearn": "scikit-learn", "PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "papermill"}  # papermill needs PyYAML
BY_HAND = {"mediapipe"}  # installed with --no-deps, see landmarks.py


def package(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower()


def committed(*patterns: str) -> list[Path]:
    """Files that git holds, or all that match where there is no git."""
    said = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    names = said.stdout.split("\n")[:-1] if said.returncode == 0 else [str(path.relative_to(ROOT)) for p in patterns for path in ROOT.glob(p)]
    return [ROOT / name for name in names if (ROOT / name).exists()]


def test_conda_environment_lists_what_pyproject_does():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    *conda, last = environment["dependencies"]
    assert sorted(package(each) for each in conda) == ["pip", "python"]
    assert last["pip"] == [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"], "-e ."]


def test_every_import_is_a_declared_dependency():
    declared = {package(each) for each in [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]} | BY_HAND
    for file in [*ROOT.glob("fer_lib/*.py"), *ROOT.glob("tests/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for name in (name.split(".")[0] for name in names):
                own = name == "fer_lib" or name in sys.stdlib_module_names or (ROOT / "tests" / f"{name}.py").exists()
                assert own or IMPORTED_AS.get(name, name).lower() in declared, f"{file.name} imports {name}"


def test_landmark_extra_is_what_the_detector_needs():
    assert {package(each) for each in PROJECT["optional-dependencies"]["landmarks"]} == {
        "absl-py", "attrs", "flatbuffers", "protobuf", "opencv-python-headless", "matplotlib"}


def test_package_carries_its_reference_files():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert data["packages"] == ["fer_lib"] and data["package-data"] == {"fer_lib": ["reference/*", "report.html.j2"]}
    assert not [path for path in (ROOT / "fer_lib" / "reference").rglob("*") if path.is_dir()]
    assert (ROOT / "fer_lib" / "reference" / "fer2013_landmarks.npz").exists()


def test_make_study_hands_its_variables_on():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | {"DATA": "not this one"}

    def words(*variables):
        said = subprocess.run(["make", "-n", "study", *variables], cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
        return shlex.split(said.stdout.splitlines()[-1])

    run = [".venv/bin/python", "-m", "fer_lib", "run"]
    assert words() == [*run, "--preset", "smoke", "--workers", "2"]
    assert words("DATA=a b.csv", "PRESET=reduced", "ONLY=02 05") == \
        [*run, "--preset", "reduced", "--workers", "2", "--data", "a b.csv", "--only", "02", "05"]
    assert words("WORKERS=3", "VOTES=v.csv", "MASKFER_ROWS=m.csv", "RESULTS=out", "SEEDS=0 1") == \
        [*run, "--preset", "smoke", "--workers", "3", "--seeds", "0", "1", "--votes", "v.csv", "--maskfer-rows", "m.csv", "--results", "out"]


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and script.read_text().startswith("#!/usr/bin/env bash\n")
    assert {"set -euo pipefail", "make test"} <= set(script.read_text().splitlines())


def test_commands_in_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert set(re.findall(r"\bmake ([a-z]+)\b", text)) <= set(targets)
    for line in re.findall(r"^python -m fer_lib ([^#\n]+)", text, re.M):
        words = re.sub(r"[\[\]]", "", line).split()
        parser().parse_args(words)  # exits on an unknown command or flag


def test_notebooks_in_git_are_stripped():
    for path in committed("notebooks/*.ipynb"):
        notebook = json.loads(path.read_text())
        assert notebook["metadata"]["kernelspec"]["name"] == "python3", path.name
        for cell in notebook["cells"]:
            assert not cell.get("outputs") and not cell.get("execution_count"), f"{path.name} holds outputs"


def test_committed_results_carry_no_path_of_a_machine():
    for path in committed("results/*/manifest.json", "results/*/notebooks/*.ipynb", "results/*/tables/*.csv", "results/*/runs/*/*.json"):
        found = re.search(r"(?<![\w/+.:])/(?:home|root|Users|work|tmp|mnt|opt|usr|data|scratch)/[\w.-]+", path.read_text())
        assert not found, f"{path.relative_to(ROOT)} holds {found[0]}"


def test_committed_studies_of_real_faces_show_no_individual():
    for path in committed("results/*/manifest.json"):
        manifest = json.loads(path.read_text())
        if manifest["data"]["source"] != "synthetic":
            assert manifest["parameters"]["show_faces"] is False, f"{path.relative_to(ROOT)}: render it again with --no-faces"


def test_nothing_private_is_committed():
    for path in committed("results/**", "results"):
        kept = path.suffix == ".safetensors" and path.parent.name == "models"  # networks to look with, small
        assert kept or path.suffix not in (".safetensors", ".npy", ".pt") and "faces" not in path.parent.parts, path
        assert path.stat().st_size < 20e6, f"{path.relative_to(ROOT)} is too large for git"


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "Makefile", "environment.yml"])
def test_file_is_there_and_names_no_registry(name):
    text = (ROOT / name).read_text()
    assert text.strip() and not re.search(r"https?://[^\s)]+\.(whl|tar\.gz)|index-url", text)
