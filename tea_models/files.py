"""`Artifact`: what a reference resolves to, the files of one model and where each can be had.

    reference ──► Artifact ──► ModelFile (a shard) ──► Source (a place that has it) ──► parts

A source with several parts is one file that had to be cut for its host: the bytes of the parts follow each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tea_models.redact import redact
from tea_models.refs import FileRef, FsspecRef, HubRef, NameRef, OllamaRef, Reference, UrlRef, WheelRef

if TYPE_CHECKING:
    from tea_models.registry.entries import Entry

SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Source:
    """One place that has a file.

    Attributes:
        parts: References whose bytes, one after the other, are the file; nearly always one.
        revision: The commit (Hub) or version (package index) the bytes belong to, where there is one.
    """

    parts: tuple[Reference, ...]
    revision: str | None = None

    def __str__(self) -> str:
        return " + ".join(public(part) for part in self.parts)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model.

    Attributes:
        filename: Its upstream name, without a folder.
        size: Bytes, if known.
        sha256: Lower-case hexadecimal digest, or None for trust on first use.
        sources: Where it can be had, in the order to try.
    """

    filename: str
    size: int | None
    sha256: str | None
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Fetched:
    """Bytes that arrived.

    Attributes:
        sha256: Of the bytes, computed while they arrived.
        size: Their number.
        resumed_from: How many were there from an earlier attempt, or None.
        source: The reference they came from (filled in by `sources.fetch`).
        revision: Commit or version.
    """

    sha256: str
    size: int
    resumed_from: int | None = None
    source: str = ""
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model as something to fetch.

    Attributes:
        reference: The text it was resolved from.
        name: How to call it: the registry's name, or the reference.
        variant: The quantisation, if it is known.
        files: All shards in order; at least one.
        license: Its licence, if known.
        entry: The registry entry it comes from, if any.
    """

    reference: str
    name: str
    variant: str | None
    files: tuple[ModelFile, ...]
    license: str | None = None
    entry: Entry | None = None


def public(reference: Reference | str) -> str:
    """A reference as it may be shown and recorded."""
    return redact(str(reference))


def upstream_folder(source: Source) -> str:
    """The folder that tells files of one name apart: `owner/repo`, `pypi/package`, a host, `local`."""
    match source.parts[0]:
        case HubRef(repo=repo):
            return repo
        case WheelRef(package=package):
            return f"pypi/{package.lower()}"
        case UrlRef(url=url) | FsspecRef(url=url):
            return (urlsplit(url).hostname or "fsspec").lower()
        case OllamaRef(name=name):
            return f"ollama/{name.rpartition('/')[0] or 'library'}"
        case FileRef():
            return "local"
        case NameRef(name=name):
            return name


def shard_names(filename: str) -> tuple[str, ...]:
    """All shard names of the model that a file name belongs to (itself alone, if it is no shard).

    The scheme is llama.cpp's (`llama_split_path`): `name-00001-of-00003.gguf`.
    """
    match = SHARD.match(filename)
    if not match or not 1 <= int(match["number"]) <= int(match["count"]) <= 9999:
        return (filename,)
    return tuple(
        f"{match['stem']}-{number:05d}-of-{match['count']}{match['suffix']}"
        for number in range(1, int(match["count"]) + 1)
    )


def base_name(path: str) -> str:
    """The last component of a path inside a repository, wheel or address."""
    return PurePosixPath(path).name
