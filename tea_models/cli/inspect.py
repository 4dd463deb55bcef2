"""`tea-models inspect`."""

from __future__ import annotations

import difflib
from typing import Any

import click

from tea_models.cli.frame import App, answering, takes_locked
from tea_models.cli.inspect_view import show
from tea_models.cli.output import printable
from tea_models.errors import NotAvailableError, UsageError
from tea_models.profile.inspection import inspect_model


@click.command("inspect")
@click.argument("model", metavar="MODEL")
@click.option("--full", is_flag=True, help="All metadata; with --json, whole arrays.")
@click.option("--tensors", is_flag=True, help="The tensor table.")
@click.option("--key", metavar="KEY", help="Print one metadata value.")
@click.option("--template", is_flag=True, help="Print the chat template.")
@takes_locked
@answering
def command(app: App, model: str, *, full: bool, tensors: bool, key: str | None, template: bool) -> None:
    """Show what a model says about itself: a file, a name of the registry, hf:… or https://… (its header only)."""
    if key is not None and template:
        raise UsageError("--key and --template: expected one of them")
    if key is None and not template:
        show(model, app.settings, app.out, full=full, tensors=tensors)
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
