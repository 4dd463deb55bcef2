"""Open a model's files for reading their headers, whatever the reference means: a path, a name, something remote."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tea_models.errors import IntegrityError
from tea_models.gguf.bytes_source import FileSource
from tea_models.gguf.header import Header, read_header
from tea_models.gguf.loadable import check_loadable, check_tokenizable
from tea_models.gguf.shards import check_shards
from tea_models.profile.corrections import entry_of, recorded_sha256
from tea_models.profile.facts import ProfileFile
from tea_models.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tea_models.gguf.bytes_source import ByteSource
    from tea_models.registry.entries import Entry
    from tea_models.sources.locate import Located


@dataclass(slots=True)
class ModelFiles:
    """The open files of one model and their headers.

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
        return entry_of(self.headers[0], self.settings, path=self.path, sha256=self.files[0].sha256)

    @property
    def path(self) -> Path | None:
        """Where the (first) file lies; None if it is not on this machine."""
        if self.located is None:
            return Path(self.where)
        return self.located.paths[0] if self.located.paths else None

    def require_loadable(self, *, thorough: bool = False) -> None:
        """Refuse a model that llama.cpp would fail to load or (found only if `thorough`) die of at the first text.

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


@contextmanager
def open_model(
    path_or_ref: Path | str, *, settings: Settings | None = None, hashes: bool = True
) -> Iterator[ModelFiles]:
    """Find a model and read the headers of all its files; with `hashes`, ask the store for those of the files.

    Raises:
        MalformedGGUFError: A file is not GGUF or breaks the specification.
        IntegrityError: The shards are not the parts of one model.
        NotAvailableError: The model, or one of its shards, can't be had from here.
        UsageError: The text is no reference.
    """
    if settings is None:
        settings = Settings.resolve(os.environ, cwd=Path.cwd())
    where, located = plain_path(path_or_ref), None
    if where is None:
        from tea_models.caller import Caller
        from tea_models.sources.locate import locate

        # A `Path` is never a name in the registry, even without a separator.
        where = f"file:{path_or_ref}" if isinstance(path_or_ref, Path) else path_or_ref
        located = locate(where, Caller(settings))
        where = str(located.paths[0]) if located.paths else where
    with ExitStack() as opened:
        sources: list[ByteSource] = []
        for index in range(len(located.artifact.files) if located else 1):
            source = located.open_source(index) if located else FileSource(where)
            sources.append(opened.enter_context(closing(source)))
        headers = tuple(map(read_header, sources))
        check_shards(headers)
        known = located.artifact.files if located else (None,)
        files = []
        for source, file, header in zip(sources, known, headers, strict=True):
            sha256 = file.sha256 if file else None
            if hashes and sha256 is None and isinstance(source, FileSource):
                sha256 = recorded_sha256(Path(source.name), settings)
            name = file.filename if file else Path(source.name).name
            files.append(ProfileFile(name, _size(source, file.size if file else None, header), sha256))
        yield ModelFiles(where, tuple(sources), headers, tuple(files), located, settings)


def plain_path(path_or_ref: Path | str) -> str | None:
    """The path, if this is one of a single file that exists; None for a name, a shard, an address, or nothing."""
    text = str(path_or_ref)
    looks_so = isinstance(path_or_ref, Path) or os.sep in text or text.endswith(".gguf")
    scheme = ":" in text.split(os.sep, 1)[0]
    shard = "-of-" in text.rpartition(os.sep)[2]
    return text if looks_so and not scheme and not shard and os.path.lexists(text) else None


def _size(source: ByteSource, known: int | None, header: Header) -> int:
    if source.size is not None:
        return source.size
    if known is not None:
        return known
    return max((header.data_offset + info.offset + info.size for info in header.tensors), default=header.header_size)
