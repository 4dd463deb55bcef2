"""`tea-runtime run`: a workflow from a YAML file."""

from __future__ import annotations

import functools
import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import FILE, App, answering
from tea_models.errors import MissingFileError, UsageError
from tea_runtime.cli.models import require_models
from tea_runtime.cli.screen import Stream, environment, logged, only_json, plain, readable
from tea_runtime.cli.trace import check_trace, tracing
from tea_runtime.cli.validate import show_check
from tea_runtime.workflow.file import Workflow, read_workflow
from tea_runtime.workflow.inputs import required_inputs
from tea_runtime.workflow.runner import Step, run_workflow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_KEY = re.compile(r"([A-Za-z_][\w-]*)(:?=)(.*)", re.DOTALL)
_PLAIN_TYPES = ("", "str", "string", "any")


@click.command("run")
@click.argument("workflow", type=click.Path(path_type=Path))
@click.option(
    "-i", "--input", "given", multiple=True, metavar="KEY=VALUE|KEY=@FILE|JSON|@FILE",
    help="What the state starts with; may be given several times. @- reads stdin.",
)  # fmt: skip
@click.option(
    "--get", "wanted", metavar="KEY", help="Print only this key of the final state, such as answer or result.content."
)
@click.option("--check", is_flag=True, help="Run nothing: check it, as `validate` does.")
@click.option("--pull", is_flag=True, help="Download the model if it is not here yet.")
@click.option("--gguf", metavar="REF", help="The model: a file or a reference. Comes before everything else.")
@click.option("--backend", type=click.Choice(["local", "api", "auto"]), help="In place of settings.llm.backend.")
@click.option("--locked", is_flag=True, help="Use only models that the nearest models.lock names.")
@click.option("--record", metavar="FILE", help="Write every answer into a cassette, begun anew.")
@click.option("--replay", metavar="FILE", help="Answer from a cassette, without a model.")
@click.option("--trace", "trace_file", type=FILE, callback=check_trace, metavar="FILE.html|FILE.json",
              help="Write a timeline of the steps: tokens, time, backend; a page, and JSON beside it.")  # fmt: skip
@click.option(
    "--max-steps", type=click.IntRange(min=1), default=1000, show_default=True, help="Where a loop is stopped."
)
@answering
def command(
    app: App,
    *,
    workflow: Path,
    given: tuple[str, ...],
    wanted: str | None,
    check: bool,
    pull: bool,
    locked: bool,
    record: str | None,
    replay: str | None,
    trace_file: Path | None,
    **options: Any,
) -> None:
    """Run a workflow: streamed text appears as it comes, then what else is new in the state.

    With --json, stdout is exactly the final state, and streamed text goes to stderr; with --get, exactly one value.
    """
    if check:
        show_check(app, workflow)
        return
    with logged(app.out):
        read = read_workflow(workflow)
        environ = environment(app, locked=locked)
        state = _read_inputs(given, read.spec.state_schema)
        _require_inputs(workflow, read, state)
        if record and replay:
            raise UsageError("--record and --replay exclude each other")
        if record or replay:
            environ |= {"TEA_CASSETTE": record or replay or "", "TEA_CASSETTE_MODE": "record" if record else "replay"}
        else:
            settings = read.llm_settings(environ).overridden(backend=options["backend"])
            known = read.environment(environ)
            require_models(app, settings, known, gguf=options["gguf"], pull=pull, uses=_models(read))
        json_only = app.out.as_json or wanted is not None
        with tracing(trace_file, read.spec.name, app.out) as trace, only_json(wanted=json_only):
            stream = Stream(sys.stdout)
            on_step = functools.partial(_told, app, stream, trace)
            try:
                final = run_workflow(read, state, on_text=stream, on_step=on_step, environ=environ, **options)
            finally:
                stream.end_line()
    if wanted is not None:
        _print_value(app, final, wanted)
        return
    changes: list[str] = []
    data = plain(final, changes)
    if changes and app.out.as_json:
        more = ", …" if len(changes) > 3 else ""
        app.out.warn("JSON can't hold all of the state: " + ", ".join(changes[:3]) + more)
    before = read.initial_state(state)
    shown = [key for key, value in final.items() if isinstance(value, str) and value in stream.shown]
    new = {key: value for key, value in final.items() if before.get(key) != value and key not in shown}
    if stream.used and new and not app.out.as_json:
        sys.stdout.write("\n")
    app.out.answer(data, lambda: readable(new, app.out), exact=True)


def _require_inputs(path: Path, workflow: Workflow, state: Mapping[str, Any]) -> None:
    needed = required_inputs(workflow)
    missing = [one for one in needed if one.key not in state]
    if not missing:
        return
    named = ", ".join(one.key + (f" ({one.kind})" if one.kind else "") for one in missing)
    given = [one for one in needed if one.key in state]
    values = [f"-i {one.key}=…" for one in given] + [f'-i {one.key}="…"' for one in missing]
    raise UsageError(
        f"{path} needs {named}: node {missing[0].node} uses it and nothing gives it",
        hint=f"tea-runtime run {shlex.quote(str(path))} {' '.join(values)}",
    )


def _models(workflow: Workflow) -> Iterator[str | None]:
    """The models that its `llm.*` nodes name; None for those that take the workflow's."""
    for node in workflow.nodes.values():
        if node.action.startswith("llm.") and node.params.get("backend") != "api":
            named = node.params.get("model")
            if not isinstance(named, str) or "{{" not in named:
                yield named or None


def _told(app: App, stream: Stream, trace: Callable[[Step], object], step: Step) -> None:
    """Say on a terminal what a node took that asked a model, and keep it in the trace."""
    trace(step)
    result = step.result if isinstance(step.result, dict) else {}
    if result.get("streamed") and stream.used:
        stream.end_line()
        stream.shown.append(str(result.get("content")))
    usage = result.get("usage")
    made = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if made and app.out.live:
        rate = f", {made / step.seconds:.0f} tokens/s" if step.seconds > 0 else ""
        app.out.note(f"{step.node}: {made:,} tokens in {step.seconds:.1f} s{rate}")


def _print_value(app: App, state: Mapping[str, Any], wanted: str) -> None:
    value: Any = state
    for part in wanted.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            there = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise UsageError(f"--get {wanted}: the final state has no {part!r}", hint=f"there is: {there}")
    app.out.answer(
        plain(value), lambda: value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)
    )


def _read_inputs(given: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Put the inputs of a command line together, a later one wins; values of a declared type are read as JSON."""
    state: dict[str, Any] = {}
    for text in given:
        found = _KEY.fullmatch(text)
        if found is None:
            state |= _object(text)
            continue
        key, sign, value = found.groups()
        if value.startswith("@"):
            value = _read(value[1:])
        kind = str(schema.get(key) or "").lower()
        if sign == ":=" or kind.partition("[")[0] not in _PLAIN_TYPES:
            state[key] = _json(value, f"--input {key}", expected=kind)
        else:
            state[key] = value
    return state


def _object(text: str) -> dict[str, Any]:
    name = "--input"
    if text.startswith("@"):
        name = text[1:]
        text = _read(name)
    data = _json(text, name)
    if not isinstance(data, dict):
        found = {list: "a list", str: "a text", type(None): "null"}.get(type(data), f"{data!r}")
        raise UsageError(f"{name}: expected a JSON object, found {found}", hint=_advice(text))
    return data


def _json(text: str, name: str, *, expected: str = "") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if expected:
            raise UsageError(f"{name}: expected {expected}, found {text[:40]!r}") from None
        where = f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"{name}: not valid JSON: {error.msg} at {where}", hint=_advice(text)) from None
    except RecursionError:
        raise UsageError(f"{name}: nested too deeply") from None


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).expanduser().read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: byte {error.start:,} is not UTF-8") from None
    except OSError as error:
        raise MissingFileError(f"{name}: {(error.strerror or 'can not be read').lower()}") from None


def _advice(text: str) -> str:
    return "" if text.lstrip().startswith("{") else """for example: -i question="…", or -i '{"question": "…"}'"""
