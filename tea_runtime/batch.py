"""Many requests to one backend, each with an answer or an error of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tea_models.errors import TeaModelsError
from tea_runtime.backend import LlmBackend, LlmCallParams, LlmCallResult

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# An API answers requests that come together faster than one after another, and refuses too many.
_API_THREADS = 8

Answer = LlmCallResult | TeaModelsError


def answer_all(
    backend: LlmBackend, requests: Sequence[Callable[[], Any]], options: Mapping[str, Any], *, chat: bool
) -> list[Answer]:
    """Ask a backend for an answer to each request, together where it is able to.

    Args:
        backend: Who answers.
        requests: Each returns a prompt, or with `chat` messages; what it raises is its answer.
        options: Fields of `LlmCallParams` that hold for all.
        chat: Whether they are conversations.

    Returns:
        The answers in the order of the requests; one that failed is its error.
    """
    answers: list[Answer | None] = [None] * len(requests)
    made: dict[int, Any] = {}
    for index, request in enumerate(requests):
        try:
            made[index] = request()
        except TeaModelsError as error:
            answers[index] = error
    together = _one_by_one if backend.name == "api" else _together
    found = together(backend, list(made.values()), LlmCallParams("", **options), chat)
    for index, answer in zip(made, found, strict=True):
        answers[index] = answer
    return [answer for answer in answers if answer is not None]


def _together(backend: LlmBackend, items: list[Any], params: LlmCallParams, chat: bool) -> list[Answer]:
    """A request that can't be used refuses all of them before anything is generated: the half without it goes on."""
    if not items:
        return []
    try:
        return list(_ask(backend, items, params, chat))
    except TeaModelsError as error:
        if len(items) == 1:
            return [error]
    half = len(items) // 2
    return _together(backend, items[:half], params, chat) + _together(backend, items[half:], params, chat)


def _one_by_one(backend: LlmBackend, items: list[Any], params: LlmCallParams, chat: bool) -> list[Answer]:
    def ask(item: Any) -> Answer:
        try:
            return _ask(backend, [item], params, chat)[0]
        except TeaModelsError as error:
            return error

    with ThreadPoolExecutor(_API_THREADS) as threads:
        return list(threads.map(ask, items))


def _ask(backend: LlmBackend, items: list[Any], params: LlmCallParams, chat: bool) -> list[LlmCallResult]:
    if not chat:
        return backend.call_many([replace(params, prompt=prompt) for prompt in items])
    return backend.chat_many(items, **{name: getattr(params, name) for name in _CHAT_OPTIONS})


_CHAT_OPTIONS = tuple(name for name in LlmCallParams.__dataclass_fields__ if name != "prompt")
