"""`tea-models doctor`."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import answering
from tea_models.cli.output import printable, shortened, table
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.cli.frame import App
    from tea_models.verbs.doctor import CheckUp

_MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


@click.command("doctor", short_help="This machine, the engine and the store at a glance.")
@answering
def command(app: App) -> int:
    """Look at this machine, the installed llama.cpp, the store and the registry. Nothing is fetched or changed."""
    from tea_models.verbs.doctor import check_up

    found = check_up(app.settings)
    app.out.answer(found.to_json(), lambda: _human(app, found))
    return 0 if found.healthy else 1


def _human(app: App, found: CheckUp) -> str:
    width = min(app.out.width, 110)
    label = max(len(check.name) for check in found.checks)
    lines = [app.out.style(_headline(found), "bold"), ""]
    for check in found.checks:
        mark, color = _MARKS[check.status]
        head = f"{mark:<4}  {check.name:<{label}}  "
        indent = " " * len(head)
        text = textwrap.wrap(printable(check.detail), width, initial_indent=head, subsequent_indent=indent)
        lines += [text[0].replace(mark, app.out.style(mark, color), 1), *text[1:]]
        if check.hint and check.status != "ok":
            fix = f"→ {printable(check.hint)}"
            lines += textwrap.wrap(fix, width, initial_indent=indent, subsequent_indent=f"{indent}  ")
    if found.loads:
        rows = []
        for load in found.loads[:5]:
            peak, planned = load.actual.get("peak"), load.predicted.get("peak")
            cells = [human_bytes(size) if size else "" for size in (planned, peak)]
            rows.append([shortened(load.name, 34), f"{load.settings['n_ctx']:,}", *cells, load.when[:10]])
        header = ["LAST LOADS", "CONTEXT", "AT MOST", "TOOK", "ON"]
        lines += ["", table(rows, header=header, right=frozenset({1, 2, 3}))]
    return "\n".join(lines)


def _headline(found: CheckUp) -> str:
    failed, warned = (sum(check.status == status for check in found.checks) for status in ("fail", "warn"))
    if not failed and not warned:
        return "all is well"
    problems = f"{failed} problem{'s' if failed > 1 else ''}" if failed else "no problem"
    return f"{problems}, {warned} thing{'s' if warned > 1 else ''} to know" if warned else problems
