"""`tea-models lock`, `sync` and `bundle`: the models that a project has pinned."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import FILE, App, answering, takes_lock_file
from tea_models.cli.output import table
from tea_models.files import total_size
from tea_models.lock.bundle import Bundle, bundle
from tea_models.lock.pins import check_lock, update_lock
from tea_models.lock.sync import SyncReport, sync
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
def lock_command(app: App, names: tuple[str, ...], *, check: bool, upgrade: bool, output: Path, engine: bool) -> None:
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


@click.command("sync")
@click.option("--frozen", is_flag=True, help="Take the lock as it is: fail if it is out of date or a hash differs.")
@click.option(
    "--prune",
    is_flag=False,
    flag_value="unlocked",
    type=click.Choice(["unlocked", "all"]),
    help="Remove models that no lock has that this store knows of; with =all, those of other projects too.",
)
@click.option("--verify", is_flag=True, help="Hash every locked file again; done with --frozen in CI (CI=true).")
@click.option("--repair", is_flag=True, help="Fetch again what does not have the locked hash, also with --frozen.")
@click.option("--from", "bundle", type=FILE, help="A file made by `tea-models bundle`.")
@takes_lock_file
@answering
def sync_command(app: App, *, frozen: bool, verify: bool, lock_path: Path, **options: Any) -> None:
    """Pull what models.lock has and the store lacks, checked against the locked hashes.

    A lock that is absent or out of date is written first; in CI use --frozen, which never does. With --offline the
    store is only checked. Other models in the store are reported, and removed with --prune. A broken file stops
    --frozen, unless --repair or a bundle (--from) brings the right bytes.
    """
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    report = sync(lock_path, app.caller, frozen=frozen, verify=verify or (frozen and in_ci), **options)
    app.out.answer(report.to_json(), lambda: _sync_text(report))


def _sync_text(report: SyncReport) -> str:
    rows = [[file.name, human_bytes(file.size), file.status, str(file.path)] for file in report.files]
    lines = [table(rows, right=frozenset({1}))] if rows else []
    if report.engine is not None:
        lines.append(f"engine  {report.engine}")
    lines += [f"removed  {path}" for path in report.removed]
    lines += [f"not in the lock  {path}" for path in report.extra]
    if report.extra:
        lines.append("`tea-models sync --prune` removes what is not in the lock")
    total = human_bytes(sum(file.size for file in report.files))
    count = f"{len(report.files)} file" + ("" if len(report.files) == 1 else "s")
    return "\n".join([*lines, f"{count}, {total}, as in {report.lock}"])


@click.command("bundle")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-o", "--output", type=FILE, default="models.tar", show_default=True, help="The file to write.")
@takes_lock_file
@answering
def bundle_command(app: App, names: tuple[str, ...], output: Path, lock_path: Path) -> None:
    """Write the models of models.lock (all, or those named), their lock, profiles and licences into one tar file.

    On the other machine: tea-models sync --from models.tar
    """
    made = bundle(output, app.caller, lock_path=lock_path, names=names)
    document = {"bundle": made.path, "size": made.size, "files": [file.to_json() for file in made.files]}
    app.out.answer(document, lambda: _bundle_text(made))


def _bundle_text(made: Bundle) -> str:
    records = [file.record for file in made.files]
    rows = [[file.model, file.filename, human_bytes(file.size), file.license or "?"] for file in records]
    text = table(rows, header=["NAME", "FILE", "SIZE", "LICENCE"], right=frozenset({2}))
    next_step = f"on the other machine: tea-models sync --from {made.path.name}"
    return f"{text}\n\n{human_bytes(made.size)} in {made.path}; {next_step}"
