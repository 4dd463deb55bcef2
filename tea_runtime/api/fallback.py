"""The API in the place of a local model: an `ApiLlmBackend` whose results say so."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

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

    def generate(
        self,
        params: LlmCallParams,
        messages: Sequence[Message] | None = None,
        callback: Callback | None = None,
    ) -> LlmCallResult:
        """As `ApiLlmBackend.generate`."""
        return replace(super().generate(params, messages, callback), fallback_reason=self.reason)


def api_problem(block: LlmSettings, environ: Mapping[str, str]) -> str:
    """Why no API can take the place of a local model, or ""."""
    if not is_installed():
        return "the openai package is not installed (pip install 'tea-models[api]')"
    api = ApiLlmBackend.from_settings(block, environ=environ)
    try:
        return api.unavailable_reason()
    finally:
        api.close()
