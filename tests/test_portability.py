"""What a system lacks has a working way round, or is said: each call that only some systems have is taken away."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tea_models.disk.hashing import sha256_file, sha256_files
from tea_models.errors import UsageError
from tea_models.gguf.bytes_source import FileSource
from tea_models.gguf.header import read_header
from tea_models.machine import detect
from tea_models.machine.detect import detect_machine
from tea_models.plan.plan_input import make_budget
from tests.gguf_build import build_gguf


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.delattr(os, name)


def test_files_are_hashed_and_read_without_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = build_gguf()
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    without(monkeypatch, "posix_fadvise")
    assert sha256_file(path) == hashlib.sha256(data).hexdigest()
    with FileSource(path) as source:
        assert read_header(source).metadata["general.architecture"] == "llama"


def test_cores_are_counted_without_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").write_bytes(b"x")
    without(monkeypatch, "sched_getaffinity")
    assert sha256_files([tmp_path / "m"]) == [hashlib.sha256(b"x").hexdigest()]


def test_memory_that_no_call_tells_has_to_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "sysconf")
    machine = detect_machine(tmp_path)
    assert machine.memory_total == 0
    with pytest.raises(UsageError) as caught:
        make_budget(machine, None)
    assert "--memory" in caught.value.hint
    assert make_budget(machine, 1 << 30).budget == 1 << 30


def test_a_mac_is_asked_by_its_own_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"hw.memsize": "17179869184", "hw.perflevel0.physicalcpu": "4", "machdep.cpu.brand_string": "Apple M3"}

    def command(*arguments: str) -> str:
        return "Pages free: 100." if arguments == ("vm_stat",) else answers.get(arguments[-1], "")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(detect, "_command", command)
    machine = detect_machine()
    assert (machine.system, machine.cpu, machine.memory_total) == ("darwin", "Apple M3", 16 << 30)
    assert (machine.cores_physical, machine.memory_available) == (4, 100 * 4096)


@pytest.mark.parametrize(("system", "store"), [("darwin", "Library/Caches/tea/models"), ("linux", ".cache/tea/models")])
def test_the_store_lies_where_the_system_keeps_caches(system: str, store: str, tmp_path: Path) -> None:
    script = (
        f"import sys; sys.platform = {system!r}\n"
        "from pathlib import Path\nfrom tea_models.settings import Settings\nimport os\n"
        "print(Settings.resolve(os.environ, cwd=Path('/')).store_dir)"
    )
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("TEA_", "XDG_"))}
    environ["HOME"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / store)


def test_a_system_without_posix_locks_is_told_where_it_runs() -> None:
    script = "import sys; sys.modules['fcntl'] = None; from tea_models.cli import main; main(['list'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: tea-models runs on Linux and macOS")
    assert "WSL" in done.stderr
