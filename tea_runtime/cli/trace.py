"""`tea-runtime run --trace`: the steps of a run as data and as a page, without the texts of prompts and answers."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tea_models.cli.output import Output
from tea_models.cli.page import MARK, check_target, fill
from tea_models.disk.atomic import write_document
from tea_models.errors import TeaModelsError, UsageError
from tea_models.redact import redact_data
from tea_runtime.workflow.runner import Step

SCHEMA = "tea.run-trace/1"
_TEXTS = ("model", "backend", "finish_reason", "fallback_reason")
_KEPT = dict.fromkeys(_TEXTS, str) | {"prompt_tokens": int, "completion_tokens": int}


def check_trace(_context: object, _option: object, target: Path | None) -> Path | None:
    """Refuse, before anything is done, a name under which a trace can't be written."""
    if target is not None and target.suffix not in (".html", ".json"):
        raise UsageError(f"--trace {target}: expected a name that ends in .html or .json")
    if target is not None:
        check_target(target.with_suffix(".json"), SCHEMA)
        check_target(target, SCHEMA if target.suffix == ".json" else MARK)
    return target


@contextlib.contextmanager
def tracing(target: Path | None, workflow: str, out: Output) -> Iterator[Callable[[Step], object]]:
    """Take the steps of a run, and write them when it has ended, however it ended: FILE.json, or that and FILE.html."""
    if target is None:
        yield lambda _step: None
        return
    begun, now = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    document: dict[str, Any] = {"schema": SCHEMA, "workflow": workflow, "started": now, "seconds": 0.0, "error": None}
    steps = document["steps"] = []
    try:
        yield lambda step: steps.append(_known(step, begun))
    except BaseException as error:
        document["error"] = _error(error)
        raise
    finally:
        document = redact_data(document | {"seconds": round(time.monotonic() - begun, 4)})
        write_document(target.with_suffix(".json"), json.dumps(document, indent=2) + "\n")
        if target.suffix == ".html":
            write_document(target, fill("trace.html", **document))
        out.note(f"wrote {target}")


def _known(step: Step, begun: float) -> dict[str, Any]:
    """What is known about a step, but for what was said in it; None where an action does not give it."""
    result = dict(step.result) if isinstance(step.result, Mapping) else {}
    given = result | dict(usage if isinstance(usage := result.get("usage"), Mapping) else {})
    known = {name: given.get(name) if isinstance(given.get(name), kind) else None for name, kind in _KEPT.items()}
    made, error = known["completion_tokens"], step.error and _error(step.error)
    if error is None and result.get("success") is False:  # the node keeps it
        error = {"type": str(result.get("error_type") or "Error"), "message": str(result.get("error"))}
    seconds = round(step.seconds, 4)
    times = {"start": round(step.started - begun, 4), "seconds": seconds}
    rate = {"tokens_per_s": round(made / seconds, 1) if made and seconds else None}
    return {"node": step.node, "action": step.action} | times | known | rate | {"error": error}


def _error(error: BaseException) -> dict[str, str]:
    if isinstance(error, TeaModelsError):
        return {"type": error.type, "message": error.message}
    return {"type": type(error).__name__, "message": str(error)}
