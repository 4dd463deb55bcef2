"""`tea-models export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import answering, takes_locked
from tea_models.errors import UsageError

if TYPE_CHECKING:
    from tea_models.cli.frame import App
    from tea_models.plan.export import Export

_SERVERS = ("llama-server", "ollama", "llama-swap", "localai", "lmstudio", "python", "env")
_CLUSTERS = ("kubernetes", "kserve", "compose", "vllm")


@click.command("export", short_help="A plan as settings for other servers.")
@click.argument("model", metavar="MODEL")
@click.option("--to", "target", required=True, type=click.Choice((*_SERVERS, *_CLUSTERS)), help="Which server.")
@click.option("--path", metavar="PATH", help="Where the file lies on the machine that will serve it; by default here.")
@click.option("--mirror", metavar="TARGET", help="For a cluster: where it takes the bytes from (see `push`).")
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
    app: App,
    model: str,
    *,
    target: str,
    path: str | None,
    mirror: str | None,
    output: Path | None,
    estimate: bool,
    **user: Any,
) -> None:
    """Write the plan for MODEL as a command line or configuration file of another server.

    For kubernetes, kserve and compose with what brings the bytes there and refuses any others; give the memory of a
    node with --memory.
    """
    from tea_models.cli.plan import user_settings
    from tea_models.deploy.manifests import deploy
    from tea_models.plan.export import export_plan, plan_for_export

    cluster = target in _CLUSTERS
    if mirror and not cluster:
        raise UsageError(f"--mirror is for {', '.join(_CLUSTERS[:3])}")
    wanted = user_settings(swa_full=None, **user)
    what = plan_for_export(model, app.settings, wanted, path="" if cluster else path, measure=not estimate)
    result = deploy(target, model, what, app.caller, mirror=mirror) if cluster else export_plan(target, what)
    for sentence in result.left_out:
        app.out.note(f"left out: {sentence}")
    if output is not None:
        output.write_text(result.text, encoding="utf-8")
    app.out.answer(_document(result, output), lambda: f"wrote {output}" if output else result.text)


def _document(result: Export, output: Path | None) -> dict[str, Any]:
    return asdict(result) | ({"path": str(output)} if output else {})
