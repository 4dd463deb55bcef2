"""`tea-runtime selftest`: try a model on this machine with this engine."""

from __future__ import annotations

import contextlib
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import App, answering
from tea_models.cli.output import printable, table
from tea_runtime.cli.models import model_options, opened
from tea_runtime.cli.screen import stdout_to_stderr

if TYPE_CHECKING:
    from tea_runtime.backend import LlmBackend
    from tea_runtime.selftest import Check

_COLOURS = {"ok": "green", "failed": "red", "skipped": "dim"}


@click.command("selftest")
@click.argument("ref")
@model_options
@answering
def command(app: App, *, ref: str, **options: Any) -> int:
    """Check that the model REF works: loads, repeats itself, stops, keeps characters whole, follows a schema, embeds.

    Exit code 1 if a check failed. What a model is not made for is skipped.
    """
    from tea_runtime.selftest import Check, run_checks

    checks: list[Check] = []
    redirected = stdout_to_stderr() if app.out.as_json else contextlib.nullcontext()
    started = time.monotonic()
    with redirected, opened(app, ref, **options) as backend:
        checks.append(Check("it loads", "ok", _loaded(backend), time.monotonic() - started))
        for check in run_checks(backend, context=_context(backend)):
            checks.append(check)
            if app.out.live and not app.out.as_json:
                app.out.note(f"  {check.status:<8} {check.name}")
    failed = [check for check in checks if check.status == "failed"]
    data = {
        "model": ref,
        "engine": _engine(),
        "passed": not failed,
        "checks": [check.to_json() for check in checks],
    }
    app.out.answer(data, lambda: _shown(app, checks, len(failed)))
    return 1 if failed else 0


def _loaded(backend: LlmBackend) -> str:
    path = getattr(backend, "model_path", None)
    return getattr(path, "name", "") or backend.name


def _context(backend: LlmBackend) -> int | None:
    plan = getattr(backend, "plan", None)
    return plan.settings.n_ctx if plan is not None else None


def _engine() -> str:
    try:
        return f"llama-cpp-python {version('llama-cpp-python')}"
    except PackageNotFoundError:
        return "unknown"


def _shown(app: App, checks: list[Check], failed: int) -> str:
    rows = [[check.status, check.name, f"{check.seconds:.1f} s", printable(check.detail)] for check in checks]
    lines = table(rows, header=["", "check", "time", "seen"], right=frozenset({2})).splitlines()
    coloured = [
        app.out.style(line[: len(check.status)], _COLOURS[check.status]) + line[len(check.status) :]
        for line, check in zip(lines[1:], checks, strict=True)
    ]
    tried = sum(check.status != "skipped" for check in checks)
    verdict = f"{failed} of {tried} checks failed" if failed else f"all {tried} checks passed"
    return "\n".join([lines[0], *coloured, "", f"{verdict} with {_engine()}"])
