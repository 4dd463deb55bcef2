"""`tea-models add` and `registry check`: files that give models their names."""

from __future__ import annotations

from pathlib import Path

import click

from tea_models.cli.frame import FILE, App, answering
from tea_models.cli.output import table
from tea_models.registry.entries import Registry, read_entries
from tea_models.verbs.add import add_entry
from tea_models.verbs.check_registry import check_entries
from tea_models.yamlfile import read_yaml


@click.command("add")
@click.argument("name")
@click.argument("reference")
@click.option("--file", type=FILE, default="registry.yaml", show_default=True, help="The registry file.")
@click.option("--replace", is_flag=True, help="Replace the entry of this name.")
@click.option("--license", "license_", help="The licence, where the Hub and the file do not say it rightly.")
@answering
def add_command(app: App, *, name: str, reference: str, file: Path, replace: bool, license_: str | None) -> None:
    """Give REFERENCE a NAME of the project's own, pinned by commit, size and SHA-256.

    The rest of the file stays as it is, with its comments. REFERENCE is for example hf:OWNER/REPO:Q4_K_M.
    """
    variant, text, pinned = add_entry(
        name, reference, file=file, caller=app.caller, replace_existing=replace, license_=license_
    )
    files = [{"filename": f.filename, "size": f.size, "sha256": f.sha256} for f in pinned]
    app.out.answer(
        {"name": name, "variant": variant, "file": file, "files": files},
        lambda: f"{text}\nwritten to {file}; next: tea-models pull {name}",
    )


@click.group("registry")
def registry_command() -> None:
    """Look after registry files."""


@registry_command.command("check")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--online", "--probe", is_flag=True, help="Ask every source whether it still has the pinned bytes.")
@answering
def check(app: App, file: Path | None, online: bool) -> int:
    """Validate FILE (the project's registry.yaml, or without one all layers) and say what is not pinned.

    With --online, sizes and hashes are compared with what the Hub and the other hosts state; nothing is downloaded.
    """
    if file is None and Path("registry.yaml").is_file():
        file = Path("registry.yaml")
    if file is not None:
        entries = read_entries(read_yaml(file), str(file))
    else:
        entries = list(Registry.load(app.settings).entries.values())
    where = str(file) if file is not None else "all registry layers"
    found = check_entries(entries, app.caller, online=online)
    wrong = [item for item in found if item.status != "ok"]
    rows = [[f"{item.name}:{item.variant}", item.status, f"{item.source} ({item.detail})"] for item in wrong]
    counts = f"models: {len(entries)}, sources: {len(found)}, ok: {len(found) - len(wrong)}"
    text = f"{table(rows)}\n{where} is valid; {counts}".lstrip()
    app.out.answer({"file": where, "models": len(entries), "sources": found}, lambda: text)
    statuses = {item.status for item in found}
    return 3 if "mismatch" in statuses else 4 if "unreachable" in statuses else 0
