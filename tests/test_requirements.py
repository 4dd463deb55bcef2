"""The lock: every package with its hashes, nothing of whoever wrote it, and what pyproject.toml allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
# What each file is made from.
DECLARED = {
    "base": PROJECT["project"]["dependencies"],
    "api": EXTRAS["api"],
    "server": EXTRAS["server"],
    "mirror": EXTRAS["mirror"],
    "bom": EXTRAS["bom"],
    "llm-local": EXTRAS["llm-local"],
    # What the engine's binding needs; the engine itself is installed by `tea-models engine install`.
    "engine": [text for text in EXTRAS["llm-local"] if not text.startswith("llama-cpp-python")],
    "dev": EXTRAS["dev"],
    **PROJECT["dependency-groups"],
}


def locked(path):
    """The requirements of a file, and the text of each with its hashes."""
    text = "\n".join(line for line in path.read_text("utf-8").splitlines() if not line.startswith("#"))
    blocks = [block for block in re.split(r"\n(?=\S)", text.strip()) if block]
    return [(Requirement(block.partition(" \\")[0]), block) for block in blocks]


def test_there_is_a_file_for_everything_that_is_declared():
    assert {path.stem for path in FILES} == set(DECLARED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_package_has_one_version_and_hashes_and_nothing_else_is_in_the_file(path):
    for requirement, block in locked(path):
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        assert requirement.url is None
        _, *hashes = block.split(" \\\n")
        assert hashes
        assert all(re.fullmatch(r" {4}--hash=sha256:[0-9a-f]{64}", line) for line in hashes)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_locked_is_what_is_declared(path):
    found = {requirement.name: requirement.specifier for requirement, _ in locked(path)}
    for text in DECLARED[path.stem]:
        wanted = Requirement(text)
        if wanted.name == PROJECT["project"]["name"]:
            continue
        name = wanted.name.lower().replace("_", "-")
        assert name in found, f"{name}: run `make lock`"
        (pin,) = found[name]
        assert wanted.specifier.contains(pin.version), f"{text} is locked as {pin.version}: run `make lock`"


def test_a_package_has_the_same_version_in_all_files():
    versions = {}
    for path in FILES:
        for requirement, _ in locked(path):
            versions.setdefault((requirement.name, str(requirement.marker)), set()).add(str(requirement.specifier))
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}
