"""`tea-models push`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import answering
from tea_models.cli.output import table
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.cli.frame import App


@click.command("push", short_help="Fill a mirror with what models.lock names.")
@click.argument("target", metavar="TARGET")
@click.option(
    "--lock", "lock_path", type=click.Path(dir_okay=False, path_type=Path), default=Path("models.lock"),
    show_default=True, help="The lock file.",
)  # fmt: skip
@answering
def command(app: App, target: str, *, lock_path: Path) -> None:
    """Bring what models.lock names to TARGET: oci://host/repository[:tag], s3://bucket/folder, or a folder.

    Elsewhere `tea-models sync --from TARGET`, or TEA_MODELS_MIRROR=TARGET, takes it from there.
    """
    from tea_models.lock.mirror import push
    from tea_models.lockfile import read_lock

    pushed = push(read_lock(lock_path), target, app.caller)
    rows = [[file.name, human_bytes(file.size), file.status, file.sha256[:16]] for file in pushed]
    app.out.answer(
        [file.to_json() for file in pushed],
        lambda: f"{table(rows, right=frozenset({1}))}\nelsewhere: tea-models sync --from {target}",
    )
