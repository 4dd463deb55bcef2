"""`tea-runtime map`: one workflow over the rows of a file."""

from __future__ import annotations

import contextlib
import functools
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import App, answering
from tea_models.errors import UsageError
from tea_runtime.cli.screen import environment, logged, only_json

if TYPE_CHECKING:
    from tea_runtime.mapping.rows import Summary


@click.command("map")
@click.argument("workflow", type=click.Path(path_type=Path))
@click.option("--over", "rows", metavar="ROWS", required=True, type=click.Path(path_type=Path),
              help="A file of rows: .jsonl, .csv or .parquet; each is the input of one run.")  # fmt: skip
@click.option("-o", "--output", metavar="OUT.jsonl", required=True, type=click.Path(path_type=Path),
              help="Where the answers are appended; run again, what is missing in it is done.")  # fmt: skip
@click.option(
    "--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Rows in flight at once."
)
@click.option("--engine", default="local", show_default=True, metavar="local|ray|ray://ADDRESS",
              help="Where rows run: in this process, or on the nodes of a Ray cluster.")  # fmt: skip
@click.option("--cpus", type=click.IntRange(min=1), help="With Ray: cores of each actor.  [default: a node's]")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many rows from the beginning.")
@click.option("--sample", type=click.IntRange(min=1),
              help="Only so many rows, chosen at random, the same ones each time.")  # fmt: skip
@click.option("--max-errors", type=click.IntRange(min=0), default=0, show_default=True,
              help="End with 0 although so many rows failed.")  # fmt: skip
@click.option("--gguf", metavar="REF", help="The model: a file or a reference. Comes before everything else.")
@click.option("--backend", type=click.Choice(["local", "api", "auto"]), help="In place of settings.llm.backend.")
@answering
def command(
    app: App, *, workflow: Path, rows: Path, output: Path, concurrency: int, limit: int | None, sample: int | None,
    max_errors: int, engine: str, cpus: int | None, **options: Any,
) -> int:  # fmt: skip
    """Run WORKFLOW for every row: a line of OUT for each, with its index as `_row` and its state or `_error`.

    Rows in flight together are decoded together. Killed at any moment and run again it does what is missing.
    """
    from tea_runtime.mapping.rows import Output, map_rows, read_rows
    from tea_runtime.workflow.file import read_workflow
    from tea_runtime.workflow.runner import LoadedWorkflow

    source = read_workflow(workflow)
    identity = "\0".join([workflow.read_text("utf-8"), options["gguf"] or "", options["backend"] or ""])
    count = sum(1 for _ in read_rows(rows, limit=limit, sample=sample))
    if engine not in {"local", "ray"} and not engine.startswith("ray://"):
        raise UsageError(f"--engine {engine!r}: expected local, ray or ray://HOST:PORT")
    every = read_rows(rows, limit=limit, sample=sample)
    with (
        only_json(wanted=app.out.as_json),
        logged(app.out),
        Output(output, identity) as written,
        contextlib.ExitStack() as stack,
    ):
        told: dict[str, Any] = {"concurrency": concurrency}
        if app.out.live:
            left = count - len(written.done)
            bar = stack.enter_context(click.progressbar(length=left, file=sys.stderr, show_pos=True))
            told["done"] = functools.partial(bar.update, 1)
        if engine == "local":
            loaded = stack.enter_context(LoadedWorkflow(source, environ=environment(app), **options))
            summary = map_rows(loaded.run, every, written, **told)
        else:
            from tea_runtime.mapping.ray import map_rows_on_ray

            address = engine if "://" in engine else None
            summary = map_rows_on_ray(workflow, every, written, address=address, cpus=cpus, **told, **options)
        failed = written.errors
    data = {**asdict(summary), "errors": failed, "output": str(output)}
    app.out.answer(data, lambda: _told(summary, failed, output))
    if failed <= max_errors:
        return 0
    rows_failed = f"{failed:,} row{'s' * (failed != 1)} failed"
    app.out.note(f"{rows_failed}; --max-errors allows {max_errors:,}; their lines in {output} have `_error`")
    return 1


def _told(summary: Summary, failed: int, output: Path) -> str:
    rate = f", {summary.rows / summary.seconds:.1f} a second" if summary.seconds and summary.rows else ""
    before = f"; {summary.present:,} were there before" if summary.present else ""
    errors = f"; {failed:,} failed" if failed else ""
    return f"{summary.rows:,} rows in {summary.seconds:.1f} s{rate}{before}{errors} → {output}"
