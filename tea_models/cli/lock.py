"""`tea-models lock`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import answering
from tea_models.cli.output import table
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.cli.frame import App
    from tea_models.files import ModelFile
    from tea_models.lockfile import Lock


@click.command("lock", short_help="Pin sources and hashes in models.lock.")
@click.argument("names", nargs=-1, metavar="[NAME|FILE.yaml]...")
@click.option("--check", is_flag=True, help="Write nothing; fail if the lock is out of date.")
@click.option("--upgrade", is_flag=True, help="Resolve anew what is locked; all of it, or the NAMEs given.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("models.lock"), show_default=True,
    help="The lock file.",
)  # fmt: skip
@click.option("--engine", is_flag=True, help="Pin the prebuilt engine that is installed here too; it stays locked.")
@click.option(
    "--strict", is_flag=True, help="Refuse a file whose hash nobody states, instead of trusting what arrives."
)
@click.option("--bom", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write a bill of materials too (CycloneDX).")  # fmt: skip
@answering
def command(
    app: App,
    names: tuple[str, ...],
    *,
    check: bool,
    upgrade: bool,
    output: Path,
    engine: bool,
    strict: bool,
    bom: Path | None,
) -> None:
    """Write models.lock: of every file its sources, commit, size, hash, and the hash of its chat template.

    What is locked are the models in models.yaml beside the lock, and in the workflows and names given. What is locked
    already stays as it is, unless --upgrade.
    """
    from tea_models.lock.pins import check_lock, update_lock

    if check:
        lock, changed = check_lock(output, names, caller=app.caller), False
    else:
        lock, changed = update_lock(output, names, caller=app.caller, upgrade=upgrade, engine=engine, strict=strict)
    if bom is not None:
        from tea_models.disk.atomic import write_document
        from tea_models.lock.bom import bill_of_materials

        write_document(bom, bill_of_materials(lock))
    rows = [
        {"name": model.reference, "resolved": model.resolved, "files": len(model.files), "size": _size(model.files),
         "sha256": [file.sha256 for file in model.files], "template_sha256": model.template_sha256}
        for model in lock.models.values()
    ]  # fmt: skip
    answer = {"lock": str(output), "changed": changed, "models": rows, "engines": _engines(lock)}
    app.out.answer(answer, lambda: _human(lock, output, changed=changed, check=check))


def _engines(lock: Lock) -> list[str]:
    return [entry.name for entry in lock.engine.engines] if lock.engine is not None else []


def _size(files: tuple[ModelFile, ...]) -> int | None:
    sizes = [file.size for file in files]
    return None if None in sizes else sum(size for size in sizes if size)


def _human(lock: Lock, path: Path, *, changed: bool, check: bool) -> str:
    rows = []
    for model in lock.models.values():
        size = _size(model.files)
        rows.append(
            [model.reference, human_bytes(size) if size else "?", model.resolved, str(model.files[0].sha256)[:16]]
        )
    rows += [[name, "", "engine", ""] for name in _engines(lock)]
    state = "up to date" if check or not changed else "written"
    return f"{table(rows, right=frozenset({1}))}\n{path} {state}; next: tea-models sync".lstrip()
