"""`tea-models registry check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import answering
from tea_models.cli.output import table

if TYPE_CHECKING:
    from tea_models.cli.frame import App
    from tea_models.verbs.check_registry import CheckedSource


@click.group("registry", short_help="Check a registry file.")
def command() -> None:
    """Look after registry files."""


@command.command("check")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--online", "--probe", is_flag=True, help="Ask every source whether it still has the pinned bytes.")
@answering
def check(app: App, file: Path | None, online: bool) -> int:
    """Validate FILE (the project's registry.yaml, or without one all layers) and say what is not pinned.

    With --online, sizes and hashes are compared with what the Hub and the other hosts state; nothing is downloaded.
    """
    from tea_models.registry.entries import Registry, read_entries
    from tea_models.verbs.check_registry import check_entries
    from tea_models.yamlfile import read_yaml

    if file is None and Path("registry.yaml").is_file():
        file = Path("registry.yaml")
    if file is not None:
        entries = read_entries(read_yaml(file), str(file))
    else:
        entries = list(Registry.load(app.settings).entries.values())
    found = check_entries(entries, app.caller, online=online)
    where = str(file) if file is not None else "all registry layers"
    app.out.answer(
        {"file": where, "models": len(entries), "sources": [item.to_json() for item in found]},
        lambda: _human(where, len(entries), found),
    )
    statuses = {item.status for item in found}
    return 3 if "mismatch" in statuses else 4 if "unreachable" in statuses else 0


def _human(where: str, count: int, found: list[CheckedSource]) -> str:
    rows = [
        [f"{item.name}:{item.variant}", item.status, item.source + (f" ({item.detail})" if item.detail else "")]
        for item in found
        if item.status != "ok"
    ]
    fine = sum(item.status == "ok" for item in found)
    summary = f"{where} is valid; models: {count}, sources: {len(found)}, ok: {fine}"
    return f"{table(rows)}\n{summary}".lstrip()
