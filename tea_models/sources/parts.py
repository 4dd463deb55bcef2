"""A file that was cut into parts for its host: the parts are fetched one after the other and joined.

A journal beside the file says which parts are in it, so that a rerun goes on after them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from tea_models.disk.atomic import write_atomically
from tea_models.disk.operations import remove_partial
from tea_models.disk.regular import read_own
from tea_models.files import Fetched, ModelFile, Source
from tea_models.progress import Progress
from tea_models.sources.receiver import blocks, receive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tea_models.caller import Caller
    from tea_models.refs import Reference


class FetchPart(Protocol):
    """Brings one part."""

    def __call__(self, part: Reference, destination: Path, *, file: ModelFile, caller: Caller) -> Fetched: ...


class _Joined(Progress):
    """Shows the parts of one file as one file."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def start(self, name: str, total: int | None, initial: int = 0) -> None:  # noqa: ARG002 - the protocol's signature
        if initial:
            self._progress.advance(initial)

    def advance(self, n: int) -> None:
        self._progress.advance(n)


def fetch_parts(file: ModelFile, source: Source, destination: Path, caller: Caller, fetch_part: FetchPart) -> Fetched:
    """Bring a file from a source of several parts.

    Args:
        file: Its size, where it is known, ends the joining.
        source: Names the parts.
        destination: Where the whole goes.
        caller: Told about all bytes as one file.
        fetch_part: Brings one part.
    """
    journal = destination.with_name(f"{destination.name}.parts")
    piece = destination.with_name(f"{destination.name}.piece")
    sizes = _joined_sizes(journal, source)
    joined = replace(caller, progress=_Joined(caller.progress))

    def rest(start: int) -> Iterator[bytes]:
        if not start:
            sizes.clear()
        caller.progress.start(file.filename, file.size, start)
        for part in source.parts[len(sizes) :]:
            blank = ModelFile(f"{file.filename} ({len(sizes) + 1})", None, None, (Source((part,)),))
            fetch_part(part, piece, file=blank, caller=joined)
            with piece.open("rb") as reader:
                yield from blocks(reader)
            sizes.append(piece.stat().st_size)
            write_atomically(journal, json.dumps({"source": str(source), "sizes": sizes}), durable=False)
            remove_partial(piece)
            if file.size is not None and sum(sizes) > file.size:
                return

    try:
        return receive(rest, destination, name=file.filename, keep=sum(sizes))
    finally:
        caller.progress.finish()


def _joined_sizes(journal: Path, source: Source) -> list[int]:
    try:
        state = json.loads(read_own(journal) or b"{}")
        sizes = state["sizes"] if state["source"] == str(source) else []
        return [size for size in sizes if isinstance(size, int) and size >= 0]
    except (OSError, ValueError, KeyError, TypeError):
        return []
