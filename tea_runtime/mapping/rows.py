"""Rows (JSON lines, CSV, Parquet, read one by one), many in flight together, and the file of their answers."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice, starmap
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from tea_models.disk.atomic import write_atomically
from tea_models.errors import ConfigError, MissingFileError, StoreError, TeaModelsError, UsageError
from tea_runtime.errors import MissingExtraError

SCHEMA = "tea.map/1"
#: A longer row is an error of that row: nothing a model could read, and a file that is no JSON lines would fill memory.
LONGEST_ROW = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its place in the file from 0, and what a workflow's state starts with; None, and why, if it can't."""

    index: int
    values: Mapping[str, Any] | None
    error: str = ""


class Output:
    """An append-only file of JSON lines, for one process at a time; a last line that is not whole is cut off.

    Where an error comes before the first line, nothing that was made stays: neither the file nor what is beside it.
    """

    def __init__(self, path: Path, workflow: str) -> None:
        self.path = path
        self._identity = {"schema": SCHEMA, "workflow_sha256": hashlib.sha256(workflow.encode()).hexdigest()}
        self._beside = path.with_name(f".{path.name}.map")
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        #: The rows that are done.
        self.done: set[int] = set()
        self.errors = 0

    def __enter__(self) -> Self:
        self._check_owner()
        self._made = [] if self.path.exists() else [self.path]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._beside.touch()  # the lock would wait for a folder in which nothing can be made
            self._lock.acquire()
        except Timeout:
            raise UsageError(f"{self.path}: another process is writing it") from None
        except OSError as error:
            raise StoreError(f"{self.path}: can't be written: {error.strerror}") from None
        try:
            if self._check_owner():
                write_atomically(self._beside, json.dumps(self._identity) + "\n")
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            self._read()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, error: object, *_: object) -> None:
        empty = not os.fstat(self._descriptor).st_size
        os.close(self._descriptor)
        if error is not None and empty:
            for path in (*self._made, self._beside, Path(self._lock.lock_file)):
                with contextlib.suppress(OSError):  # Windows keeps a file that is open
                    path.unlink()
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

    def _check_owner(self) -> bool:
        """Whether nobody wrote it yet; raises where another one did."""
        if not self.path.exists() or not self.path.stat().st_size:
            return True
        try:
            found = json.loads(self._beside.read_text("utf-8"))
        except (OSError, ValueError):
            found = {}
        if found.get("schema") != SCHEMA:
            raise UsageError(f"{self.path}: it was not written by map", hint="name another --output")
        if found != self._identity:
            hint = "name another --output, or remove it to begin anew"
            raise UsageError(f"{self.path}: another workflow wrote it, or this one before it was changed", hint=hint)
        return False

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


def read_rows(path: Path, *, limit: int | None = None, sample: int | None = None) -> Iterator[Row]:
    """The rows of a file in order, or the first `limit`; with `sample` so many at random, the same ones each time."""
    if not path.is_file():
        raise MissingFileError(f"{path}: " + ("it is a folder" if path.is_dir() else "no such file of rows"))
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: expected a file of rows that ends in {', '.join(_READERS)}")
    if sample is None:
        return islice(reader(path), limit)
    count = sum(1 for _ in islice(reader(path), limit))
    chosen = set(random.Random(0).sample(range(count), min(sample, count)))  # noqa: S311 - a sample, no secret
    return (row for row in islice(reader(path), limit) if row.index in chosen)


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        index = 0
        while line := file.readline(LONGEST_ROW + 1):
            if len(line) > LONGEST_ROW:
                while not line.endswith(b"\n") and (line := file.readline(LONGEST_ROW)):
                    pass
                yield Row(index, None, f"longer than {LONGEST_ROW:,} bytes")
            elif line.strip():
                try:
                    values = json.loads(line.decode("utf-8-sig"))
                    problem = f"expected an object with keys, found {type(values).__name__}"
                except (ValueError, RecursionError) as error:
                    values, problem = None, f"not a line of JSON: {error}"
                yield Row(index, values) if isinstance(values, dict) else Row(index, None, problem)
            else:
                continue
            index += 1


def _comma_separated(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for index, values in enumerate(csv.DictReader(file, strict=True)):
                if None in values or None in values.values():
                    yield Row(index, None, "another number of columns than the header has")
                else:
                    yield Row(index, values)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a CSV file in UTF-8: {error}") from None


def _parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingExtraError("reading Parquet", package="pyarrow", extra="ray") from None
    try:
        with ParquetFile(path) as file:
            every = (values for batch in file.iter_batches(batch_size=256) for values in batch.to_pylist())
            yield from starmap(Row, enumerate(every))
    except (ArrowException, OSError) as error:
        raise UsageError(f"{path}: not a Parquet file: {error}") from None


_READERS = {".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _comma_separated, ".parquet": _parquet}
