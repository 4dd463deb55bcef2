"""`tea-models bundle`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import answering
from tea_models.cli.output import printable, table
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.cli.frame import App
    from tea_models.lock.unbundle import Bundle


@click.command("bundle", short_help="Pack locked models into one file for machines without network.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("models.tar"), show_default=True,
    help="The file to write.",
)  # fmt: skip
@click.option(
    "--lock", "lock_path", type=click.Path(dir_okay=False, path_type=Path), default=Path("models.lock"),
    show_default=True, help="The lock file.",
)  # fmt: skip
@answering
def command(app: App, names: tuple[str, ...], output: Path, lock_path: Path) -> None:
    """Write the models of models.lock (all, or those named), their lock and licences into one tar file.

    On the other machine: tea-models sync --from models.tar
    """
    from tea_models.lock.bundle import bundle

    made = bundle(output, app.caller, lock_path=lock_path, names=names)
    document = {"bundle": str(made.path), "size": made.size, "files": [file.to_json() for file in made.files]}
    app.out.answer(document, lambda: _human(made))


def _human(made: Bundle) -> str:
    rows = [
        [
            printable(file.record.model),
            printable(file.record.filename),
            human_bytes(file.record.size),
            file.record.license or "?",
        ]
        for file in made.files
    ]
    text = table(rows, header=["NAME", "FILE", "SIZE", "LICENCE"], right=frozenset({2}))
    next_step = f"on the other machine: tea-models sync --from {made.path.name}"
    return f"{text}\n\n{human_bytes(made.size)} in {made.path}; {next_step}"
