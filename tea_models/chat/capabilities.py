"""What a chat template can do, found by running it on probe messages, never by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from tea_models.chat.rendering import job, template_error
from tea_models.chat.sandbox import SANDBOX, Limits
from tea_models.errors import TemplateError

_LIMITS = Limits(seconds=2.0, output=262_144)

_SWITCH = re.compile(r"think|thought|reason", re.IGNORECASE)
_ROLE_HEADER = re.compile(r"\A\s*(?:system|developer|System|SYSTEM|user)(?:\n|:|\Z)")
_MANY_LITERALS = 120

# What vocabularies use for control tokens: <|x|>, <x>, </x>, <|x>, <x|>, [X], [/X], [|x|], <<SYS>>, and DeepSeek's,
# whose bar is U+FF5C.
_MARKER = (
    r"<\|?/?[\w.:-]{1,60}\|?>|<\uff5c[^<>\uff5c\s]{1,60}\uff5c>"
    r"|\[/?[A-Za-z]?[A-Z_]{2,}\]|\[\|[a-z_]+\|\]|<</?SYS>>"
)

#: First whose texts all occur in the rendered probes; a name only for people.
_FORMATS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("harmony", ("<|start|>", "<|message|>")),
    ("llama-4", ("<|header_start|>",)),
    ("llama-3", ("<|start_header_id|>",)),
    ("gemma", ("<start_of_turn>",)),
    ("gemma-4", ("<|turn>",)),
    ("chatml", ("<|im_start|>",)),
    ("kimi", ("<|im_user|>",)),
    ("granite", ("<|start_of_role|>",)),
    ("command-r", ("<|START_OF_TURN_TOKEN|>",)),
    ("deepseek", ("<\uff5cUser\uff5c>",)),
    ("glm", ("[gMASK]", "<sop>")),
    ("phi", ("<|user|>", "<|end|>")),
    ("zephyr", ("<|user|>",)),
    ("llama-2", ("[INST]", "<<SYS>>")),
    ("mistral", ("[INST]",)),
    ("exaone", ("[|user|]",)),
    ("minicpm", ("<用户>",)),
    ("openchat", ("GPT4 Correct User:",)),
    ("vicuna", ("USER:", "ASSISTANT:")),
    ("alpaca", ("### Instruction:",)),
    ("solar", ("### User:", "### Assistant:")),
)

# Each text of a probe is a word of its own, so that it can be found again.
_NOON = [2026, 6, 15, 12, 0, 0]
_EARLY, _LATE = [2001, 2, 3, 4, 5, 6], [2037, 11, 28, 19, 48, 57]
_SYSTEM, _USER, _REPLY = "ProbeSystemText", "ProbeUserText", "ProbeReplyText"
_USER2, _REPLY2 = "ProbeSecondUserText", "ProbeSecondReplyText"
_TOOL = "probe_tool"
_PARAMETERS = {
    "type": "object",
    "properties": {"probe_key": {"type": "string", "description": "A probe."}},
    "required": ["probe_key"],
}
_TOOLS = [{"type": "function", "function": {"name": _TOOL, "description": "A probe.", "parameters": _PARAMETERS}}]


_SYSTEM_MESSAGE = {"role": "system", "content": _SYSTEM}

_Spec = tuple[list[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class TemplateCapabilities:
    """What a template does with messages."""

    format: str  # for people, by the special texts it writes (`chatml`, `gemma`, `phi`, …, or `custom`)
    system_role: bool = False  # a system message's text gets into the prompt
    tools: bool = False  # so does the `tools` variable
    stop: tuple[str, ...] = ()  # texts that end the assistant's turn
    thinking: str | None = None  # name of the variable that switches thinking on or off
    default_system_prompt: str | None = None  # put in without a system message; a date is shown as `{now:FORMAT}`
    emits_bos: bool = False  # the prompt begins with the BOS token's text
    warnings: tuple[str, ...] = ()  # what is unusual, a sentence each


def probe_template(
    template: str, *, bos_token: str = "", eos_token: str = "", token_texts: Iterable[str] = ()
) -> TemplateCapabilities:
    """Find out what a template can do by running it in the sandbox, in two round trips and at most a few seconds.

    A template that does not parse or breaks a limit gives capabilities that say so in `warnings`.

    Args:
        template: The Jinja source.
        bos_token: Text of the BOS token, "" where there is none.
        eos_token: Text of the EOS token.
        token_texts: Texts of the vocabulary's control tokens, if known: turn ends are cut and checked by them.
    """
    try:
        return _Probe(template, bos_token, eos_token, tuple(token_texts)).run()
    except TemplateError as error:
        return TemplateCapabilities("custom", warnings=(f"not examined: {error.message}",))


class _Probe:
    def __init__(self, template: str, bos: str, eos: str, tokens: Sequence[str]) -> None:
        self.template = template
        self.bos = bos
        self.eos = eos
        self.tokens = tokens
        self.texts: dict[str, str] = {}  # what each probe became; "" for one that is among the errors
        self.errors: dict[str, Mapping[str, Any]] = {}
        self.warnings: list[str] = []

    def run(self) -> TemplateCapabilities:
        analysis = self._first_round()
        sample = "\n".join(self.texts.values())
        splitter = _Splitter((*self.tokens, self.bos, self.eos), sample)
        if _USER not in self.texts["user"]:
            only_parts = _USER in self.texts["parts"]
            what = "takes a content only as a list of parts, not as text"
            self.warnings.append(what if only_parts else "does not render the user's text")
        system_role = self._system_role()
        stop = self._stop(splitter)
        self._warn(analysis)
        thinking = self._second_round(analysis)
        return TemplateCapabilities(
            format=next((name for name, texts in _FORMATS if all(text in sample for text in texts)), "custom"),
            system_role=system_role,
            tools=any(_TOOL in self.texts[name] for name in ("tools", "tools-system")),
            stop=stop,
            thinking=thinking,
            default_system_prompt=self._default_prompt(splitter),
            emits_bos=bool(self.bos) and self.texts["user"].startswith(self.bos),
            warnings=tuple(self.warnings),
        )

    def _first_round(self) -> dict[str, Any]:
        """Render the probes; give back what the source says."""
        specs = _probes()
        reply = self._ask(list(specs.values()), analyse=True)
        results: list[dict[str, Any]] = reply["results"]
        analysis: dict[str, Any] = reply.get("analysis", {})
        if "error" in analysis or len(results) != len(specs):
            raise template_error(analysis or results[0], _LIMITS)
        outcomes = dict(zip(specs, results, strict=True))
        self.errors = {name: result for name, result in outcomes.items() if "error" in result}
        self.texts = {name: result.get("text", "") for name, result in outcomes.items()}
        if "user" in self.errors:
            raise template_error(self.errors["user"], _LIMITS)
        return analysis

    def _ask(self, specs: Sequence[_Spec], *, analyse: bool = False) -> dict[str, Any]:
        tokens = {"bos_token": self.bos, "eos_token": self.eos}
        jobs = [job(messages, tokens | options, options.get("now", _NOON)) for messages, options in specs]
        return SANDBOX.request({"template": self.template, "analyse": analyse, "jobs": jobs}, _LIMITS)

    def _system_role(self) -> bool:
        if "system" in self.errors:
            self.warnings.append(f"raises on a system message: {self._reason('system')}")
        elif _SYSTEM not in self.texts["system"]:
            self.warnings.append("drops system messages silently")
        return _SYSTEM in self.texts["system"]

    def _warn(self, analysis: Mapping[str, Any]) -> None:
        if "two-users" in self.errors:
            self.warnings.append(f"raises unless user and assistant take turns: {self._reason('two-users')}")
        elif _USER not in self.texts["two-users"] or _USER2 not in self.texts["two-users"]:
            self.warnings.append("loses text when two messages of the user follow each other")
        if any(self._outcome(f"early{end}") != self._outcome(f"late{end}") for end in ("", "-user")):
            self.warnings.append("puts the date or time into the prompt: the same messages give another text later")
        if analysis["random"]:
            self.warnings.append("uses random text: the same messages may give another prompt each time")

    def _outcome(self, name: str) -> str:
        return f"error: {self.errors[name]['error']}" if name in self.errors else self.texts[name]

    def _reason(self, name: str) -> str:
        message = str(self.errors[name]["error"] or self.errors[name]["kind"])
        return message if len(message) <= 200 else message[:200] + "…"

    def _stop(self, splitter: _Splitter) -> tuple[str, ...]:
        """What follows the assistant's text: at the end of a conversation, or before the next user's turn."""
        talk = self.texts["talk"]
        between = _between(talk or self.texts["talk-next"], _REPLY, _USER2)
        end = talk.rpartition(_REPLY2)[2] if _REPLY2 in talk else ""
        for marker in filter(None, map(splitter.first, (end, between))):
            if self.tokens and marker not in self.tokens and marker != self.eos:
                self.warnings.append(f"ends a turn with {marker!r}, which is no token of this vocabulary")
            # gpt-oss ends a call to a tool with a token of its own.
            more = ("<|call|>",) if "<|channel|>" in talk and marker != "<|call|>" else ()
            return (marker, *more)
        if not talk:
            why = f": {self._reason('talk')}" if "talk" in self.errors else ""
            self.warnings.append(f"does not render a conversation of several turns{why}")
            return ()
        header = between.strip()
        if not header:
            self.warnings.append("nothing marks the end of a turn: generation stops only at the end-of-text token")
            return ()
        return (("\n" if between.startswith("\n") else "") + header,)

    def _default_prompt(self, splitter: _Splitter) -> str | None:
        """Text before the first user turn beyond what stands before a later one."""
        text = self.texts["clock"] or self.texts["user"]
        later = _between(self.texts["talk"] or self.texts["talk-next"], _REPLY, _USER2)
        before = text[: text.find(_USER)] if _USER in text else ""
        same = takewhile(lambda pair: pair[0] == pair[1], zip(before[::-1], later[::-1], strict=False))
        room = len(before) - len(list(same))
        words = []
        after_marker = True
        for piece, is_marker in splitter.split(before):
            if not is_marker:
                text = piece[: max(room, 0)]
                words.append(_ROLE_HEADER.sub("", text) if after_marker else text)
            room -= len(piece)
            after_marker = is_marker
        prompt = "".join(words).strip()
        return prompt if any(character.isalpha() for character in prompt) else None

    def _second_round(self, analysis: Mapping[str, Any]) -> str | None:
        """Switches of thinking, and literals in the user's text that change what stands around it."""
        names = sorted(
            [name for name in analysis["variables"] if _SWITCH.search(name)][:8],
            key=lambda name: (name != "enable_thinking", "effort" in name),
        )
        literals = [text for text in analysis["literals"] if text.strip()][:_MANY_LITERALS]
        tries = [
            (text, content)
            for text in literals
            for content in (text, f"{_USER} {text} {_USER}", f"{text} {_USER}", f"{_USER} {text}")
        ]
        specs: list[_Spec] = []
        for name in names:
            values = ("high", "low") if "effort" in name else (True, False)
            specs += [([_user()], {name: value}) for value in values]
        specs += [([_user(content)], {}) for _, content in tries]
        if not specs:
            return None
        results = self._ask(specs)["results"]
        if len(results) != len(specs):
            self.warnings.append(
                f"{template_error(results[0], _LIMITS).message} (with some text in the user's message)"
            )
            return None
        self._injections(tries, results[2 * len(names) :], self.texts["user"])
        pairs = zip(names, results[::2], results[1::2], strict=False)
        return next((name for name, on, off in pairs if on.get("text", on) != off.get("text", off)), None)

    def _injections(self, tries: list[tuple[str, str]], results: list[dict[str, Any]], plain: str) -> None:
        found: dict[str, str] = {}
        for (text, content), result in zip(tries, results, strict=True):
            expected = (plain.replace(_USER, content), plain.replace(_USER, content.strip()))
            if result.get("text") not in expected:
                found.setdefault(text, "raises" if "error" in result else "changes the rest of the prompt")
        for what in dict.fromkeys(found.values()):
            texts = [repr(text) for text, does in found.items() if does == what]
            more = f" and {len(texts) - 8} other texts" if len(texts) > 8 else ""
            self.warnings.append(f"{what} when the user's message contains {' or '.join(texts[:8])}{more}")


class _Splitter:
    """Cuts texts into markers (known tokens among them, as far as `sample` holds them) and what is between them."""

    def __init__(self, tokens: Iterable[str], sample: str) -> None:
        known = sorted({token for token in tokens if token.strip() and token in sample}, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join([*map(re.escape, known), _MARKER])})")

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Pieces of the text, each with whether it is a marker."""
        # `re.split` gives the groups at odd places.
        return [(piece, index % 2 == 1) for index, piece in enumerate(self._pattern.split(text)) if piece]

    def first(self, text: str) -> str | None:
        """The marker that the text begins with, after white space."""
        pieces = self.split(text.lstrip())
        return pieces[0][0] if pieces and pieces[0][1] else None


def _between(text: str, start: str, end: str) -> str:
    rest = text.partition(start)[2]
    return rest.partition(end)[0] if end in rest else ""


def _user(text: str = _USER) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _probes() -> dict[str, _Spec]:
    # name → messages and what differs from the defaults
    talk = [_user(), {"role": "assistant", "content": _REPLY}, _user(_USER2), {"role": "assistant", "content": _REPLY2}]
    return {
        "user": ([_user()], {}),
        "system": ([_SYSTEM_MESSAGE, _user()], {}),
        "talk": (talk, {"add_generation_prompt": False}),
        "talk-next": ([*talk[:3]], {}),
        "tools": ([_user()], {"tools": _TOOLS}),
        "tools-system": ([_SYSTEM_MESSAGE, _user()], {"tools": _TOOLS}),
        "two-users": ([_user(), _user(_USER2)], {}),
        "parts": ([{"role": "user", "content": [{"type": "text", "text": _USER}]}], {}),
        "clock": ([_user()], {"now": "format"}),
        "early": ([_SYSTEM_MESSAGE, _user()], {"now": _EARLY, "tools": _TOOLS}),
        "late": ([_SYSTEM_MESSAGE, _user()], {"now": _LATE, "tools": _TOOLS}),
        "early-user": ([_user()], {"now": _EARLY}),
        "late-user": ([_user()], {"now": _LATE}),
    }
