"""`tea-models plan`: settings for this machine, with reasons; before the download."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from tea_models.cli.frame import App, answering, takes_locked
from tea_models.errors import OfflineError, SourceUnavailableError, UsageError

if TYPE_CHECKING:
    from tea_models.plan.user_settings import UserSettings

_PURPOSES = ("chat", "embed")


@click.command("plan", short_help="Settings for this machine, with reasons; before the download.")
@click.argument("model", metavar="MODEL")
@click.option("--n-ctx", default="auto", metavar="auto|max|N", help="Context in tokens; auto takes as much as fits.")
@click.option("--memory", metavar="SIZE", help="Plan for this much memory, for example 8GiB, instead of what is free.")
@click.option("--kv-type", metavar="TYPE", help="Type of the KV cache: f16, q8_0, q4_0, …")
@click.option("--threads", type=int, metavar="N", help="Threads; by default one a physical core.")
@click.option("--gpu", metavar="none|all|N", help="Layers on a GPU; by default as many as fit.")
@click.option("--for", "purpose", type=click.Choice(_PURPOSES), help="By default what the model is for.")
@click.option("--swa-full", is_flag=True, default=None, help="Keep the whole context in layers with a sliding window.")
@click.option("--estimate", is_flag=True, help="Estimate by formula instead of asking llama.cpp.")
@click.option("--explain", is_flag=True, help="The whole reasoning, to read.")
@click.option("--compare", is_flag=True, help="All variants of the model and several contexts.")
@takes_locked
@answering
def command(app: App, model: str, *, explain: bool, compare: bool, estimate: bool, **options: Any) -> None:
    """Work out the settings that MODEL runs with on this machine, now, with the reason for each.

    MODEL may still be far away: its header is enough, and llama.cpp measures the memory in a dry run. What is asked
    for and does not fit is refused with the numbers and with what would fit.
    """
    user = user_settings(**options)
    if compare and explain:
        raise UsageError("--compare makes a table of all variants: it goes without --explain")
    if compare:
        from tea_models.cli.plan_view import comparison_text
        from tea_models.plan.choice import compare_variants

        comparison = compare_variants(model, app.settings, user, measure=not estimate)
        app.out.answer(comparison.to_json(), lambda: comparison_text(comparison, app.out))
        return
    from tea_models.cli.plan_view import explanation, overview
    from tea_models.plan.resolve import open_for_plan, plan_opened

    try:
        with open_for_plan(model, app.settings, measure=not estimate) as opened:
            plan = plan_opened(opened, app.settings, user, measure=not estimate)
    except (OfflineError, SourceUnavailableError) as error:
        by_size = f"without its header, only its size can be judged: tea-models plan {model} --compare"
        error.hint = f"{error.hint}; {by_size}" if error.hint else by_size
        raise
    app.out.answer(plan.to_json(), lambda: explanation(plan, app.out) if explain else overview(plan, app.out, model))


def user_settings(
    *, n_ctx: str, kv_type: str | None, threads: int | None, gpu: str | None, **others: Any
) -> UserSettings:
    """What the options of a command ask for."""
    from tea_models.plan.user_settings import UserSettings

    return UserSettings.of(
        n_ctx=_context(n_ctx),
        kv_type=kv_type.lower() if kv_type is not None else None,
        n_threads=threads,
        n_gpu_layers=_layers(gpu),
        **others,
    )


def _context(text: str) -> int | Literal["auto", "max"]:
    if text == "auto":
        return "auto"
    if text == "max":
        return "max"
    number = text.replace(",", "").replace("_", "")
    scale = 1024 if number[-1:] in ("k", "K") else 1
    number = number[:-1] if scale > 1 else number
    if not number.isdecimal() or not int(number):
        raise UsageError(f"--n-ctx {text!r}: expected auto, max or a number of tokens such as 8192 or 8k")
    return int(number) * scale


def _layers(text: str | None) -> int | None:
    if text is None:
        return None
    if text in ("none", "all"):
        return 0 if text == "none" else -1
    if not text.isdecimal():
        raise UsageError(f"--gpu {text!r}: expected none, all or a number of layers")
    return int(text)
