"""`tea-runtime selftest`: try a model on this machine with this engine."""

from __future__ import annotations

import time
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import click

from tea_models.cli.frame import App, answering
from tea_models.cli.output import printable, table
from tea_runtime.cli.models import model_options, opened
from tea_runtime.selftest import Check, run_checks

_COLOURS = {"ok": "green", "failed": "red", "skipped": "dim"}


@click.command("selftest")
@click.argument("ref")
@model_options
@answering
def command(app: App, *, ref: str, **options: Any) -> int:
    """Check that the model REF works: loads, repeats itself, stops, keeps characters whole, follows a schema, embeds.

    Exit code 1 if a check failed. What a model is not made for is skipped.
    """
    started = time.monotonic()
    with opened(app, ref, **options) as backend:
        path = getattr(backend, "model_path", None)
        loaded = path.name if path is not None else backend.name
        checks = [Check("it loads", "ok", loaded, round(time.monotonic() - started, 3))]
        for check in run_checks(backend):
            checks.append(check)
            if app.out.live and not app.out.as_json:
                app.out.note(f"  {check.status:<8} {check.name}")
    engine = f"llama-cpp-python {version('llama-cpp-python')}"
    failed = sum(check.status == "failed" for check in checks)
    data = {"model": ref, "engine": engine, "passed": not failed, "checks": [asdict(check) for check in checks]}
    app.out.answer(data, lambda: _shown(app, checks, failed, engine))
    return 1 if failed else 0


def _shown(app: App, checks: list[Check], failed: int, engine: str) -> str:
    rows = [[check.status, check.name, f"{check.seconds:.1f} s", printable(check.detail)] for check in checks]
    lines = table(rows, header=["", "check", "time", "seen"], right=frozenset({2})).splitlines()
    coloured = [
        app.out.style(check.status, _COLOURS[check.status]) + line.removeprefix(check.status)
        for line, check in zip(lines[1:], checks, strict=True)
    ]
    tried = sum(check.status != "skipped" for check in checks)
    verdict = f"{failed} of {tried} checks failed" if failed else f"all {tried} checks passed"
    return "\n".join([lines[0], *coloured, "", f"{verdict} with {engine}"])
