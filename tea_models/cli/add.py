"""`tea-models add`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import answering

if TYPE_CHECKING:
    from tea_models.cli.frame import App
    from tea_models.verbs.add import AddedEntry


@click.command("add", short_help="Write a pinned entry into the project's registry.yaml.")
@click.argument("name")
@click.argument("reference")
@click.option(
    "--file", "file", type=click.Path(dir_okay=False, path_type=Path), default=Path("registry.yaml"),
    show_default=True, help="The registry file.",
)  # fmt: skip
@click.option("--replace", is_flag=True, help="Replace the entry of this name.")
@click.option("--license", "license_", help="The licence, where the Hub and the file do not say it rightly.")
@answering
def command(app: App, *, name: str, reference: str, file: Path, replace: bool, license_: str | None) -> None:
    """Give REFERENCE a NAME of the project's own, pinned by commit, size and SHA-256.

    The rest of the file stays as it is, with its comments. REFERENCE is for example hf:OWNER/REPO:Q4_K_M.
    """
    from tea_models.verbs.add import add_entry

    added = add_entry(
        name,
        reference,
        file=file,
        caller=app.caller,
        replace_existing=replace,
        license_=license_,
    )
    answer = {
        "name": added.name,
        "variant": added.variant,
        "file": str(added.file),
        "files": [{"filename": f.filename, "size": f.size, "sha256": f.sha256} for f in added.artifact.files],
    }
    app.out.answer(answer, lambda: _human(added))


def _human(added: AddedEntry) -> str:
    return f"{added.text}\nwritten to {added.file}; next: tea-models pull {added.name}"
