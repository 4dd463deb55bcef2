"""Ask a model every recorded request again, to see what a new engine or quantization changes."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tea_models.errors import TeaModelsError
from tea_runtime.backend import LlmBackend, LlmCallParams
from tea_runtime.call import cosine
from tea_runtime.cassette.backend import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tea_runtime.cassette.entries import Entry

_SAME_VECTOR = 0.9999


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one recorded request: its texts (or an error), and their likeness or the cosine of its vectors."""

    request: Mapping[str, Any]
    status: Literal["same", "changed", "failed"]
    before: str
    now: str
    similarity: float


def check_cassette(cassette: Sequence[Entry], backend: LlmBackend) -> Iterator[Change]:
    """Ask a backend every recorded request again, in order; one that fails does not end the others."""
    for entry in cassette:
        try:
            yield _asked_again(entry, backend)
        except TeaModelsError as error:
            yield Change(entry.request, "failed", str(entry.answer.get("content", "")), error.message, 0.0)


def _asked_again(entry: Entry, backend: LlmBackend) -> Change:
    request, parameters = entry.request, dict(entry.request.get("parameters", {}))
    if request["kind"] == "embed":
        before, now = entry.answer["embedding"], backend.embed(request["text"])
        likeness = cosine(before, now) if len(before) == len(now) else 0.0
        # The last digits depend on the order of sums, which another processor may choose otherwise.
        return Change(request, "same" if likeness > _SAME_VECTOR else "changed", "", "", likeness)
    params = LlmCallParams(prompt=request.get("prompt", ""), **parameters)
    result = backend.generate(params, request.get("messages"))
    before_text = str(entry.answer.get("content", ""))
    calls = [dict(call) for call in result.tool_calls] if result.tool_calls else None
    same = before_text == result.content and plain(entry.answer.get("tool_calls")) == plain(calls)
    ratio = difflib.SequenceMatcher(None, before_text, result.content, autojunk=False).ratio()
    return Change(request, "same" if same else "changed", before_text, result.content, 1.0 if same else ratio)
