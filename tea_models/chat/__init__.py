"""Chat templates: render them safely, find out what they can do, and read tool calls back."""

from __future__ import annotations

from tea_models.chat.capabilities import TemplateCapabilities, probe_template
from tea_models.chat.rendering import render_chat
from tea_models.chat.tool_calls import ToolCall, parse_tool_calls
from tea_models.errors import TemplateError

__all__ = ["TemplateCapabilities", "TemplateError", "ToolCall", "parse_tool_calls", "probe_template", "render_chat"]
