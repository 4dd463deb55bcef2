"""Archives come through the user's pip and npm, and are used only if they are the pinned ones."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tea_models.caller import Caller
from tea_models.engine.archives import Archives
from tea_models.errors import ChecksumMismatchError, OfflineError, SizeMismatchError, SourceUnavailableError
from tea_models.settings import Settings
from tests.engine_parts import binding_of, library_tarball, library_wheel, prebuilt_of, source_distribution


@pytest.fixture
def links(tmp_path: Path) -> Path:
    """The folder that stands for the package index: pip is configured to look nowhere else."""
    folder = tmp_path / "links"
    folder.mkdir()
    return folder


@pytest.fixture
def caller(links: Path, tmp_path: Path) -> Caller:
    environ = dict(os.environ) | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links), "PIP_CONFIG_FILE": os.devnull}
    return Caller.of(Settings(tmp_path / "store", environ=environ))


def npm_that(script: str, tmp_path: Path, caller: Caller) -> Caller:
    """A caller whose npm is a script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    environ = dict(caller.settings.environ) | {"PATH": f"{folder}:{caller.settings.environ['PATH']}"}
    return replace(caller, settings=replace(caller.settings, environ=environ))


def test_a_source_distribution_is_fetched_and_nothing_of_it_is_built(
    links: Path, caller: Caller, tmp_path: Path
) -> None:
    source = source_distribution(links)
    (path,) = Archives(tmp_path / "work", caller).get(binding_of(source))
    assert path.read_bytes() == source.read_bytes()


def test_two_archives_come_at_once(links: Path, caller: Caller, tmp_path: Path) -> None:
    source, library = source_distribution(links), library_wheel(links)
    paths = Archives(tmp_path / "work", caller).get(binding_of(source), prebuilt_of(library))
    assert [path.name for path in paths] == [source.name, library.name]


def test_a_source_distribution_with_another_hash_is_refused_before_its_code_could_run(
    links: Path, caller: Caller, tmp_path: Path
) -> None:
    pin = binding_of(source_distribution(links)).model_copy(update={"sha256": "0" * 64})
    with pytest.raises(ChecksumMismatchError) as caught:
        Archives(tmp_path / "work", caller).get(pin)
    assert caught.value.exit_code == 3
    assert caught.value.expected == "0" * 64


@pytest.mark.parametrize(("field", "value", "error"), [
    ("sha256", "0" * 64, ChecksumMismatchError),
    ("size", 7, SizeMismatchError),
])  # fmt: skip
def test_a_wheel_that_is_another_one_is_refused(
    field: str, value: object, error: type[Exception], links: Path, caller: Caller, tmp_path: Path
) -> None:
    pin = prebuilt_of(library_wheel(links)).model_copy(update={field: value})
    with pytest.raises(error):
        Archives(tmp_path / "work", caller).get(pin)


def test_what_has_failed_is_not_asked_for_again(links: Path, caller: Caller, tmp_path: Path) -> None:
    pin = prebuilt_of(library_wheel(links))
    (links / pin.filename).rename(tmp_path / pin.filename)
    archives = Archives(tmp_path / "work", caller)
    with pytest.raises(SourceUnavailableError):
        archives.get(pin)
    (tmp_path / pin.filename).rename(links / pin.filename)
    with pytest.raises(SourceUnavailableError):
        archives.get(pin)


def test_offline_nothing_is_fetched(links: Path, caller: Caller, tmp_path: Path) -> None:
    offline = replace(caller, settings=replace(caller.settings, offline=True))
    with pytest.raises(OfflineError):
        Archives(tmp_path / "work", offline).get(binding_of(source_distribution(links)))


def test_a_package_of_npm_is_packed_by_npm(links: Path, caller: Caller, tmp_path: Path) -> None:
    tarball = library_tarball(links)
    asked = tmp_path / "asked"
    with_npm = npm_that(f'echo "$@" > {asked}; cp {tarball} .', tmp_path, caller)
    (path,) = Archives(tmp_path / "work", with_npm).get(prebuilt_of(tarball))
    assert path.read_bytes() == tarball.read_bytes()
    assert asked.read_text().split()[-1] == "@built/lib@1.0.0"


def test_npm_that_fails_is_told_in_its_words(links: Path, caller: Caller, tmp_path: Path) -> None:
    script = 'echo "npm error code E404" >&2; echo "npm error 404 Not Found" >&2; exit 1'
    with_npm = npm_that(script, tmp_path, caller)
    with pytest.raises(SourceUnavailableError, match="npm failed: 404 Not Found"):
        Archives(tmp_path / "work", with_npm).get(prebuilt_of(library_tarball(links)))


def test_npm_that_brings_something_else_is_no_success(links: Path, caller: Caller, tmp_path: Path) -> None:
    with_npm = npm_that("echo x > other.tgz", tmp_path, caller)
    with pytest.raises(SourceUnavailableError, match=r"the registry has other\.tgz"):
        Archives(tmp_path / "work", with_npm).get(prebuilt_of(library_tarball(links)))


def test_without_npm_that_is_said(links: Path, caller: Caller, tmp_path: Path) -> None:
    bare = replace(caller, settings=replace(caller.settings, environ={"PATH": str(tmp_path)}))
    with pytest.raises(SourceUnavailableError, match="npm is not installed"):
        Archives(tmp_path / "work", bare).get(prebuilt_of(library_tarball(links)))
