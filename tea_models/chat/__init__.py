"""Chat templates: render them safely, find out what they can do, and read tool calls back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tea_models.errors import TemplateError
from tea_models.lazy import lazy_names

if TYPE_CHECKING:
    from tea_models.chat.capabilities import TemplateCapabilities, probe_template
    from tea_models.chat.rendering import Segment, render_chat, render_segments
    from tea_models.chat.tool_calls import ToolCall, parse_tool_calls

# Imported when it is first used: `inspect` probes a template and parses no tool calls.
_HOME = {
    "TemplateCapabilities": "tea_models.chat.capabilities",
    "Segment": "tea_models.chat.rendering",
    "ToolCall": "tea_models.chat.tool_calls",
    "parse_tool_calls": "tea_models.chat.tool_calls",
    "probe_template": "tea_models.chat.capabilities",
    "render_chat": "tea_models.chat.rendering",
    "render_segments": "tea_models.chat.rendering",
}

__all__ = [
    "Segment",
    "TemplateCapabilities",
    "TemplateError",
    "ToolCall",
    "parse_tool_calls",
    "probe_template",
    "render_chat",
    "render_segments",
]

__getattr__ = lazy_names(__name__, _HOME)
