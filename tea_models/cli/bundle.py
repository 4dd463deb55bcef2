"""`tea-models bundle`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import FILE, App, answering, takes_lock_file
from tea_models.cli.output import table
from tea_models.lock.bundle import Bundle, bundle
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from pathlib import Path


@click.command("bundle")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-o", "--output", type=FILE, default="models.tar", show_default=True, help="The file to write.")
@takes_lock_file
@answering
def command(app: App, names: tuple[str, ...], output: Path, lock_path: Path) -> None:
    """Write the models of models.lock (all, or those named), their lock, profiles and licences into one tar file.

    On the other machine: tea-models sync --from models.tar
    """
    made = bundle(output, app.caller, lock_path=lock_path, names=names)
    document = {"bundle": made.path, "size": made.size, "files": [file.to_json() for file in made.files]}
    app.out.answer(document, lambda: _human(made))


def _human(made: Bundle) -> str:
    records = [file.record for file in made.files]
    rows = [[file.model, file.filename, human_bytes(file.size), file.license or "?"] for file in records]
    text = table(rows, header=["NAME", "FILE", "SIZE", "LICENCE"], right=frozenset({2}))
    next_step = f"on the other machine: tea-models sync --from {made.path.name}"
    return f"{text}\n\n{human_bytes(made.size)} in {made.path}; {next_step}"
