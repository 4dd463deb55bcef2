"""Rows in flight together, and the file that answers are appended to: what is whole in it is not done again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout

from tea_models.disk.atomic import write_atomically
from tea_models.errors import ConfigError, StoreError, TeaModelsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from tea_runtime.mapping.rows import Row

SCHEMA = "tea.map/1"


class Output:
    """An append-only file of JSON lines, for one process at a time; a last line that is not whole is cut off."""

    def __init__(self, path: Path, workflow: str) -> None:
        self.path = path
        self._identity = {"schema": SCHEMA, "workflow_sha256": hashlib.sha256(workflow.encode()).hexdigest()}
        self._beside = path.with_name(f".{path.name}.map")
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        #: The rows that are done.
        self.done: set[int] = set()
        self.errors = 0

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise UsageError(f"{self.path}: another process is writing it") from None
        except OSError as error:
            raise StoreError(f"{self.path}: can't be written: {error.strerror}") from None
        try:
            self._check_owner()
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            self._read()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        self._lock.release()

    def append(self, index: int, values: Mapping[str, Any]) -> None:
        """Write the state, or `_error`, of a row; a `StoreError` where that can't be, and what is whole stays."""
        line = json.dumps({"_row": index, **values}, ensure_ascii=False, default=str).encode() + b"\n"
        end = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                os.truncate(self._descriptor, end)
                raise StoreError(f"{self.path}: no space is left", hint="make room and run the command again")
        except OSError as error:
            raise StoreError(f"{self.path}: can't be written: {error.strerror}") from None
        self.done.add(index)
        self.errors += "_error" in values

    def _check_owner(self) -> None:
        if not self.path.exists() or not self.path.stat().st_size:
            write_atomically(self._beside, json.dumps(self._identity) + "\n")
            return
        try:
            found = json.loads(self._beside.read_text("utf-8"))
        except (OSError, ValueError):
            found = {}
        if found.get("schema") != SCHEMA:
            raise UsageError(f"{self.path}: it was not written by map", hint="name another --output")
        if found != self._identity:
            hint = "name another --output, or remove it to begin anew"
            raise UsageError(f"{self.path}: another workflow wrote it, or this one before it was changed", hint=hint)

    def _read(self) -> None:
        """Find what is done, and cut off a last line that is not whole."""
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    values = json.loads(line)
                    self.done.add(values["_row"])
                    self.errors += "_error" in values
                except (ValueError, TypeError, KeyError):
                    raise ConfigError("a damaged line", file=str(self.path), line=number) from None
                end += len(line)
        os.truncate(self._descriptor, end)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run of `map` did: rows done, failed ones among them, rows that were there before, and its seconds."""

    rows: int
    failed: int
    present: int
    seconds: float


def map_rows(
    run: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    rows: Iterable[Row],
    output: Output,
    *,
    concurrency: int,
    done: Callable[[], object] = lambda: None,
) -> Summary:
    """Run every row that is not in the output yet (by threads, memory bounded), and append its state or its error."""
    began, present, failed_before, rows_before = time.monotonic(), 0, output.errors, len(output.done)
    flying: dict[Future[Mapping[str, Any]], Row] = {}

    def land(*, room: int) -> None:
        while len(flying) > room:
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                output.append(flying.pop(future).index, future.result())
                done()

    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="tea-map")
    try:
        for row in rows:
            if row.index in output.done:
                present += 1
                continue
            flying[pool.submit(answer_of, run, row)] = row
            land(room=concurrency - 1)
        land(room=0)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return Summary(len(output.done) - rows_before, output.errors - failed_before, present, time.monotonic() - began)


def answer_of(run: Callable[[Mapping[str, Any]], Mapping[str, Any]], row: Row) -> Mapping[str, Any]:
    """The state or the error of a row."""
    if row.values is None:
        return {"_error": row.error}
    try:
        return run(row.values)
    except TeaModelsError as error:
        return {"_error": error.message, "_error_type": error.type}
