"""Ask a model every recorded request again, to see what a new engine or quantization changes."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tea_models.errors import TeaModelsError
from tea_runtime.backend import LlmBackend, LlmCallParams

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tea_runtime.cassette.entries import Entry

from tea_runtime.cassette.backend import plain

_SAME_VECTOR = 0.9999


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one recorded request when it was asked again.

    Attributes:
        request: What was asked.
        status: `same`, `changed`, or `failed`.
        before: The recorded text; for a vector nothing.
        now: The text that came now, or the error's message.
        similarity: Of the two texts, or the cosine of the two vectors; 1 is the same.
    """

    request: Mapping[str, Any]
    status: Literal["same", "changed", "failed"]
    before: str
    now: str
    similarity: float


def check_cassette(cassette: Sequence[Entry], backend: LlmBackend) -> Iterator[Change]:
    """Ask a backend every recorded request again, to see what a new engine or quantization changes.

    Args:
        cassette: What was recorded; see `read_cassette`.
        backend: Answers now.

    Yields:
        A change for each entry, in order; one that fails does not end the others.
    """
    for entry in cassette:
        try:
            yield _asked_again(entry, backend)
        except TeaModelsError as error:
            yield Change(entry.request, "failed", str(entry.answer.get("content", "")), error.message, 0.0)


def _asked_again(entry: Entry, backend: LlmBackend) -> Change:
    request, parameters = entry.request, dict(entry.request.get("parameters", {}))
    if request["kind"] == "embed":
        before, now = entry.answer["embedding"], backend.embed(request["text"])
        cosine = _cosine(before, now)
        # The last digits depend on the order of sums, which another processor may choose otherwise.
        return Change(request, "same" if cosine > _SAME_VECTOR else "changed", "", "", cosine)
    params = LlmCallParams(prompt=request.get("prompt", ""), **parameters)
    if request["kind"] == "call":
        result = backend.call(params)
    else:
        options = {name: getattr(params, name) for name in parameters}
        result = backend.chat(request["messages"], **options)
    before_text = str(entry.answer.get("content", ""))
    same = before_text == result.content and plain(entry.answer.get("tool_calls")) == plain(
        [dict(call) for call in result.tool_calls] if result.tool_calls else None
    )
    ratio = difflib.SequenceMatcher(None, before_text, result.content, autojunk=False).ratio()
    return Change(request, "same" if same else "changed", before_text, result.content, 1.0 if same else ratio)


def _cosine(before: Sequence[float], now: Sequence[float]) -> float:
    if len(before) != len(now):
        return 0.0
    norm = math.sqrt(sum(x * x for x in before) * sum(x * x for x in now))
    return sum(x * y for x, y in zip(before, now, strict=True)) / norm if norm else 0.0
