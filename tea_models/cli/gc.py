"""`tea-models gc`."""

from __future__ import annotations

import click

from tea_models.cli.frame import App, answering
from tea_models.cli.output import table
from tea_models.sizes import human_bytes
from tea_models.store import Store
from tea_models.store.leftovers import collect, leftovers


@click.command("gc")
@click.option("-y", "--yes", "--force", "yes", is_flag=True, help="Remove them; without it, they are only shown.")
@answering
def command(app: App, yes: bool) -> None:
    """Show what unfinished downloads, repairs and removed models have left in the store, and with --yes remove it.

    Models stay (see: tea-models rm), and so does what another process is downloading.
    """
    store = Store.of(app.settings)
    found = leftovers(store)
    if yes:
        found = collect(store, found)
    freed = sum(item.size for item in found)
    rows = [[human_bytes(item.size), item.kind, item.reason, str(item.path)] for item in found]
    end = f"{human_bytes(freed)} " + ("freed" if yes else "would be freed: tea-models gc --yes")
    app.out.answer(
        {"removed": yes, "bytes": freed, "items": [item.to_json() for item in found]},
        lambda: f"{table(rows, right=frozenset({0}))}\n\n{end}" if found else "nothing to remove",
    )
