"""What every backend does, whether the model runs here or behind an API: the abstract class, and its types again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import Any, ClassVar, Self, overload

from tea_models.errors import TeaModelsError
from tea_runtime.call import Callback, LlmCallParams, LlmCallResult, LlmStream, Message, check_messages, check_texts
from tea_runtime.errors import UnsupportedError

__all__ = ["Callback", "LlmBackend", "LlmCallParams", "LlmCallResult", "Message", "check_messages", "check_texts"]


class LlmBackend(ABC):
    """A model that can be called. Every method may be used from several threads; a backend is a context manager."""

    #: `local` or `api`.
    name: ClassVar[str]

    @abstractmethod
    def generate(
        self, params: LlmCallParams, messages: Sequence[Message] | None = None, callback: Callback | None = None
    ) -> LlmCallResult:
        """What all of `call`, `chat`, `stream` and `stream_chat` come down to.

        Args:
            params: What to generate and how.
            messages: A conversation, which takes the place of the prompt.
            callback: Gets each piece of text as it comes.
        """

    def open_stream(self, params: LlmCallParams, messages: Sequence[Message] | None = None) -> LlmStream:
        """As `generate`, as an iterator; a backend that makes its pieces one by one hands them over as they come."""

        def pieces() -> Generator[str, None, LlmCallResult]:
            every: list[str] = []
            result = self.generate(params, messages, every.append)
            yield from every
            return result

        return LlmStream(pieces(), lambda: None)

    def call(self, params: LlmCallParams) -> LlmCallResult:
        """Continue a raw prompt.

        Example:
            >>> backend.call(LlmCallParams("The capital of France is", max_tokens=8, temperature=0)).content
        """
        return self.generate(params)

    def chat(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = 100,
        temperature: float = 0.7,
        stop: str | Sequence[str] | None = None,
        **options: Any,
    ) -> LlmCallResult:
        """Answer OpenAI-style messages. Options are the further fields of `LlmCallParams`.

        Example:
            >>> backend.chat([{"role": "user", "content": "Say hello."}], temperature=0).content
        """
        params = LlmCallParams.of(max_tokens=max_tokens, temperature=temperature, stop=stop, **options)
        return self.generate(params, check_messages(messages))

    @overload
    def stream(self, params: LlmCallParams, callback: None = None) -> LlmStream: ...
    @overload
    def stream(self, params: LlmCallParams, callback: Callback) -> LlmCallResult: ...
    def stream(self, params: LlmCallParams, callback: Callback | None = None) -> LlmCallResult | LlmStream:
        """Continue a raw prompt piece by piece: to a callback, or as an iterator.

        Example:
            >>> for piece in backend.stream(LlmCallParams("Once upon a time")):
            ...     print(piece, end="", flush=True)

        Returns:
            Without a callback an iterator, whose `result` holds the whole text at the end; closing it ends the
            generation. With one the result, when all pieces have been handed over.
        """
        return self.open_stream(params) if callback is None else self.generate(params, None, callback)

    @overload
    def stream_chat(
        self, messages: Sequence[Message], callback: None = None, *args: Any, **options: Any
    ) -> LlmStream: ...
    @overload
    def stream_chat(
        self, messages: Sequence[Message], callback: Callback, *args: Any, **options: Any
    ) -> LlmCallResult: ...
    def stream_chat(
        self,
        messages: Sequence[Message],
        callback: Callback | None = None,
        max_tokens: int | None = 100,
        temperature: float = 0.7,
        stop: str | Sequence[str] | None = None,
        **options: Any,
    ) -> LlmCallResult | LlmStream:
        """Answer messages piece by piece: to a callback, or as an iterator; see `stream`.

        Example:
            >>> for piece in backend.stream_chat([{"role": "user", "content": "Tell a joke."}]):
            ...     print(piece, end="", flush=True)
        """
        params = LlmCallParams.of(max_tokens=max_tokens, temperature=temperature, stop=stop, **options)
        plain = check_messages(messages)
        return self.open_stream(params, plain) if callback is None else self.generate(params, plain, callback)

    @overload
    def embed(self, text: str) -> list[float]: ...
    @overload
    def embed(self, text: list[str] | tuple[str, ...]) -> list[list[float]]: ...
    def embed(self, text: str | list[str] | tuple[str, ...]) -> list[float] | list[list[float]]:
        """Turn a text into a vector, or several texts into a list of vectors.

        Example:
            >>> one, other = backend.embed(["A cat sleeps.", "A kitten is sleeping."])

        Raises:
            UsageError: A text is empty, or not a text.
            ContextOverflowError: A text is longer than the context.
            UnsupportedError: The model has no embeddings.
        """
        vectors = self.embed_texts(check_texts(text))
        return vectors[0] if isinstance(text, str) else vectors

    def embed_texts(self, texts: list[str]) -> list[list[float]]:  # noqa: ARG002
        """What `embed` comes down to: the vector of each text. A backend has this, or an `embed` of its own."""
        raise UnsupportedError(f"the backend {self.name} has no embeddings")

    @abstractmethod
    def is_available(self) -> bool:
        """Tell whether the backend could be used now, without loading or calling anything."""

    def call_many(self, params: Sequence[LlmCallParams], *, return_errors: bool = False) -> list[Any]:
        """Continue several raw prompts; a backend that is able to runs them together. Results keep the order.

        Example:
            >>> results = backend.call_many([LlmCallParams(f"{city} is") for city in ("Rome", "Oslo")])

        Args:
            params: A request each.
            return_errors: One that fails has its error in the list, and does not end the others.

        Returns:
            An `LlmCallResult` each, or with `return_errors` a `TeaModelsError`.
        """
        return self.generate_many([(one, None) for one in params], return_errors=return_errors)

    def chat_many(
        self,
        conversations: Sequence[Sequence[Message]],
        max_tokens: int | None = 100,
        temperature: float = 0.7,
        stop: str | Sequence[str] | None = None,
        *,
        return_errors: bool = False,
        **options: Any,
    ) -> list[Any]:
        """Answer several conversations, each a list of messages; otherwise as `chat` and `call_many`.

        Example:
            >>> results = backend.chat_many([[{"role": "user", "content": text}] for text in texts], temperature=0)
        """
        params = LlmCallParams.of(max_tokens=max_tokens, temperature=temperature, stop=stop, **options)
        return self.generate_many([(params, one) for one in conversations], return_errors=return_errors)

    def generate_many(
        self, asked: Sequence[tuple[LlmCallParams, Sequence[Message] | None]], *, return_errors: bool = False
    ) -> list[LlmCallResult | TeaModelsError]:
        """What `call_many` and `chat_many` come down to: a pair of parameters and messages for each answer."""
        results: list[LlmCallResult | TeaModelsError] = []
        for params, messages in asked:
            try:
                results.append(self.generate(params, None if messages is None else check_messages(messages)))
            except TeaModelsError as error:
                if not return_errors:
                    raise
                results.append(error)
        return results

    def rerank(self, query: str, documents: Sequence[str]) -> list[float]:  # noqa: ARG002
        """Score documents by how well they answer a query: larger is better, in the order of the documents.

        Example:
            >>> scores = backend.rerank("What is a panda?", ["A bear of China.", "A city in Norway."])
            >>> best = max(range(len(scores)), key=scores.__getitem__)

        Raises:
            UnsupportedError: The backend has no reranker model.
        """
        raise UnsupportedError(
            f"the backend {self.name} can't rerank", hint="use a reranker model with the local backend"
        )

    @abstractmethod
    def close(self) -> None:
        """Give back what the backend holds. Closing twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
