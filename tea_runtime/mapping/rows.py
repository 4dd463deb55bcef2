"""The rows that a workflow is run over: JSON lines, CSV or Parquet, read one by one however long the file is."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from tea_models.errors import MissingFileError, UsageError
from tea_runtime.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: A longer row is an error of that row: nothing a model could read, and a file that is no JSON lines would fill memory.
LONGEST_ROW = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its place in the file from 0, and what a workflow's state starts with; None, and why, if it can't."""

    index: int
    values: Mapping[str, Any] | None
    error: str = ""


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
        index = 0
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for values in batch.to_pylist():
                    yield Row(index, values)
                    index += 1
    except (ArrowException, OSError) as error:
        raise UsageError(f"{path}: not a Parquet file: {error}") from None


_READERS = {".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _comma_separated, ".parquet": _parquet}
