"""`map` on Ray: Ray Data hands rows to a pool of actors, each with the workflow's models on the plan of its node.

The folder of the workflow goes to the nodes, without models: each node brings those that the `models.lock` in it names.
Ray restarts actors and asks rows again that were lost with a node; a row that comes back twice is written once.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tea_models.errors import NotAvailableError, UsageError
from tea_runtime.errors import MissingExtraError
from tea_runtime.mapping.rows import Output, Row, Summary, answer_of

#: What is not sent to the nodes with the workflow's folder.
_NOT_SENT = ["*.gguf", "*.tar", ".git", ".venv", "__pycache__", "node_modules"]


def map_rows_on_ray(
    workflow: Path,
    rows: Iterable[Row],
    output: Output,
    *,
    address: str | None = None,
    concurrency: int,
    cpus: int | None = None,
    gguf: str | None = None,
    backend: str | None = None,
    done: Callable[[], object] = lambda: None,
) -> Summary:
    """As `map_rows`, on the cluster at `address` (by default what `RAY_ADDRESS` names, or one on this machine).

    `concurrency` is for each actor; each has `cpus` cores, by default those of the smallest node: an actor a node.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtraError("--engine ray", package="ray", extra="ray") from None
    began, failed_before, rows_before = time.monotonic(), output.errors, len(output.done)
    pending, present = [], 0
    for row in rows:
        if row.index in output.done:
            present += 1
        elif row.values is None:
            output.append(row.index, {"_error": row.error})
            done()
        else:
            pending.append({"index": row.index, "values": json.dumps(row.values)})
    if pending:
        try:
            ray.init(
                address=address,
                runtime_env={"working_dir": str(workflow.resolve().parent), "excludes": _NOT_SENT},
                log_to_driver=False,
                logging_level=logging.ERROR,
                ignore_reinit_error=True,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise NotAvailableError(
                f"Ray at {address or os.environ.get('RAY_ADDRESS', 'this machine')}: {error}"
            ) from None
        try:
            each, actors = _shares(ray, cpus)
            options = {"gguf": gguf, "backend": backend}
            job = {"cpus": each, "concurrency": concurrency, "workflow": workflow.name, **options}
            _run(ray, pending, output, done, job, actors)
        finally:
            ray.shutdown()
    return Summary(len(output.done) - rows_before, output.errors - failed_before, present, time.monotonic() - began)


def _shares(ray: Any, cpus: int | None) -> tuple[int, int]:
    """Cores of each actor, and how many actors the cluster has room for."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    nodes = [cores for cores in nodes if cores]
    if not nodes:
        raise NotAvailableError("the Ray cluster has no cores")
    each = cpus or min(nodes)
    actors = sum(cores // each for cores in nodes)
    if not actors:
        raise UsageError(f"no node of the cluster has {each} cores: the largest has {max(nodes)}")
    return each, actors


def _run(  # noqa: PLR0917 - one call
    ray: Any,
    pending: list[dict[str, Any]],
    output: Output,
    done: Callable[[], object],
    job: dict[str, Any],
    actors: int,
) -> None:
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.data.dataset"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A block is a batch of an actor: what is lost with a node, and what the driver waits for.
    blocks = max(min(-(-len(pending) // (2 * job["concurrency"])), 10_000), min(actors, len(pending)))
    dataset = ray.data.from_items(pending, override_num_blocks=blocks).map_batches(
        _Actor,
        fn_constructor_kwargs=job,
        batch_size=None,
        num_cpus=job["cpus"],
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(actors, blocks)),
    )
    for row in dataset.iter_rows():
        if row["index"] not in output.done:
            output.append(int(row["index"]), json.loads(row["answer"]))
            done()


class _Actor:
    """Runs rows on one node. Its working directory is the workflow's folder."""

    def __init__(self, *, cpus: int, concurrency: int, workflow: str, **options: Any) -> None:
        from tea_models.caller import Caller
        from tea_models.lock.sync import sync
        from tea_models.settings import Settings
        from tea_runtime.workflow.runner import LoadedWorkflow

        lock = Path("models.lock")
        if lock.is_file():
            sync(lock, Caller(Settings.resolve(os.environ, cwd=Path.cwd())), frozen=True)
        os.environ.setdefault("OMP_NUM_THREADS", str(cpus))
        self._loaded = LoadedWorkflow(Path(workflow), n_threads=cpus, **options)
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="tea-map")

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        rows = [
            Row(int(index), json.loads(values)) for index, values in zip(batch["index"], batch["values"], strict=True)
        ]
        answers = self._threads.map(lambda row: answer_of(self._loaded.run, row), rows)
        texts = [json.dumps(answer, ensure_ascii=False, default=str) for answer in answers]
        return {"index": [row.index for row in rows], "answer": texts}
