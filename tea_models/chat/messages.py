"""Messages and tools as people write them in files: read, checked, with the place of what is wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tea_models.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_KNOWN_PARTS = ("text", "image", "image_url", "input_audio", "audio", "video")


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a file holds: messages, and tools where it is a whole request."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


def read_conversation(data: bytes, file: str) -> Conversation:
    """Read messages from JSON: a list, or an OpenAI-style request object with `messages` and perhaps `tools`.

    Raises:
        ConfigError: No JSON, or not messages; names file, line and key.
    """
    value = _parse(data, file)
    tools = None
    prefix = ""
    if isinstance(value, dict):
        if "messages" not in value:
            raise ConfigError("expected a list of messages, or an object with `messages`", file=file)
        tools = value.get("tools")
        value = value["messages"]
        prefix = "messages"
    messages = check_messages(value, file=file, key=prefix)
    return Conversation(messages, None if tools is None else check_tools(tools, file=file, key="tools"))


def read_tools(data: bytes, file: str) -> list[dict[str, Any]]:
    """Read OpenAI-style tool definitions from JSON: a list, or an object with `tools`.

    Raises:
        ConfigError: No JSON, or not tools.
    """
    value = _parse(data, file)
    if isinstance(value, dict) and "tools" in value:
        return check_tools(value["tools"], file=file, key="tools")
    return check_tools(value, file=file)


def check_messages(value: Any, *, file: str = "", key: str = "") -> list[dict[str, Any]]:
    """Check that a value is a list of messages.

    Args:
        value: What should be one.
        file: The file's name for the message of an error.
        key: Where in the file the value stands.

    Raises:
        ConfigError: It is not; the key says where.
    """
    if not isinstance(value, list):
        raise ConfigError(f"expected a list of messages, found {_name(value)}", file=file, key=key)
    for index, message in enumerate(value):
        _check_message(message, file, f"{key}[{index}]")
    return value


def check_tools(value: Any, *, file: str = "", key: str = "") -> list[dict[str, Any]]:
    """Check that a value is a list of OpenAI-style tool definitions.

    Raises:
        ConfigError: It is not; the key says where.
    """
    if not isinstance(value, list):
        raise ConfigError(f"expected a list of tools, found {_name(value)}", file=file, key=key)
    for index, tool in enumerate(value):
        place = f"{key}[{index}]"
        if not isinstance(tool, dict):
            raise ConfigError(f"expected an object, found {_name(tool)}", file=file, key=place)
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ConfigError('expected {"type": "function", "function": {"name": …}}', file=file, key=place)
    return value


def _check_message(message: Any, file: str, key: str) -> None:
    if not isinstance(message, dict):
        raise ConfigError(f"expected an object with `role` and `content`, found {_name(message)}", file=file, key=key)
    if not isinstance(message.get("role"), str):
        found = f"found {_name(message['role'])}" if "role" in message else "found no role"
        raise ConfigError(f"expected a text such as user, {found}", file=file, key=f"{key}.role")
    content = message.get("content")
    if content is None:
        if "tool_calls" not in message and "content" not in message:
            raise ConfigError("expected a text, found no content", file=file, key=f"{key}.content")
    elif isinstance(content, list):
        for index, part in enumerate(content):
            _check_part(part, file, f"{key}.content[{index}]")
    elif not isinstance(content, str):
        raise ConfigError(
            f"expected a text or a list of parts, found {_name(content)}", file=file, key=f"{key}.content"
        )
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise ConfigError("expected a list of objects", file=file, key=f"{key}.tool_calls")


def _check_part(part: Any, file: str, key: str) -> None:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ConfigError(f"expected an object with `type` ({', '.join(_KNOWN_PARTS)})", file=file, key=key)
    if part["type"] == "text" and not isinstance(part.get("text"), str):
        raise ConfigError("expected a text", file=file, key=f"{key}.text")


def arguments_as_objects(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copy messages with the JSON text in `tool_calls[].function.arguments` read into objects.

    An OpenAI-style API gives and takes that text; nearly all templates serialise it once more, so that a call which is
    sent back would reach the model as a quoted string. What is no JSON object stays as it is.
    """
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


def _name(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
