"""`tea-models list`."""

from __future__ import annotations

import click

from tea_models.cli.frame import App, answering
from tea_models.cli.list_view import show


@click.command("list")
@click.argument("words", metavar="[WORD]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every variant, not a line a model.")
@click.option("--installed", is_flag=True, help="Only what is in the store.")
@click.option("--fit", is_flag=True, help="Say of each model whether it fits this machine, and how fast it would be.")
@answering
def command(app: App, words: tuple[str, ...], *, every: bool, installed: bool, fit: bool) -> None:
    """Show the models that have names, installed ones first; with words (a kind, too), those that have all of them."""
    show(app.settings, app.out, words, every=every, installed=installed, fit=fit)
