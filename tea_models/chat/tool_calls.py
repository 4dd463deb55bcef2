"""Tool calls in a model's output: found by the marks that model families write around them, given back OpenAI-style."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)
_HERMES = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_PHI = re.compile(r"<\|tool_call\|>\s*(.*?)\s*(?:<\|/tool_call\|>|\Z)", re.DOTALL)
_LLAMA = re.compile(r"\A\s*(?:<\|python_tag\|>)?\s*(.*?)\s*(?:<\|eom_id\|>|<\|eot_id\|>)?\s*\Z", re.DOTALL)
_MISTRAL_NAMED = re.compile(r"\A\s*([A-Za-z0-9_.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*")
_XML_FUNCTION = re.compile(r"\A<function=([^>\s]+)>\s*(.*?)\s*</function>\Z", re.DOTALL)
_XML_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


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
    order = [_by_format(format)] if format else []
    order += [reader for reader in (_hermes, _phi, _mistral, _llama_marked) if reader not in order]
    for reader in order:
        rest, found = reader(text)
        if found:
            # Nine letters and digits: the only ids that Mistral's templates take back.
            calls = [
                ToolCall(str(call.get("id") or f"call{index:05d}"), call["name"], call["arguments"])
                for index, call in enumerate(found)
            ]
            return rest.strip(), calls
    return text, []


_Reader = tuple[str, list[dict[str, Any]]]


def _by_format(format_name: str) -> Callable[[str], _Reader]:
    return {
        "phi": _phi,
        "mistral": _mistral,
        "llama-3": _llama,
        "llama-4": _llama,
        "granite": _phi,
    }.get(format_name, _hermes)


def _hermes(text: str) -> _Reader:
    return _marked(text, _HERMES)


def _phi(text: str) -> _Reader:
    return _marked(text, _PHI)


def _marked(text: str, pattern: re.Pattern[str]) -> _Reader:
    calls: list[dict[str, Any]] = []

    def take(match: re.Match[str]) -> str:
        found = _calls(match.group(1))
        if not found:
            return match.group()
        calls.extend(found)
        return ""

    rest = pattern.sub(take, text)
    return rest, calls


def _llama(text: str) -> _Reader:
    """The whole output is one call, or several separated by `;`."""
    match = _LLAMA.match(text)
    body = match.group(1) if match else text
    if not body.startswith(("{", "[")):
        return text, []
    found = _calls(body) or _sequence(body)
    return ("", found) if found else (text, [])


def _llama_marked(text: str) -> _Reader:
    return _llama(text) if text.lstrip().startswith("<|python_tag|>") else (text, [])


def _mistral(text: str) -> _Reader:
    """`[TOOL_CALLS][{…}, …]`, or since v11 `[TOOL_CALLS]name[ARGS]{…}` once a call."""
    before, mark, rest = text.partition("[TOOL_CALLS]")
    if not mark:
        return text, []
    calls: list[dict[str, Any]] = []
    left = before
    for part in rest.removesuffix("</s>").split("[TOOL_CALLS]"):
        named = _MISTRAL_NAMED.match(part)
        if part.lstrip().startswith(("[", "{")):
            value, end = _decode(part)
            found = _listed(value)
        elif named is not None:
            value, end = _decode(part, named.end())
            found = [{"name": named.group(1), "arguments": _dump(value)}] if isinstance(value, dict) else []
        else:
            found, end = [], 0
        if not found:
            return text, []
        calls.extend(found)
        left += part[end:]
    return left, calls


def _calls(body: str) -> list[dict[str, Any]]:
    """Calls in a piece of text that holds nothing else."""
    fence = _FENCE.match(body)
    body = fence.group(1) if fence else body
    xml = _XML_FUNCTION.match(body)
    if xml:
        arguments = {name: _scalar(value) for name, value in _XML_PARAMETER.findall(xml.group(2))}
        return [{"name": xml.group(1), "arguments": _dump(arguments)}]
    value, end = _decode(body)
    return _listed(value) if end and not body[end:].strip() else []


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
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments, end = _decode(arguments or "{}")
        if not end:
            return None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return {"id": value.get("id"), "name": name, "arguments": _dump(arguments)}


def _scalar(text: str) -> Any:
    value, end = _decode(text)
    return value if end and not text[end:].strip() else text


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
