"""GGUF files that other tools keep on this machine: where each tool puts them, and how it calls them.

Only names, links and small JSON files are read here, and nothing is ever written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from tea_models.disk.hashing import holds
from tea_models.disk.regular import read_own
from tea_models.store.record import stamp_of

_SHA256: Final = re.compile(r"(?:sha256:)?([0-9a-f]{64})\Z")


@dataclass(frozen=True, slots=True)
class Found:
    tool: str  # `Hugging Face`, `Ollama`, `LM Studio`, `llama.cpp`, or `folder`
    name: str  # a reference to it (`hf:…`, `ollama:…`, `file:…`)
    filename: str  # the name it should have in the store
    path: Path  # the file itself, with links resolved
    size: int
    sha256: str | None  # what the tool's bookkeeping says, not checked
    revision: str | None = None  # the commit, if it is known


def find_all(environ: Mapping[str, str]) -> list[Found]:
    """All GGUF files of the tools that are known, each file once."""
    unique: dict[tuple[Path, str], Found] = {}
    for tool, folders in _folders(environ).items():
        readers = {"Hugging Face": _hub_files, "Ollama": _ollama_files}
        read = readers.get(tool, partial(folder_files, tool=tool))
        for found in (each for folder in folders for each in read(folder)):
            unique.setdefault((found.path, found.name), found)
    return list(unique.values())


def find_by_sha256(
    sha256: str, *, size: int | None = None, environ: Mapping[str, str]
) -> tuple[Path, tuple[int, ...]] | None:
    """A file of another tool with these bytes, hashed now, and its stamp before; without a size by its name."""
    maybe = named_by(sha256, environ)
    maybe += [found.path for found in find_all(environ) if found.size == size and found.sha256 is None] if size else []
    for path in maybe:
        with contextlib.suppress(OSError):
            stamp = stamp_of(path.stat())
            if size in (None, stamp[0]) and holds(path, sha256):
                return path, stamp
    return None


def named_by(sha256: str, environ: Mapping[str, str]) -> list[Path]:
    """Files whose tool says by their name that they have these bytes; that is not checked here."""
    folders = _folders(environ)
    named = [folder / "blobs" / f"sha256-{sha256}" for folder in folders["Ollama"]]
    named += [blob for cache in folders["Hugging Face"] for blob in cache.glob(f"models--*/blobs/{sha256}")]
    return [path for path in named if path.is_file()]


def folder_files(folder: Path, tool: str = "folder") -> Iterator[Found]:
    for path in _walk(folder):
        real = _regular(path)
        if real is not None:
            yield Found(tool, f"file:{path}", path.name, *real, None)


def ollama_layers(manifest: bytes) -> list[tuple[str, int]]:
    """SHA-256 and size of each GGUF file that a manifest of Ollama names; `ValueError` where it is no manifest."""
    try:
        layers: list[Any] = json.loads(manifest)["layers"]
        models = [layer for layer in layers if layer["mediaType"] == "application/vnd.ollama.image.model"]
        found = [(_SHA256.match(layer["digest"]), int(layer["size"])) for layer in models]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(error) from None
    return [(match[1] if match else "", size) for match, size in found]


def _folders(environ: Mapping[str, str]) -> dict[str, list[Path]]:
    """Where each tool keeps its models: where it was told to, and where it does by itself."""
    home = environ.get("HOME") or str(Path.home())
    cache = environ.get("XDG_CACHE_HOME") or f"{home}/.cache"
    moved = (read_own(f"{home}/.lmstudio-home-pointer") or b"").decode("utf-8", "replace").strip()
    named: dict[str, list[str | None]] = {
        "Hugging Face": [
            environ.get("HF_HUB_CACHE"),
            f"{environ['HF_HOME']}/hub" if environ.get("HF_HOME") else None,
            f"{cache}/huggingface/hub",
        ],
        # The user's, and those of its system service.
        "Ollama": [environ.get("OLLAMA_MODELS"), f"{home}/.ollama/models", "/usr/share/ollama/.ollama/models"],
        "LM Studio": [f"{home}/.lmstudio/models", f"{home}/.cache/lm-studio/models", moved and f"{moved}/models"],
        # `fs_get_cache_directory` in common/common.cpp
        "llama.cpp": [environ.get("LLAMA_CACHE"), f"{cache}/llama.cpp"],
    }
    found: dict[str, list[Path]] = {}
    for tool, places in named.items():
        paths = [Path(f"{home}{place[1:]}" if place.startswith("~/") else place) for place in places if place]
        unique = {path.resolve(): path for path in reversed(paths) if path.is_absolute() and path.is_dir()}
        found[tool] = list(reversed(unique.values()))
    return found


def _hub_files(cache: Path) -> Iterator[Found]:
    """GGUF files of a Hugging Face cache: `models--OWNER--REPO/snapshots/COMMIT/PATH` is a link to a blob."""
    for snapshot in sorted(cache.glob("models--*/snapshots/*")):
        repo = snapshot.parents[1].name.removeprefix("models--").replace("--", "/")
        for path in _walk(snapshot):
            real = _regular(path)
            if real is not None:
                name = f"hf:{repo}/{path.relative_to(snapshot).as_posix()}@{snapshot.name}"
                # The blob of a large file is named by its SHA-256, that of a small one by a 40-digit git hash.
                sha256 = real[0].name if _SHA256.match(real[0].name) else None
                yield Found("Hugging Face", name, path.name, *real, sha256, snapshot.name)


def _ollama_files(models: Path) -> Iterator[Found]:
    """Models of Ollama: a manifest names the blob that is the GGUF file."""
    manifests = models / "manifests"
    for path in _walk(manifests, suffix=""):
        try:
            # Several model layers are shards of one model without names; those can't be told apart safely.
            ((digest, _),) = ollama_layers(read_own(path) or b"")
        except ValueError:
            continue
        real = _regular(models / "blobs" / f"sha256-{digest}")
        if real is None:
            continue
        registry, *name, tag = path.relative_to(manifests).parts
        model = "/".join(name[1:] if name[:1] == ["library"] else name)
        prefix = "" if registry == "registry.ollama.ai" else f"{registry}/"
        filename = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{prefix}{model}-{tag}").strip(".-") + ".gguf"
        yield Found("Ollama", f"ollama:{prefix}{model}:{tag}", filename, *real, digest)


def _walk(folder: Path, suffix: str = ".gguf") -> Iterator[Path]:
    """Files under a folder, by path; links to folders are not followed."""
    for here, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(here, name) for name in sorted(files) if name.lower().endswith(suffix))


def _regular(path: Path) -> tuple[Path, int] | None:
    """The file behind a path and its size, if it is a regular file that has content."""
    try:
        real = path.resolve(strict=True)
        found = real.stat()
    except (OSError, RuntimeError):
        return None
    return (real, found.st_size) if stat.S_ISREG(found.st_mode) and found.st_size else None
