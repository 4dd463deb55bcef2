"""`tea-models profile`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from tea_models.cli.frame import FILE, App, answering, takes_locked
from tea_models.cli.output import one_line, table
from tea_models.disk.atomic import write_document
from tea_models.profile.document import leaves, load_profile, to_json
from tea_models.profile.header_facts import resolve_profile


@click.command("profile")
@click.argument("model", metavar="MODEL")
@click.option("-o", "--output", type=FILE, help="Write the profile (JSON) there.")
@takes_locked
@answering
def command(app: App, model: str, *, output: Path | None) -> None:
    """Show facts that hold on every machine, each with its source. MODEL may be a saved profile (.json)."""
    saved = model.lower().endswith(".json")
    document = to_json(load_profile(Path(model)) if saved else resolve_profile(model, settings=app.settings))
    if output is not None:
        write_document(output, json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False) + "\n")
        app.out.note(f"wrote {output}")
        if not app.out.as_json:
            return
    app.out.answer(document, lambda: _human(document))


def _human(document: dict[str, Any]) -> str:
    rows = [
        [f"file {item['name']}", f"{item['size']:,} bytes", item["sha256"] or "hash unknown"]
        for item in document["files"]
    ]
    rows += [
        [key, _short(leaf["value"]), leaf["source"]] for key, leaf in leaves(document).items() if isinstance(leaf, dict)
    ]
    warnings = [f"  - {one_line(text)}" for text in document["warnings"] + document["chat"]["warnings"]]
    return "\n".join([table(rows), *(["", "warnings", *warnings] if warnings else [])])


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return one_line("-" if value in (None, "") else str(value), 48)
