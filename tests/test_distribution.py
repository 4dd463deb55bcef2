"""What people install: the wheel and the sdist, started in an empty folder, in a clone, beside a foreign registry.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.gguf_build import build_gguf

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tea_models", "tea_runtime")
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
OFFLINE = ["--no-index", "--no-deps", "--no-build-isolation"]


def run_here(*command, cwd=ROOT, **environ):
    env = {**os.environ, "PYTHONPATH": "", **environ}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=600)


def built(*command, cwd=ROOT):
    done = run_here(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder with the sdist and the wheel of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    built(sys.executable, "-m", "hatchling", "build", "--directory", str(folder))
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel, installed by pip into a folder of its own; what it depends on is that of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    built(*PIP, "install", *OFFLINE, "--target", str(folder), str(wheel))
    return folder


@pytest.fixture(params=["an empty folder", "the clone", "a folder with a foreign registry.yaml"])
def place(request, tmp_path):
    if request.param == "the clone":
        return ROOT
    folder = tmp_path / "place"
    folder.mkdir()
    if "foreign" in request.param:
        (folder / "registry.yaml").write_text("version: 0.1\nstorage: {filesystem: {rootdirectory: /var/lib}}\n")
    return folder


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    names = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } | {"tea_models/registry.yaml", "tea_models/engines.yaml"}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.startswith(PACKAGES) and ".dist-info" not in name} == names


def test_the_wheel_of_the_sdist_is_the_wheel_of_the_tree(dist, wheel, tmp_path):
    (sdist,) = dist.glob("*.tar.gz")
    built(*PIP, "wheel", *OFFLINE, "--wheel-dir", str(tmp_path), str(sdist))
    (other,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as left, zipfile.ZipFile(other) as right:
        assert {item.filename: item.CRC for item in left.infolist()} == {
            item.filename: item.CRC for item in right.infolist()
        }


def test_the_sdist_has_what_its_own_make_test_needs(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = ["Makefile", "pyproject.toml", "README.md", "LICENSE", "requirements/base.txt", "requirements/dev.txt"]
    needed += [path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/**/*.py")]
    assert set(needed) <= names


def test_an_installed_wheel_answers_wherever_it_is_started(installed, place, tmp_path):
    model = tmp_path / "tiny.gguf"
    model.write_bytes(build_gguf())

    def answer(program, *arguments):
        done = run_here(str(installed / "bin" / program), *arguments, cwd=place, PYTHONPATH=str(installed))
        assert done.returncode == 0, done.stderr
        foreign = place != ROOT and (place / "registry.yaml").exists() and "--version" not in arguments
        assert ("registry.yaml: not read" in done.stderr) == foreign
        return done.stdout

    assert "tea-models" in answer("tea-models", "--version")
    assert any(item["name"] == "smollm2-135m" for item in json.loads(answer("tea-models", "list", "--json")))
    assert json.loads(answer("tea-models", "inspect", str(model), "--json"))["architecture"] == "llama"
    assert json.loads(answer("tea-models", "plan", str(model), "--json"))["settings"]["n_ctx"]
    flow = tmp_path / "flow.yaml"
    flow.write_text("name: flow\nnodes: [{name: a, run: 'return {\"sum\": 1 + 1}'}]\n")
    assert json.loads(answer("tea-runtime", "run", str(flow), "--json"))["sum"] == 2
