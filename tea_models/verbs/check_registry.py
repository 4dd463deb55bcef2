"""`registry check --online`: do the places that a registry names still have the bytes that it pins?"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from tea_models.caller import Caller
from tea_models.errors import IntegrityError, NotAvailableError, UsageError
from tea_models.files import ModelFile, Source
from tea_models.gguf.magic import MAGIC, foreign
from tea_models.refs import HubRef, OllamaRef, WheelRef
from tea_models.registry.entries import Entry
from tea_models.sources import kind_of

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class CheckedSource:
    """One source: `ok`, `mismatch`, `unreachable`, `unpinned`, or `unchecked` (it would have to be fetched whole)."""

    name: str
    variant: str
    filename: str
    source: str
    status: str
    detail: str = ""


def check_entries(entries: Iterable[Entry], caller: Caller, *, online: bool = False) -> list[CheckedSource]:
    """Look at every source of every file: at its pins, and with `online` at the size and hash that its host states."""
    if online and caller.settings.offline:
        raise UsageError("--online and --offline contradict each other")
    jobs = [
        (entry.name, variant.name, file, source)
        for entry in entries
        for variant in entry.variants.values()
        for file in variant.files
        for source in file.sources
    ]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda job: _check(job[2], job[3], caller, online), jobs))
    return [CheckedSource(*job[:2], job[2].filename, str(job[3]), *each) for job, each in zip(jobs, found, strict=True)]


def _check(file: ModelFile, source: Source, caller: Caller, online: bool) -> tuple[str, str]:
    if not online:
        lacking = "no sha256" if not file.sha256 else "no size" if not file.size else ""
        return ("unpinned" if lacking else "ok"), lacking
    if len(source.parts) > 1 or isinstance(source.parts[0], WheelRef):
        return "unchecked", "can only be compared by pulling it"
    try:
        size, sha256 = _stated(source, caller)
    except NotAvailableError as error:
        return "unreachable", error.message
    except IntegrityError as error:
        return "mismatch", error.message
    if file.size is not None and size is not None and size != file.size:
        return "mismatch", f"size is {size:,} bytes, pinned are {file.size:,}"
    if file.sha256 is not None and sha256 is not None and sha256 != file.sha256:
        return "mismatch", f"sha256 is {sha256}"
    if file.sha256 is None:
        return "unpinned", f"sha256 is {sha256}" if sha256 else "no sha256"
    return ("ok", "") if sha256 else ("ok", "only the size was compared")


def _stated(source: Source, caller: Caller) -> tuple[int | None, str | None]:
    """Size and hash as the host states them."""
    reference = source.parts[0]
    if isinstance(reference, HubRef):
        _, found = kind_of(reference).metadata(reference, caller.settings)
        return found.size, found.sha256
    if isinstance(reference, OllamaRef):
        (file,) = kind_of(reference).resolve(reference, caller).files
        return file.size, file.sha256
    with closing(kind_of(reference).open_remote(reference, caller)) as remote:
        if not (head := remote.read(0, 512)).startswith(MAGIC):
            raise foreign(head, remote.name)
        return remote.size, None
