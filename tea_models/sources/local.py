"""`file:` and plain paths: a file of this machine, with the other shards beside it."""

from __future__ import annotations

from pathlib import Path

from tea_models.caller import Caller
from tea_models.disk.regular import open_regular
from tea_models.errors import MissingFileError
from tea_models.files import Artifact, Fetched, ModelFile, Source, shard_names
from tea_models.gguf.bytes_source import ByteSource, FileSource
from tea_models.refs import FileRef
from tea_models.sources.receiver import blocks, receive


def resolve(reference: FileRef, caller: Caller) -> Artifact:  # noqa: ARG001 - one signature for all kinds
    """The file, or all shards if its name is that of one."""
    files = tuple(
        ModelFile(path.name, _size(path), None, (Source((FileRef(path.absolute()),)),))
        for path in shards(reference.path)
    )
    return Artifact(str(reference), str(reference), None, files)


def shards(path: Path) -> tuple[Path, ...]:
    """The path of each shard of the model that a path belongs to; none may be missing."""
    paths = tuple(path.with_name(name) for name in shard_names(path.name)) if path.name else (path,)
    for part in paths:
        if part != path and not part.is_file():
            raise MissingFileError(f"{part}: this shard of {path.name} is missing")
    return paths


def fetch(reference: FileRef, destination: Path, *, file: ModelFile, caller: Caller) -> Fetched:
    """Copy the file, hashing it on the way. A copy, because the original may be changed by whoever owns it."""
    size = _size(reference.path)
    with open_regular(reference.path) as reader:
        return receive(lambda _: blocks(reader), destination, name=file.filename, size=size, progress=caller.progress)


def open_remote(reference: FileRef, caller: Caller) -> ByteSource:  # noqa: ARG001
    return FileSource(reference.path)


def _size(path: Path) -> int | None:
    with FileSource(path) as source:  # which says what is wrong with it
        return source.size
