"""`tea-models rm`."""

from __future__ import annotations

import click

from tea_models.cli.frame import App, answering
from tea_models.sizes import human_bytes
from tea_models.verbs.remove import remove


@click.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@answering
def command(app: App, names: tuple[str, ...]) -> None:
    """Remove models with all their shards, records and profiles. Files outside the store are never touched."""
    removed = remove(names, app.caller)
    app.out.answer(
        removed,
        lambda: "\n".join(f"removed  {item.path}  {human_bytes(item.freed)} freed" for item in removed),
    )
