"""`tea-models list`, `inspect` and `profile`: what there is, and what is known about it."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import click

from tea_models.cli import inspect_view, list_view
from tea_models.cli.frame import FILE, App, answering, takes_locked
from tea_models.cli.output import one_line, printable, table
from tea_models.disk.atomic import write_document
from tea_models.errors import NotAvailableError, UsageError
from tea_models.profile.document import leaves, load_profile, to_json
from tea_models.profile.header_facts import resolve_profile
from tea_models.profile.inspection import inspect_model


@click.command("list")
@click.argument("words", metavar="[WORD]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every variant, not a line a model.")
@click.option("--installed", is_flag=True, help="Only what is in the store.")
@click.option("--fit", is_flag=True, help="Say of each model whether it fits this machine, and how fast it would be.")
@answering
def list_command(app: App, words: tuple[str, ...], *, every: bool, installed: bool, fit: bool) -> None:
    """Show the models that have names, installed ones first; with words (a kind, too), those that have all of them."""
    list_view.show(app.settings, app.out, words, every=every, installed=installed, fit=fit)


@click.command("inspect")
@click.argument("model", metavar="MODEL")
@click.option("--full", is_flag=True, help="All metadata; with --json, whole arrays.")
@click.option("--tensors", is_flag=True, help="The tensor table.")
@click.option("--key", metavar="KEY", help="Print one metadata value.")
@click.option("--template", is_flag=True, help="Print the chat template.")
@click.option("--html", type=FILE, metavar="FILE", help="Write it, with the metadata, as a page to send to somebody.")
@takes_locked
@answering
def inspect_command(
    app: App, model: str, *, full: bool, tensors: bool, key: str | None, template: bool, html: Path | None
) -> None:
    """Show what a model says about itself: a file, a name of the registry, hf:… or https://… (its header only)."""
    if (key is not None) + template + (html is not None) > 1:
        raise UsageError("--key, --template and --html: expected one of them")
    if key is None and not template:
        inspect_view.show(model, app.settings, app.out, full=full, tensors=tensors, html=html)
        return
    found = inspect_model(model, settings=app.settings, full=key is not None)
    if key is None:
        value: Any = found.profile.chat.template.value
        if value is None:
            raise NotAvailableError(f"{model}: the model has no chat template", hint="it is not made for chats")
    elif key in found.metadata:
        value = found.metadata[key]
    else:
        near = difflib.get_close_matches(key, found.metadata, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "without --key all are shown"
        raise NotAvailableError(f"{found.path}: no key {key!r} in the metadata", hint=hint)
    app.out.answer({key or "template": value}, lambda: _plain(value), exact=True)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(_plain(item) for item in value)
    return printable(str(value).lower() if isinstance(value, bool) else str(value))


@click.command("profile")
@click.argument("model", metavar="MODEL")
@click.option("-o", "--output", type=FILE, help="Write the profile (JSON) there.")
@takes_locked
@answering
def profile_command(app: App, model: str, *, output: Path | None) -> None:
    """Show facts that hold on every machine, each with its source. MODEL may be a saved profile (.json)."""
    saved = model.lower().endswith(".json")
    document = to_json(load_profile(Path(model)) if saved else resolve_profile(model, settings=app.settings))
    if output is not None:
        write_document(output, json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False) + "\n")
        app.out.note(f"wrote {output}")
        if not app.out.as_json:
            return
    app.out.answer(document, lambda: _profile_text(document))


def _profile_text(document: dict[str, Any]) -> str:
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
