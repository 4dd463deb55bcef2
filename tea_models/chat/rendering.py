"""`render_chat`: messages → the exact text that goes to the tokenizer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tea_models.chat.sandbox import SANDBOX, SECONDS, Limits, broken_limit, plain_data
from tea_models.errors import TemplateError

if TYPE_CHECKING:
    from datetime import datetime

#: Names that a caller's variables can't have, because `render_chat` gives them a meaning of their own.
OWN_NAMES = frozenset({"template", "messages", "tools", "bos_token", "eos_token", "now", "timeout"})
Origin = Literal["template", "data", "unknown"]
_ORIGINS: dict[str, Origin] = {"t": "template", "d": "data", "u": "unknown"}
_REASONING = ("reasoning_content", "thinking", "reasoning")


class Segment(NamedTuple):
    """A stretch of a rendered prompt, and who wrote it.

    That is the `template` (its own texts, BOS, EOS and known roles), the `data` it was given, or `unknown` where the
    template used an operation that is not followed.
    """

    text: str
    origin: Origin


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
    now: datetime | None = None,
    timeout: float = SECONDS,
    **variables: Any,
) -> str:
    """Render a chat template, with the same result as `transformers`' `apply_chat_template(tokenize=False)`.

    The template runs in a separate process with limits of time, memory and output, so a hostile one can end only in an
    error. As in `transformers`, keys of a message whose value is None are left out, and a message's reasoning is found
    under `reasoning_content` as well as `thinking`.

    Args:
        template: The Jinja source, as a GGUF file's `tokenizer.chat_template` holds it.
        messages: OpenAI-style messages.
        tools: OpenAI-style tool definitions, or None.
        bos_token: Text of the BOS token.
        eos_token: Text of the EOS token.
        add_generation_prompt: End with the opening of the assistant's turn.
        now: What `strftime_now` takes for the current local time; None for the real one.
        timeout: Wall time in seconds.
        **variables: More for the template (`enable_thinking`, `date_string`, `documents`, …); JSON values only.

    Raises:
        TemplateError: The template does not parse, raises, breaks a limit or tries to leave the sandbox; or something
            given to it is not JSON.
    """
    given: dict[str, Any] = {"tools": tools, "bos_token": bos_token, "eos_token": eos_token, "now": now}
    given |= {"add_generation_prompt": add_generation_prompt, "timeout": timeout}
    return "".join(segment.text for segment in render_segments(template, messages, **given, **variables))


def render_segments(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    now: datetime | None = None,
    timeout: float = SECONDS,
    **variables: Any,
) -> list[Segment]:
    """The same text as `render_chat` with the same arguments, cut where the origin of its characters changes."""
    limits = Limits(timeout)
    clock = time.localtime() if now is None else now.timetuple()
    request = {"template": template, "jobs": [job(messages, variables, clock[:6])]}
    (result,) = SANDBOX.request(request, limits)["results"]
    if "error" in result:
        raise template_error(result, limits)
    text: str = result["text"]
    segments, start = [], 0
    for length, letter in result["origins"]:
        segments.append(Segment(text[start : start + length], _ORIGINS[letter]))
        start += length
    return segments


def job(
    messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], now: Sequence[int] | str
) -> dict[str, Any]:
    """One render for the worker; `now` is local time from year to second, or `format` to show formats instead."""
    if isinstance(messages, str | bytes) or not hasattr(messages, "__iter__"):
        raise TemplateError(f"messages: expected a list of messages, found a {type(messages).__name__}")
    given = dict.fromkeys(("tools", "documents")) | {"add_generation_prompt": True, "bos_token": "", "eos_token": ""}
    given |= {"messages": list(messages), **variables}
    plain = {name: _plain(name, value) for name, value in given.items()}
    plain["messages"] = [_message(index, message) for index, message in enumerate(plain["messages"])]
    return {"now": now, "variables": plain}


def _plain(name: str, value: Any) -> Any:
    try:
        return plain_data(value, strict=True)
    except (TypeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise TemplateError(f"variable {name!r} can't be given to a chat template: {reason}") from None


def template_error(result: Mapping[str, Any], limits: Limits) -> TemplateError:
    """A result of the worker that is no text, as an error for people."""
    kind, message = result["kind"], result["error"]
    place = "chat template" + (f", line {result['line']}" if result["line"] else "")
    hint = "don't use this template" if kind == "security" else ""
    said = {
        "syntax": f"does not parse: {message}",
        "raised": f"refuses these messages: {message}",
        "undefined": message,
        "security": f"tries to leave the sandbox: {message}",
    }.get(kind)
    return TemplateError(f"{place}: {said or broken_limit(result, limits) or f'{kind}: {message}'}", hint=hint)


def _message(index: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise TemplateError(f"messages[{index}]: expected an object, found a {type(message).__name__}")
    plain = {key: value for key, value in message.items() if value is not None}
    reasoning = next((plain[key] for key in _REASONING if key in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}
