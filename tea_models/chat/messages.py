"""Messages and tools as people write them in files: read, checked, with the place of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tea_models.errors import ConfigError

_NAMES = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def read_conversation(data: bytes, file: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Read messages from JSON, and tools of an OpenAI-style request; a ConfigError names file, line and key."""
    value = _parse(data, file)
    if not isinstance(value, dict):
        return _messages(value, file), None
    if "messages" not in value:
        raise ConfigError("expected a list of messages, or an object with `messages`", file=file)
    tools = value.get("tools")
    return _messages(value["messages"], file, "messages"), None if tools is None else _tools(tools, file, "tools")


def read_tools(data: bytes, file: str) -> list[dict[str, Any]]:
    """Read OpenAI-style tool definitions from JSON: a list, or an object with `tools`; errors as above."""
    value = _parse(data, file)
    if isinstance(value, dict) and "tools" in value:
        return _tools(value["tools"], file, "tools")
    return _tools(value, file)


def _messages(value: Any, file: str, key: str = "") -> list[dict[str, Any]]:
    _expect(value, list, "a list of messages", file, key)
    for index, message in enumerate(value):
        place = f"{key}[{index}]"
        _expect(message, dict, "an object with `role` and `content`", file, place)
        _expect(message.get("role"), str, "a text such as user", file, f"{place}.role")
        content, calls = message.get("content"), message.get("tool_calls")
        if content is not None or calls is None:
            _expect(content, str | list, "a text or a list of parts", file, f"{place}.content")
        for number, part in enumerate(content if isinstance(content, list) else ()):
            inside = f"{place}.content[{number}]"
            _expect(part, dict, "an object with `type`", file, inside)
            if part.get("type") == "text":
                _expect(part.get("text"), str, "a text", file, f"{inside}.text")
        _expect(calls or [], list, "a list of calls", file, f"{place}.tool_calls")
    return list(value)


def _tools(value: Any, file: str, key: str = "") -> list[dict[str, Any]]:
    _expect(value, list, "a list of tools", file, key)
    for index, tool in enumerate(value):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            wanted = 'expected {"type": "function", "function": {"name": …}}'
            raise ConfigError(wanted, file=file, key=f"{key}[{index}]")
    return list(value)


def _expect(value: Any, kind: Any, wanted: str, file: str, key: str) -> None:
    if not isinstance(value, kind):
        found = _NAMES.get(type(value), type(value).__name__)
        raise ConfigError(f"expected {wanted}, found {found}", file=file, key=key)


def arguments_as_objects(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copy messages, `arguments` of tool calls as objects, not JSON text: nearly all templates serialise them."""
    return [
        {**message, "tool_calls": [_with_object(call) for call in message["tool_calls"]]}
        if isinstance(message.get("tool_calls"), list)
        else dict(message)
        for message in messages
    ]


def _with_object(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _parse(data: bytes, file: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text: byte {error.start}", file=file) from None
    except json.JSONDecodeError as error:
        if not data.strip():
            raise ConfigError("expected JSON, found nothing", file=file) from None
        raise ConfigError(f"not valid JSON: {error.msg} (column {error.colno})", file=file, line=error.lineno) from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"not usable JSON: {reason}", file=file) from None
