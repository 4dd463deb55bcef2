"""`tea-models doctor`."""

from __future__ import annotations

import textwrap
from typing import Any

import click

from tea_models.cli.frame import App, answering
from tea_models.cli.output import one_line, table
from tea_models.sizes import human_bytes
from tea_models.verbs.doctor import Check, check_up

_MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


@click.command("doctor")
@answering
def command(app: App) -> int:
    """Look at this machine, the installed llama.cpp, the store and the registry. Nothing is fetched or changed."""
    found = check_up(app.settings)
    app.out.answer(found, lambda: _human(app, found))
    return 0 if found["healthy"] else 1


def _human(app: App, found: dict[str, Any]) -> str:
    checks = [Check(**check) for check in found["checks"]]
    failed, warned = (sum(check.status == status for check in checks) for status in ("fail", "warn"))
    headline = f"{failed} problem{'' if failed == 1 else 's'}, {warned} to know" if failed or warned else "all is well"
    label = max(len(check.name) for check in checks)
    lines = [app.out.style(headline, "bold"), ""]
    for check in checks:
        mark, color = _MARKS[check.status]
        head = f"{mark:<4}  {check.name:<{label}}  "
        wrap = textwrap.TextWrapper(min(app.out.width, 110), initial_indent=head, subsequent_indent=" " * len(head))
        text = wrap.wrap(one_line(check.detail))
        lines += [text[0].replace(mark, app.out.style(mark, color), 1), *text[1:]]
        if check.hint and check.status != "ok":
            wrap.initial_indent = wrap.subsequent_indent
            lines += wrap.wrap(f"→ {one_line(check.hint)}")
    rows = []
    for load in found["loads"][:5]:
        sizes = [human_bytes(load[kind].get("peak")) for kind in ("predicted", "actual")]
        rows.append([one_line(load["name"], 34), f"{load['settings']['n_ctx']:,}", *sizes, load["when"][:10]])
    header = ["LAST LOADS", "CONTEXT", "AT MOST", "TOOK", "ON"]
    return "\n".join([*lines, *(["", table(rows, header=header, right=frozenset({1, 2, 3}))] if rows else [])])
