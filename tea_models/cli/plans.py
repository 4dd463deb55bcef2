"""`tea-models plan` and `export`: settings for this machine, with reasons; before the download."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from tea_models.cli import plan_view
from tea_models.cli.frame import FILE, App, answering, takes_locked, together
from tea_models.cli.page import check_target, fill
from tea_models.cli.plan_view import comparison_text, explanation, overview, shared_text
from tea_models.deploy import TARGETS as CLUSTERS
from tea_models.disk.atomic import write_document
from tea_models.errors import UsageError
from tea_models.plan.choice import compare_variants
from tea_models.plan.curve import draw_text, memory_curve, verdict
from tea_models.plan.export import TARGETS, export_plan, plan_for_export
from tea_models.plan.resolve import open_for_plan, plan_opened
from tea_models.plan.together import plan_together
from tea_models.plan.user_settings import UserSettings
from tea_models.registry.entries import Registry
from tea_models.requirements import node_models


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
_takes_user_settings = together(
    click.option("--n-ctx", type=_context, metavar="auto|max|N", help="Context in tokens; by default what fits."),
    click.option("--memory", metavar="SIZE", help="Plan for this much memory, for example 8GiB, not for what is free."),
    click.option("--kv-type", type=str.lower, metavar="TYPE", help="Type of the KV cache: f16, q8_0, q4_0, …"),
    click.option("--threads", "n_threads", type=int, metavar="N", help="Threads; by default one a physical core."),
    click.option("--gpu", "n_gpu_layers", type=_layers, metavar="none|all|N", help="Layers on a GPU; else what fits."),
    click.option("--for", "purpose", type=click.Choice(("chat", "embed")), help="By default what the model is for."),
    click.option("--estimate", is_flag=True, help="Estimate by formula instead of asking llama.cpp."),
)


@click.command("plan")
@click.argument("model", metavar="MODEL", required=False)
@click.option("--workflow", type=FILE, help="Plan all models that the nodes of a workflow use, for one budget.")
@_takes_user_settings
@click.option("--swa-full", is_flag=True, default=None, help="Keep the whole context in layers with a sliding window.")
@click.option("--explain", is_flag=True, help="The whole reasoning, to read.")
@click.option("--compare", is_flag=True, help="All variants of the model and several contexts.")
@click.option("--plot", is_flag=False, flag_value="-", metavar="[FILE.svg]", help="Draw memory against context.")
@click.option("--html", type=FILE, metavar="FILE", help="Write it all as a page to send to somebody.")
@takes_locked
@answering
def plan_command(
    app: App, model: str | None, *, workflow: Path | None, explain: bool, compare: bool, plot: str | None,
    html: Path | None, estimate: bool, **options: Any,
) -> None:  # fmt: skip
    """Work out the settings that MODEL runs with on this machine, now, with the reason for each.

    MODEL may still be far away: its header is enough, and llama.cpp measures the memory in a dry run. What is asked
    for and does not fit is refused with the numbers and with what would fit.
    """
    user = UserSettings.of(**options)
    drawn = plot is not None or html is not None
    if (model is None) == (workflow is None) or (workflow and (explain or compare or drawn)):
        raise UsageError("expected MODEL, or --workflow FILE without --explain, --compare, --plot and --html")
    if workflow is not None:
        nodes = node_models(workflow, Registry.load(app.settings))
        if not nodes:
            raise UsageError(f"{workflow}: no node of it asks a local model", hint="name one in settings.llm.model")
        shared = plan_together(nodes, app.settings, measure=not estimate, **options)
        app.out.answer(shared.to_json(), lambda: shared_text(shared, app.out, str(workflow)))
        return
    assert model is not None
    if compare and (drawn or explain):
        raise UsageError("--compare makes a table of all variants: it goes without --plot, --html and --explain")
    if compare:
        comparison = compare_variants(model, app.settings, user, measure=not estimate)
        app.out.answer(comparison.to_json(), lambda: comparison_text(comparison, app.out))
        return
    if html is not None:
        check_target(html)
    with open_for_plan(model, app.settings, measure=not estimate) as opened:
        plan = plan_opened(opened, app.settings, user, measure=not estimate)
        curve = memory_curve(plan, opened.measurer) if plot is not None or html is not None else []
    document = plan.to_json()
    if plot is not None:
        document["curve"] = [{"n_ctx": n_ctx, "kv_cache": use.kv_cache, "total": use.total} for n_ctx, use in curve]
    if plot not in (None, "-"):
        Path(plot).write_text(fill("curve.svg", plan=plan, curve=curve, verdict=verdict), encoding="utf-8")
        app.out.note(f"wrote {plot}")
    if html is not None:
        write_document(html, fill("plan.html", plan=plan, curve=curve, verdict=verdict, view=plan_view))
        app.out.note(f"wrote {html}")
    picture = draw_text(plan, curve, min(app.out.width, 100)) if plot is not None and curve else []
    show = explanation(plan, app.out) if explain else overview(plan, app.out, model)
    app.out.answer(document, lambda: "\n".join([show, "", *picture]).rstrip())


@click.command("export")
@click.argument("model", metavar="MODEL")
@click.option("--to", "target", required=True, type=click.Choice((*TARGETS, *CLUSTERS)), help="Which server.")
@click.option("--path", metavar="PATH", help="Where the file lies on the machine that will serve it; by default here.")
@click.option("--mirror", metavar="TARGET", help="For a cluster: where it takes the bytes from (see `push`).")
@click.option("-o", "--output", type=FILE, help="Write to a file instead.")
@_takes_user_settings
@takes_locked
@answering
def export_command(
    app: App, model: str, *, target: str, path: str | None, mirror: str | None, output: Path | None, estimate: bool,
    **user: Any,
) -> None:  # fmt: skip
    """Write the plan for MODEL as a command line or configuration file of another server.

    For kubernetes, kserve and compose with what brings the bytes there and refuses any others; give the memory of a
    node with --memory.
    """
    cluster = target in CLUSTERS
    if mirror and not cluster:
        raise UsageError(f"--mirror is for {', '.join(CLUSTERS)}")
    from tea_models.deploy.manifests import deploy

    where = "" if cluster else path
    what = plan_for_export(model, app.settings, UserSettings.of(**user), path=where, measure=not estimate)
    result = deploy(target, model, what, app.caller, mirror=mirror) if cluster else export_plan(target, what)
    for sentence in result.left_out:
        app.out.note(f"left out: {sentence}")
    if output is not None:
        output.write_text(result.text, encoding="utf-8")
    document = asdict(result) | ({"path": str(output)} if output else {})
    app.out.answer(document, lambda: f"wrote {output}" if output else result.text)
