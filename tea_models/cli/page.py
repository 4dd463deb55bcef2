"""Pages to send to somebody: one file each, made of a template in `pages/`, that loads nothing and runs nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from tea_models.cli.output import printable
from tea_models.disk.atomic import replacing_document
from tea_models.errors import UsageError
from tea_models.redact import redact
from tea_models.sizes import human_bytes

#: What is in the head of every page, and tells it from other files.
MARK = '<meta name="generator" content="tea-models">'


def check_target(path: Path, mark: str = MARK) -> None:
    """Refuse, before long work, what can't be written, and to replace a file that has no `mark` near its beginning."""
    with contextlib.suppress(LookupError), replacing_document(path):
        raise LookupError  # it can be written; the draft is removed
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            if mark.encode() not in file.read(1000):
                hint = "name another file, or remove it first"
                raise UsageError(f"{path}: it is another program's file and would be lost", hint=hint)


def fill(template: str, **facts: Any) -> str:
    """A template with facts in it: every text is escaped, and printable, and its addresses keep no secret."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("tea_models.cli", "pages")
    environment = Environment(autoescape=True, loader=loader, undefined=StrictUndefined)
    environment.finalize = lambda value: printable(redact(value)) if type(value) is str else value
    environment.lstrip_blocks = environment.trim_blocks = True
    environment.filters["bytes"] = human_bytes
    return environment.get_template(template).render(facts, generator=MARK) + "\n"
