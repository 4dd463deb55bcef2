from tea_models.chat.capabilities import TemplateCapabilities as TemplateCapabilities
from tea_models.chat.capabilities import probe_template as probe_template
from tea_models.chat.rendering import Segment as Segment
from tea_models.chat.rendering import render_chat as render_chat
from tea_models.chat.rendering import render_segments as render_segments
from tea_models.chat.tool_calls import ToolCall as ToolCall
from tea_models.chat.tool_calls import parse_tool_calls as parse_tool_calls
from tea_models.errors import TemplateError as TemplateError
