"""Rows in flight together, in this process: they fill the engine's batch, and each is written as it is done."""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tea_models.errors import TeaModelsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tea_runtime.mapping.output import Output
    from tea_runtime.mapping.rows import Row


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
    """Run every row that is not in the output yet, and append its state or its error; `run` is called by threads.

    Memory is bounded by the rows in flight, however long the file is. An interrupt ends it at once; what is whole in
    the output stays, and the next run does the rest.

    Raises:
        StoreError: The output can't be written.
    """
    began, present, failed_before, rows_before = time.monotonic(), 0, output.errors, output.rows
    flying: dict[Future[Mapping[str, Any]], Row] = {}

    def land(*, room: int) -> None:
        while len(flying) > room:
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                output.append(flying.pop(future).index, future.result())
                done()

    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="tea-map")
    try:
        for row in rows:
            if output.has(row.index):
                present += 1
                continue
            flying[pool.submit(_answer, run, row)] = row
            land(room=concurrency - 1)
        land(room=0)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return Summary(output.rows - rows_before, output.errors - failed_before, present, time.monotonic() - began)


def _answer(run: Callable[[Mapping[str, Any]], Mapping[str, Any]], row: Row) -> Mapping[str, Any]:
    if row.values is None:
        return {"_error": row.error}
    try:
        return run(row.values)
    except TeaModelsError as error:
        return {"_error": error.message, "_error_type": error.type}
