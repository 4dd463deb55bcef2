"""The wheel that is put together: an ordinary one, out of checked archives only."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tea_models.engine.wheel import lay_out, write_wheel
from tea_models.errors import IntegrityError
from tests.engine_parts import (
    PYTHON_FILES,
    ROOT,
    add,
    binding_of,
    library_tarball,
    library_wheel,
    prebuilt_of,
    source_distribution,
)


def make(folder: Path, source: Path, library: Path, **more: object) -> Path:
    tree = folder / "tree"
    binding, engine = binding_of(source), prebuilt_of(library, **more)
    lay_out(tree, (binding, source), (engine, library))
    return write_wheel(tree, folder, binding, engine)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make(tmp_path, source_distribution(tmp_path), library_wheel(tmp_path))


def test_the_record_has_every_file_with_its_hash(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(archive.read(f"{ROOT}.dist-info/RECORD").decode()))}
        assert set(rows) == set(archive.namelist())
        for name in archive.namelist():
            if name.endswith("/RECORD"):
                continue
            digest = base64.urlsafe_b64encode(hashlib.sha256(archive.read(name)).digest()).rstrip(b"=").decode()
            assert rows[name] == [f"sha256={digest}", str(len(archive.read(name)))]


def test_it_holds_the_python_files_the_library_and_all_licences_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert names == {
            *(name for name in PYTHON_FILES if name.startswith("llama_cpp/")),
            "llama_cpp/_prebuilt.py",
            "llama_cpp/prebuilt.json",
            "llama_cpp/lib/libllama.so",
            *(f"{ROOT}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD")),
            f"{ROOT}.dist-info/licenses/llama-cpp-python/LICENSE.md",
            f"{ROOT}.dist-info/licenses/llama.cpp/LICENSE",
            f"{ROOT}.dist-info/licenses/builtlib/LICENSE",
        }
        about = json.loads(archive.read("llama_cpp/prebuilt.json"))
    assert about["source"] == "pypi:builtlib==1.0"
    assert about["libraries"] == {"llama": "libllama.so"}


def test_only_the_first_line_of_the_package_is_ours(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        first, rest = archive.read("llama_cpp/__init__.py").split(b"\n", 1)
        assert b"_prebuilt" in first
        assert rest == PYTHON_FILES["llama_cpp/__init__.py"]
        assert archive.read("llama_cpp/server/app.py") == PYTHON_FILES["llama_cpp/server/app.py"]


def test_its_tag_names_the_oldest_c_library(wheel: Path) -> None:
    assert wheel.name == f"{ROOT}-py3-none-manylinux_2_17_x86_64.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert b"Tag: py3-none-manylinux_2_17_x86_64\n" in archive.read(f"{ROOT}.dist-info/WHEEL")


def test_the_same_archives_give_the_same_bytes(tmp_path: Path, wheel: Path) -> None:
    (tmp_path / "again").mkdir()
    again = make(tmp_path / "again", tmp_path / f"{ROOT}.tar.gz", tmp_path / "builtlib-1.0-py3-none-any.whl")
    assert again.read_bytes() == wheel.read_bytes()


def test_a_package_of_npm_is_as_good(tmp_path: Path) -> None:
    wheel = make(tmp_path, source_distribution(tmp_path), library_tarball(tmp_path))
    with zipfile.ZipFile(wheel) as archive:
        assert "llama_cpp/lib/libllama.so" in archive.namelist()
        assert f"{ROOT}.dist-info/licenses/@built-lib/LICENSE" in archive.namelist()


def test_pip_installs_shows_and_removes_it(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"), "--disable-pip-version-check"]

    def run(*arguments: str) -> str:
        return subprocess.run([*pip, *arguments], capture_output=True, text=True, check=True).stdout

    run("install", "--no-deps", "--no-index", str(wheel))
    (site,) = venv.glob("lib/python*/site-packages")
    assert (site / "llama_cpp" / "lib" / "libllama.so").is_file()
    shown = run("show", "llama-cpp-python")
    assert "Version: 0.3.36\n" in shown
    assert "Requires: numpy\n" in shown
    assert (site / f"{ROOT}.dist-info" / "INSTALLER").read_text().strip() == "pip"
    run("uninstall", "--yes", "llama-cpp-python")
    assert not (site / "llama_cpp").exists()


def test_what_leads_out_of_the_archive_and_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    source = tmp_path / f"{ROOT}.tar.gz"
    with tarfile.open(source, "w:gz") as tar:
        for name, data in PYTHON_FILES.items():
            add(tar, f"{ROOT}/{name}", data)
        add(tar, f"{ROOT}/llama_cpp/../../outside.py", b"")
        add(tar, "/llama_cpp/absolute.py", b"")
        link = tarfile.TarInfo(f"{ROOT}/llama_cpp/passwords.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    wheel = make(tmp_path, source, library_wheel(tmp_path))
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "outside" in name or "absolute" in name or "pass" in name]
    assert not list(tmp_path.rglob("outside.py"))


@pytest.mark.parametrize("lost", ["llama_cpp/__init__.py", "PKG-INFO", "LICENSE.md", "vendor/llama.cpp/LICENSE"])
def test_a_source_distribution_without_what_is_needed_is_refused(lost: str, tmp_path: Path) -> None:
    source = source_distribution(tmp_path, {name: data for name, data in PYTHON_FILES.items() if name != lost})
    with pytest.raises(IntegrityError, match="nothing in them for"):
        make(tmp_path, source, library_wheel(tmp_path))


def test_an_archive_without_the_library_is_refused(tmp_path: Path) -> None:
    library = library_wheel(tmp_path, {"builtlib/readme.txt": b""})
    with pytest.raises(IntegrityError, match=r"nothing in them for llama_cpp/lib/libllama\.so"):
        make(tmp_path, source_distribution(tmp_path), library)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.8])
def test_half_an_archive_is_refused(part: float, tmp_path: Path) -> None:
    whole = source_distribution(tmp_path)
    data = whole.read_bytes()
    whole.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(IntegrityError):
        make(tmp_path, whole, library_wheel(tmp_path))
