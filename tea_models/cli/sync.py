"""`tea-models sync`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import answering
from tea_models.cli.output import table
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.cli.frame import App
    from tea_models.lock.sync import Prune, SyncReport


@click.command("sync", short_help="Make the store hold exactly what models.lock says.")
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
@click.option(
    "--from",
    "origin",
    metavar="FILE|TARGET",
    help="A file made by `bundle`, or what `push` filled: oci://…, s3://…, a folder.",
)
@click.option(
    "--lock", "lock_path", type=click.Path(dir_okay=False, path_type=Path), default=Path("models.lock"),
    show_default=True, help="The lock file.",
)  # fmt: skip
@click.option(
    "--allow-license", metavar="ID,…", help="Refuse models under any other licence, before anything is fetched."
)
@answering
def command(
    app: App,
    *,
    frozen: bool,
    prune: Prune | None,
    verify: bool,
    repair: bool,
    origin: str | None,
    lock_path: Path,
    allow_license: str | None,
) -> None:
    """Pull what models.lock has and the store lacks, checked against the locked hashes.

    A lock that is absent or out of date is written first; in CI use --frozen, which never does. With --offline the
    store is only checked. Other models in the store are reported, and removed with --prune. A broken file stops
    --frozen, unless --repair or a bundle (--from) brings the right bytes.
    """
    from tea_models.lock.sync import sync

    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    everything = verify or (frozen and in_ci)
    report = sync(
        lock_path,
        app.caller,
        frozen=frozen,
        prune=prune,
        origin=origin,
        verify=everything,
        repair=repair,
        licenses=allow_license.split(",") if allow_license is not None else None,
    )
    app.out.answer(report.to_json(), lambda: _human(report))


def _human(report: SyncReport) -> str:
    lines = []
    rows = [[file.name, human_bytes(file.size), file.status, str(file.path)] for file in report.files]
    if rows:
        lines.append(table(rows, right=frozenset({1})))
    if report.engine is not None:
        lines.append(f"engine  {report.engine}")
    lines += [f"removed  {path}" for path in report.removed]
    lines += [f"not in the lock  {path}" for path in report.extra]
    if report.extra:
        lines.append("`tea-models sync --prune` removes what is not in the lock")
    total = human_bytes(sum(file.size for file in report.files))
    count = f"{len(report.files)} file" + ("" if len(report.files) == 1 else "s")
    lines.append(f"{count}, {total}, as in {report.lock}")
    return "\n".join(lines)
