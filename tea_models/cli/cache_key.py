"""`tea-models cache-key`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import answering

if TYPE_CHECKING:
    from tea_models.cli.frame import App


@click.command("cache-key", short_help="What a cache of the store should be keyed by.")
@click.option(
    "--lock", "lock_path", type=click.Path(dir_okay=False, path_type=Path), default=Path("models.lock"),
    show_default=True, help="The lock file.",
)  # fmt: skip
@answering
def command(app: App, *, lock_path: Path) -> None:
    """Print a key that changes exactly when the bytes that models.lock names do: other models, or another engine."""
    from tea_models.lockfile import read_lock

    lock = read_lock(lock_path)
    parts = sorted(str(file.sha256) for file in lock.files)
    if lock.engine is not None:
        parts += sorted(f"{engine.name} {engine.model_dump_json()}" for engine in lock.engine.engines)
    key = "tea-models-" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    app.out.answer({"key": key, "lock": str(lock_path), "path": str(app.settings.store_dir)}, lambda: key)
