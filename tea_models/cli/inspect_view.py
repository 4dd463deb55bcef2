"""How `tea-models inspect` shows a model to people: one screen, the most wanted first, warnings last."""

from __future__ import annotations

from pathlib import Path

from tea_models.cli.output import Output, one_line, table
from tea_models.cli.page import check_target, fill
from tea_models.disk.atomic import write_document
from tea_models.profile.inspection import Inspection, inspect_model
from tea_models.profile.kind import why_no_chat
from tea_models.settings import Settings
from tea_models.sizes import human_bytes

_MOST_ITEMS = 8
_TEMPLATES = "tokenizer.chat_template."  # a template for another purpose, such as tool_use


def show(model: str, settings: Settings, out: Output, *, full: bool, tensors: bool, html: Path | None = None) -> None:
    """Inspect a model and print what was found, for people or as JSON; `html`: write it as a page too."""
    if html is not None:
        check_target(html)
    found = inspect_model(model, settings=settings, full=full, tensors=tensors)
    more = (["", *_metadata(found, out)] if full else []) + (["", _tensors(found)] if tensors else [])
    title = found.profile.name.value or found.path.rpartition("/")[2]
    if html is not None:
        write_document(html, fill("inspect.html", title=title, found=found, facts=_facts(found)))
        out.note(f"wrote {html}")
    out.answer(found.to_json() if out.as_json else None, lambda: _text(found, title, more, model, out))


def _text(found: Inspection, title: str, more: list[str], model: str, out: Output) -> str:
    import shlex
    import textwrap

    lines = [out.style(one_line(title, max(80, out.width)), "bold"), ""]
    lines += [f"  {out.style(label.ljust(14), 'dim')} {text}" for label, text in _facts(found) if text]
    lines += more
    if found.warnings:
        lines += ["", out.style("warnings", "yellow")]
        wrap = textwrap.TextWrapper(max(40, out.width - 2), initial_indent="  - ", subsequent_indent="    ")
        lines += [line for warning in found.warnings for line in wrap.wrap(one_line(warning))]
    next_step = _next_step(found).format(model=shlex.quote(one_line(model)))
    return "\n".join([*lines, "", out.style(f"next: {next_step}", "dim")])


def _facts(found: Inspection) -> list[tuple[str, str]]:
    profile, header = found.profile, found.header
    quantization = profile.quantization.value or "unknown"
    shards = f" in {len(profile.files)} files" if len(profile.files) > 1 else ""
    blocks = profile.hyperparameters.get("block_count")
    shape = f" · {blocks.value:,} blocks" if blocks is not None and isinstance(blocks.value, int) else ""
    parameters, context = profile.parameters.value, profile.context_length.value
    width, default_prompt = profile.embedding_length.value, profile.chat.default_system_prompt.value
    architecture = one_line(profile.architecture.value, 40) or "missing"
    pooling = f" · {profile.pooling.value} pooling" if profile.pooling.value else ""
    order = ", big-endian" if header.byte_order == "big" else ""
    file = found.path.rpartition("/")[2] if found.transfer is None else found.path
    facts = [
        ("architecture", f"{architecture} · {profile.kind.value} model{shape}"),
        ("size", f"{human_bytes(found.size)}{shards} · {parameters / 1e6:,.0f} M parameters"),
        ("quantization", f"{quantization} · {profile.bits_per_weight.value:.2f} bits per weight" if parameters else ""),
        ("context", f"{context:,} tokens" if context is not None else ""),
        ("embedding", f"{width:,} dimensions{pooling}" if width is not None else ""),
        ("chat", _chat(found)),
        ("turn end", " ".join(one_line(text, 40) for text in profile.chat.stop.value[:6])),
        ("system prompt", f"“{one_line(default_prompt, 56)}” unless given" if default_prompt else ""),
        ("template", _template(found)),
        ("tokenizer", _tokenizer(found)),
        ("license", one_line(profile.license.value or "not stated", 60)),
        ("file", one_line(file, 90)),
        ("gguf", f"version {header.version}{order} · {len(header.metadata):,} keys · {len(found.tensors):,} tensors"),
    ]
    if found.transfer is not None:
        seen = found.transfer
        requests = "1 request" if seen.requests == 1 else f"{seen.requests} requests"
        text = f"{human_bytes(seen.bytes_read)} in {requests}, {seen.seconds:.1f} s"
        facts.append(("fetched", text + (f" · commit {seen.revision[:12]}" if seen.revision else "")))
    return facts


def _chat(found: Inspection) -> str:
    chat = found.profile.chat
    if chat.template.value is None:
        return f"no: {why_no_chat(found.profile.kind.value) or 'the file has no chat template'}"
    parts = [
        one_line(chat.format.value or "custom", 30),
        "system role" if chat.system_role.value else "no system role",
        "tools" if chat.tools.value else "no tools",
    ]
    if chat.thinking.value:
        parts.append(f"thinking ({one_line(chat.thinking.value, 30)})")
    return " · ".join(parts)


def _template(found: Inspection) -> str:
    chat = found.profile.chat
    if chat.template.value is None or chat.template_sha256.value is None:
        return ""
    parts = [f"sha256 {chat.template_sha256.value[:16]}…", f"{len(chat.template.value):,} characters"]
    if chat.template.source.startswith("registry:"):
        parts.append("from the registry")
    others = [key.removeprefix(_TEMPLATES) for key in found.metadata if key.startswith(_TEMPLATES)]
    if others:
        parts.append(f"others in the file: {one_line(', '.join(others), 30)}")
    return " · ".join(parts)


def _tokenizer(found: Inspection) -> str:
    facts = found.profile.tokenizer
    if facts.model.value is None:
        return ""
    pre = f" ({one_line(facts.pre.value, 24)})" if facts.pre.value and facts.pre.value != "default" else ""
    parts = [one_line(facts.model.value, 24) + pre]
    if facts.vocab_size.value is not None:
        parts.append(f"{facts.vocab_size.value:,} tokens")
    for name, token, text in (
        ("bos", facts.bos, facts.bos_token),
        ("eos", facts.eos, facts.eos_token),
        ("eot", facts.eot, facts.eot_token),
    ):
        if token.value is not None and (name != "eot" or token.value != facts.eos.value):
            parts.append(f"{name} {token.value} {one_line(text.value or '', 20)}".rstrip())
    return " · ".join(parts)


def _tensors(found: Inspection) -> str:
    rows = []
    for info in found.tensors:
        shape = " x ".join(map(str, info.shape))
        rows.append([one_line(info.name, 60), shape, info.type.name, f"{info.offset:,}", f"{info.size:,}"])
    return table(rows, header=["tensor", "shape", "type", "offset", "bytes"], right=frozenset({3, 4}))


def _metadata(found: Inspection, out: Output) -> list[str]:
    lines = []
    for key, value in found.metadata.items():
        if isinstance(value, list):
            shown = ", ".join(one_line(str(item), 40) for item in value[:_MOST_ITEMS])
            text = f"[{shown}{', …' if len(value) > _MOST_ITEMS else ''}] ({len(value):,})"
        else:
            text = one_line(str(value).lower() if isinstance(value, bool) else str(value), 400)
        lines.append(f"{one_line(key, 80)} = {text}")
    return [out.style("metadata", "bold"), *(f"  {line}" for line in lines)]


def _next_step(found: Inspection) -> str:
    if found.problems:
        return "get another copy of the model; `tea-models verify {model}` checks one"
    return "tea-models plan {model}" if found.transfer is None else "tea-models pull {model}"
