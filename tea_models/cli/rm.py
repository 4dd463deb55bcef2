"""`tea-models rm`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import answering
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.cli.frame import App


@click.command("rm", short_help="Remove models from the store.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@answering
def command(app: App, names: tuple[str, ...]) -> None:
    """Remove models with all their shards, records and profiles. Files outside the store are never touched."""
    from tea_models.verbs.remove import remove

    removed = remove(names, app.caller)
    app.out.answer(
        [item.to_json() for item in removed],
        lambda: "\n".join(f"removed  {item.path}  {human_bytes(item.freed)} freed" for item in removed),
    )
