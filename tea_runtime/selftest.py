"""Does this model work with this build of the engine? Real requests, each with a fact that must hold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tea_models.errors import TeaModelsError
from tea_models.plan.types import RunPlan
from tea_runtime.answer_format import format_problem
from tea_runtime.backend import LlmBackend, LlmCallParams
from tea_runtime.call import cosine
from tea_runtime.errors import ContextOverflowError, UnsupportedError

_PROMPT = "The three primary colours are"
_UNICODE = "é世🌍"
_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried: `ok`, `failed`, or `skipped` where the model is not made for it."""

    name: str
    status: str
    detail: str
    seconds: float


class _FailedError(Exception): ...


def run_checks(backend: LlmBackend) -> Iterator[Check]:
    """Try everything a backend promises, yielding each check when it is done."""
    for name, check in _CHECKS:
        started = time.monotonic()
        try:
            status, detail = "ok", check(backend)
        except UnsupportedError as error:
            status, detail = "skipped", error.message
        except (_FailedError, TeaModelsError) as error:
            status, detail = "failed", error.args[0]
        except Exception as error:  # noqa: BLE001 - whatever breaks is what the test is there to find
            status, detail = "failed", f"{type(error).__name__}: {error}"
        yield Check(name, status, detail, round(time.monotonic() - started, 3))


def _greedy(backend: LlmBackend) -> str:
    params = LlmCallParams(_PROMPT, max_tokens=24, temperature=0)
    first, second = backend.call(params).content, backend.call(params).content
    _expect(first == second, f"{first!r}, then {second!r}")
    _expect(bool(first.strip()), "the answer is empty")
    return _quoted(first)


def _streaming(backend: LlmBackend) -> str:
    params = LlmCallParams(_PROMPT, max_tokens=24, temperature=0)
    pieces: list[str] = []
    streamed = backend.stream(params, pieces.append)
    whole = backend.call(params)
    _expect("".join(pieces) == streamed.content, "the pieces are not the whole text")
    _expect(streamed.content == whole.content, f"{streamed.content!r} streamed, {whole.content!r} at once")
    return f"{len(pieces)} pieces"


def _turn_end(backend: LlmBackend) -> str:
    result = backend.chat([{"role": "user", "content": "Say hello."}], max_tokens=256, temperature=0)
    made = (result.usage or {}).get("completion_tokens")
    _expect(result.finish_reason == "stop", f"no end of the turn after {made} tokens")
    for marker in ("<|im_end|>", "<end_of_turn>", "<|end|>", "<|eot_id|>", "</s>", "<|endoftext|>"):
        _expect(marker not in result.content, f"{marker} is in the answer")
    return _quoted(result.content)


def _unicode(backend: LlmBackend) -> str:
    pieces: list[str] = []
    params = LlmCallParams("Unicode:", max_tokens=64, temperature=0, grammar=f'root ::= "{_UNICODE}"')
    result = backend.stream(params, pieces.append)
    _expect(result.content == _UNICODE, f"asked for {_UNICODE!r}, found {result.content!r}")
    _expect("".join(pieces) == _UNICODE, f"pieces {pieces!r}")
    return f"{result.content} in {len(pieces)} pieces"


def _json(backend: LlmBackend) -> str:
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": _SCHEMA}}
    params = LlmCallParams("A city as JSON: ", max_tokens=96, temperature=0, response_format=wanted)
    content = backend.call(params).content
    problem = format_problem(content, _SCHEMA)
    _expect(not problem, f"{problem}: {content!r}")
    return " ".join(content.split())


def _vectors(backend: LlmBackend) -> str:
    texts = ["The cat sits on the mat.", "A cat is sitting on a mat.", "Interest rates rose in March."]
    alone = backend.embed(texts[0])
    together = backend.embed(texts)
    lengths = [math.hypot(*vector) for vector in together]
    _expect(all(abs(length - 1) < 1e-3 for length in lengths), f"lengths {', '.join(f'{x:.3f}' for x in lengths)}")
    same = cosine(alone, together[0])
    _expect(same > 0.999, f"alone and together differ: cosine {same:.4f}")
    near, far = (cosine(together[0], other) for other in together[1:])
    return f"{len(alone)} dimensions, length 1; alike {near:.2f}, unlike {far:.2f}"


def _overflow(backend: LlmBackend) -> str:
    plan: RunPlan | None = getattr(backend, "plan", None)
    if plan is None:
        raise UnsupportedError("the size of the context is not known")
    context = plan.settings.n_ctx
    try:
        backend.call(LlmCallParams("word " * (context + 8), max_tokens=1, temperature=0))
    except ContextOverflowError as error:
        return f"{error.prompt_tokens:,} tokens into {error.n_ctx:,}"
    raise _FailedError(f"{context + 8:,} words went into a context of {context:,} tokens")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _FailedError(otherwise)


def _quoted(text: str) -> str:
    return f"“{' '.join(text.split()):.60}”"


_CHECKS: tuple[tuple[str, Callable[[LlmBackend], str]], ...] = (
    ("greedy answers are the same twice", _greedy),
    ("a stream is the same text in pieces", _streaming),
    ("a chat ends at the end of the turn", _turn_end),
    ("characters split over tokens stay whole", _unicode),
    ("a JSON schema is enforced", _json),
    ("vectors have length 1, alone and together", _vectors),
    ("a prompt longer than the context is refused", _overflow),
)
