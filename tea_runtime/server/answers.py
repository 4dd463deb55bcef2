"""Results of a backend in the forms of OpenAI's API: choices, usage, log probabilities, events of a stream."""

from __future__ import annotations

import itertools
import json
import time
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tea_runtime.backend import LlmCallResult


class AnswerForm:
    def __init__(self, model: str, *, chat: bool) -> None:
        self._chat = chat
        self._object, self._chunk = ("chat.completion", "chat.completion.chunk") if chat else ("text_completion",) * 2
        self._head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, results: Sequence[LlmCallResult]) -> dict[str, Any]:
        return {
            **self._head,
            "object": self._object,
            "choices": [self._choice(result, index) for index, result in enumerate(results)],
            **_figures(results),
        }

    def begin(self, index: int) -> str:
        """The event before the first piece of a chat's answer."""
        return self._event(index, {"role": "assistant", "content": ""}) if self._chat else ""

    def piece(self, index: int, text: str) -> str:
        return self._event(index, {"content": text} if self._chat else {"text": text})

    def end(self, index: int, result: LlmCallResult) -> Iterator[str]:
        """The events of what comes at the end of an answer."""
        for place, call in enumerate(result.tool_calls or ()):
            yield self._event(index, {"tool_calls": [{**call, "index": place}]})
        last: dict[str, Any] = {} if self._chat else {"text": ""}
        yield self._event(index, last, result.finish_reason, logprobs=self._logprobs(result))

    def usage(self, results: Sequence[LlmCallResult]) -> str:
        return event({**self._head, "object": self._chunk, "choices": [], **_figures(results)})

    def _event(self, index: int, part: Mapping[str, Any], reason: str | None = None, **more: Any) -> str:
        content = {"delta": part} if self._chat else part
        choice = {"index": index, "finish_reason": reason, **content, **more}
        return event({**self._head, "object": self._chunk, "choices": [choice]})

    def _choice(self, result: LlmCallResult, index: int) -> dict[str, Any]:
        data = {"index": index, "finish_reason": result.finish_reason, "logprobs": self._logprobs(result)}
        if not self._chat:
            return data | {"text": result.content}
        message: dict[str, Any] = {"role": "assistant", "content": result.content}
        if result.tool_calls:
            message |= {"tool_calls": list(result.tool_calls), "content": result.content or None}
        return data | {"message": message}

    def _logprobs(self, result: LlmCallResult) -> Mapping[str, Any] | None:
        if result.logprobs is None or self._chat:
            return result.logprobs
        entries = result.logprobs["content"]
        tokens = [entry["token"] for entry in entries]
        return {
            "tokens": tokens,
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in entries],
            "text_offset": list(itertools.accumulate(map(len, tokens[:-1]), initial=0))[: len(tokens)],
        }


def _figures(results: Sequence[LlmCallResult]) -> dict[str, Any]:
    """The tokens of all answers together, and llama-server's timings where there is one answer."""
    keys = ("prompt_tokens", "completion_tokens", "total_tokens")
    usage: dict[str, Any] = {key: sum((result.usage or {}).get(key, 0) for result in results) for key in keys}
    cached = sum((result.usage or {}).get("cached_tokens", 0) for result in results)
    usage["prompt_tokens_details"] = {"cached_tokens": cached}
    timings = results[0].timings if len(results) == 1 else None
    return {"usage": usage} | ({"timings": dict(timings)} if timings else {})


def event(document: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(document)}\n\n"
