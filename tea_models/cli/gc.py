"""`tea-models gc`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import answering
from tea_models.cli.output import printable, table
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.cli.frame import App
    from tea_models.store.leftovers import Leftover


@click.command("gc", short_help="Remove leftovers from the store.")
@click.option("-y", "--yes", "--force", "yes", is_flag=True, help="Remove them; without it, they are only shown.")
@answering
def command(app: App, yes: bool) -> None:
    """Show what unfinished downloads, repairs and removed models have left in the store, and with --yes remove it.

    Models stay (see: tea-models rm), and so does what another process is downloading.
    """
    from tea_models.store import Store
    from tea_models.store.leftovers import collect, leftovers

    store = Store.of(app.settings)
    found = leftovers(store)
    if yes:
        found = collect(store, found)
    freed = sum(item.size for item in found)
    document = {"removed": yes, "bytes": freed, "items": [item.to_json() for item in found]}
    app.out.answer(document, lambda: _human(found, freed, yes))


def _human(found: list[Leftover], freed: int, removed: bool) -> str:
    if not found:
        return "nothing to remove"
    rows = [[human_bytes(item.size), item.kind, item.reason, printable(str(item.path))] for item in found]
    text = table(rows, right=frozenset({0}))
    if removed:
        return f"{text}\n\n{human_bytes(freed)} freed"
    return f"{text}\n\n{human_bytes(freed)} would be freed: tea-models gc --yes"
