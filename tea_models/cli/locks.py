"""`tea-models lock`, `sync` and `bundle`: the models that a project has pinned."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import FILE, App, answering, takes_lock_file
from tea_models.cli.output import table
from tea_models.disk.atomic import write_document
from tea_models.files import total_size
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.lock.sync import SyncReport
    from tea_models.lock.unbundle import Bundle


@click.command("lock")
@click.argument("names", nargs=-1, metavar="[NAME|FILE.yaml]...")
@click.option("--check", is_flag=True, help="Write nothing; fail if the lock is out of date.")
@click.option("--upgrade", is_flag=True, help="Resolve anew what is locked; all of it, or the NAMEs given.")
@click.option("-o", "--output", type=FILE, default="models.lock", show_default=True, help="The lock file.")
@click.option("--engine", is_flag=True, help="Pin the prebuilt engine that is installed here too; it stays locked.")
@click.option(
    "--strict", is_flag=True, help="Refuse a file whose hash nobody states, instead of trusting what arrives."
)
@click.option("--bom", type=FILE, help="Write a bill of materials too (CycloneDX).")
@answering
def lock_command(
    app: App, names: tuple[str, ...], *, check: bool, output: Path, bom: Path | None, **options: Any
) -> None:
    """Write models.lock: of every file its sources, commit, size, hash, and the hash of its chat template.

    What is locked are the models in models.yaml beside the lock, and in the workflows and names given. What is locked
    already stays as it is, unless --upgrade.
    """
    from tea_models.lock.bom import bill_of_materials
    from tea_models.lock.pins import check_lock, update_lock

    if check:
        lock, changed = check_lock(output, names, caller=app.caller), False
    else:
        lock, changed = update_lock(output, names, caller=app.caller, **options)
    if bom is not None:
        write_document(bom, bill_of_materials(lock))
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
@click.option("--from", "origin", metavar="FILE|TARGET", help="A file made by `bundle`, or what `push` filled.")
@click.option("--allow-license", metavar="ID,…", help="Refuse models under any other licence, before any is fetched.")
@takes_lock_file
@answering
def sync_command(
    app: App, *, frozen: bool, verify: bool, lock_path: Path, allow_license: str | None, **options: Any
) -> None:
    """Pull what models.lock has and the store lacks, checked against the locked hashes.

    A lock that is absent or out of date is written first; in CI use --frozen, which never does. With --offline the
    store is only checked. Other models in the store are reported, and removed with --prune. A broken file stops
    --frozen, unless --repair or a bundle (--from) brings the right bytes.
    """
    from tea_models.lock.sync import sync

    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    allowed = allow_license.split(",") if allow_license is not None else None
    verify = verify or (frozen and in_ci)
    report = sync(lock_path, app.caller, frozen=frozen, verify=verify, licenses=allowed, **options)
    app.out.answer(report, lambda: _sync_text(report))


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
@click.option("--with-engine", is_flag=True, help="What the locked engines are made of, too.")
@takes_lock_file
@answering
def bundle_command(app: App, names: tuple[str, ...], output: Path, lock_path: Path, with_engine: bool) -> None:
    """Write the models of models.lock (all, or those named), their lock, profiles and licences into one tar file.

    On the other machine: tea-models sync --from models.tar
    """
    from tea_models.lock.bundle import bundle

    made = bundle(output, app.caller, lock_path=lock_path, names=names, with_engine=with_engine)
    document = {"bundle": made.path, "size": made.size, "files": [file.to_json() for file in made.files]}
    app.out.answer(document, lambda: _bundle_text(made))


def _bundle_text(made: Bundle) -> str:
    records = [file.record for file in made.files]
    rows = [[file.model, file.filename, human_bytes(file.size), file.license or "?"] for file in records]
    text = table(rows, header=["NAME", "FILE", "SIZE", "LICENCE"], right=frozenset({2}))
    next_step = f"on the other machine: tea-models sync --from {made.path.name}"
    return f"{text}\n\n{human_bytes(made.size)} in {made.path}; {next_step}"


@click.command("push")
@click.argument("target", metavar="TARGET")
@takes_lock_file
@answering
def push_command(app: App, target: str, *, lock_path: Path) -> None:
    """Bring what models.lock names to TARGET: oci://host/repository[:tag], s3://bucket/folder, or a folder.

    Elsewhere `tea-models sync --from TARGET`, or TEA_MODELS_MIRROR=TARGET, takes it from there.
    """
    from tea_models.lock.mirror import push
    from tea_models.lockfile import read_lock

    pushed = push(read_lock(lock_path), target, app.caller)
    rows = [[file.name, human_bytes(file.size), file.status, file.sha256[:16]] for file in pushed]
    text = f"{table(rows, right=frozenset({1}))}\nelsewhere: tea-models sync --from {target}"
    app.out.answer(pushed, lambda: text)


@click.command("cache-key")
@takes_lock_file
@answering
def cache_key_command(app: App, *, lock_path: Path) -> None:
    """Print a key that changes exactly when the bytes that models.lock names do: other models, or another engine."""
    from tea_models.lockfile import read_lock

    lock = read_lock(lock_path)
    parts = sorted(str(file.sha256) for file in lock.files)
    if lock.engine is not None:
        parts += sorted(f"{engine.name} {engine.model_dump_json()}" for engine in lock.engine.engines)
    key = "tea-models-" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    app.out.answer({"key": key, "lock": lock_path, "path": app.settings.store_dir}, lambda: key)
