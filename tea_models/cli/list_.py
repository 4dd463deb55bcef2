"""`tea-models list`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import answering

if TYPE_CHECKING:
    from tea_models.cli.frame import App

# As in registry.schema.Kind; repeated here so that `--help` needs no pydantic.
KINDS = ("chat", "text", "embedding", "reranker", "projector", "adapter", "test")


@click.command("list", short_help="Models of the registry, and which are installed.")
@click.argument("words", metavar="[WORD]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every variant, not a line a model.")
@click.option("--installed", is_flag=True, help="Only what is in the store.")
@click.option("--kind", type=click.Choice(KINDS), help="Only models of this kind.")
@click.option("--fit", is_flag=True, help="Say of each model whether it fits this machine, and how fast it would be.")
@answering
def command(app: App, words: tuple[str, ...], *, every: bool, installed: bool, kind: str | None, fit: bool) -> None:
    """Show the models that have names, installed ones first; with words, those that have all of them."""
    from tea_models.cli.list_view import show

    show(app.settings, app.out, words, every=every, installed=installed, kind=kind, fit=fit)
