"""`tea-models sync`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import FILE, App, answering, takes_lock_file
from tea_models.cli.output import table
from tea_models.lock.sync import SyncReport, sync
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from pathlib import Path


@click.command("sync")
@click.option("--frozen", is_flag=True, help="Take the lock as it is: fail if it is out of date or a hash differs.")
@click.option(
    "--prune",
    is_flag=False,
    flag_value="unlocked",
    type=click.Choice(["unlocked", "all"]),
    help="Remove models that no lock has that this store knows of; with =all, those of other projects too.",
)
@click.option(
    "--verify", is_flag=True, help="Hash every locked file again; in CI (CI=true) this is done with --frozen."
)
@click.option("--repair", is_flag=True, help="Fetch again what does not have the locked hash, also with --frozen.")
@click.option("--from", "bundle", type=FILE, help="A file made by `tea-models bundle`.")
@takes_lock_file
@answering
def command(app: App, *, frozen: bool, verify: bool, lock_path: Path, **options: Any) -> None:
    """Pull what models.lock has and the store lacks, checked against the locked hashes.

    A lock that is absent or out of date is written first; in CI use --frozen, which never does. With --offline the
    store is only checked. Other models in the store are reported, and removed with --prune. A broken file stops
    --frozen, unless --repair or a bundle (--from) brings the right bytes.
    """
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    verify = verify or (frozen and in_ci)
    report = sync(lock_path, app.caller, frozen=frozen, verify=verify, **options)
    app.out.answer(report.to_json(), lambda: _human(report))


def _human(report: SyncReport) -> str:
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
