"""`tea-models inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import answering, takes_locked
from tea_models.errors import NotAvailableError, UsageError

if TYPE_CHECKING:
    from tea_models.cli.frame import App
    from tea_models.profile.inspection import Inspection


@click.command("inspect", short_help="What a GGUF file says about itself, local or remote.")
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
        from tea_models.cli.inspect_view import show

        show(model, app.settings, app.out, full=full, tensors=tensors)
        return
    from tea_models.profile.inspection import inspect_model

    found = inspect_model(model, settings=app.settings, full=key is not None)
    if key is not None:
        value = _value(found, key)
        app.out.answer({key: value}, lambda: _plain(value), exact=True)
        return
    text = found.profile.chat.template.value
    if text is None:
        raise NotAvailableError(f"{model}: the model has no chat template", hint="it is not made for chats")
    app.out.answer({"template": text}, lambda: _plain(text), exact=True)


def _value(found: Inspection, key: str) -> Any:
    if key in found.metadata:
        return found.metadata[key]
    import difflib

    near = difflib.get_close_matches(key, found.metadata, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "without --key all are shown"
    raise NotAvailableError(f"{found.path}: no key {key!r} in the metadata", hint=hint)


def _plain(value: Any) -> str:
    from tea_models.cli.output import printable

    if isinstance(value, list):
        return "\n".join(_plain(item) for item in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return printable(str(value))
