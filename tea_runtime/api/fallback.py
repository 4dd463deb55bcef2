"""The API in the place of a local model: an `ApiLlmBackend` whose results say so."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tea_runtime.api.backend import ApiLlmBackend, is_installed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tea_runtime.backend import Callback, LlmCallParams, LlmCallResult, Message
    from tea_runtime.llm_settings import LlmSettings


class FallbackApiBackend(ApiLlmBackend):
    """An API that answers because no local model can.

    Attributes:
        reason: Why no local model can be used; each result carries it as `fallback_reason`.
    """

    reason = ""

    def call(self, params: LlmCallParams) -> LlmCallResult:
        """As `ApiLlmBackend.call`."""
        return replace(super().call(params), fallback_reason=self.reason)

    def chat(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = 100,
        temperature: float = 0.7,
        stop: str | Sequence[str] | None = None,
        **options: Any,
    ) -> LlmCallResult:
        """As `ApiLlmBackend.chat`."""
        result = super().chat(messages, max_tokens, temperature, stop, **options)
        return replace(result, fallback_reason=self.reason)

    def stream(self, params: LlmCallParams, callback: Callback) -> LlmCallResult:
        """As `ApiLlmBackend.stream`."""
        return replace(super().stream(params, callback), fallback_reason=self.reason)

    def stream_chat(
        self,
        messages: Sequence[Message],
        callback: Callback,
        max_tokens: int | None = 100,
        temperature: float = 0.7,
        stop: str | Sequence[str] | None = None,
        **options: Any,
    ) -> LlmCallResult:
        """As `ApiLlmBackend.stream_chat`."""
        result = super().stream_chat(messages, callback, max_tokens, temperature, stop, **options)
        return replace(result, fallback_reason=self.reason)


def api_problem(block: LlmSettings, environ: Mapping[str, str]) -> str:
    """Why no API can take the place of a local model, or ""."""
    if not is_installed():
        return "the openai package is not installed (pip install 'tea-models[api]')"
    api = ApiLlmBackend.from_settings(block, environ=environ)
    try:
        return api.unavailable_reason()
    finally:
        api.close()
