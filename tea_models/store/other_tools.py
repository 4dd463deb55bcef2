"""GGUF files that other tools keep on this machine: where each tool puts them, and how it calls them.

Only names, links and small JSON files are read here, and nothing is ever written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from tea_models.disk.hashing import holds
from tea_models.store.record import stamp_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_OLLAMA_MODEL: Final = "application/vnd.ollama.image.model"
_MAX_MANIFEST: Final = 1 << 20
# A folder that somebody points us at may be anything; a model collection is not deeper or bigger than this.
_MAX_DEPTH: Final = 8
_MAX_ENTRIES: Final = 200_000


@dataclass(frozen=True, slots=True)
class Found:
    """A model file of another tool.

    Attributes:
        tool: `Hugging Face`, `Ollama`, `LM Studio`, `llama.cpp`, or `folder`.
        name: A reference to it (`hf:…`, `ollama:…`, `file:…`).
        filename: The name it should have in the store.
        path: The file itself, with links resolved.
        size: Bytes.
        sha256: What the tool's bookkeeping says its hash is, or None. Not checked.
        revision: The commit, if it is known.
    """

    tool: str
    name: str
    filename: str
    path: Path
    size: int
    sha256: str | None
    revision: str | None = None


def find_all(environ: Mapping[str, str]) -> list[Found]:
    """All GGUF files of the tools that are known, each file once.

    Args:
        environ: Where the home is, and where tools were told to keep their files: `HOME`, `HF_HUB_CACHE`, `HF_HOME`,
            `OLLAMA_MODELS`, `LLAMA_CACHE`, `XDG_CACHE_HOME`.
    """
    home = _home(environ)
    every = [
        *(found for folder in hub_caches(home, environ) for found in hub_files(folder)),
        *(found for folder in ollama_folders(home, environ) for found in ollama_files(folder)),
        *(found for folder in lm_studio_folders(home) for found in folder_files(folder, "LM Studio")),
        *(found for folder in llama_cpp_folders(home, environ) for found in folder_files(folder, "llama.cpp")),
    ]
    unique: dict[tuple[Path, str], Found] = {}
    for found in every:
        unique.setdefault((found.path, found.name), found)
    return list(unique.values())


def find_by_sha256(
    sha256: str, *, size: int | None = None, environ: Mapping[str, str]
) -> tuple[Path, tuple[int, ...]] | None:
    """A file of another tool that has exactly these bytes, hashed just now.

    Args:
        sha256: The pinned hash.
        size: The pinned size; without it only files are looked at whose name is the hash.
        environ: As for `find_all`.

    Returns:
        The file and its stamp before it was hashed.
    """
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
    home = _home(environ)
    named = [folder / "blobs" / f"sha256-{sha256}" for folder in ollama_folders(home, environ)]
    named += [blob for cache in hub_caches(home, environ) for blob in cache.glob(f"models--*/blobs/{sha256}")]
    return [path for path in named if path.is_file()]


def hub_caches(home: Path, environ: Mapping[str, str]) -> list[Path]:
    """Folders of the Hugging Face cache."""
    cache = _cache_home(home, environ)
    named = [
        environ.get("HF_HUB_CACHE"),
        environ.get("HUGGINGFACE_HUB_CACHE"),
        f"{environ['HF_HOME']}/hub" if environ.get("HF_HOME") else None,
        str(cache / "huggingface" / "hub"),
    ]
    return _existing(named, home)


def ollama_folders(home: Path, environ: Mapping[str, str]) -> list[Path]:
    """Model folders of Ollama: the user's and that of its system service."""
    named = [environ.get("OLLAMA_MODELS"), str(home / ".ollama" / "models"), "/usr/share/ollama/.ollama/models"]
    return _existing(named, home)


def lm_studio_folders(home: Path) -> list[Path]:
    """Model folders of LM Studio, also where it has been moved."""
    named: list[str | None] = [str(home / ".lmstudio" / "models"), str(home / ".cache" / "lm-studio" / "models")]
    pointer = _read_small(home / ".lmstudio-home-pointer")
    if pointer:
        named.append(pointer.strip() + "/models")
    return _existing(named, home)


def llama_cpp_folders(home: Path, environ: Mapping[str, str]) -> list[Path]:
    """The cache of llama.cpp's own downloader (`fs_get_cache_directory` in common/common.cpp)."""
    return _existing([environ.get("LLAMA_CACHE"), str(_cache_home(home, environ) / "llama.cpp")], home)


def hub_files(cache: Path) -> Iterator[Found]:
    """GGUF files of a Hugging Face cache: `models--OWNER--REPO/snapshots/COMMIT/PATH` is a link to a blob."""
    for repository in _listed(cache):
        if not repository.name.startswith("models--"):
            continue
        repo = repository.name.removeprefix("models--").replace("--", "/")
        for snapshot in _listed(repository / "snapshots"):
            for path in _walk(snapshot):
                real = _regular(path)
                if real is None:
                    continue
                inside = path.relative_to(snapshot).as_posix()
                yield Found(
                    tool="Hugging Face",
                    name=f"hf:{repo}/{inside}@{snapshot.name}",
                    filename=path.name,
                    path=real[0],
                    size=real[1],
                    # The blob of a large file is named by its SHA-256, that of a small one by a 40-digit git hash.
                    sha256=real[0].name if _SHA256.match(real[0].name) else None,
                    revision=snapshot.name,
                )


def ollama_files(models: Path) -> Iterator[Found]:
    """Models of Ollama: a manifest names the blob that is the GGUF file."""
    manifests = models / "manifests"
    for path in _walk(manifests, suffix=""):
        digest = _ollama_digest(path)
        if digest is None:
            continue
        real = _regular(models / "blobs" / f"sha256-{digest}")
        if real is None:
            continue
        registry, *name, tag = path.relative_to(manifests).parts
        model = "/".join(name[1:] if name[:1] == ["library"] else name)
        prefix = "" if registry == "registry.ollama.ai" else f"{registry}/"
        filename = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{prefix}{model}-{tag}").strip(".-") + ".gguf"
        yield Found("Ollama", f"ollama:{prefix}{model}:{tag}", filename, real[0], real[1], digest)


def folder_files(folder: Path, tool: str = "folder") -> Iterator[Found]:
    """All `.gguf` files under a folder."""
    for path in _walk(folder):
        real = _regular(path)
        if real is not None:
            yield Found(tool, f"file:{path}", path.name, real[0], real[1], None)


def _ollama_digest(manifest: Path) -> str | None:
    text = _read_small(manifest)
    try:
        document: Any = json.loads(text or "")
        layers = document["layers"]
        digests = [layer["digest"] for layer in layers if layer.get("mediaType") == _OLLAMA_MODEL]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    # Several model layers are shards of one model without names; those can't be told apart safely.
    if len(digests) != 1 or not isinstance(digests[0], str):
        return None
    digest = digests[0].removeprefix("sha256:")
    return digest if _SHA256.match(digest) else None


def _walk(folder: Path, suffix: str = ".gguf") -> Iterator[Path]:
    """Files under a folder, by path; links to folders are not followed, and the walk is bounded."""
    seen = 0
    for here, folders, files in os.walk(folder):
        depth = len(Path(here).relative_to(folder).parts)
        folders[:] = sorted(folders) if depth < _MAX_DEPTH else []
        for name in sorted(files):
            seen += 1
            if seen > _MAX_ENTRIES:
                return
            if name.lower().endswith(suffix):
                yield Path(here) / name


def _regular(path: Path) -> tuple[Path, int] | None:
    """The file behind a path and its size, if it is a regular file that has content."""
    try:
        real = path.resolve(strict=True)
        found = real.stat()
    except (OSError, RuntimeError):
        return None
    return (real, found.st_size) if stat.S_ISREG(found.st_mode) and found.st_size else None


def _read_small(path: Path) -> str | None:
    try:
        if not path.is_file() or path.stat().st_size > _MAX_MANIFEST:
            return None
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ["HOME"]) if environ.get("HOME") else Path.home()


def _cache_home(home: Path, environ: Mapping[str, str]) -> Path:
    return Path(environ["XDG_CACHE_HOME"]) if environ.get("XDG_CACHE_HOME") else home / ".cache"


def _existing(named: list[str | None], home: Path) -> list[Path]:
    unique: dict[Path, Path] = {}
    for text in named:
        if text:
            path = home / PurePosixPath(text[2:]) if text.startswith("~/") else Path(text)
            if path.is_absolute() and path.is_dir():
                unique.setdefault(path.resolve(), path)
    return list(unique.values())
