"""Which template renders a chat: the file's own, or one that the user names, gives as text or as a file."""

from __future__ import annotations

import ctypes
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tea_models.chat.capabilities import probe_template
from tea_models.chat.messages import arguments_as_objects
from tea_models.chat.rendering import Segment, render_segments
from tea_models.errors import TemplateError, UsageError
from tea_runtime.errors import UnsupportedError
from tea_runtime.llama.engine import llama
from tea_runtime.llama.weights import encode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tea_models.profile.facts import ModelProfile

# Names that llama-cpp-python gives to formats which llama.cpp knows under another one.
_ALIASES = {
    "llama-2": "llama2",
    "llama-3": "llama3",
    "qwen": "chatml",
    "mistral-instruct": "mistral-v1",
    "phi-3": "phi3",
    "phi-4-mini": "phi4",
}
# What the formats mean by a role; another one is a text of the caller's.
_ROLES = ("system", "user", "assistant", "tool")
_SPACE = " \t\n\v\f\r"
_STAND_IN = re.compile("\ue000([0-9]+)\ue001")


@dataclass(frozen=True, slots=True)
class ChatFormat:
    template: str  # Jinja source, or "" for a format of llama.cpp's own
    name: str  # for people and for the parser of tool calls
    stop: tuple[str, ...]  # texts that end a turn
    tools: bool  # it renders tools

    def render(self, messages: Sequence[Mapping[str, Any]], **given: Any) -> list[Segment]:
        """The prompt as text, ending with the opening of the assistant's turn; with who wrote which part of it."""
        if not self.template:
            return _render_builtin(self.name, messages)
        arranged = arguments_as_objects(messages)
        try:
            return render_segments(self.template, arranged, **given)
        except TemplateError:
            # A few templates (DeepSeek's) want the JSON text of a call's arguments, as the API has it.
            if arranged == list(messages):
                raise
            return render_segments(self.template, messages, **given)


def chat_format_of(profile: ModelProfile, wanted: str | None, *, token_texts: Sequence[str] = ()) -> ChatFormat | None:
    """Choose how to render a chat; None where the file has no template and none was given."""
    chat = profile.chat
    if not wanted or wanted == "auto":
        if chat.template.value is None:
            return None
        return ChatFormat(chat.template.value, chat.format.value or "custom", tuple(chat.stop.value), chat.tools.value)
    if wanted.endswith((".jinja", ".jinja2", ".j2")):
        path = Path(wanted).expanduser()
        if not path.is_file():
            raise UsageError(f"chat_format {wanted}: no such file")
        return _of_template(path.read_text(encoding="utf-8"), profile, token_texts)
    if "{{" in wanted or "{%" in wanted:
        return _of_template(wanted, profile, token_texts)
    if wanted == chat.format.value and chat.template.value is not None:
        return chat_format_of(profile, None)
    name = wanted.lower()
    known = builtin_formats()
    found = next((name for name in (name, _ALIASES.get(name, "")) if name in known), None)
    if found is None:
        names = sorted({*known, *_ALIASES})
        near = difflib.get_close_matches(name, names, n=1)
        raise UsageError(
            f"chat_format {wanted!r}: no such format" + (f"; did you mean {near[0]!r}?" if near else ""),
            hint="known: " + ", ".join(names) + "; or a Jinja template, as text or as the path of a .jinja file",
        )
    return ChatFormat("", found, _builtin_stop(found), tools=False)


def _of_template(template: str, profile: ModelProfile, token_texts: Sequence[str]) -> ChatFormat:
    bos, eos = (token.value or "" for token in (profile.tokenizer.bos_token, profile.tokenizer.eos_token))
    capabilities = probe_template(template, bos_token=bos, eos_token=eos, token_texts=token_texts)
    return ChatFormat(template, capabilities.format, capabilities.stop, capabilities.tools)


def builtin_formats() -> tuple[str, ...]:
    """Names of the formats that llama.cpp renders itself (`llama_chat_builtin_templates`)."""
    engine = llama()
    count = engine.llama_chat_builtin_templates(None, 0)
    names = (ctypes.c_char_p * count)()
    engine.llama_chat_builtin_templates(names, count)
    return tuple(name.decode() for name in names if name)


def _render_builtin(name: str, messages: Sequence[Mapping[str, Any]], *, answer: bool = True) -> list[Segment]:
    """The prompt by a format of llama.cpp's own, which joins texts: what is not the format's is put in afterwards."""
    engine = llama()
    texts: list[str] = []

    def stand_in(text: str) -> bytes:
        # The formats strip contents: white space stays outside, so that the text is what it would be without this.
        bare = text.strip(_SPACE)
        if not bare:
            return encode(text)
        texts.append(bare)
        return encode(text.replace(bare, f"\ue000{len(texts) - 1}\ue001", 1))

    chat = (engine.llama_chat_message * len(messages))()
    for index, message in enumerate(messages):
        role = str(message["role"])
        chat[index].role = encode(role) if role in _ROLES else stand_in(role)
        content = message.get("content") or ""
        if not isinstance(content, str):
            raise UsageError(f"messages[{index}].content: expected a text, found {type(content).__name__}")
        chat[index].content = stand_in(content)
    room = 2 * sum(len(message.content) for message in chat) + 64 * len(messages) + 1024
    for _ in range(2):
        buffer = ctypes.create_string_buffer(room)
        length = engine.llama_chat_apply_template(name.encode(), chat, len(messages), answer, buffer, room)
        if 0 <= length <= room:
            pieces = _STAND_IN.split(buffer.raw[:length].decode("utf-8", "replace"))
            return [
                Segment(texts[int(piece)], "data") if index % 2 else Segment(piece, "template")
                for index, piece in enumerate(pieces)
                if piece
            ]
        room = length + 1
    raise UnsupportedError(f"chat_format {name}: llama.cpp could not render the messages")


def _builtin_stop(name: str) -> tuple[str, ...]:
    """What the format writes between an answer and the next turn, as far as it looks like a token."""
    reply = "zqxj reply"
    messages = [{"role": "user", "content": "zqxj"}, {"role": "assistant", "content": reply}]
    rendered = "".join(segment.text for segment in _render_builtin(name, messages, answer=False))
    end = rendered.partition(reply)[2].strip().split("\n")[0].strip()
    return (end,) if end[:1] in ("<", "[") else ()
