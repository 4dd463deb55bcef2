"""Tool calls in a model's output: found by the marks that model families write around them, given back OpenAI-style."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_MISTRAL_NAME = re.compile(r"\s*([A-Za-z0-9_.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?(?=\s*\{)")
_AROUND_CALLS = re.compile("<\uff5ctool\u2581calls\u2581(begin|end)\uff5c>")
_SPACE, _SEPARATORS = re.compile(r"\s*"), re.compile(r"[;\s]*")
_GEMMA_KEY = re.compile(r"([{,]\s*)([A-Za-z_][\w.-]*)\s*:")
_HARMONY_NAME = re.compile(r"to=functions\.([A-Za-z0-9_.-]+)")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for.

    Attributes:
        id: An id to answer under; the model's own where it wrote one.
        name: Name of the function.
        arguments: JSON text of an object.
    """

    id: str
    name: str
    arguments: str

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
    own = (format,) if format in _READERS else ()
    for name in (*own, *_READERS):
        try:
            rest, found = _READERS[name](text)
        except RecursionError:  # nested more deeply than any call
            continue
        if found:
            # Nine letters and digits: the only ids that Mistral's templates take back.
            calls = [replace(call, id=call.id or f"call{index:05d}") for index, call in enumerate(found)]
            return _AROUND_CALLS.sub("", rest).strip(), calls
    return text, []


_Calls = list[ToolCall]
_Found = tuple[str, _Calls]


def _between(opening: str, closing: str, read: Callable[[str], _Calls]) -> Callable[[str], _Found]:
    """A reader of calls between two marks; the end of the text closes too."""

    def reader(text: str) -> _Found:
        calls: _Calls = []
        first, *parts = text.split(opening)
        rest = [first]
        for part in parts:
            inside, mark, after = part.partition(closing)
            found = read(inside)
            calls += found
            rest.append(after if found else opening + inside + mark + after)
        return "".join(rest), calls

    return reader


def _bare(text: str) -> _Found:
    """The whole output is JSON that names a function and its arguments."""
    body = text.strip().removeprefix("<|python_tag|>").removesuffix("<|eom_id|>").removesuffix("<|eot_id|>").strip()
    found = _calls(body)
    return ("", found) if found else (text, [])


def _mistral_calls(inside: str) -> _Calls:
    """`[{…}, …]`, or since v11 `name[ARGS]{…}` once a mark."""
    name = _MISTRAL_NAME.match(inside)
    return _named(name.group(1), inside[name.end() :]) if name else _calls(inside)


def _deepseek_call(inside: str) -> _Calls:
    separator = "<\uff5ctool\u2581sep\uff5c>"
    name, _, body = inside.removeprefix(f"function{separator}").partition("\n" if "```" in inside else separator)
    return _named(name, _unfenced(body))


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


def _gemma_call(inside: str) -> _Calls:
    """`call:name{key:value}`, where a text stands between two `<|"|>` and keys are bare."""
    name, brace, body = inside.removeprefix("call:").partition("{")
    pieces = (brace + body).split('<|"|>')
    if any('"' in piece for piece in pieces[::2]):
        return []
    # The texts become JSON texts that hold their number, so that nothing in them looks like syntax.
    plain = "".join(f'"{index}"' if index % 2 else piece for index, piece in enumerate(pieces))
    return _named(name, _GEMMA_KEY.sub(r'\1"\2":', plain), pieces)


def _unquoted(value: Any, pieces: list[str]) -> Any:
    if isinstance(value, str):
        return pieces[int(value)] if value.isdecimal() else value
    if isinstance(value, list):
        return [_unquoted(item, pieces) for item in value]
    if isinstance(value, dict):
        return {_unquoted(key, pieces): _unquoted(item, pieces) for key, item in value.items()}
    return value


def _calls(body: str) -> _Calls:
    """Calls in a piece of text that holds nothing else; Llama separates several by `;`."""
    body = _unfenced(body)
    if body.startswith("<function="):
        return _xml(body)
    calls: _Calls = []
    place = 0
    while place < len(body):
        value, place = _decode(body, place)
        found = _listed(value)
        if not found:
            return []
        calls += found
    return calls


def _named(name: str, body: str, texts: list[str] | None = None) -> _Calls:
    """One call by its name and the JSON of its arguments, in which numbers may stand for `texts`."""
    arguments, end = _decode(body)
    if not name.strip() or not isinstance(arguments, dict) or body[end:].strip():
        return []
    return [_made(name.strip(), _unquoted(arguments, texts) if texts else arguments)]


def _xml(body: str) -> _Calls:
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


def _unfenced(body: str) -> str:
    body = body.strip()
    if len(body) > 6 and body.startswith("```") and body.endswith("```"):
        body = body[3:-3].removeprefix("json").strip()
    return body


def _decode(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value at a place, and where the next one may be; the end is 0 where there is none."""
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text, _end_of(_SPACE, text, start))
    except (ValueError, RecursionError):
        return None, 0
    return value, _end_of(_SEPARATORS, text, end)


def _end_of(pattern: re.Pattern[str], text: str, start: int) -> int:
    found = pattern.match(text, start)
    return found.end() if found else start


def _listed(value: Any) -> _Calls:
    calls = [_call(item) for item in (value if isinstance(value, list) else [value])]
    return [call for call in calls if call is not None] if None not in calls else []


def _call(value: Any) -> ToolCall | None:
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
    return replace(_made(name, arguments), id=str(value.get("id") or ""))


def _made(name: str, arguments: dict[str, Any]) -> ToolCall:
    return ToolCall("", name, json.dumps(arguments, ensure_ascii=False))


def _scalar(text: str) -> Any:
    value, end = _decode(text)
    return value if end and not text[end:].strip() else text


#: The format's own reader comes first, then all of them. DeepSeek's marks have bars U+FF5C and gaps U+2581.
_READERS: dict[str, Callable[[str], _Found]] = {
    "chatml": _between("<tool_call>", "</tool_call>", _calls),
    "phi": _between("<|tool_call|>", "<|/tool_call|>", _calls),
    "granite": _between("<|tool_call|>", "<|/tool_call|>", _calls),
    "mistral": _between("[TOOL_CALLS]", "</s>", _mistral_calls),
    "command-r": _between("<|START_ACTION|>", "<|END_ACTION|>", _calls),
    "command-r of 2024": _between("Action: ```json", "```", _calls),
    "deepseek": _between(
        "<\uff5ctool\u2581call\u2581begin\uff5c>", "<\uff5ctool\u2581call\u2581end\uff5c>", _deepseek_call
    ),
    "harmony": _harmony,
    "gemma-4": _between("<|tool_call>", "<tool_call|>", _gemma_call),
    "llama-3": _bare,
    "llama-4": _bare,
}
