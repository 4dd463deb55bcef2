"""Tool calls in a model's output: found by the marks that model families write around them, given back OpenAI-style."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

_MISTRAL_NAME = re.compile(r"\s*([A-Za-z0-9_.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*")
_GEMMA_KEY = re.compile(r"([{,]\s*)([A-Za-z_][\w.-]*)\s*:")
_Found = tuple[str, list[dict[str, Any]]]
_HARMONY_NAME = re.compile(r"to=functions\.([A-Za-z0-9_.-]+)")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for."""

    id: str  # to answer under; the model's own where it wrote one
    name: str  # of the function
    arguments: str  # JSON text of an object

    def to_openai(self) -> dict[str, Any]:
        """The call as it stands in `tool_calls` of an OpenAI-style message."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def parse_tool_calls(text: str, format: str | None = None) -> tuple[str, list[ToolCall]]:  # noqa: A002 - the contract's
    """Take tool calls out of a model's output.

    A format's marks are looked for first; then the marks of the others, because models are prompted in one format and
    trained in several. What can't be read as a call stays in the text, untouched.

    Args:
        text: The output, with its special tokens as text.
        format: Name of the prompt format (`TemplateCapabilities.format`), or None.

    Returns:
        The text that is left (stripped when a call was taken out), and the calls in order.
    """
    for reader in dict.fromkeys([_OF_FORMAT.get(format or "", _hermes), *_READERS]):
        try:
            rest, found = reader(text)
        except RecursionError:  # nested more deeply than any call
            continue
        if found:
            # Nine letters and digits: the only ids that Mistral's templates take back.
            calls = [
                ToolCall(str(call.get("id") or f"call{index:05d}"), call["name"], call["arguments"])
                for index, call in enumerate(found)
            ]
            return rest.strip(), calls
    return text, []


def _marked(text: str, opening: str, closing: str, read: Callable[[str], list[dict[str, Any]]] | None = None) -> _Found:
    """Calls between two marks, each read by `read`; the end of the text closes too."""
    calls: list[dict[str, Any]] = []
    first, *parts = text.split(opening)
    rest = [first]
    for part in parts:
        inside, mark, after = part.partition(closing)
        found = (read or _calls)(inside)
        calls += found
        rest.append(after if found else opening + inside + mark + after)
    return "".join(rest), calls


_hermes = partial(_marked, opening="<tool_call>", closing="</tool_call>")
# Granite writes the same mark in front, and none behind.
_phi = partial(_marked, opening="<|tool_call|>", closing="<|/tool_call|>")


def _command_r(text: str) -> _Found:
    rest, found = _marked(text, "<|START_ACTION|>", "<|END_ACTION|>")
    return (rest, found) if found else _marked(text, "Action: ```json", "```")


def _llama_tag(text: str) -> _Found:
    return _llama(text) if text.lstrip().startswith("<|python_tag|>") else (text, [])


def _llama(text: str) -> _Found:
    """The whole output is one call, or several separated by `;`."""
    body = text.strip().removeprefix("<|python_tag|>").removesuffix("<|eom_id|>").removesuffix("<|eot_id|>").strip()
    if not body.startswith(("{", "[")):
        return text, []
    found = _calls(body) or _sequence(body)
    return ("", found) if found else (text, [])


def _bare(text: str) -> _Found:
    """The whole output is JSON that names a function and its arguments, without marks."""
    found = _calls(text)
    return ("", found) if found else (text, [])


def _mistral(text: str) -> _Found:
    """`[TOOL_CALLS][{…}, …]`, or since v11 `[TOOL_CALLS]name[ARGS]{…}` once a call."""
    left, *parts = text.removesuffix("</s>").split("[TOOL_CALLS]")
    calls: list[dict[str, Any]] = []
    for part in parts:
        name = _MISTRAL_NAME.match(part)
        if part.lstrip().startswith(("[", "{")):
            value, end = _decode(part)
            found = _listed(value)
        elif name is not None:
            value, end = _decode(part, name.end())
            found = _named(name.group(1), value)
        else:
            found, end = [], 0
        if not found:
            return text, []
        calls.extend(found)
        left += part[end:]
    return (left, calls) if calls else (text, [])


def _deepseek(text: str) -> _Found:
    """A name and JSON between marks, whose bars are U+FF5C and whose gaps are U+2581."""
    opening, separator, closing, first, last = (
        f"<\uff5ctool\u2581{words}\uff5c>"
        for words in ("call\u2581begin", "sep", "call\u2581end", "calls\u2581begin", "calls\u2581end")
    )

    def read(inside: str) -> list[dict[str, Any]]:
        name, _, body = inside.removeprefix(f"function{separator}").partition("\n" if "```" in inside else separator)
        return _named(name.strip(), _decode(_unfenced(body))[0])

    return _marked(text.replace(first, "").replace(last, ""), opening, closing, read)


def _harmony(text: str) -> _Found:
    """gpt-oss: a header with `to=functions.NAME`, then a message that ends with `<|call|>`."""
    calls = []
    rest = []
    parts = text.replace("<|start|>assistant", "").split("<|call|>")
    for part in parts:
        header, mark, body = part.rpartition("<|message|>")
        before, channel, header = header.rpartition("<|channel|>")
        name = _HARMONY_NAME.search(header) or _HARMONY_NAME.search(before.rpartition("<|end|>")[2])
        value, _ = _decode(body)
        if mark and channel and name is not None and isinstance(value, dict):
            calls.append(_made(name.group(1), value))
            before, end, _ = before.rpartition("<|end|>")
            rest.append(before + end)
        else:
            rest.append(part)
    return ("".join(rest), calls) if calls else (text, [])


def _kimi(text: str) -> _Found:
    """`<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{…}<|tool_call_end|>`."""

    def read(inside: str) -> list[dict[str, Any]]:
        identity, _, body = inside.partition("<|tool_call_argument_begin|>")
        name = identity.strip().removeprefix("functions.").rpartition(":")[0]
        return [call | {"id": identity.strip()} for call in _named(name, _decode(body)[0])]

    text = text.replace("<|tool_calls_section_begin|>", "").replace("<|tool_calls_section_end|>", "")
    return _marked(text, "<|tool_call_begin|>", "<|tool_call_end|>", read)


def _gemma_4(text: str) -> _Found:
    """`<|tool_call>call:name{key:value}<tool_call|>`, where a text stands between two `<|"|>` and keys are bare."""

    def read(inside: str) -> list[dict[str, Any]]:
        name, brace, body = inside.removeprefix("call:").partition("{")
        pieces = (brace + body).split('<|"|>')
        # The texts become JSON texts that hold their number, so that nothing in them looks like syntax.
        plain = "".join(f'"{index}"' if index % 2 else piece for index, piece in enumerate(pieces))
        value, _ = _decode(_GEMMA_KEY.sub(r'\1"\2":', plain))
        return [] if any('"' in piece for piece in pieces[::2]) else _named(name, _unquoted(value, pieces))

    return _marked(text, "<|tool_call>", "<tool_call|>", read)


def _unquoted(value: Any, pieces: list[str]) -> Any:
    if isinstance(value, str):
        return pieces[int(value)] if value.isdecimal() else value
    if isinstance(value, list):
        return [_unquoted(item, pieces) for item in value]
    if isinstance(value, dict):
        return {_unquoted(key, pieces): _unquoted(item, pieces) for key, item in value.items()}
    return value


_OF_FORMAT: dict[str, Callable[[str], _Found]] = {
    "phi": _phi,
    "granite": _phi,
    "mistral": _mistral,
    "llama-3": _llama,
    "llama-4": _llama,
    "command-r": _command_r,
    "deepseek": _deepseek,
    "harmony": _harmony,
    "kimi": _kimi,
    "gemma-4": _gemma_4,
}


_READERS: tuple[Callable[[str], _Found], ...] = (
    _hermes, _phi, _mistral, _llama_tag, _deepseek, _harmony, _kimi, _gemma_4, _bare,
)  # fmt: skip


def _calls(body: str) -> list[dict[str, Any]]:
    """Calls in a piece of text that holds nothing else."""
    body = _unfenced(body)
    if body.startswith("<function="):
        return _xml(body)
    if "<arg_key>" in body:
        return _glm(body)
    value, end = _decode(body)
    return _listed(value) if end and not body[end:].strip() else []


def _xml(body: str) -> list[dict[str, Any]]:
    """`<function=name><parameter=key>value</parameter></function>`, as Qwen3-Coder writes calls."""
    name, opened, rest = body.removeprefix("<function=").partition(">")
    inside, closed, after = rest.partition("</function>")
    if not (name and opened and closed) or after.strip():
        return []
    arguments = {}
    for part in inside.split("<parameter=")[1:]:
        key, opened, rest = part.partition(">")
        value, closed, _ = rest.partition("</parameter>")
        if not (key and opened and closed):
            return []
        arguments[key] = _scalar(value.removeprefix("\n").removesuffix("\n"))
    return [_made(name, arguments)]


def _glm(body: str) -> list[dict[str, Any]]:
    """`name<arg_key>key</arg_key><arg_value>value</arg_value>…`, as GLM writes calls."""
    name, *parts = body.split("<arg_key>")
    arguments = {}
    for part in parts:
        key, opened, rest = part.partition("</arg_key>")
        _, mark, rest = rest.partition("<arg_value>")
        value, closed, _ = rest.partition("</arg_value>")
        if not (opened and mark and closed):
            return []
        arguments[key.strip()] = _scalar(value)
    return [_made(name.strip(), arguments)] if name.strip() else []


def _unfenced(body: str) -> str:
    body = body.strip()
    if len(body) > 6 and body.startswith("```") and body.endswith("```"):
        body = body[3:-3].removeprefix("json").strip()
    return body


def _sequence(body: str) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    place = 0
    while place < len(body):
        value, end = _decode(body, place)
        found = _listed(value)
        if not found:
            return []
        calls.extend(found)
        place = end
        while place < len(body) and body[place] in "; \n":
            place += 1
    return calls


def _decode(text: str, start: int = 0) -> tuple[Any, int]:
    while start < len(text) and text[start].isspace():
        start += 1
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, 0


def _listed(value: Any) -> list[dict[str, Any]]:
    values = value if isinstance(value, list) else [value]
    calls = [_call(item) for item in values]
    return [call for call in calls if call is not None] if all(call is not None for call in calls) else []


def _call(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):
        value = {"id": value.get("id"), **value["function"]}
    name = value.get("name", value.get("tool_name"))
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments, _ = _decode(arguments or "{}")
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return {**_made(name, arguments), "id": value.get("id")}


def _made(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}


def _named(name: str, arguments: Any) -> list[dict[str, Any]]:
    return [_made(name, arguments)] if name and isinstance(arguments, dict) else []


def _scalar(text: str) -> Any:
    value, end = _decode(text)
    return value if end and not text[end:].strip() else text
