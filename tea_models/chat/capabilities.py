"""What a chat template can do, found by running it on probe messages, never by its name."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tea_models.chat.probes import (
    KEY,
    NOON,
    REPLY,
    REPLY2,
    RESULT,
    SYSTEM,
    SYSTEM_MESSAGE,
    TOOL,
    USER,
    USER2,
    VALUE,
    Spec,
    probes,
    user,
)
from tea_models.chat.rendering import job, template_error
from tea_models.chat.sandbox import SANDBOX, Limits
from tea_models.chat.special_tokens import SpecialTokenSplitter, format_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_LIMITS = Limits(seconds=2.0, output=262_144)

_SWITCH = re.compile(r"think|thought|reason", re.IGNORECASE)
_ROLE_HEADER = re.compile(r"\A\s*(?:system|developer|System|SYSTEM|user)(?:\n|:|\Z)")
_MANY_LITERALS = 120


@dataclass(frozen=True, slots=True)
class TemplateCapabilities:
    """What a template does with messages.

    Attributes:
        format: A name for people, by the special texts it writes (`chatml`, `gemma`, `phi`, …, or `custom`).
        system_role: A system message's text gets into the prompt.
        tools: The `tools` variable gets into the prompt.
        stop: Texts that end the assistant's turn.
        thinking: Name of the variable that switches thinking on or off, or None.
        default_system_prompt: What it puts in when there is no system message, or None; a date is shown as
            `{now:FORMAT}`.
        emits_bos: The prompt begins with the BOS token's text.
        generation_prompt: What `add_generation_prompt` adds.
        warnings: What is unusual, a sentence each.
        system: `rendered`, `folded` (into the first user turn), `dropped` or `raises`.
        tool_calls: Calls in the assistant's messages get into the prompt.
        tool_results: Messages of the role `tool` get into the prompt.
        tool_arguments: How calls want their arguments: `object`, `text` (JSON), or None where there are no calls.
        alternating: It raises, or loses text, unless user and assistant take turns.
        content_parts: A content that is a list of parts is rendered.
        time_dependent: The clock changes the prompt.
        renders: It renders a plain conversation at all.
    """

    format: str
    system_role: bool = False
    tools: bool = False
    stop: tuple[str, ...] = ()
    thinking: str | None = None
    default_system_prompt: str | None = None
    emits_bos: bool = False
    generation_prompt: str = ""
    warnings: tuple[str, ...] = ()
    system: str = "dropped"
    tool_calls: bool = False
    tool_results: bool = False
    tool_arguments: str | None = None
    alternating: bool = False
    content_parts: bool = False
    time_dependent: bool = False
    renders: bool = True


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

    Raises:
        TemplateError: The worker process can't be started.
    """
    return _Probe(template, bos_token, eos_token, tuple(token_texts)).run()


class _Probe:
    def __init__(self, template: str, bos: str, eos: str, tokens: Sequence[str]) -> None:
        self.template = template
        self.bos = bos
        self.eos = eos
        self.tokens = tokens
        self.texts: dict[str, str] = {}
        self.errors: dict[str, Mapping[str, Any]] = {}
        self.warnings: list[str] = []
        self.only_parts = False

    def run(self) -> TemplateCapabilities:
        found = self._first_round()
        if isinstance(found, TemplateCapabilities):
            return found
        if USER not in self.texts.get("user", USER) and USER in self.texts.get("parts", ""):
            self.warnings.append("takes a content only as a list of parts, not as text")
            self.only_parts = True
            self.texts.clear()
            self.errors.clear()
            found = self._first_round()
        return found if isinstance(found, TemplateCapabilities) else self._judge(found)

    def _first_round(self) -> TemplateCapabilities | Mapping[str, Any]:
        """Render the probes; give back what the source says, or capabilities of a template that renders nothing."""
        specs = probes()
        reply = self._ask(list(specs.values()), analyse=True)
        analysis = reply.get("analysis")
        failed = analysis if analysis is not None and "error" in analysis else None
        if failed is None and len(reply["results"]) != len(specs):
            failed = reply["results"][0]
        if failed is not None or analysis is None:
            return self._useless(failed or {"error": "", "kind": "crash", "line": None})
        for name, result in zip(specs, reply["results"], strict=True):
            if "error" in result:
                self.errors[name] = result
            else:
                self.texts[name] = result["text"]
        if "user" not in self.texts and "system" not in self.texts:
            return self._useless(self.errors["user"])
        return dict(analysis)

    def _ask(self, specs: Sequence[Spec], *, analyse: bool = False) -> dict[str, Any]:
        request = {"template": self.template, "analyse": analyse, "jobs": [self._job(*spec) for spec in specs]}
        return SANDBOX.request(request, _LIMITS)

    def _job(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> dict[str, Any]:
        variables = dict(options)
        if self.only_parts:
            messages = [
                {**message, "content": [{"type": "text", "text": message["content"]}]}
                if isinstance(message["content"], str)
                else message
                for message in messages
            ]
        return job(
            messages,
            tools=variables.pop("tools", None),
            bos_token=self.bos,
            eos_token=self.eos,
            add_generation_prompt=variables.pop("add_generation_prompt", True),
            now=variables.pop("now", NOON),
            variables=variables,
        )

    def _useless(self, result: Mapping[str, Any]) -> TemplateCapabilities:
        error = template_error(result, _LIMITS)
        return TemplateCapabilities("custom", renders=False, warnings=(f"{error.message} (on a plain message)",))

    def _judge(self, analysis: Mapping[str, Any]) -> TemplateCapabilities:
        sample = "\n".join(self.texts.values())
        splitter = SpecialTokenSplitter((*self.tokens, self.bos, self.eos), sample)
        base = "user" if "user" in self.texts else "system"
        if base == "system":
            self.warnings.append("raises without a system message")
        if USER not in self.texts[base]:
            self.warnings.append("does not render the user's text")
        system = self._system()
        tools = any(TOOL in self.texts.get(name, "") for name in ("tools", "tools-system"))
        shown = self.texts.get("tools-in-message", "")
        # A template that writes whole messages, with the names of their parts, knows nothing of tools.
        if not tools and TOOL in shown and "'tools'" not in shown and '"tools"' not in shown:
            self.warnings.append(
                "ignores the variable `tools`: it wants them as JSON text under `tools` of the system message"
            )
        stop = self._stop(splitter)
        alternating = self._alternating()
        timed = any(self._outcome(f"early{end}") != self._outcome(f"late{end}") for end in ("", "-user"))
        if timed:
            self.warnings.append("puts the date or time into the prompt: the same messages give another text later")
        if analysis["private"]:
            names = ", ".join(map(repr, analysis["private"]))
            self.warnings.append(f"reaches for Python's internals ({names[:200]}), which no chat format needs")
        if set(analysis["calls"]) & {"random", "lipsum"}:
            self.warnings.append("uses random text: the same messages may give another prompt each time")
        found = TemplateCapabilities(
            format=format_name(sample),
            system_role=system in ("rendered", "folded"),
            system=system,
            tools=tools,
            stop=stop,
            default_system_prompt=self._default_prompt(splitter),
            emits_bos=bool(self.bos) and self.texts[base].startswith(self.bos),
            generation_prompt=self._generation_prompt(splitter),
            alternating=alternating,
            content_parts=_is_plain(self.texts.get("parts", ""), USER, "'type'"),
            time_dependent=timed,
            **self._tool_turns(),
        )
        thinking = self._second_round(analysis, base)
        return replace(found, thinking=thinking, warnings=tuple(self.warnings))

    def _outcome(self, name: str) -> str:
        return self.texts[name] if name in self.texts else "error: " + str(self.errors[name]["error"])

    def _system(self) -> str:
        text = self.texts.get("system")
        if text is None:
            self.warnings.append(f"raises on a system message: {_reason(self.errors['system'])}")
            return "raises"
        if SYSTEM not in text:
            self.warnings.append("drops system messages silently")
            return "dropped"
        plain = self.texts.get("user", "")
        header = plain[: plain.find(USER)] if USER in plain else ""
        folded = bool(header.removeprefix(self.bos)) and text.startswith(header + SYSTEM) and USER in text
        return "folded" if folded and "<" not in _between(text, SYSTEM, USER) else "rendered"

    def _alternating(self) -> bool:
        text = self.texts.get("two-users")
        if text is None:
            self.warnings.append(f"raises unless user and assistant take turns: {_reason(self.errors['two-users'])}")
            return True
        if USER not in text or USER2 not in text:
            self.warnings.append("loses text when two messages of the user follow each other")
            return True
        return False

    def _tool_turns(self) -> dict[str, Any]:
        calls = self.texts.get("calls", "")
        as_text = self.texts.get("calls-text", "")
        object_works = _is_plain(calls, VALUE, "{'" + KEY)
        text_works = _is_plain(as_text, VALUE, '\\"' + KEY)
        return {
            "tool_calls": object_works or text_works,
            "tool_results": RESULT in calls or RESULT in as_text,
            "tool_arguments": "object" if object_works else "text" if text_works else None,
        }

    def _stop(self, splitter: SpecialTokenSplitter) -> tuple[str, ...]:
        """What follows the assistant's text: at the end of a conversation, or before the next user's turn."""
        tails = []
        talk = self.texts.get("talk", "")
        if REPLY2 in talk:
            tails.append(talk.rpartition(REPLY2)[2])
        elif REPLY in self.texts.get("turn", ""):
            tails.append(self.texts["turn"].rpartition(REPLY)[2])
        between = _between(talk or self.texts.get("talk-next", ""), REPLY, USER2)
        tails.append(between)
        for tail in tails:
            marker = splitter.first(tail)
            if marker is not None:
                if self.tokens and marker not in self.tokens and marker != self.eos:
                    self.warnings.append(f"ends a turn with {marker!r}, which is no token of this vocabulary")
                # gpt-oss ends a call to a tool with a token of its own.
                more = ("<|call|>",) if "<|channel|>" in talk and marker != "<|call|>" else ()
                return (marker, *more)
        if not talk:
            self.warnings.append(
                "does not render a conversation of several turns"
                + (f": {_reason(self.errors['talk'])}" if "talk" in self.errors else "")
            )
            return ()
        header = between.strip()
        if not header:
            self.warnings.append("nothing marks the end of a turn: generation stops only at the end-of-text token")
            return ()
        return (("\n" if between.startswith("\n") else "") + header,)

    def _generation_prompt(self, splitter: SpecialTokenSplitter) -> str:
        if "user" not in self.texts or "user-open" not in self.texts:
            return ""
        opened = splitter.split(self.texts["user"].rpartition(USER)[2])
        closed = splitter.split(self.texts["user-open"].rpartition(USER)[2])
        same = _common(opened, closed)
        rest = "".join(piece for piece, _ in opened[same:])
        if same < len(opened) and same < len(closed) and not opened[same][1] and not closed[same][1]:
            return rest[_common(opened[same][0], closed[same][0]) :]
        return rest

    def _default_prompt(self, splitter: SpecialTokenSplitter) -> str | None:
        """Text before the first user turn beyond what stands before a later one."""
        text = self.texts.get("clock", self.texts.get("user", ""))
        later = _between(self.texts.get("talk", "") or self.texts.get("talk-next", ""), REPLY, USER2)
        before = text[: text.find(USER)] if USER in text else ""
        words = []
        after_marker = True
        for piece, is_marker in _without_end(splitter.split(before), splitter.split(later)):
            if not is_marker:
                words.append(_ROLE_HEADER.sub("", piece) if after_marker else piece)
            after_marker = is_marker
        prompt = "".join(words).strip()
        return prompt if any(character.isalpha() for character in prompt) else None

    def _second_round(self, analysis: Mapping[str, Any], base: str) -> str | None:
        """Switches of thinking, and literals in the user's text that change what stands around it."""
        names = sorted(
            [name for name in analysis["variables"] if _SWITCH.search(name)][:8],
            key=lambda name: (name != "enable_thinking", "effort" in name),
        )
        literals = [text for text in analysis["literals"] if text.strip()][:_MANY_LITERALS]
        before = [SYSTEM_MESSAGE] if base == "system" else []
        specs: list[Spec] = []
        for name in names:
            on, off = ("high", "low") if "effort" in name else (True, False)
            specs += [([*before, user()], {name: value}) for value in (on, off)]
        contents = [
            content
            for text in literals
            for content in (text, f"{USER} {text} {USER}", f"{text} {USER}", f"{USER} {text}")
        ]
        specs += [([*before, user(content)], {}) for content in contents]
        if not specs:
            return None
        results = self._ask(specs)["results"]
        if len(results) != len(specs):
            self.warnings.append(
                f"{template_error(results[0], _LIMITS).message} (with some text in the user's message)"
            )
            return None
        outcomes = [result.get("text", result) for result in results]
        thinking = next(
            (name for index, name in enumerate(names) if outcomes[2 * index] != outcomes[2 * index + 1]), None
        )
        self._injections(literals, contents, outcomes[2 * len(names) :], self.texts[base])
        return thinking

    def _injections(self, literals: list[str], contents: list[str], outcomes: list[Any], plain: str) -> None:
        found: dict[str, list[str]] = {}
        for index, literal in enumerate(literals):
            for content, outcome in zip(
                contents[4 * index : 4 * index + 4], outcomes[4 * index : 4 * index + 4], strict=True
            ):
                if isinstance(outcome, str) and outcome in (
                    plain.replace(USER, content),
                    plain.replace(USER, content.strip()),
                ):
                    continue
                what = "changes the rest of the prompt" if isinstance(outcome, str) else "raises"
                found.setdefault(what, []).append(repr(literal))
                break
        for what, texts in found.items():
            more = f" and {len(texts) - 8} other texts" if len(texts) > 8 else ""
            self.warnings.append(f"{what} when the user's message contains {' or '.join(texts[:8])}{more}")


def _between(text: str, start: str, end: str) -> str:
    rest = text.partition(start)[2]
    return rest.partition(end)[0] if end in rest else ""


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def _without_end(pieces: list[tuple[str, bool]], end: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Pieces less what they end with in common with `end`: whole markers, and texts character by character."""
    same = _common(pieces[::-1], end[::-1])
    rest, other = pieces[: len(pieces) - same], end[: len(end) - same]
    if rest and other and not rest[-1][1] and not other[-1][1]:
        text = rest[-1][0]
        return [*rest[:-1], (text[: len(text) - _common(text[::-1], other[-1][0][::-1])], False)]
    return rest


def _is_plain(text: str, wanted: str, unwanted: str) -> bool:
    return wanted in text and unwanted not in text


def _reason(result: Mapping[str, Any]) -> str:
    message = str(result["error"]) or str(result["kind"])
    return message if len(message) <= 200 else message[:200] + "…"
