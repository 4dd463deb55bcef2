"""`Artifact`: what a reference resolves to: its `ModelFile`s (shards), and each `Source` that has one.

A source with several parts is one file that had to be cut for its host: the bytes of the parts follow each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from tea_models.errors import UsageError
from tea_models.redact import redact
from tea_models.refs import FsspecRef, HubRef, NameRef, OllamaRef, Reference, UrlRef, WheelRef, parse_reference

SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Source:
    """One place that has a file, and the commit (Hub) or version (package index) the bytes belong to."""

    parts: tuple[Reference, ...]
    revision: str | None = None

    @classmethod
    def of(cls, parts: tuple[Reference, ...], revision: str | None = None) -> Source:
        """A source with a revision, or the one that its reference names."""
        first = parts[0]
        named = first.revision if isinstance(first, HubRef) else first.version if isinstance(first, WheelRef) else None
        return cls(parts, revision or named)

    @classmethod
    def parse(cls, text: str | Sequence[str], revision: str | None = None) -> Source:
        """A source from its texts (also joined by ` + `); none is a name, as only a registry knows what that means."""
        texts = text.split(" + ") if isinstance(text, str) else text
        parts = tuple(parse_reference(part) for part in texts)
        name = next((part for part in parts if isinstance(part, NameRef)), None)
        if name is not None:
            raise UsageError(f"{str(name)!r} is a name; expected hf:…, https:…, pypi:… or a path")
        return cls.of(parts, revision)

    def document(self, shown: Callable[[Reference], str] | None = None) -> str | dict[str, list[str]]:
        """The source as a registry and a lock write it; `shown` makes the text of a part."""
        texts = [(shown or public)(part) for part in self.parts]
        return texts[0] if len(texts) == 1 else {"parts": texts}

    def __str__(self) -> str:
        return " + ".join(public(part) for part in self.parts)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model: its upstream name without a folder, its SHA-256 (None: trust on first use), its sources."""

    filename: str
    size: int | None
    sha256: str | None
    sources: tuple[Source, ...]

    @property
    def whole(self) -> bool:
        """Whether no source of it can be read in parts: it has to be fetched to see what is in it."""
        return all(len(source.parts) > 1 or isinstance(source.parts[0], WheelRef) for source in self.sources)


@dataclass(frozen=True, slots=True)
class Fetched:
    """Bytes that arrived; `resumed_from` were there already. `sources.fetch` fills in the reference they came from."""

    sha256: str
    size: int
    resumed_from: int | None = None
    source: str = ""
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model as something to fetch: the text it was resolved from, its name in the registry, all shards in order."""

    reference: str
    name: str
    variant: str | None
    files: tuple[ModelFile, ...]
    license: str | None = None


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
    return "local"


def is_plain_name(text: str) -> bool:
    """Whether a text can name a file in the store: no folder, nothing that a shell or a system reads otherwise."""
    hostile = text.startswith((".", "-")) or re.search(r"[\x00-\x1f/\\:\x7f]", text)
    return bool(text) and len(text.encode("utf-8", "replace")) <= 200 and not hostile


def shard_names(filename: str) -> tuple[str, ...]:
    """All shard names of the model that a file is of (or itself alone); the scheme is `llama_split_path`'s."""
    match = SHARD.match(filename)
    if not match or not 1 <= int(match["number"]) <= int(match["count"]) <= 9999:
        return (filename,)
    stem, count, suffix = match["stem"], match["count"], match["suffix"]
    return tuple(f"{stem}-{number:05d}-of-{count}{suffix}" for number in range(1, int(count) + 1))


def base_name(path: str) -> str:
    """The last component of a path, or of an address without its query."""
    return PurePosixPath(unquote(urlsplit(path).path) if "://" in path else path).name


def total_size(files: Iterable[ModelFile]) -> int | None:
    """Bytes of all files together, or None if one is unknown."""
    sizes = [file.size for file in files]
    return None if None in sizes else sum(size for size in sizes if size)
