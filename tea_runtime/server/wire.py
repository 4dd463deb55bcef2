"""OpenAI's forms: what clients ask for, as parameters of a backend (what can't be done is refused), and the answers."""

from __future__ import annotations

import base64
import itertools
import json
import struct
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tea_models.errors import NotAvailableError, TeaModelsError, TemplateError, UsageError
from tea_runtime.backend import LlmCallParams, LlmCallResult, check_messages
from tea_runtime.errors import ApiError, ContextOverflowError, UnsupportedError
from tea_runtime.llama.prompt import joined_texts

# OpenAI's old endpoint writes 16 tokens unless told otherwise.
DEFAULT_COMPLETION_TOKENS = 16
# More answers to one prompt are hardly meant.
_MOST_CHOICES = 16
_OPTIONS = (
    "temperature", "stop", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "seed",
    "response_format", "grammar",
)  # fmt: skip
# Key → values that ask for nothing special.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logit_bias": (None, {}),
    "audio": (None,),
    "prediction": (None,),
    "functions": (None, []),
    "modalities": (None, ["text"]),
}


class NotAuthenticatedError(UsageError): ...


class NotServedError(UsageError): ...


class TooLargeError(UsageError): ...


# The first that fits: HTTP status, OpenAI's type and code.
_DOCUMENTS: tuple[tuple[type[TeaModelsError], int, str, str | None], ...] = (
    (ContextOverflowError, 400, "invalid_request_error", "context_length_exceeded"),
    (NotAuthenticatedError, 401, "invalid_request_error", "invalid_api_key"),
    (NotServedError, 404, "invalid_request_error", "model_not_found"),
    (TooLargeError, 413, "invalid_request_error", None),
    (UsageError, 400, "invalid_request_error", None),
    (UnsupportedError, 400, "invalid_request_error", None),
    (TemplateError, 400, "invalid_request_error", None),
    (ApiError, 502, "upstream_error", None),
    (NotAvailableError, 503, "server_error", None),
    (TeaModelsError, 500, "server_error", None),
)
#: Answers that are asked for: a pair of parameters and messages (None for a raw prompt) for each choice.
Asked = Sequence[tuple[LlmCallParams, Sequence[Mapping[str, Any]] | None]]


def chat_request(body: Mapping[str, Any]) -> Asked:
    """Read the body of `/v1/chat/completions`."""
    messages = check_messages(body.get("messages", ()))
    for index, message in enumerate(messages):
        if isinstance(message.get("content"), list):
            message["content"] = joined_texts(message["content"], index)
    options = {key: body.get(key) for key in ("tools", "tool_choice", "chat_template_kwargs")}
    options["max_tokens"] = body.get("max_completion_tokens", body.get("max_tokens"))
    if body.get("logprobs"):
        options["logprobs"] = body.get("top_logprobs") or True
    return _request(body, [("", messages)], options)


def completion_request(body: Mapping[str, Any]) -> Asked:
    """Read the body of `/v1/completions`."""
    prompts = _texts("prompt", body.get("prompt", ""))
    options = {"max_tokens": body.get("max_tokens", DEFAULT_COMPLETION_TOKENS), "logprobs": body.get("logprobs")}
    return _request(body, [(prompt, None) for prompt in prompts], options)


def _request(
    body: Mapping[str, Any], asked: list[tuple[str, list[dict[str, Any]] | None]], options: dict[str, Any]
) -> Asked:
    for key, harmless in _REFUSED.items():
        if body.get(key) not in harmless:
            raise UsageError(f"{key}: not possible here, found {body[key]!r}")
    count = 1 if body.get("n") is None else body["n"]
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _MOST_CHOICES:
        raise UsageError(f"n: expected a number from 1 to {_MOST_CHOICES}, found {count!r}")
    options |= {key: body[key] for key in _OPTIONS if body.get(key) is not None}
    return [
        (_varied(LlmCallParams(prompt=prompt, **options), place), messages)
        for prompt, messages in asked
        for place in range(count)
    ]


def wants_usage(body: Mapping[str, Any]) -> bool:
    streamed = body.get("stream_options")
    return isinstance(streamed, Mapping) and bool(streamed.get("include_usage"))


def _varied(params: LlmCallParams, place: int) -> LlmCallParams:
    """The parameters for one of several choices: with a seed, each has one of its own."""
    return params if params.random or not place else replace(params, seed=(params.seed or 0) + place)


def rerank_texts(body: Mapping[str, Any]) -> tuple[str, list[str]]:
    query, documents, top_n = body.get("query"), body.get("documents"), body.get("top_n")
    if not isinstance(query, str):
        raise UsageError("query: expected a text")
    if isinstance(documents, list):
        documents = [one.get("text") if isinstance(one, Mapping) else one for one in documents]
    if top_n is not None and (isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1):
        raise UsageError(f"top_n: expected a number from 1, found {top_n!r}")
    return query, _texts("documents", documents)


def rerank_results(scores: list[float], documents: list[str], body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The best documents first, as many as a client asked for."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.get("top_n")]
    texts = bool(body.get("return_documents"))
    return [
        {"index": index, "relevance_score": scores[index]} | ({"document": {"text": documents[index]}} if texts else {})
        for index in order
    ]


def embedding_texts(body: Mapping[str, Any]) -> list[str]:
    if body.get("encoding_format", "float") not in ("float", "base64"):
        raise UsageError(f"encoding_format: expected float or base64, found {body['encoding_format']!r}")
    return _texts("input", body.get("input"))


def embedding_data(vectors: list[list[float]], body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Vectors in the form that a client asked for; a UsageError if it wants another number of dimensions."""
    wanted = body.get("dimensions")
    if wanted is not None and wanted != len(vectors[0]):
        raise UsageError(f"dimensions: the model has {len(vectors[0])}, asked for {wanted!r}")
    packed = body.get("encoding_format") == "base64"
    return [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if packed else vector,
        }
        for index, vector in enumerate(vectors)
    ]


def _texts(key: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{key}: expected a text or a list of texts")
    return texts


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


def error_document(error: TeaModelsError) -> tuple[int, dict[str, Any]]:
    _, status, kind, code = next(row for row in _DOCUMENTS if isinstance(error, row[0]))
    return status, failure(str(error), kind, code)


def failure(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
