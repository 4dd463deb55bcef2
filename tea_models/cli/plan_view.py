"""A plan as text for people: the overview of one screen, and the explanation that is meant to be read."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from tea_models.cli.output import Output, one_line, printable, table
from tea_models.plan.types import Decision, RunPlan, Setting
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.plan.choice import Comparison, Fit
    from tea_models.plan.together import SharedPlan

# The settings of the overview; those that only follow a default are listed without their reason.
_TOLD = ("n_ctx", "n_ubatch", "type_k", "swa_full", "flash_attn", "n_threads", "n_gpu_layers", "use_mmap")
#: What memory is taken for, and who decides on a setting.
PARTS = {"weights": "Weights", "kv_cache": "KV cache", "compute": "Compute buffers", "overhead": "Process"}
SOURCES = {
    "user": "you asked for it",
    "project": "the project asks for it",
    "registry": "from the registry",
    "gguf": "from the file",
    "hardware": "for this machine",
    "default": "by default",
}


def overview(plan: RunPlan, out: Output, reference: str) -> str:
    """One screen: whether it fits, the memory, the settings, what to know."""
    n_ctx, width = plan.settings.n_ctx, min(out.width, 110)
    trained = f" of {plan.context_length:,}" if plan.context_length and plan.context_length != n_ctx else ""
    name, context = out.style(printable(plan.name), "bold"), out.style(f"{n_ctx:,}", "green")
    lines = [f"{name}: {context}{trained} tokens of context", "", *_memory_lines(plan, out), ""]
    decisions = [plan.decision(name) for name in _TOLD]
    for decision in decisions:
        if decision.source != "default":
            head = f"{decision.setting:<14} {shown(decision.setting, decision.value):<8} "
            first, *more = textwrap.wrap(decision.reason, max(30, width - len(head))) or [""]
            lines.append(head + out.style(first, "dim"))
            lines += [" " * len(head) + out.style(line, "dim") for line in more]
    quiet = [f"{d.setting} {shown(d.setting, d.value)}" for d in decisions if d.source == "default"]
    lines += textwrap.wrap(", ".join(quiet), width)
    lines += _note_lines(plan, out)
    lines += ["", f"why, and what else was possible: tea-models plan {printable(reference)} --explain"]
    return "\n".join(lines)


def _memory_lines(plan: RunPlan, out: Output) -> list[str]:
    use = plan.memory.use
    width = max(10, min(40, out.width - 40))
    lines = []
    for name, label in PARTS.items():
        size = getattr(use, name)
        bar = "█" * round(width * size / use.total) if use.total else ""
        lines.append(f"{label:<16} {human_bytes(size):>9}  {out.style(bar, 'cyan')}")
    share = use.total / (max(use.total, plan.memory.budget) or 1)
    lines.append(f"{'Total':<16} {human_bytes(use.total):>9}  {share:.0%} of what may be used, {use.method}")
    speed = plan.speed
    if speed is not None and speed.tokens_per_s:
        prompts = f", prompts {speed.prompt_tokens_per_s:,.0f}" if speed.prompt_tokens_per_s else ""
        lines.append(f"{'Speed':<16} {speed.tokens_per_s:>9,.0f}  tokens/s{prompts}, {speed.method}")
    return lines


def _note_lines(plan: RunPlan, out: Output) -> list[str]:
    notes = [*plan.notes, *(plan.observed or {}).get("warnings", ())]
    wrapped = [textwrap.fill(note, out.width - 2, initial_indent="- ", subsequent_indent="  ") for note in notes]
    return ["", *wrapped] if wrapped else []


def explanation(plan: RunPlan, out: Output) -> str:
    """The whole reasoning as a page: the machine, the memory, each decision with what was rejected."""
    width = min(out.width, 100)
    memory, machine = plan.memory, plan.machine
    budget = f"May be used: {human_bytes(memory.budget)}, {memory.budget_reason}."
    sections = {
        f"Running {printable(plan.name)} here": textwrap.wrap(story(plan), width),
        "Memory": [*_memory_lines(plan, out), "", *textwrap.wrap(budget, width)],
        "Each setting, and why": [line for decision in plan.decisions for line in _reasons(decision, width, out)],
        "Good to know": _note_lines(plan, out)[1:],
        "What it really took": observed_lines(plan),
    }  # fmt: skip
    footer = f"{machine.cpu}, physical cores: {machine.cores_physical}, {human_bytes(machine.memory_total)} of memory"
    footer += "".join(f"; {gpu.description}, {human_bytes(gpu.memory_free)} free" for gpu in machine.gpus)
    shown = ["\n".join([out.style(title, "bold"), *lines]) for title, lines in sections.items() if lines]
    return "\n\n".join([*shown, out.style(footer, "dim")])


def _reasons(decision: Decision, width: int, out: Output) -> list[str]:
    head = f"{decision.setting} = {shown(decision.setting, decision.value)}"
    lines = [f"{out.style(head, 'cyan')}  ({SOURCES[decision.source]})"]
    lines += textwrap.wrap(decision.reason, width, initial_indent="  ", subsequent_indent="  ")
    for other in decision.rejected:
        text = f"not {shown(decision.setting, other.value)}: {other.reason}"
        lines += textwrap.wrap(text, width, initial_indent="  - ", subsequent_indent="    ")
    return lines


def story(plan: RunPlan) -> str:
    """Where it runs, with what context and in how much memory, in a sentence."""
    settings, memory, trained = plan.settings, plan.memory, plan.context_length
    pages = f"{settings.n_ctx:,} tokens (about {max(1, round(settings.n_ctx / 650)):,} pages of text)"
    how = (
        "llama.cpp measured this in a dry run" if memory.use.method == "measured" else "this is an estimate by formula"
    )
    where = "on the processor"
    if settings.n_gpu_layers:
        where = "on the GPU" if settings.n_gpu_layers < 0 else f"with {settings.n_gpu_layers} layers on the GPU"
    return (
        f"It {'embeds texts' if plan.purpose == 'embed' else 'runs'} {where} with a context of {pages}"
        + (f", of the {trained:,} that it was trained with" if trained and settings.n_ctx < trained else "")
        + f", and takes {human_bytes(memory.total)} of the {human_bytes(memory.budget)} that may be used; "
        f"{how}, without loading a weight."
    )


def observed_lines(plan: RunPlan) -> list[str]:
    """What its last load took, beside the plan for it."""
    if not plan.observed:
        return []
    lines = []
    for part, actual in plan.observed.get("actual", {}).items():
        predicted = plan.observed.get("predicted", {}).get(part)
        label = (PARTS | {"peak": "Process, peak"}).get(part)
        if predicted and label:
            lines.append(f"{label:<16} planned {human_bytes(predicted):>9}   took {human_bytes(actual):>9}")
    return [*lines, f"loaded {plan.observed.get('when', '')} with llama-cpp-python {plan.observed.get('engine', '')}"]


def comparison_text(comparison: Comparison, out: Output) -> str:
    """All variants side by side."""
    contexts = sorted({n_ctx for fit in comparison.fits for n_ctx in fit.contexts})
    header = ["VARIANT", "DOWNLOAD", "HERE", *(f"{n_ctx:,}" for n_ctx in contexts), "HOW"]
    rows = []
    for fit in comparison.fits:
        cells = [_cell(fit, n_ctx) for n_ctx in contexts]
        rows.append([fit.variant or fit.name, human_bytes(fit.size), fit.summary, *cells, fit.method])
    lines = table(rows, header=header, right=frozenset({1, *range(3, len(header) - 1)})).splitlines()
    lines[0] = out.style(lines[0], "bold")
    lines += ["", f"{human_bytes(comparison.budget)} may be used: {one_line(comparison.budget_reason)}"]
    return "\n".join([*lines, "! is more than that"] if any("!" in line for line in lines) else lines)


def shared_text(plan: SharedPlan, out: Output, name: str) -> str:
    """The models of a workflow under one budget, and where they don't fit together, what each node opens and closes."""
    rows = []
    for model in plan.models:
        context = f"{model.plan.settings.n_ctx:,}"
        if model.plan.context_length and model.plan.context_length != model.plan.settings.n_ctx:
            context += f" of {model.plan.context_length:,}"
        rows.append([model.reference, context, human_bytes(model.plan.memory.total), ", ".join(model.nodes)])
    lines = table(rows, header=["MODEL", "CONTEXT", "MEMORY", "NODES"], right=frozenset({2})).splitlines()
    lines[0] = out.style(lines[0], "bold")
    budget = f"{human_bytes(plan.total)} of {human_bytes(plan.budget)} in one process ({one_line(plan.budget_reason)})"
    reason = textwrap.wrap(f"{printable(name)}: {plan.reason}", min(out.width, 100))
    steps = []
    for number, step in enumerate(plan.steps, 1):
        opens = f"opens {step.model}" if step.opens else ""
        closes = f"after closing {', '.join(step.closes)}" if step.closes else ""
        steps.append([f"{number}. {step.node}", opens, closes])
    return "\n".join([*reason, "", *lines, "", budget, *(() if plan.together else ("", table(steps)))])


def _cell(fit: Fit, n_ctx: int) -> str:
    total = fit.contexts.get(n_ctx)
    return "" if total is None else human_bytes(total) + (" !" if total > fit.budget else "")


def shown(setting: str, value: Setting) -> str:
    """The value of a setting as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if setting == "n_gpu_layers" and value == -1:
        return "all"
    return f"{value:,}" if isinstance(value, int) else str(value)
