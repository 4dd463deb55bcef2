"""Open a model's files for reading their headers, whatever the reference means: a path, a name, something remote."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tea_models.errors import IntegrityError
from tea_models.gguf.bytes_source import FileSource
from tea_models.gguf.header import Header, read_header
from tea_models.gguf.loadable import check_loadable, check_shards, check_tokenizable
from tea_models.profile.corrections import entry_of, recorded_sha256
from tea_models.profile.facts import ProfileFile
from tea_models.settings import Settings

if TYPE_CHECKING:
    from types import TracebackType

    from tea_models.gguf.bytes_source import ByteSource
    from tea_models.registry.entries import Entry
    from tea_models.sources.locate import Located


@dataclass(slots=True)
class ModelFiles:
    """The open files of one model and their headers; a context manager.

    Attributes:
        where: The path of the first file, or the reference of a remote one.
        sources: All files (shards) in order.
        headers: Their headers.
        files: Their names, sizes and hashes as far as these are known.
        located: How the reference was resolved; None for a plain path.
        settings: Which registry files there are, and where the store is.
    """

    where: str
    sources: tuple[ByteSource, ...]
    headers: tuple[Header, ...]
    files: tuple[ProfileFile, ...]
    located: Located | None
    settings: Settings

    @property
    def entry(self) -> Entry | None:
        """The registry entry whose corrections apply."""
        if self.located is not None and self.located.entry is not None:
            return self.located.entry
        path = str(self.path) if self.path is not None else None
        return entry_of(self.headers[0], self.settings, path=path, sha256=self.files[0].sha256)

    @property
    def path(self) -> Path | None:
        """Where the (first) file lies; None if it is not on this machine."""
        if self.located is None:
            return Path(self.where)
        return self.located.paths[0] if self.located.paths else None

    def require_loadable(self, *, thorough: bool = False) -> None:
        """Refuse a model that llama.cpp would fail to load or crash on, before anything is worked out for it.

        Args:
            thorough: Look at all of the header, also for what would kill the engine when it reads the first text.

        Raises:
            IntegrityError: Says which file and why.
        """
        for header in self.headers:
            problems = check_loadable(header, thorough=thorough)
            if thorough and not problems:
                problems = check_tokenizable(header)
            if problems:
                raise IntegrityError(
                    f"{header.source.name}: llama.cpp would not load it: {problems[0]}",
                    hint="get another copy of the model",
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for source in self.sources:
            source.close()


def open_model(path_or_ref: Path | str, *, settings: Settings | None = None, hashes: bool = True) -> ModelFiles:
    """Find a model and read the headers of all its files.

    Args:
        path_or_ref: A path, or a reference as a user types it.
        settings: Where the store and the hosts are; by default from the environment.
        hashes: Ask the store for the files' hashes.

    Raises:
        MalformedGGUFError: A file is not GGUF or breaks the specification.
        IntegrityError: The shards are not the parts of one model.
        NotAvailableError: The model, or one of its shards, can't be had from here.
        UsageError: The text is no reference.
    """
    if settings is None:
        settings = Settings.resolve(os.environ, cwd=Path.cwd())
    plain = plain_path(path_or_ref)
    if plain is not None:
        return _read((FileSource(plain),), plain, None, settings, hashes=hashes)
    from tea_models.caller import Caller
    from tea_models.sources.locate import locate

    # A `Path` is never a name in the registry, even without a separator.
    text = f"file:{path_or_ref}" if isinstance(path_or_ref, Path) else path_or_ref
    located = locate(text, Caller(settings))
    with ExitStack() as opened:
        sources = []
        for index in range(len(located.artifact.files)):
            sources.append(located.open_source(index))
            opened.callback(sources[-1].close)
        files = _read(
            tuple(sources), str(located.paths[0]) if located.paths else text, located, settings, hashes=hashes
        )
        opened.pop_all()
    return files


def plain_path(path_or_ref: Path | str) -> str | None:
    """The path, if this is one of a single file that exists; None for a name, a shard, an address, or nothing."""
    text = str(path_or_ref)
    looks_so = isinstance(path_or_ref, Path) or os.sep in text or text.endswith(".gguf")
    scheme = ":" in os.path.splitdrive(text)[1].split(os.sep, 1)[0]
    shard = "-of-" in text.rpartition(os.sep)[2]
    if not looks_so or scheme or shard or not os.path.lexists(text):
        return None
    return text


def _read(
    sources: tuple[ByteSource, ...], where: str, located: Located | None, settings: Settings, *, hashes: bool
) -> ModelFiles:
    try:
        headers = tuple(read_header(source) for source in sources)
        check_shards(headers)
        known = located.artifact.files if located else (None,) * len(sources)
        files = []
        for source, file, header in zip(sources, known, headers, strict=True):
            sha256 = file.sha256 if file else None
            if hashes and sha256 is None and isinstance(source, FileSource):
                sha256 = recorded_sha256(source.name, settings)
            name = file.filename if file else Path(source.name).name
            files.append(ProfileFile(name, _size(source, file.size if file else None, header), sha256))
    except BaseException:
        for source in sources:
            source.close()
        raise
    return ModelFiles(where, sources, headers, tuple(files), located, settings)


def _size(source: ByteSource, known: int | None, header: Header) -> int:
    if source.size is not None:
        return source.size
    if known is not None:
        return known
    return header.file_size
