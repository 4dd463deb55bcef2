"""What OpenAI clients ask for, as parameters of a backend; what can't be done is refused, not ignored."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tea_models.errors import UsageError
from tea_runtime.backend import LlmCallParams, check_messages

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_TEMPERATURE = 0.7
# OpenAI's old endpoint writes 16 tokens unless told otherwise.
DEFAULT_COMPLETION_TOKENS = 16
_OPTIONS = (
    "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "seed", "response_format",
    "grammar",
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


# More answers to one prompt are hardly meant.
_MOST_CHOICES = 16


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Answers that are asked for.

    Attributes:
        model: Name of the model, as it was sent.
        asked: A pair of parameters and messages (None for a raw prompt) for each choice.
        chat: They are answers to messages.
        stream: Whether they come in pieces.
        usage: Whether a stream ends with the usage.
    """

    model: Any
    asked: Sequence[tuple[LlmCallParams, Sequence[Mapping[str, Any]] | None]]
    chat: bool
    stream: bool
    usage: bool


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """Scores that are asked for.

    Attributes:
        model: Name of the model, as it was sent.
        query: What the documents are scored against.
        documents: The documents.
        top_n: How many of the best are wanted; None for all.
        return_documents: Whether their texts are sent back.
    """

    model: Any
    query: str
    documents: list[str]
    top_n: int | None
    return_documents: bool


def chat_request(body: Mapping[str, Any]) -> GenerationRequest:
    """Read the body of `/v1/chat/completions`.

    Raises:
        UsageError: Something is missing, wrong, or asked for that can't be done.
    """
    _check_refused(body)
    messages = [_flat(message) for message in check_messages(body.get("messages", ()))]
    options = _options(body)
    options["max_tokens"] = body.get("max_completion_tokens", body.get("max_tokens"))
    for key in ("tools", "tool_choice", "chat_template_kwargs"):
        options[key] = body.get(key)
    if body.get("logprobs"):
        options["logprobs"] = body.get("top_logprobs") or True
    return _request(body, [(LlmCallParams(prompt="", **options), messages)], chat=True)


def completion_request(body: Mapping[str, Any]) -> GenerationRequest:
    """Read the body of `/v1/completions`; raises as `chat_request` does."""
    _check_refused(body)
    prompts = body.get("prompt", "")
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(prompts, list) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise UsageError("prompt: expected a text or a list of texts")
    options = _options(body)
    options["max_tokens"] = body.get("max_tokens", DEFAULT_COMPLETION_TOKENS)
    options["logprobs"] = body.get("logprobs")
    return _request(body, [(LlmCallParams(prompt=prompt, **options), None) for prompt in prompts], chat=False)


def rerank_request(body: Mapping[str, Any]) -> RerankRequest:
    """Read the body of `/v1/rerank`; raises as `chat_request` does."""
    query, documents, top_n = body.get("query"), body.get("documents"), body.get("top_n")
    if not isinstance(query, str) or not query:
        raise UsageError("query: expected a text")
    if not isinstance(documents, list) or not documents:
        raise UsageError("documents: expected a list of texts")
    texts: list[Any] = [one.get("text") if isinstance(one, Mapping) else one for one in documents]
    if not all(isinstance(text, str) and text for text in texts):
        raise UsageError('documents: expected texts, or objects such as {"text": "…"}')
    if top_n is not None and (isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1):
        raise UsageError(f"top_n: expected a number from 1, found {top_n!r}")
    return RerankRequest(body.get("model"), query, texts, top_n, bool(body.get("return_documents")))


def embedding_texts(body: Mapping[str, Any]) -> list[str]:
    """Read the body of `/v1/embeddings`; raises as `chat_request` does."""
    texts = body.get("input")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UsageError("input: expected a text or a list of texts")
    if body.get("encoding_format", "float") not in ("float", "base64"):
        raise UsageError(f"encoding_format: expected float or base64, found {body['encoding_format']!r}")
    return texts


def embedding_data(vectors: list[list[float]], body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Vectors in the form that a client asked for.

    Raises:
        UsageError: It wants another number of dimensions.
    """
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


def _request(
    body: Mapping[str, Any], asked: list[tuple[LlmCallParams, list[dict[str, Any]] | None]], *, chat: bool
) -> GenerationRequest:
    count = body.get("n")
    count = 1 if count is None else count
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _MOST_CHOICES:
        raise UsageError(f"n: expected a number from 1 to {_MOST_CHOICES}, found {count!r}")
    options = body.get("stream_options")
    usage = isinstance(options, Mapping) and bool(options.get("include_usage"))
    choices = [(_varied(params, place), messages) for params, messages in asked for place in range(count)]
    return GenerationRequest(body.get("model"), choices, chat, bool(body.get("stream")), usage)


def _varied(params: LlmCallParams, place: int) -> LlmCallParams:
    """The parameters for one of several choices: with a seed, each has one of its own."""
    return params if params.random or not place else replace(params, seed=(params.seed or 0) + place)


def _options(body: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {key: body.get(key) for key in _OPTIONS}
    temperature = body.get("temperature")
    return options | {
        "temperature": DEFAULT_TEMPERATURE if temperature is None else temperature,
        "stop": body.get("stop"),
    }


def _check_refused(body: Mapping[str, Any]) -> None:
    for key, harmless in _REFUSED.items():
        if body.get(key) not in harmless:
            raise UsageError(f"{key}: not possible here, found {body[key]!r}")


def _flat(message: dict[str, Any]) -> dict[str, Any]:
    """Content in parts becomes a text; parts that are no text are refused."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise UsageError(f"messages: expected parts of type text, found {kind!r}")
        texts.append(part["text"])
    return message | {"content": "".join(texts)}
