"""What OpenAI clients ask for, as parameters of a backend; what can't be done is refused, not ignored."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tea_models.errors import UsageError
from tea_runtime.backend import LlmCallParams, check_messages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tea_runtime.backend import LlmCallResult

DEFAULT_TEMPERATURE = 0.7
# OpenAI's old endpoint writes 16 tokens unless told otherwise.
DEFAULT_COMPLETION_TOKENS = 16
_OPTIONS = (
    "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "seed", "response_format",
    "grammar",
)  # fmt: skip
# Key → values that ask for nothing special.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logit_bias": (None, {}),
    "audio": (None,),
    "prediction": (None,),
    "functions": (None, []),
    "modalities": (None, ["text"]),
}


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A completion that is asked for.

    Attributes:
        messages: The conversation, or None for raw prompts.
        params: One for each prompt; of a chat exactly one.
        stream: Whether the answer comes in pieces.
        usage: Whether a stream ends with the usage.
    """

    messages: list[dict[str, Any]] | None
    params: Sequence[LlmCallParams]
    stream: bool
    usage: bool

    @property
    def chat_options(self) -> dict[str, Any]:
        """The parameters as keyword arguments of `stream_chat`."""
        one = self.params[0]
        names = (
            *_OPTIONS,
            "stop",
            "max_tokens",
            "temperature",
            "tools",
            "tool_choice",
            "logprobs",
            "chat_template_kwargs",
        )
        return {name: getattr(one, name) for name in names}


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
    return _request(body, messages, [LlmCallParams(prompt="", **options)])


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
    if body.get("stream") and len(prompts) > 1:
        raise UsageError("stream: expected one prompt, found a list of several")
    return _request(body, None, [LlmCallParams(prompt=prompt, **options) for prompt in prompts])


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


def choice(result: LlmCallResult, index: int, *, chat: bool) -> dict[str, Any]:
    """A result as one of the `choices` of an answer."""
    data: dict[str, Any] = {"index": index, "finish_reason": result.finish_reason, "logprobs": result.logprobs}
    if not chat:
        return data | {"text": result.content}
    message: dict[str, Any] = {"role": "assistant", "content": result.content}
    if result.tool_calls:
        message |= {"tool_calls": list(result.tool_calls), "content": result.content or None}
    return data | {"message": message}


def total_usage(results: Sequence[LlmCallResult]) -> dict[str, int]:
    """The tokens of all results together."""
    keys = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {key: sum((result.usage or {}).get(key, 0) for result in results) for key in keys}


def _request(
    body: Mapping[str, Any], messages: list[dict[str, Any]] | None, params: list[LlmCallParams]
) -> GenerationRequest:
    options = body.get("stream_options")
    usage = isinstance(options, Mapping) and bool(options.get("include_usage"))
    return GenerationRequest(messages, params, bool(body.get("stream")), usage)


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
