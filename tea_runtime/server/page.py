"""What the page at `/` shows beside the chat: facts of a model, its plan, and what other contexts would take."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tea_runtime.backend import LlmBackend

#: Nothing of another host, and no page of another host around it.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'; form-action 'none'",
}


@cache
def page() -> str:
    """The page; a file without anything to load."""
    return files("tea_runtime.server").joinpath("page.html").read_text("utf-8")


def busy(backend: LlmBackend | None) -> dict[str, int]:
    """How busy a model is now; nothing where that isn't known."""
    figures = getattr(backend, "load_figures", None)
    return figures() if figures is not None else {}


def about(backend: LlmBackend) -> dict[str, Any]:
    """Facts, plan and memory of a loaded model; of one without a plan (an API's) only that it answers."""
    from tea_models.caller import Caller
    from tea_models.plan.curve import memory_curve
    from tea_models.plan.resolve import open_for_plan

    plan, profile = getattr(backend, "plan", None), getattr(backend, "profile", None)
    if plan is None or profile is None:
        return {"facts": {"backend": backend.name}, "plan": None, "curve": []}
    facts = {
        "architecture": profile.architecture.value,
        "parameters": profile.parameters.value,
        "quantization": profile.quantization.value,
        "trained context": profile.context_length.value,
        "context now": plan.settings.n_ctx,
        "chat template": profile.chat.format.value,
        "licence": profile.license.value,
        "threads": plan.settings.n_threads,
        "layers on a GPU": plan.settings.n_gpu_layers,
        "KV cache": plan.settings.type_k,
    }
    with open_for_plan(str(backend.model_path), Caller.of().settings, measure=True) as opened:  # type: ignore[attr-defined]
        points = memory_curve(plan, opened.measurer)
    known = {name: value for name, value in facts.items() if value is not None}
    parts = ("kv_cache", "compute", "total")
    curve = [{"n_ctx": n_ctx} | {part: getattr(use, part) for part in parts} for n_ctx, use in points]
    return {"facts": known, "plan": plan.to_json(), "curve": curve}
