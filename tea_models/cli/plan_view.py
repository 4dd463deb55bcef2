"""A plan as text for people: the overview of one screen, and the explanation that is meant to be read."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING

from tea_models.cli.output import printable
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.cli.output import Output
    from tea_models.plan.choice import Comparison, Fit
    from tea_models.plan.types import Decision, RunPlan, Setting

# The settings of the overview; those that only follow a default are listed without their reason.
_TOLD = ("n_ctx", "n_ubatch", "type_k", "swa_full", "flash_attn", "n_threads", "n_gpu_layers", "use_mmap")
_LABELS = {"type_k": "KV cache type"}
_PARTS = (("weights", "Weights"), ("kv_cache", "KV cache"), ("compute", "Compute buffers"), ("overhead", "Process"))


def overview(plan: RunPlan, out: Output, reference: str) -> str:
    """One screen: whether it fits, the memory, the settings, what to know."""
    settings = plan.settings
    trained = f" of {plan.context_length:,}" if plan.context_length and plan.context_length != settings.n_ctx else ""
    name = out.style(printable(plan.name), "bold")
    lines = [
        f"{name}: {out.style(f'{settings.n_ctx:,}', 'green')}{trained} tokens of context",
        "",
        *_memory_lines(plan, out),
        "",
    ]
    told = [name for name in _TOLD if name in ("n_ctx", "n_ubatch") or not _follows_default(plan, name)]
    for name in told:
        decision = plan.decision(name)
        prefix = f"{_LABELS.get(name, name):<14} {_value(decision):<8} "
        reason = _fill(decision.reason, max(30, min(out.width, 110) - len(prefix)))
        lines.append(prefix + out.style(reason[0], "dim"))
        lines += [" " * len(prefix) + out.style(line, "dim") for line in reason[1:]]
    quiet = [f"{_LABELS.get(name, name)} {_value(plan.decision(name))}" for name in _TOLD if name not in told]
    lines += _fill(", ".join(quiet), min(out.width, 110))
    lines += _note_lines(plan, out)
    lines += ["", f"why, and what else was possible: tea-models plan {printable(reference)} --explain"]
    return "\n".join(lines)


def _follows_default(plan: RunPlan, name: str) -> bool:
    """Whether a setting is what it would be for any model on any machine of this kind."""
    decision = plan.decision(name)
    if decision.source in ("user", "project", "registry"):
        return False
    usual = {"type_k": "f16", "swa_full": False, "flash_attn": True, "n_gpu_layers": 0, "use_mmap": True}
    if name == "n_threads":
        return plan.settings.n_threads == plan.machine.cores_physical
    return decision.value == usual[name] and not (name == "n_gpu_layers" and plan.machine.gpus)


def _memory_lines(plan: RunPlan, out: Output) -> list[str]:
    use = plan.memory.use
    width = max(10, min(40, out.width - 40))
    most = max(use.total, plan.memory.budget) or 1
    lines = []
    for name, label in _PARTS:
        size = getattr(use, name)
        bar = "█" * round(width * size / use.total) if use.total else ""
        lines.append(f"{label:<16} {human_bytes(size):>9}  {out.style(bar, 'cyan')}")
    lines.append(f"{'Total':<16} {human_bytes(use.total):>9}  {use.total / most:.0%} of what may be used, {use.method}")
    speed = plan.speed
    if speed is not None and speed.tokens_per_s:
        prompts = f", prompts {speed.prompt_tokens_per_s:,.0f}" if speed.prompt_tokens_per_s else ""
        lines.append(f"{'Speed':<16} {speed.tokens_per_s:>9,.0f}  tokens/s{prompts}, {speed.method}")
    return lines


def _note_lines(plan: RunPlan, out: Output) -> list[str]:
    notes = [*plan.notes, *(plan.observed or {}).get("warnings", ())]
    wrapped = [textwrap.fill(note, out.width - 2, initial_indent="- ", subsequent_indent="  ") for note in notes]
    return ["", *wrapped] if wrapped else []


def _value(decision: Decision) -> str:
    return _shown(decision.setting, decision.value)


def explanation(plan: RunPlan, out: Output) -> str:
    """The whole reasoning as a page: the machine, the memory, each decision with what was rejected."""
    width = min(out.width, 100)
    machine = plan.machine
    sections = [
        (out.style(f"Running {printable(plan.name)} here", "bold"), _story(plan, width)),
        (out.style("Memory", "bold"), [*_memory_lines(plan, out), "", *_fill(_budget_sentence(plan), width)]),
    ]
    lines = []
    for names, decision in _grouped(plan):
        head = f"{', '.join(names)} = {_value(decision)}"
        lines.append(f"{out.style(head, 'cyan')}  ({_SOURCES[decision.source]})")
        lines += _fill(decision.reason, width, "  ")
        for other in decision.rejected:
            value = _shown(decision.setting, other.value)
            lines += textwrap.wrap(
                f"not {value}: {other.reason}", width, initial_indent="  - ", subsequent_indent="    "
            )
    sections.append((out.style("Each setting, and why", "bold"), lines))
    notes = _note_lines(plan, out)
    if notes:
        sections.append((out.style("Good to know", "bold"), notes[1:]))
    if plan.observed:
        sections.append((out.style("What it really took", "bold"), _observed_lines(plan)))
    cores = f"{machine.cores_physical} physical cores" if machine.cores_physical != 1 else "1 physical core"
    footer = f"{machine.cpu}, {cores}, {human_bytes(machine.memory_total)} of memory"
    footer += "".join(f"; {gpu.description}, {human_bytes(gpu.memory_free)} free" for gpu in machine.gpus)
    body = "\n\n".join(f"{title}\n" + "\n".join(text) for title, text in sections)
    return f"{body}\n\n{out.style(footer, 'dim')}"


def _grouped(plan: RunPlan) -> list[tuple[list[str], Decision]]:
    """Decisions that say the same of two settings (`type_k` and `type_v`) are told once."""
    groups: list[tuple[list[str], Decision]] = []
    for decision in plan.decisions:
        if groups and replace(groups[-1][1], setting=decision.setting) == decision:
            groups[-1][0].append(decision.setting)
        else:
            groups.append(([decision.setting], decision))
    return groups


_SOURCES = {
    "user": "you asked for it",
    "project": "the project asks for it",
    "registry": "from the registry",
    "gguf": "from the file",
    "hardware": "for this machine",
    "default": "by default",
}


def _story(plan: RunPlan, width: int) -> list[str]:
    settings, memory = plan.settings, plan.memory
    trained = plan.context_length
    if trained and settings.n_ctx == trained:
        context = (
            f"its whole trained context of {settings.n_ctx:,} tokens (about {_pages(settings.n_ctx)} pages of text)"
        )
    elif trained and settings.n_ctx < trained:
        context = f"{settings.n_ctx:,} of the {trained:,} tokens it was trained with"
    else:
        context = f"a context of {settings.n_ctx:,} tokens"
    how = (
        "llama.cpp measured this in a dry run" if memory.use.method == "measured" else "this is an estimate by formula"
    )
    where = "on the processor"
    if settings.n_gpu_layers:
        where = "on the GPU" if settings.n_gpu_layers < 0 else f"with {settings.n_gpu_layers} layers on the GPU"
    verb = "embeds texts" if plan.purpose == "embed" else "runs"
    text = (
        f"It {verb} {where} with {context}, and takes {human_bytes(memory.total)} of the "
        f"{human_bytes(memory.budget)} that may be used; {how}, without loading a weight."
    )
    return _fill(text, width)


def _pages(tokens: int) -> str:
    return f"{max(1, round(tokens / 650)):,}"


def _budget_sentence(plan: RunPlan) -> str:
    return f"May be used: {human_bytes(plan.memory.budget)}, {plan.memory.budget_reason}."


def _observed_lines(plan: RunPlan) -> list[str]:
    observed = plan.observed or {}
    lines = []
    names = {"kv_cache": "KV cache", "compute": "Compute buffers", "peak": "Process, peak"}
    for part, actual in observed.get("actual", {}).items():
        predicted = observed.get("predicted", {}).get(part)
        if predicted and part in names:
            lines.append(f"{names[part]:<16} planned {human_bytes(predicted):>9}   took {human_bytes(actual):>9}")
    lines.append(f"loaded {observed.get('when', '')} with llama-cpp-python {observed.get('engine', '')}")
    return lines


def comparison_text(comparison: Comparison, out: Output) -> str:
    """All variants side by side."""
    contexts = sorted({n_ctx for fit in comparison.fits for n_ctx in fit.contexts})
    header = ["VARIANT", "DOWNLOAD", "HERE", *(f"{n_ctx:,}" for n_ctx in contexts), "HOW"]
    rows = []
    for fit in comparison.fits:
        cells = [_cell(fit, n_ctx) for n_ctx in contexts]
        size = human_bytes(fit.size) if fit.size else "?"
        rows.append([printable(fit.variant or fit.name), size, fit.summary, *cells, fit.method])
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [
            cell.rjust(widths[column]) if column == 1 or 3 <= column < len(header) - 1 else cell.ljust(widths[column])
            for column, cell in enumerate(row)
        ]
        lines.append("  ".join(cells).rstrip())
    lines[0] = out.style(lines[0], "bold")
    budget = f"{human_bytes(comparison.budget)} may be used: {comparison.budget_reason}"
    return "\n".join([*lines, "", budget, *(["! is more than that"] if any("!" in line for line in lines) else [])])


def _cell(fit: Fit, n_ctx: int) -> str:
    total = fit.contexts.get(n_ctx)
    if total is None:
        return ""
    return human_bytes(total) + ("" if total <= fit.budget else " !")


def _fill(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent) or [""]


def _shown(setting: str, value: Setting) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if setting == "n_gpu_layers" and value == -1:
        return "all"
    return f"{value:,}" if isinstance(value, int) else str(value)
