"""`tea-models path`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import answering, takes_locked
from tea_models.errors import MissingFileError

if TYPE_CHECKING:
    from tea_models.cli.frame import App


@click.command("path", short_help="Where a model's file lies.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--profile", is_flag=True, help="The resolved profile instead of the model.")
@takes_locked
@answering
def command(app: App, names: tuple[str, ...], profile: bool) -> None:
    """Print the path of each model (its first shard), or without a name that of the store."""
    from tea_models.sources.locate import locate
    from tea_models.store import Store

    store = Store.of(app.settings)
    if not names:
        app.out.answer({"path": str(store.root)}, lambda: str(store.root))
        return
    rows = []
    for name in names:
        paths = locate(name, app.caller, remote=False).paths
        absent = next((path for path in paths if not path.is_file()), None)
        if absent is not None:
            raise MissingFileError(f"{absent}: {'not a file' if absent.exists() else 'no such file'}")
        shown = [store.profile_path(paths[0])] if profile and store.contains(paths[0]) else list(paths)
        rows.append({"name": name, "path": str(shown[0]), "paths": [str(path) for path in shown]})
    app.out.answer(rows, lambda: "\n".join(str(row["path"]) for row in rows))
