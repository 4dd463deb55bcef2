"""Where bytes come from: one module a kind of source, and here what they have in common.

Each module has `resolve(reference, caller)`, which says what files a reference means; `fetch(reference, …)`, which
brings the bytes of one; and, but for wheels, `open_remote(reference, …)`, which reads a part of one (a header).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tea_models.caller import Caller
from tea_models.disk.kept_json import keep, read_kept
from tea_models.disk.operations import remove_partial
from tea_models.errors import (
    AccessDeniedError,
    ChecksumMismatchError,
    IntegrityError,
    NotAvailableError,
    OfflineError,
    SizeMismatchError,
    SourceUnavailableError,
)
from tea_models.files import Artifact, Fetched, ModelFile, Source
from tea_models.gguf.bytes_source import ByteSource
from tea_models.progress import JoinedProgress
from tea_models.refs import FileRef, FsspecRef, HubRef, NameRef, OllamaRef, Reference, UrlRef, WheelRef, parse_reference
from tea_models.registry.entries import Registry
from tea_models.sources.mirror import is_mirror, logged_in, mirrored
from tea_models.sources.receiver import blocks, receive

_MODULES: dict[type, str] = {
    HubRef: "hub",
    UrlRef: "http",
    WheelRef: "pypi",
    OllamaRef: "ollama",
    FileRef: "local",
    FsspecRef: "remote_fs",
}
_Brought = TypeVar("_Brought")


def kind_of(reference: Reference) -> Any:
    """The module that handles a reference; imported when it is first needed."""
    return importlib.import_module(f"{__name__}.{_MODULES[type(reference)]}")


def resolve(text: str, caller: Caller, registry: Registry | None = None) -> Artifact:
    """The files that a reference means, with what is known of them; only `hf:` and `ollama:` ask their hosts."""
    reference = parse_reference(text)
    if isinstance(reference, NameRef):
        entry, variant = (registry or Registry.load(caller.settings)).find(reference)
        return entry.artifact(variant, text)
    artifact: Artifact = kind_of(reference).resolve(reference, caller)
    return replace(artifact, reference=text)


def fetch(file: ModelFile, destination: Path, caller: Caller) -> Fetched:
    """Bring the bytes of a file, from the first of its sources that has the right ones; a partial is continued."""
    if is_mirror(caller.settings.mirror) and file.sha256 is not None:
        file = replace(file, sources=(mirrored(caller.settings.mirror, file.sha256), *file.sources))
        caller = replace(caller, settings=logged_in(caller.settings, caller.settings.mirror))

    def bring(source: Source) -> Fetched:
        try:
            arrived = _fetch_checked(file, source, destination, caller)
        except (NotAvailableError, IntegrityError) as error:
            if source is not file.sources[-1]:
                caller.note(f"{_told(source, error)}; trying the next source")
            raise
        return replace(arrived, source=str(source), revision=arrived.revision or source.revision)

    return _from_first(file, caller, bring)


def open_source(file: ModelFile, caller: Caller) -> ByteSource:
    """Open a file where it is, to read parts of it; the first source that can be read in parts is used."""

    def bring(source: Source) -> ByteSource:
        if len(source.parts) > 1 or isinstance(source.parts[0], WheelRef):
            hint = "pull the model first: it is fetched whole"
            raise SourceUnavailableError(f"{source.parts[0]} can't be read in parts", hint=hint)
        opened: ByteSource = kind_of(source.parts[0]).open_remote(source.parts[0], caller)
        return opened

    return _from_first(file, caller, bring)


def _from_first(file: ModelFile, caller: Caller, bring: Callable[[Source], _Brought]) -> _Brought:
    """What the first source gives that has it."""
    failures: list[tuple[Source, NotAvailableError | IntegrityError]] = []
    for source in file.sources:
        try:
            if caller.settings.offline and not isinstance(source.parts[0], FileRef):
                raise OfflineError(f"{file.filename} is not in the store, and nothing may be fetched")
            return bring(source)
        except (NotAvailableError, IntegrityError) as error:
            failures.append((source, error))
    errors = [error for _, error in failures]
    if len(errors) == 1 or all(isinstance(error, OfflineError) for error in errors):
        raise errors[0]
    if wrong := [error for error in errors if isinstance(error, IntegrityError)]:
        raise wrong[-1]
    denied = [error for error in errors if isinstance(error, AccessDeniedError)]
    told = "; ".join(_told(source, error) for source, error in failures)
    hint = next((error.hint for error in [*denied, *errors] if error.hint), "")
    raise SourceUnavailableError(f"{file.filename}: no source has it: {told}", hint=hint)


def _told(source: Source, error: NotAvailableError | IntegrityError) -> str:
    return error.message if str(source) in error.message else f"{source}: {error.message}"


def _fetch_checked(file: ModelFile, source: Source, destination: Path, caller: Caller) -> Fetched:
    """Fetch from one source and compare with the pins; once more from scratch if what was continued is wrong."""
    bring = _fetch_parts if len(source.parts) > 1 else _fetch_part
    what = f"{file.filename} from {source}"
    hint = "nothing was stored; the source may have been changed, or something on the way alters files"
    for attempt in range(2):
        arrived: Fetched | None = None
        try:
            arrived = bring(file, source, destination, caller)
            if file.size is not None and arrived.size != file.size:
                raise SizeMismatchError(what, expected=file.size, actual=arrived.size, hint=hint)
            if file.sha256 is not None and arrived.sha256 != file.sha256:
                raise ChecksumMismatchError(what, expected=file.sha256, actual=arrived.sha256, hint=hint)
        except IntegrityError:
            remove_partial(destination)
            if attempt or arrived is None or not arrived.resumed_from:
                raise
        else:
            return arrived
    raise AssertionError


def _fetch_part(file: ModelFile, source: Source, destination: Path, caller: Caller) -> Fetched:
    arrived: Fetched = kind_of(source.parts[0]).fetch(source.parts[0], destination, file=file, caller=caller)
    return arrived


def _fetch_parts(file: ModelFile, source: Source, destination: Path, caller: Caller) -> Fetched:
    """Bring a file cut for its host, part after part; a journal says which are in it, so that a rerun goes on."""
    journal = destination.with_name(f"{destination.name}.parts")
    piece = destination.with_name(f"{destination.name}.piece")
    kept = read_kept(journal)
    known = isinstance(kept, list) and kept[:1] == [str(source)] and all(type(size) is int for size in kept[1:])
    sizes: list[int] = kept[1:] if known else []
    joined = replace(caller, progress=JoinedProgress(caller.progress))

    def rest(start: int) -> Iterator[bytes]:
        if not start:
            sizes.clear()
        caller.progress.start(file.filename, file.size, start)
        for part in source.parts[len(sizes) :]:
            alone = Source((part,))
            _fetch_part(ModelFile(f"{file.filename} ({len(sizes) + 1})", None, None, (alone,)), alone, piece, joined)
            with piece.open("rb") as reader:
                yield from blocks(reader)
            sizes.append(piece.stat().st_size)
            keep(journal, [str(source), *sizes])
            remove_partial(piece)
            if file.size is not None and sum(sizes) > file.size:
                return

    try:
        return receive(rest, destination, name=file.filename, keep=sum(sizes))
    finally:
        caller.progress.finish()
