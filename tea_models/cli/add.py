"""`tea-models add`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import FILE, App, answering
from tea_models.verbs.add import add_entry

if TYPE_CHECKING:
    from pathlib import Path


@click.command("add")
@click.argument("name")
@click.argument("reference")
@click.option("--file", type=FILE, default="registry.yaml", show_default=True, help="The registry file.")
@click.option("--replace", is_flag=True, help="Replace the entry of this name.")
@click.option("--license", "license_", help="The licence, where the Hub and the file do not say it rightly.")
@answering
def command(app: App, *, name: str, reference: str, file: Path, replace: bool, license_: str | None) -> None:
    """Give REFERENCE a NAME of the project's own, pinned by commit, size and SHA-256.

    The rest of the file stays as it is, with its comments. REFERENCE is for example hf:OWNER/REPO:Q4_K_M.
    """
    added = add_entry(name, reference, file=file, caller=app.caller, replace_existing=replace, license_=license_)
    files = [{"filename": f.filename, "size": f.size, "sha256": f.sha256} for f in added.files]
    app.out.answer(
        {"name": name, "variant": added.variant, "file": file, "files": files},
        lambda: f"{added.text}\nwritten to {file}; next: tea-models pull {name}",
    )
