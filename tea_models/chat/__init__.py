"""Chat templates: render them safely, find out what they can do, and read tool calls back."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tea_models.errors import TemplateError

if TYPE_CHECKING:
    from tea_models.chat.capabilities import TemplateCapabilities, probe_template
    from tea_models.chat.rendering import render_chat
    from tea_models.chat.tool_calls import ToolCall, parse_tool_calls

# Imported when it is first used: `inspect` probes a template and parses no tool calls.
_HOME = {
    "TemplateCapabilities": "tea_models.chat.capabilities",
    "ToolCall": "tea_models.chat.tool_calls",
    "parse_tool_calls": "tea_models.chat.tool_calls",
    "probe_template": "tea_models.chat.capabilities",
    "render_chat": "tea_models.chat.rendering",
}

__all__ = ["TemplateCapabilities", "TemplateError", "ToolCall", "parse_tool_calls", "probe_template", "render_chat"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
