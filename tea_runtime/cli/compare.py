"""`tea-runtime compare`: what another quantisation (or model, or engine's answers) does to a workflow's results."""

from __future__ import annotations

import functools
import json
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from tea_models.cli.frame import App, answering
from tea_models.cli.output import table
from tea_models.errors import MissingFileError, UsageError
from tea_models.plan.resolve import resolve_plan
from tea_models.registry.entries import Registry
from tea_models.sizes import human_bytes
from tea_models.sources.locate import locate
from tea_runtime.cli.screen import environment, logged, only_json
from tea_runtime.mapping.rows import Output, Row, map_rows, read_rows
from tea_runtime.workflow.file import Workflow, read_workflow
from tea_runtime.workflow.runner import LoadedWorkflow, Step


@click.command("compare")
@click.argument("workflow", type=click.Path(path_type=Path))
@click.option("--over", "rows", metavar="ROWS", required=True, type=click.Path(path_type=Path),
              help="A file of rows: .jsonl, .csv or .parquet.")  # fmt: skip
@click.option("--variants", metavar="A,B,…", required=True,
              help="Variants of settings.llm.model (Q4_K_M,…), or references; the first is the measure.")  # fmt: skip
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Rows in flight.")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many rows from the beginning.")
@click.option("--sample", type=click.IntRange(min=1), help="Only so many rows, chosen at random.")
@click.option(
    "--min-agreement", type=click.FloatRange(0, 1), help="End with 1 where one agrees with the first on less."
)
@answering
def command(
    app: App, *, workflow: Path, rows: Path, variants: str, concurrency: int, limit: int | None, sample: int | None,
    min_agreement: float | None,
) -> int:  # fmt: skip
    """Run WORKFLOW over the same rows with several models, and show how far their results agree, and what they cost.

    A row agrees where all that the workflow added to it is equal: let it answer in a fixed form, at temperature 0.
    """
    source = read_workflow(workflow)
    names = [name.strip() for name in variants.split(",") if name.strip()]
    if len(names) < 2:
        raise UsageError(f"--variants {variants!r}: expected two or more, with commas between them")
    model = source.llm_settings(environment(app)).model
    references = [_reference(app, name, (model or "").partition(":")[0]) for name in names]
    paths = [locate(reference, app.caller, remote=False).paths for reference in references]
    absent = next((path for found in paths for path in found if not path.is_file()), None)
    if absent is not None:
        raise MissingFileError(f"{absent}: no such file")
    found: list[dict[str, Any]] = []
    measure: dict[int, Any] = {}
    with (
        only_json(wanted=app.out.as_json),
        logged(app.out),
        tempfile.TemporaryDirectory(prefix="tea-compare-") as folder,
    ):
        for number, (reference, files) in enumerate(zip(references, paths, strict=True)):
            output = Path(folder) / f"{number}.jsonl"
            each = read_rows(rows, limit=limit, sample=sample)
            figures = _run(app, source, reference, each, output, paths=files, concurrency=concurrency)
            lines = map(json.loads, output.read_text("utf-8").splitlines())
            results = {line.pop("_row"): line for line in lines}
            measure = measure or results
            same = sum(results.get(index) == result for index, result in measure.items())
            found.append(figures | {"agreement": round(same / max(len(measure), 1), 4)})
    app.out.answer(found, lambda: _shown(found))
    return 1 if min_agreement is not None and any(one["agreement"] < min_agreement for one in found) else 0


def _reference(app: App, name: str, model: str) -> str:
    """A variant of the workflow's model, where it has one of that name; else a reference."""
    entry = Registry.load(app.settings).entries.get(model)
    variants = [variant.lower() for variant in entry.variants] if entry is not None else []
    return f"{model}:{name}" if name.lower() in variants else name


def _run(
    app: App,
    source: Workflow,
    reference: str,
    rows: Iterable[Row],
    output: Path,
    *,
    paths: Sequence[Path],
    concurrency: int,
) -> dict[str, Any]:
    """Run the rows with one model; what it is, what it did, and the bytes of its files and of its plan."""
    tokens, counting = 0, threading.Lock()

    def count(step: Step) -> None:
        nonlocal tokens
        usage = step.result.get("usage") if isinstance(step.result, Mapping) else None
        with counting:
            tokens += int((usage or {}).get("completion_tokens") or 0)

    with (
        Output(output, reference) as written,
        LoadedWorkflow(source, gguf=reference, environ=environment(app)) as loaded,
    ):
        run = functools.partial(loaded.run, on_step=count)
        summary = map_rows(run, rows, written, concurrency=concurrency)
    return {
        "model": reference,
        "rows": summary.rows,
        "failed": summary.failed,
        "tokens_per_s": round(tokens / summary.seconds, 1) if tokens and summary.seconds else None,
        "size": sum(path.stat().st_size for path in paths),
        "memory": resolve_plan(paths[0], settings=app.settings).memory.total,
    }


def _shown(found: list[dict[str, Any]]) -> str:
    rows = []
    for one in found:
        speed = "?" if one["tokens_per_s"] is None else f"{one['tokens_per_s']:.0f}"
        sizes = [human_bytes(one["size"]), human_bytes(one["memory"])]
        rows.append([one["model"], f"{one['agreement']:.1%}", str(one["failed"]), speed, *sizes])
    header = ["MODEL", "AGREES", "FAILED", "TOKENS/S", "SIZE", "MEMORY"]
    return table(rows, header=header, right=frozenset(range(1, 6))) + f"\n{found[0]['rows']:,} rows each"
