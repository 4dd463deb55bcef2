"""What every backend does, whether the model runs here or behind an API: the abstract class, and its types again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, overload

from tea_models.errors import TeaModelsError
from tea_runtime.call import Callback, LlmCallParams, LlmCallResult, Message, check_messages, check_texts
from tea_runtime.errors import UnsupportedError
from tea_runtime.stream import LlmStream, threaded_stream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

__all__ = ["Callback", "LlmBackend", "LlmCallParams", "LlmCallResult", "Message", "check_messages", "check_texts"]


class LlmBackend(ABC):
    """A model that can be called. Every method may be used from several threads; a backend is a context manager."""

    #: `local` or `api`.
    name: ClassVar[str]

    @abstractmethod
    def generate(
        self,
        params: LlmCallParams,
        messages: Sequence[Message] | None = None,
        callback: Callback | None = None,
    ) -> LlmCallResult:
        """What all of `call`, `chat`, `stream` and `stream_chat` come down to.

        Args:
            params: What to generate and how.
            messages: A conversation, which takes the place of the prompt.
            callback: Gets each piece of text as it comes.
        """

    def open_stream(self, params: LlmCallParams, messages: Sequence[Message] | None = None) -> LlmStream:
        """As `generate`, as an iterator."""
        return threaded_stream(lambda callback: self.generate(params, messages, callback))

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
        return self.generate(LlmCallParams.of("", max_tokens, temperature, stop, options), check_messages(messages))

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
        self,
        messages: Sequence[Message],
        callback: None = None,
        max_tokens: int | None = 100,
        temperature: float = 0.7,
        stop: str | Sequence[str] | None = None,
        **options: Any,
    ) -> LlmStream: ...
    @overload
    def stream_chat(
        self,
        messages: Sequence[Message],
        callback: Callback,
        max_tokens: int | None = 100,
        temperature: float = 0.7,
        stop: str | Sequence[str] | None = None,
        **options: Any,
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
        params, plain = LlmCallParams.of("", max_tokens, temperature, stop, options), check_messages(messages)
        return self.open_stream(params, plain) if callback is None else self.generate(params, plain, callback)

    @overload
    def embed(self, text: str) -> list[float]: ...
    @overload
    def embed(self, text: list[str] | tuple[str, ...]) -> list[list[float]]: ...
    @abstractmethod
    def embed(self, text: str | list[str] | tuple[str, ...]) -> list[float] | list[list[float]]:
        """Turn a text into a vector, or several texts into a list of vectors."""

    @abstractmethod
    def is_available(self) -> bool:
        """Tell whether the backend could be used now, without loading or calling anything."""

    @overload
    def call_many(self, params: Sequence[LlmCallParams]) -> list[LlmCallResult]: ...
    @overload
    def call_many(
        self, params: Sequence[LlmCallParams], *, return_errors: bool
    ) -> list[LlmCallResult | TeaModelsError]: ...
    def call_many(self, params: Sequence[LlmCallParams], *, return_errors: bool = False) -> Any:
        """Continue several raw prompts; a backend that is able to runs them together. Results keep the order.

        Example:
            >>> results = backend.call_many([LlmCallParams(f"{city} is") for city in ("Rome", "Oslo")])

        Args:
            params: A request each.
            return_errors: One that fails has its error in the list, and does not end the others.
        """
        return self.generate_many([(one, None) for one in params], return_errors=return_errors)

    @overload
    def chat_many(
        self,
        conversations: Sequence[Sequence[Message]],
        max_tokens: int | None = 100,
        temperature: float = 0.7,
        stop: str | Sequence[str] | None = None,
        *,
        return_errors: Literal[False] = False,
        **options: Any,
    ) -> list[LlmCallResult]: ...
    @overload
    def chat_many(
        self,
        conversations: Sequence[Sequence[Message]],
        max_tokens: int | None = 100,
        temperature: float = 0.7,
        stop: str | Sequence[str] | None = None,
        *,
        return_errors: bool,
        **options: Any,
    ) -> list[LlmCallResult | TeaModelsError]: ...
    def chat_many(
        self,
        conversations: Sequence[Sequence[Message]],
        max_tokens: int | None = 100,
        temperature: float = 0.7,
        stop: str | Sequence[str] | None = None,
        *,
        return_errors: bool = False,
        **options: Any,
    ) -> Any:
        """Answer several conversations; a backend that is able to runs them together. Results keep the order.

        Example:
            >>> results = backend.chat_many([[{"role": "user", "content": text}] for text in texts], temperature=0)

        Args:
            conversations: Messages each.
            max_tokens: As for `chat`.
            temperature: As for `chat`.
            stop: As for `chat`.
            return_errors: One that fails has its error in the list, and does not end the others.
            **options: As for `chat`.
        """
        params = LlmCallParams.of("", max_tokens, temperature, stop, options)
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
