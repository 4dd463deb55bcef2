"""Open a model's files for reading their headers, whatever the reference means: a path, a name, something remote."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tea_models.caller import Caller
from tea_models.disk.hashing import sha256_text
from tea_models.errors import IntegrityError
from tea_models.gguf.bytes_source import ByteSource, FileSource
from tea_models.gguf.header import Header, read_header
from tea_models.gguf.loadable import check_loadable, check_shards, check_tokenizable
from tea_models.profile.facts import ProfileFile
from tea_models.registry.entries import Entry, Registry
from tea_models.settings import Settings
from tea_models.sources.locate import Located, locate
from tea_models.store import Store


@dataclass(slots=True)
class ModelFiles:
    """The open files (shards) of one model; `where` is the path of the first, or the reference of a remote one."""

    where: str
    sources: tuple[ByteSource, ...]
    headers: tuple[Header, ...]
    files: tuple[ProfileFile, ...]
    located: Located

    @property
    def entry(self) -> Entry | None:
        """The registry entry whose corrections apply."""
        if self.located.entry is not None:
            return self.located.entry
        settings = self.located.caller.settings
        sha256 = self.files[0].sha256 or (self.path and recorded_sha256(self.path, settings))
        template = self.headers[0].metadata.get("tokenizer.chat_template")
        if not sha256 and not isinstance(template, str):
            return None
        registry = Registry.load(settings)
        found = registry.by_sha256(sha256) if sha256 else None
        if found is not None:
            return found[0]
        digest = sha256_text(template) if isinstance(template, str) else None
        for entry in registry.entries.values():
            if any(override.replaces_sha256 == digest for override in entry.overrides.chat_templates):
                # Another model with the same bad template: what else the entry says is not about this one.
                return replace(entry, license="", overrides=replace(entry.overrides, metadata={}))
        return None

    @property
    def path(self) -> Path | None:
        """Where the (first) file lies; None if it is not on this machine."""
        return self.located.paths[0] if self.located.paths else None

    def require_loadable(self, *, thorough: bool = False) -> None:
        """Refuse what llama.cpp would fail to load or, found only if `thorough`, die of at the first text."""
        for header in self.headers:
            problems = check_loadable(header, thorough=thorough)
            if thorough and not problems:
                problems = check_tokenizable(header)
            if problems:
                hint = "get another copy of the model"
                raise IntegrityError(f"{header.source.name}: llama.cpp would not load it: {problems[0]}", hint=hint)


@contextmanager
def open_model(
    path_or_ref: Path | str, *, settings: Settings | None = None, hashes: bool = True
) -> Iterator[ModelFiles]:
    """Find a model and read the headers of all its files; with `hashes`, ask the store for those of the files."""
    settings = settings or Settings.resolve(os.environ, cwd=Path.cwd())
    # A `Path` is never a name in the registry, even without a separator.
    text = f"file:{path_or_ref}" if isinstance(path_or_ref, Path) else path_or_ref
    located = locate(text, Caller(settings))
    with ExitStack() as opened:
        indexes = range(len(located.artifact.files))
        sources = [opened.enter_context(closing(located.open_source(index))) for index in indexes]
        headers = tuple(map(read_header, sources))
        check_shards(headers)
        files = []
        for source, file, header in zip(sources, located.artifact.files, headers, strict=True):
            sha256 = file.sha256
            if hashes and sha256 is None and isinstance(source, FileSource):
                sha256 = recorded_sha256(Path(source.name), settings)
            sizes = (size for size in (source.size, file.size) if size is not None)
            files.append(ProfileFile(file.filename, next(sizes, header.file_size), sha256))
        where = str(located.paths[0]) if located.paths else text
        yield ModelFiles(where, tuple(sources), headers, tuple(files), located)


def recorded_sha256(path: Path, settings: Settings) -> str | None:
    """The hash of a file of the store that has not changed since it was verified, or None."""
    record = Store(settings.store_dir.absolute()).record_of(path.absolute())
    try:
        status = path.stat()
    except OSError:
        return None
    now = (status.st_size, status.st_mtime_ns, status.st_ino)
    return record.sha256 if record is not None and now == (record.size, record.mtime_ns, record.inode) else None
