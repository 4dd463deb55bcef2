"""`tea-models plan` and `export`: settings for this machine, with reasons; before the download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import FILE, App, answering, takes_locked
from tea_models.cli.plan_view import comparison_text, explanation, overview
from tea_models.errors import UsageError
from tea_models.plan.choice import compare_variants
from tea_models.plan.export import export_model
from tea_models.plan.plot import draw_svg
from tea_models.plan.resolve import plan_with_curve, resolve_for
from tea_models.plan.user_settings import UserSettings

if TYPE_CHECKING:
    from collections.abc import Callable


def _context(text: str) -> int | str:
    number = text.replace(",", "").replace("_", "")
    scale = 1024 if number[-1:] in ("k", "K") else 1
    number = number[:-1] if scale > 1 else number
    if text in ("auto", "max"):
        return text
    if not number.isdecimal() or not int(number):
        raise UsageError(f"--n-ctx {text!r}: expected auto, max or a number of tokens such as 8192 or 8k")
    return int(number) * scale


def _layers(text: str) -> int:
    if text not in ("none", "all") and not text.isdecimal():
        raise UsageError(f"--gpu {text!r}: expected none, all or a number of layers")
    return {"none": 0, "all": -1}[text] if not text.isdecimal() else int(text)


# Named as in `UserSettings`.
_USER_SETTINGS = (
    click.option("--n-ctx", type=_context, metavar="auto|max|N", help="Context in tokens; by default what fits."),
    click.option("--memory", metavar="SIZE", help="Plan for this much memory, for example 8GiB, not for what is free."),
    click.option("--kv-type", type=str.lower, metavar="TYPE", help="Type of the KV cache: f16, q8_0, q4_0, …"),
    click.option("--threads", "n_threads", type=int, metavar="N", help="Threads; by default one a physical core."),
    click.option("--gpu", "n_gpu_layers", type=_layers, metavar="none|all|N", help="Layers on a GPU; else what fits."),
    click.option("--for", "purpose", type=click.Choice(("chat", "embed")), help="By default what the model is for."),
    click.option("--estimate", is_flag=True, help="Estimate by formula instead of asking llama.cpp."),
)


def _takes_user_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_USER_SETTINGS):
        function = option(function)
    return function


@click.command("plan")
@click.argument("model", metavar="MODEL")
@_takes_user_settings
@click.option("--swa-full", is_flag=True, default=None, help="Keep the whole context in layers with a sliding window.")
@click.option("--explain", is_flag=True, help="The whole reasoning, to read.")
@click.option("--compare", is_flag=True, help="All variants of the model and several contexts.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.svg", help="Draw memory against context.")
@takes_locked
@answering
def plan_command(
    app: App, model: str, *, explain: bool, compare: bool, plot: Path | None, estimate: bool, **options: Any
) -> None:
    """Work out the settings that MODEL runs with on this machine, now, with the reason for each.

    MODEL may still be far away: its header is enough, and llama.cpp measures the memory in a dry run. What is asked
    for and does not fit is refused with the numbers and with what would fit.
    """
    user = UserSettings.of(**options)
    if compare and (plot is not None or explain):
        raise UsageError("--compare makes a table of all variants: it goes without --plot and --explain")
    if compare:
        comparison = compare_variants(model, app.settings, user, measure=not estimate)
        app.out.answer(comparison.to_json(), lambda: comparison_text(comparison, app.out))
        return
    if plot is None and not explain:
        result = resolve_for(model, app.settings, user, measure=not estimate)
        app.out.answer(result.to_json(), lambda: overview(result, app.out, model))
        return
    result, curve = plan_with_curve(model, app.settings, user, measure=not estimate)
    if plot is not None:
        plot.write_text(draw_svg(result, curve), encoding="utf-8")
        app.out.note(f"wrote {plot}")
    app.out.answer(
        result.to_json() | {"curve": curve.to_json()},
        lambda: explanation(result, curve, app.out) if explain else overview(result, app.out, model),
    )


_TARGETS = ("llama-server", "ollama", "llama-swap", "localai", "lmstudio", "python", "env")


@click.command("export")
@click.argument("model", metavar="MODEL")
@click.option("--to", "target", required=True, type=click.Choice(_TARGETS), help="Which server.")
@click.option("--path", metavar="PATH", help="Where the file lies on the machine that will serve it; by default here.")
@click.option("-o", "--output", type=FILE, help="Write to a file instead.")
@_takes_user_settings
@takes_locked
@answering
def export_command(
    app: App, model: str, *, target: str, path: str | None, output: Path | None, estimate: bool, **user: Any
) -> None:
    """Write the plan for MODEL as a command line or configuration file of another server."""
    result = export_model(model, target, app.settings, UserSettings.of(**user), path=path, measure=not estimate)
    for sentence in result.left_out:
        app.out.note(f"left out: {sentence}")
    if output is not None:
        output.write_text(result.text, encoding="utf-8")
    document = result.to_json() | ({"path": str(output)} if output else {})
    app.out.answer(document, lambda: f"wrote {output}" if output else result.text)
