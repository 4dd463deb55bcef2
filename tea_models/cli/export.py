"""`tea-models export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import FILE, App, answering, takes_locked
from tea_models.cli.plan import takes_user_settings, user_settings
from tea_models.plan.export import export_model

if TYPE_CHECKING:
    from pathlib import Path

_TARGETS = ("llama-server", "ollama", "llama-swap", "localai", "lmstudio", "python", "env")


@click.command("export")
@click.argument("model", metavar="MODEL")
@click.option("--to", "target", required=True, type=click.Choice(_TARGETS), help="Which server.")
@click.option("--path", metavar="PATH", help="Where the file lies on the machine that will serve it; by default here.")
@click.option("-o", "--output", type=FILE, help="Write to a file instead.")
@takes_user_settings
@takes_locked
@answering
def command(
    app: App, model: str, *, target: str, path: str | None, output: Path | None, estimate: bool, **user: Any
) -> None:
    """Write the plan for MODEL as a command line or configuration file of another server."""
    result = export_model(model, target, app.settings, user_settings(**user), path=path, measure=not estimate)
    for sentence in result.left_out:
        app.out.note(f"left out: {sentence}")
    if output is not None:
        output.write_text(result.text, encoding="utf-8")
    document = result.to_json() | ({"path": str(output)} if output else {})
    app.out.answer(document, lambda: f"wrote {output}" if output else result.text)
