"""What is asked of a model, and what it answers: parameters, results, streams, their checks, and ending them."""

from __future__ import annotations

import contextvars
import math
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from tea_models.errors import UsageError
from tea_models.yamlfile import nearest
from tea_runtime.errors import CancelledCallError, LlmError

if TYPE_CHECKING:
    from tea_models.plan.types import RunPlan

Message = Mapping[str, Any]
#: Gets each piece of text as it comes. What it raises ends the stream and reaches the caller.
Callback = Callable[[str], object]
_current: contextvars.ContextVar[CancelScope | None] = contextvars.ContextVar("tea_runtime_cancel_scope", default=None)

# name → (smallest, largest) of what makes sense at all; a backend may be stricter.
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (1e-3, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "seed": (-(2**63), 2**63 - 1),
    "max_tokens": (0, 2**31 - 1),
    "timeout": (0.0, 1e9),
}
_WHOLE = {"top_k", "seed", "max_tokens"}
_SHAPES: dict[str, tuple[Any, str]] = {
    "stop": (str | Sequence, "a text or a list of texts"),
    "response_format": (Mapping, "a mapping"),
    "chat_template_kwargs": (Mapping, "a mapping"),
    "grammar": (str, "a text in GBNF"),
    "tools": (Sequence, "a list of tools in OpenAI's form"),
    "tool_choice": (str | Mapping, "auto, none, required or a function"),
    "logprobs": (int, "true, false or a number from 0 to 20"),
}


@dataclass(frozen=True, slots=True)
class LlmCallParams:
    """What to generate and how. Checked when it is made.

    Attributes:
        prompt: The text as it goes to the model, without a chat template (ignored by the chat methods).
        max_tokens: Length of the answer at most; None goes on until the model stops or the context is full.
        temperature: 0 takes the most likely token each time.
        stop: Texts that end the answer; they are not part of it.
        top_p: Nucleus sampling; None leaves the backend's default.
        top_k: Sample from the k most likely tokens; 0 and -1 mean from all.
        min_p: Drop tokens less likely than this share of the most likely one.
        repeat_penalty: Over 1 makes repeats less likely, as llama.cpp does.
        presence_penalty: As in OpenAI's API.
        frequency_penalty: As in OpenAI's API.
        seed: The same seed gives the same answer on the same machine and settings; None and -1 mean any.
        response_format: As in OpenAI's API: `{"type": "text"}`, `{"type": "json_object"}`, or
            `{"type": "json_schema", "json_schema": {"schema": {…}}}`.
        grammar: A GBNF grammar that the answer must follow (local models only).
        tools: Tools in OpenAI's form (chat only).
        tool_choice: `auto`, `none`, `required`, or `{"type": "function", "function": {"name": …}}` (chat only).
        logprobs: True, or how many alternatives to report for each token.
        chat_template_kwargs: Further variables for the chat template, such as `enable_thinking` (chat only).
        timeout: Seconds for the whole answer, waiting for others included; None for any time.
    """

    prompt: str
    max_tokens: int | None = 100
    temperature: float = 0.7
    stop: str | Sequence[str] | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    response_format: Mapping[str, Any] | None = None
    grammar: str | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: str | Mapping[str, Any] | None = None
    logprobs: bool | int | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise UsageError(f"prompt: expected a text, found {kind_of(self.prompt)}")
        for name, (least, most) in _RANGES.items():
            value, wanted = getattr(self, name), "a whole number" if name in _WHOLE else "a number"
            if value is None and name != "temperature":
                continue
            if isinstance(value, bool) or not isinstance(value, int if name in _WHOLE else int | float):
                raise UsageError(f"{name}: expected {wanted}, found {value!r}")
            if not math.isfinite(value) or not least <= value <= most:
                low, high = (f"{bound:,}" if isinstance(bound, int) else f"{bound:g}" for bound in (least, most))
                raise UsageError(f"{name}: expected {wanted} from {low} to {high}, found {value}")
        _check_shapes(self)

    @classmethod
    def of(cls, **options: Any) -> LlmCallParams:
        """Make parameters for a chat from the arguments of a method.

        Raises:
            UsageError: An option is unknown (the message names the nearest known one) or its value can't be used.
        """
        known = sorted(entry.name for entry in fields(cls) if entry.name != "prompt")
        for name in options.keys() - set(known):
            raise UsageError(f"unknown option {name!r}; {nearest(name, known)}")
        return cls("", **options)

    @property
    def random(self) -> bool:
        """Whether any seed will do: none is given, or -1, as llama.cpp's programs take it."""
        return self.seed is None or self.seed == -1

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


@dataclass(frozen=True, slots=True)
class LlmCallResult:
    """What a model answered.

    Attributes:
        content: The text, without stop texts and without tool calls that were recognised.
        model: Name of the model that answered.
        tokens_used: Tokens of the prompt and of the answer together, where known.
        finish_reason: `stop`, `length` or `tool_calls` (an API may have more).
        usage: `prompt_tokens`, `completion_tokens`, `total_tokens`, and what else the backend counts.
        backend: `local` or `api`: who really answered.
        tool_calls: In OpenAI's form, where there are any.
        logprobs: In OpenAI's form (`{"content": [{"token", "bytes", "logprob", "top_logprobs"}]}`), where asked for.
        plan: The settings a local model ran with.
        timings: Tokens and milliseconds of prompt and answer as llama-server names them, where they are measured.
        fallback_reason: Why the local model could not be used, where an API answered in its place.
    """

    content: str
    model: str
    tokens_used: int | None = None
    finish_reason: str | None = None
    usage: Mapping[str, int] | None = None
    backend: str = ""
    tool_calls: Sequence[Mapping[str, Any]] | None = None
    logprobs: Mapping[str, Any] | None = None
    plan: RunPlan | None = field(default=None, repr=False, compare=False)
    fallback_reason: str | None = None
    timings: Mapping[str, float] | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The result of an `llm.*` action: plain data, and only the optional keys that have a value."""
        always = ("content", "model", "backend", "tokens_used", "usage", "finish_reason")
        optional = ("tool_calls", "logprobs", "fallback_reason")
        names = [*always, *(name for name in optional if getattr(self, name))]
        return {name: getattr(self, name) for name in names}


class LlmStream(AbstractContextManager["LlmStream"]):
    """The pieces of an answer as they come. It is a context manager; leaving it ends the generation.

    Args:
        pieces: Yields the pieces; its value is the result.
        cancel: Ends the generation, from any thread.

    Example:
        >>> with backend.stream_chat(messages) as stream:
        ...     for piece in stream:
        ...         print(piece, end="", flush=True)
        >>> stream.result.usage["completion_tokens"]
        17
    """

    def __init__(self, pieces: Generator[str, None, LlmCallResult], cancel: Callable[[], None]) -> None:
        self._pieces = pieces
        #: Ends the generation, from any thread: whoever waits for a piece gets a `CancelledCallError`.
        self.cancel = cancel
        self._result: LlmCallResult | None = None
        self._ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except BaseException as end:
            self._ended = True
            if isinstance(end, StopIteration) and end.value is not None:
                self._result = end.value
            raise

    @property
    def result(self) -> LlmCallResult:
        """The whole answer; what has not come yet is waited for.

        Raises:
            LlmError: The stream was closed before its end.
        """
        for _ in self:
            pass
        if self._result is None:
            raise LlmError("the stream was closed before its end, so there is no result")
        return self._result

    def run(self, callback: Callback) -> LlmCallResult:
        """Hand every piece to `callback`; what that raises ends the generation."""
        with self:
            for piece in self:
                callback(piece)
            return self.result

    def close(self) -> None:
        """End the generation, from the thread that iterates."""
        if not self._ended:
            self._ended = True
            self.cancel()
            self._pieces.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._ended:
            self.cancel()


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Check OpenAI-style messages and copy them into plain dicts; the error says which one is wrong."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise UsageError(f"messages: expected a list of messages, found {kind_of(messages)}")
    if not messages:
        raise UsageError("messages: expected at least one message, found an empty list")
    plain = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UsageError(f"messages[{index}]: expected role and content, found {kind_of(message)}")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise UsageError(f"messages[{index}]: expected a role (system, user, assistant or tool), found {role!r}")
        content = message.get("content")
        if content is not None and not isinstance(content, str | list):
            raise UsageError(f"messages[{index}].content: expected a text, found {kind_of(content)}")
        if content is None and not message.get("tool_calls"):
            raise UsageError(f"messages[{index}]: expected content, found none")
        plain.append(dict(message))
    return plain


def check_texts(text: Any, name: str = "text") -> list[str]:
    """The texts of a call of `embed`: one text, or a list of texts; anything else is a `UsageError`."""
    texts = [text] if isinstance(text, str) else text
    if isinstance(texts, list | tuple) and all(isinstance(one, str) for one in texts):
        return list(texts)
    raise UsageError(f"{name}: expected a text or a list of texts, found {text!r:.60}")


def _check_shapes(params: LlmCallParams) -> None:
    for name, (kind, wanted) in _SHAPES.items():
        value = getattr(params, name)
        if value is not None and not isinstance(value, kind):
            raise UsageError(f"{name}: expected {wanted}, found {kind_of(value)}")
    for text in params.stops:
        if not isinstance(text, str) or not text:
            raise UsageError(f"stop: expected texts that are not empty, found {text!r}")
    tools = params.tools or ()
    if isinstance(tools, str | bytes) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UsageError("tools: expected a list of tools in OpenAI's form")
    if params.logprobs is not None and not 0 <= params.logprobs <= 20:
        raise UsageError(f"logprobs: expected true, false or a number from 0 to 20, found {params.logprobs!r}")
    if params.chat_template_kwargs:
        from tea_models.chat.rendering import OWN_NAMES

        for key in params.chat_template_kwargs:
            if not isinstance(key, str) or key in OWN_NAMES:
                raise UsageError(f"chat_template_kwargs: {key!r} can't be set for a template")


def kind_of(value: object) -> str:
    """What a value is, for messages."""
    return "nothing" if value is None else type(value).__name__


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of two vectors; 0 where one has no length."""
    length = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / length if length else 0.0


class CancelScope:
    """Everything that is asked of backends while it is entered, and can be ended together, from any thread.

    Example:
        >>> scope = CancelScope()
        >>> with scope.entered():
        ...     backend.chat(messages)  # raises CancelledCallError once another thread calls scope.cancel()
    """

    def __init__(self) -> None:
        self.cancelled = False
        self._lock = threading.Lock()
        self._enders: set[Callable[[], None]] = set()

    @contextmanager
    def entered(self) -> Iterator[CancelScope]:
        """Let this thread's calls be part of the scope."""
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)

    def cancel(self) -> None:
        """End what is running, and refuse what is asked for afterwards."""
        with self._lock:
            self.cancelled = True
            enders = list(self._enders)
        for end in enders:
            end()

    @contextmanager
    def running(self, end: Callable[[], None]) -> Iterator[None]:
        """Register a call, which `end` ends, for as long as it runs; raises as `check` does."""
        with self._lock:
            self.check()
            self._enders.add(end)
        try:
            yield
        finally:
            with self._lock:
                self._enders.discard(end)

    def check(self) -> None:
        """Raise a `CancelledCallError` if the scope was cancelled."""
        if self.cancelled:
            raise CancelledCallError("the call was cancelled")


def current_scope() -> CancelScope | None:
    """The scope that this thread's calls are part of, if any."""
    return _current.get()
