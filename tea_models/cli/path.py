"""`tea-models path`."""

from __future__ import annotations

import click

from tea_models.cli.frame import App, answering, takes_locked
from tea_models.errors import MissingFileError
from tea_models.sources.locate import locate


@click.command("path")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@takes_locked
@answering
def command(app: App, names: tuple[str, ...]) -> None:
    """Print the path of each model (its first shard), or without a name that of the store."""
    if not names:
        app.out.answer({"path": app.settings.store_dir}, lambda: str(app.settings.store_dir))
        return
    rows = []
    for name in names:
        paths = locate(name, app.caller, remote=False).paths
        for path in paths:
            if not path.is_file():
                raise MissingFileError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        rows.append({"name": name, "path": paths[0], "paths": paths})
    app.out.answer(rows, lambda: "\n".join(str(row["path"]) for row in rows))
