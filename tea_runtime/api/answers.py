"""What an OpenAI-compatible server sent, checked: an answer is either what was asked for or an `ApiError`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, Field, StrictFloat, ValidationError

from tea_runtime.answer_format import format_problem, wanted_schema
from tea_runtime.backend import LlmCallParams, LlmCallResult
from tea_runtime.errors import ApiError


def read_json(body: bytes, where: str) -> Mapping[str, Any]:
    """Parse the body of an answer; some servers report an error with status 200."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, Mapping):
        nonsense(where, "a JSON object", body)
    if data.get("error"):
        raise ApiError(f"{where}: {error_text(data)}")
    return data


def read_completion(data: Mapping[str, Any], where: str, params: LlmCallParams, model: str) -> LlmCallResult:
    """Turn a (chat) completion into a result; raises if it is not in the form that was asked for."""
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, Mapping):
        nonsense(where, "choices[0]", data)
    message = choice.get("message")
    if not isinstance(message, Mapping):
        message = {"content": choice.get("text")}
    content, calls = message.get("content"), _tool_calls(message, where, params)
    if content is None and message.get("refusal"):
        raise ApiError(f"{where}: the model refused: {message['refusal']}")
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        nonsense(where, "a text as the answer", choice)
    reason, asked = _text(choice.get("finish_reason")), params.response_format or {"type": "text"}
    schema = wanted_schema(asked)
    # Many servers accept `response_format` and ignore it; free text must not pass for JSON.
    problem = "" if schema is None or calls or reason == "length" else format_problem(content, schema)
    if problem:
        raise ApiError(
            f"{where}: asked for {asked['type']} and got something else: {problem}: {_shortened(content, 80)!r}",
            hint="the server does not enforce response_format; use one that does, or the local backend",
        )
    usage, logprobs = _usage(data.get("usage")), choice.get("logprobs")
    return LlmCallResult(
        content=content,
        model=_text(data.get("model")) or model,
        tokens_used=usage.get("total_tokens") if usage else None,
        finish_reason=reason,
        usage=usage,
        backend="api",
        tool_calls=calls,
        logprobs=logprobs if isinstance(logprobs, Mapping) else None,
    )


def _tool_calls(message: Mapping[str, Any], where: str, params: LlmCallParams) -> list[Mapping[str, Any]] | None:
    calls = message.get("tool_calls")
    if not calls:
        return None
    if not isinstance(calls, list) or not all(
        isinstance(call, Mapping) and isinstance(call.get("function"), Mapping) for call in calls
    ):
        nonsense(where, "a list of tool calls", calls)
    offered = [tool.get("function", {}).get("name") for tool in params.tools or ()]
    for call in calls:
        name = call["function"].get("name")
        if name not in offered:
            raise ApiError(f"{where}: the model called a tool that was not offered: {name!r}")
    return calls


@dataclass(slots=True)
class StreamedAnswer:
    """Puts the pieces of a stream together; those of a chat come in another place than those of a raw completion."""

    where: str
    chat: bool
    _texts: list[str] = field(default_factory=list)
    _calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    _logprobs: list[Any] = field(default_factory=list)
    _usage: Any = None
    _model: Any = None
    _reason: str | None = None

    def add(self, data: Any) -> str:
        """Take one event in and return the text it brings."""
        choices = data.get("choices") if isinstance(data, Mapping) else None
        if not isinstance(choices, list):
            nonsense(self.where, "an event with choices", data)
        self._model = data.get("model") or self._model
        self._usage = data.get("usage") or self._usage
        if not choices:  # the last event carries only the usage
            return ""
        choice = choices[0]
        if not isinstance(choice, Mapping):
            nonsense(self.where, "choices[0]", data)
        self._reason = _text(choice.get("finish_reason")) or self._reason
        part: Any = choice.get("delta") if self.chat else choice
        if not isinstance(part, Mapping):
            return ""
        text = part.get("content" if self.chat else "text") or ""
        if not isinstance(text, str):
            nonsense(self.where, "a text in the event", choice)
        for call in part.get("tool_calls") or ():
            self._add_call(call)
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, Mapping) and isinstance(logprobs.get("content"), list):
            self._logprobs += logprobs["content"]
        self._texts.append(text)
        return text

    def _add_call(self, part: Any) -> None:
        function = part.get("function") if isinstance(part, Mapping) else None
        if not isinstance(function, Mapping):
            nonsense(self.where, "a tool call", part)
        index = part.get("index")
        call = self._calls.setdefault(
            index if isinstance(index, int) else len(self._calls),
            {"id": "", "type": "function", "function": {"name": "", "arguments": ""}},
        )
        call["id"] = part.get("id") or call["id"]
        for key in ("name", "arguments"):
            call["function"][key] += function.get(key) or ""

    def finish(self, params: LlmCallParams, model: str) -> LlmCallResult:
        """The whole answer; raises where the stream ended before the answer did."""
        content = "".join(self._texts)
        if self._reason is None:
            raise ApiError(
                f"{self.where}: the stream ended before the answer did, after {len(content):,} characters",
                hint="the server or something on the way closed the connection; try again",
            )
        calls = [self._calls[index] for index in sorted(self._calls)]
        choice = {
            "message": {"content": content, "tool_calls": calls},
            "finish_reason": self._reason,
            "logprobs": {"content": self._logprobs} if self._logprobs else None,
        }
        return read_completion(
            {"choices": [choice], "usage": self._usage, "model": self._model}, self.where, params, model
        )


class _Vector(BaseModel):
    index: int | None = None
    embedding: Annotated[list[StrictFloat], Field(min_length=1)]


class _Vectors(BaseModel):
    data: list[_Vector]


def read_vectors(data: Mapping[str, Any], where: str, count: int) -> list[list[float]]:
    """The `count` vectors of an embedding answer, in the order of the texts."""
    try:
        items = _Vectors.model_validate(data).data
    except ValidationError:
        nonsense(where, "a list of embeddings, each a vector of numbers", data)
    if len(items) != count:
        raise ApiError(f"{where}: expected {count} embeddings, found {len(items)}")
    if len({len(item.embedding) for item in items}) > 1:
        raise ApiError(f"{where}: the embeddings have different lengths")
    # Where a server gives no index, the order is that of the texts: sorting keeps it.
    return [item.embedding for item in sorted(items, key=lambda item: item.index or 0)]


def error_text(body: Any) -> str:
    """The message in the body of an error, whatever form the server gave it."""
    if isinstance(body, Mapping):
        for key in ("error", "message", "detail"):
            if body.get(key):
                return error_text(body[key])
    return _shortened(str(body), 300) if body is not None else ""


def nonsense(where: str, expected: str, found: Any) -> NoReturn:
    """Raise for an answer that can't be understood."""
    text = found.decode("utf-8", "replace") if isinstance(found, bytes) else json.dumps(found, default=str)
    raise ApiError(
        f"{where}: the answer can't be understood: expected {expected}, found {_shortened(text, 120) or 'nothing'}",
        hint="check that api_base is the address of an OpenAI-compatible server (it mostly ends in /v1)",
    )


def _shortened(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "…"


def _usage(value: Any) -> dict[str, int] | None:
    if not isinstance(value, Mapping):
        return None
    return {key: number for key, number in value.items() if isinstance(number, int) and not isinstance(number, bool)}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
