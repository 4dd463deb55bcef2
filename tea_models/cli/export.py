"""`tea-models export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import answering, takes_locked

if TYPE_CHECKING:
    from tea_models.cli.frame import App
    from tea_models.plan.export import Export

_TARGETS = ("llama-server", "ollama", "llama-swap", "localai", "lmstudio", "python", "env")


@click.command("export", short_help="A plan as settings for other servers.")
@click.argument("model", metavar="MODEL")
@click.option("--to", "target", required=True, type=click.Choice(_TARGETS), help="Which server.")
@click.option("--path", metavar="PATH", help="Where the file lies on the machine that will serve it; by default here.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file instead.")
@click.option("--n-ctx", default="auto", metavar="auto|max|N", help="Context in tokens, as for `plan`.")
@click.option("--memory", metavar="SIZE", help="Memory of the machine that will serve it, for example 8GiB.")
@click.option("--kv-type", metavar="TYPE", help="Type of the KV cache.")
@click.option("--threads", type=int, metavar="N", help="Threads.")
@click.option("--gpu", metavar="none|all|N", help="Layers on a GPU.")
@click.option("--for", "purpose", type=click.Choice(("chat", "embed")), help="By default what the model is for.")
@click.option("--estimate", is_flag=True, help="Estimate by formula instead of asking llama.cpp.")
@takes_locked
@answering
def command(
    app: App, model: str, *, target: str, path: str | None, output: Path | None, estimate: bool, **user: Any
) -> None:
    """Write the plan for MODEL as a command line or configuration file of another server."""
    from tea_models.cli.plan import user_settings
    from tea_models.plan.export import export_model

    result = export_model(
        model, target, app.settings, user_settings(swa_full=None, **user), path=path, measure=not estimate
    )
    for sentence in result.left_out:
        app.out.note(f"left out: {sentence}")
    if output is not None:
        output.write_text(result.text, encoding="utf-8")
    app.out.answer(_document(result, output), lambda: f"wrote {output}" if output else result.text)


def _document(result: Export, output: Path | None) -> dict[str, Any]:
    return asdict(result) | ({"path": str(output)} if output else {})
