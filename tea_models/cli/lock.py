"""`tea-models lock`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import FILE, App, answering
from tea_models.cli.output import table
from tea_models.files import total_size
from tea_models.lock.pins import check_lock, update_lock
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from pathlib import Path


@click.command("lock")
@click.argument("names", nargs=-1, metavar="[NAME|FILE.yaml]...")
@click.option("--check", is_flag=True, help="Write nothing; fail if the lock is out of date.")
@click.option("--upgrade", is_flag=True, help="Resolve anew what is locked; all of it, or the NAMEs given.")
@click.option("-o", "--output", type=FILE, default="models.lock", show_default=True, help="The lock file.")
@click.option("--engine", is_flag=True, help="Pin the prebuilt engine that is installed here too; it stays locked.")
@answering
def command(app: App, names: tuple[str, ...], *, check: bool, upgrade: bool, output: Path, engine: bool) -> None:
    """Write models.lock: of every file its sources, commit, size, hash, and the hash of its chat template.

    What is locked are the models in models.yaml beside the lock, and in the workflows and names given. What is locked
    already stays as it is, unless --upgrade.
    """
    if check:
        lock, changed = check_lock(output, names, caller=app.caller), False
    else:
        lock, changed = update_lock(output, names, caller=app.caller, upgrade=upgrade, engine=engine)
    models: list[dict[str, Any]] = [
        {
            "name": model.reference,
            "resolved": model.resolved,
            "files": len(model.files),
            "size": total_size(model.files),
            "sha256": [file.sha256 for file in model.files],
            "template_sha256": model.template_sha256,
        }
        for model in lock.models.values()
    ]
    engines = [entry.name for entry in lock.engine.engines] if lock.engine is not None else []
    rows = [[m["name"], human_bytes(m["size"]), m["resolved"], str(m["sha256"][0])[:16]] for m in models]
    rows += [[name, "", "engine", ""] for name in engines]
    end = f"{output} {'written' if changed else 'up to date'}; next: tea-models sync"
    text = f"{table(rows, right=frozenset({1}))}\n{end}".lstrip()
    app.out.answer({"lock": output, "changed": changed, "models": models, "engines": engines}, lambda: text)
