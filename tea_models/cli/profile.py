"""`tea-models profile`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import answering, takes_locked
from tea_models.errors import UsageError

if TYPE_CHECKING:
    from tea_models.cli.frame import App
    from tea_models.profile.facts import ModelProfile


@click.command("profile", short_help="Facts about a model, portable, with where each came from.")
@click.argument("models", metavar="MODEL [MODEL]", nargs=-1, required=True)
@click.option("-o", "--output", metavar="FILE", type=click.Path(dir_okay=False), help="Write the profile (JSON) there.")
@click.option("--diff", is_flag=True, help="Compare two: --diff A B.")
@takes_locked
@answering
def command(app: App, models: tuple[str, ...], *, output: str | None, diff: bool) -> None:
    """Show facts that hold on every machine, each with its source. MODEL may be a saved profile (.json)."""
    if len(models) != (2 if diff else 1):
        raise UsageError(f"expected {'two models after --diff' if diff else 'one model'}, found {len(models)}")
    if diff:
        if output is not None:
            raise UsageError("--diff and --output: expected one of them")
        _compare(app, *models)
        return
    profile = _resolve(app, models[0])
    from tea_models.profile.document import to_json

    document = to_json(profile)
    if output is not None:
        _write(Path(output), document)
        app.out.note(f"wrote {output}")
        if not app.out.as_json:
            return
    app.out.answer(document, lambda: _human(document))


def _resolve(app: App, model: str) -> ModelProfile:
    from tea_models.profile.document import load_profile
    from tea_models.profile.header_facts import resolve_profile

    if model.lower().endswith(".json"):
        return load_profile(Path(model))
    return resolve_profile(model, settings=app.settings)


def _write(path: Path, document: dict[str, Any]) -> None:
    from tea_models.disk.atomic import write_document

    text = json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False) + "\n"
    write_document(path, text)


def _compare(app: App, before: str, after: str) -> None:
    from tea_models.profile.document import profile_differences

    found = profile_differences(_resolve(app, before), _resolve(app, after))
    rows = [{"key": key, "before": left, "after": right} for key, left, right in found]

    def human() -> str:
        if not rows:
            return "no difference"
        return "\n".join(f"{row['key']}\n  - {_short(row['before'])}\n  + {_short(row['after'])}" for row in rows)

    app.out.answer({"differences": rows}, human)


def _human(document: dict[str, Any]) -> str:
    from tea_models.cli.output import table
    from tea_models.profile.document import leaves

    files = [
        [f"file {item['name']}", f"{item['size']:,} bytes", item["sha256"] or "hash unknown"]
        for item in document["files"]
    ]
    facts = [
        [key, _short(leaf["value"]), leaf["source"]] for key, leaf in leaves(document).items() if isinstance(leaf, dict)
    ]
    lines = [table(files + facts)]
    warnings = document["warnings"] + document["chat"]["warnings"]
    if warnings:
        lines += ["", "warnings", *(f"  - {_short(text, most=0)}" for text in warnings)]
    return "\n".join(lines)


def _short(value: Any, *, most: int = 48) -> str:
    from tea_models.cli.inspect_view import one_line

    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return one_line(", ".join(str(item) for item in value) or "-", most)
    return one_line(str(value), most)
