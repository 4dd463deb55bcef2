"""What engines are made of, small: a source distribution and a library's archive, and a catalogue of them."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

from tea_models.registry.engines import Archive, Catalog, Prebuilt

ROOT = "llama_cpp_python-0.3.36"
METADATA = "Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 0.3.36\nRequires-Dist: numpy>=1.20.0\n"
PYTHON_FILES = {
    "llama_cpp/__init__.py": b"from .llama_cpp import *\n",
    "llama_cpp/_ctypes_extensions.py": b"load_shared_library = ctypes_function_for_shared_library = None\n",
    "llama_cpp/llama_cpp.py": b"",
    "llama_cpp/server/app.py": b"pass\n",
    "LICENSE.md": b"MIT, the binding\n",
    "vendor/llama.cpp/LICENSE": b"MIT, llama.cpp\n",
    "vendor/llama.cpp/src/llama.cpp": b"int main;\n",
    "pyproject.toml": b'[build-system]\nrequires = []\nbuild-backend = "scikit_build_core.build"\n',
    "PKG-INFO": METADATA.encode(),
}


def source_distribution(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    """A source distribution of llama-cpp-python, as its index has it."""
    path = folder / f"{ROOT}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in (PYTHON_FILES if files is None else files).items():
            add(tar, f"{ROOT}/{name}", data)
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def library_wheel(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    """A wheel that holds a library."""
    path = folder / "builtlib-1.0-py3-none-any.whl"
    contents = files or {
        "builtlib/libllama.so": b"\x7fELF",
        "builtlib/other.py": b"",
        "builtlib-1.0.dist-info/LICENSE": b"MIT",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
        if files is None:
            archive.writestr("builtlib-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: builtlib\nVersion: 1.0\n")
            archive.writestr(
                "builtlib-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr("builtlib-1.0.dist-info/RECORD", "")
    return path


def library_tarball(folder: Path) -> Path:
    """A package of npm that holds a library."""
    path = folder / "built-lib-1.0.0.tgz"
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "package/bins/libllama.so", b"\x7fELF")
        add(tar, "package/LICENSE", b"MIT")
    return path


def pinned(path: Path, package: str, version: str, **more: object) -> dict[str, object]:
    """What a catalogue says of a file."""
    data = path.read_bytes()
    pin = {"filename": path.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "license": "MIT"}
    return {"package": package, "version": version, **pin, **more}


def binding_of(path: Path) -> Archive:
    return Archive.model_validate(pinned(path, "llama-cpp-python", "0.3.36"))


def prebuilt_of(path: Path, **more: object) -> Prebuilt:
    """An entry of the catalogue for `library_wheel` or `library_tarball`."""
    of_npm = path.suffix == ".tgz"
    entry = pinned(path, "@built/lib" if of_npm else "builtlib", "1.0.0" if of_npm else "1.0") | {
        "name": "built",
        "registry": "npm" if of_npm else "pypi",
        "for": {"system": "linux", "machine": "x86_64", "glibc": "2.17"},
        "llama_cpp": "v1",
        "files": ["package/bins/lib*.so"] if of_npm else ["builtlib/lib*.so"],
        "licenses": ["package/LICENSE"] if of_npm else ["builtlib-*.dist-info/LICENSE"],
        "libraries": {"llama": "libllama.so"},
    }
    return Prebuilt.model_validate(entry | more)


def catalog_of(binding: Archive, *engines: Prebuilt) -> Catalog:
    return Catalog.model_validate({"schema": "tea.engines/1", "binding": binding, "engines": engines})
