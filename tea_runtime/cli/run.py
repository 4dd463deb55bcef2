"""`tea-runtime run`: a workflow from a YAML file."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import click

from tea_models.cli.frame import App, answering
from tea_models.errors import MissingFileError, UsageError
from tea_runtime.cli.screen import Stream, changed, environment, logged, plain, readable, stdout_to_stderr


@click.command("run")
@click.argument("workflow", type=click.Path(path_type=Path))
@click.option("-i", "--input", "given", metavar="JSON|@FILE", help="What the state starts with; @- reads stdin.")
@click.option("--gguf", metavar="REF", help="The model: a file or a reference. Comes before everything else.")
@click.option("--backend", type=click.Choice(["local", "api", "auto"]), help="In place of settings.llm.backend.")
@click.option(
    "--max-steps", type=click.IntRange(min=1), default=1000, show_default=True, help="Where a loop is stopped."
)
@click.option("--check", is_flag=True, help="Only read and check the workflow.")
@answering
def command(
    app: App, *, workflow: Path, given: str | None, gguf: str | None, backend: str | None, max_steps: int, check: bool
) -> None:
    """Run a workflow: streamed text appears as it comes, then the final state.

    With --json, stdout is exactly the final state, and streamed text goes to stderr.
    """
    from tea_runtime.workflow.runner import check_workflow, run_workflow

    state = _input(given)
    if check:
        with logged(app.out):
            nodes = check_workflow(workflow, state, environ=environment(app))
        app.out.answer({"workflow": str(workflow), "nodes": nodes}, lambda: f"{workflow}: ok, {' → '.join(nodes)}")
        return
    redirected = stdout_to_stderr() if app.out.as_json else contextlib.nullcontext()
    with redirected, logged(app.out):
        stream = Stream(sys.stdout)
        try:
            final = run_workflow(
                workflow,
                state,
                gguf=gguf,
                backend=backend,
                on_text=stream,
                environ=environment(app),
                max_steps=max_steps,
            )
        finally:
            stream.end_line()
    if stream.used and not app.out.as_json and final:
        sys.stdout.write("\n")
    places = list(itertools.islice(changed(final), 4)) if app.out.as_json else []
    if places:
        app.out.warn("JSON can't hold all of the state: " + ", ".join(places[:3]) + (", …" if places[3:] else ""))
    app.out.answer(plain(final), lambda: readable(final, app.out), exact=True)


def _input(given: str | None) -> dict[str, Any]:
    if given is None:
        return {}
    text, name = given, "--input"
    if given.startswith("@"):
        name = given[1:]
        text = sys.stdin.read() if name == "-" else _read(Path(name))
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"{name}: not valid JSON: {error.msg} at {where}", hint=_advice(text)) from None
    except RecursionError:
        raise UsageError(f"{name}: nested too deeply") from None
    if not isinstance(data, dict):
        found = {list: "a list", str: "a text", type(None): "null"}.get(type(data), f"{data!r}")
        raise UsageError(f"{name}: expected a JSON object, found {found}", hint=_advice(text))
    return data


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start:,} is not UTF-8") from None
    except OSError as error:
        raise MissingFileError(f"{path}: can't be read: {error.strerror}") from None


def _advice(text: str) -> str:
    return "" if text.lstrip().startswith("{") else """expected something like '{"question": "…"}'"""
