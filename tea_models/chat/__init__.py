"""Chat templates: render them safely, find out what they can do, and read tool calls back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tea_models.errors import TemplateError as TemplateError
from tea_models.lazy import lazy_names

if TYPE_CHECKING:
    from tea_models.chat.capabilities import TemplateCapabilities as TemplateCapabilities
    from tea_models.chat.capabilities import probe_template as probe_template
    from tea_models.chat.rendering import Segment as Segment
    from tea_models.chat.rendering import render_chat as render_chat
    from tea_models.chat.rendering import render_segments as render_segments
    from tea_models.chat.tool_calls import ToolCall as ToolCall
    from tea_models.chat.tool_calls import parse_tool_calls as parse_tool_calls

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

__all__ = list(_HOME)
__getattr__ = lazy_names(__name__, _HOME)
