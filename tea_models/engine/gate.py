"""The gate: whether a binding and a llama.cpp library fit together, found out in a process of its own.

A library that exports all names may still have structures of another size, and answer rightly for a while. So besides
the names, every structure that the library fills is compared with the binding's, byte range and default of each field,
and a model's greedy answer and embedding with recorded ones (`reference.json`, see there how it was made).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tea_models.engine.installed import installed_engine
from tea_models.engine.probe_process import CrashError, ProbeError, ProbeProcess

_WORKER = Path(__file__).with_name("gate_worker.py")
#: Seconds that the whole look may take; the self-test takes two.
TIMEOUT = 120.0
# How far a number of a unit vector may be from the recorded one: the kernels of different processors round differently.
_TOLERANCE = 0.02
_STAGES = {
    "load": "while the library was loaded",
    "structures": "while its default settings were asked for",
    "start": "when it was started",
    "self-test": "in the self-test",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found: the library can be used if there are no problems."""

    problems: tuple[str, ...] = ()
    library: str = ""  # the file that was loaded
    missing: tuple[str, ...] = ()  # functions that the binding declares and the library lacks; none is called here
    features: tuple[str, ...] = ()  # what of the processor the library uses
    devices: tuple[str, ...] = ()
    self_test: str = "not run"  # or `passed`, `failed`


@cache
def reference() -> dict[str, Any]:
    """The recorded values: functions that are called here, structures, and the self-test."""
    document: dict[str, Any] = json.loads(Path(__file__).with_name("reference.json").read_text("utf-8"))
    return document


def examine(
    package: Path, *, version: str, model: Path | None = None, environ: Mapping[str, str] | None = None
) -> Verdict:
    """Look at a binding (the folder `llama_cpp`) and its library, and at its answer where there is a model for it."""
    recorded = reference()
    test = recorded["self_test"]
    request = {"folder": str(package), "functions": recorded["functions"]}
    if model is not None:
        request |= {"model": str(model), "prompt": test["prompt"], "count": len(test["tokens"])}
    try:
        documents = ProbeProcess(environ, _WORKER).ask(request, TIMEOUT)
    except CrashError as error:
        return Verdict((f"{error.message} {_stage(error.documents)}",))
    except ProbeError as error:
        return Verdict((error.message,))
    found: dict[str, Any] = {}
    for document in documents:
        found |= document
    return _judge(found, recorded if recorded["binding"] == version else {}, test)


def why_no_answer(model: Path, environ: Mapping[str, str] | None = None) -> str | None:
    """Why the installed engine, asked with all weights of a model, computes no next token; None if it does."""
    engine = installed_engine(environ)
    if engine is None:
        return "no engine is installed to load it"
    request = {"folder": str(engine.package), "functions": [], "model": str(model), "prompt": [1, 2], "count": 0}
    try:
        documents = ProbeProcess(environ, _WORKER).ask(request, TIMEOUT)
    except ProbeError as error:
        return error.message
    found = {key: value for document in documents for key, value in document.items()}
    if "error" in found:
        return str(found["error"])
    return None if found.get("finite") else "its weights give logits that are no numbers (NaN or infinite)"


def _judge(found: dict[str, Any], recorded: dict[str, Any], test: dict[str, Any]) -> Verdict:
    problems = [f"the library has no {name}" for name in found.get("absent", ())]
    for name, structure in found.get("structures", {}).items():
        problems += _structure_problems(name, structure, recorded.get("structures", {}).get(name, {}))
    if found.get("selected", 1) != 1:
        problems.append(f"llama_token_data_array: of three candidates number {found['selected']} was taken, not 1")
    if "error" in found:
        problems.append(f"{found['error']} {_stage([found])}")
    wrong = _answer_problems(found, test) if "tokens" in found else []
    problems += wrong
    return Verdict(
        problems=tuple(problems),
        library=found.get("library", ""),
        missing=tuple(found.get("missing", ())),
        features=features(found.get("system", "")),
        devices=tuple(device["description"] or device["name"] for device in found.get("devices", ())),
        self_test="failed" if wrong else "passed" if "tokens" in found else "not run",
    )


def _structure_problems(name: str, found: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    problems = []
    written = found.get("written")
    if written is not None:
        end = written[-1][1] if written else 0
        # The last bytes may be padding, which nobody writes.
        if not found["declared"] - 8 < end <= found["declared"]:
            problems.append(f"{name} has {end} bytes in the library, {found['declared']} in the binding")
        for field, (start, stop) in found["places"].items():
            if not any(first <= start and stop <= last for first, last in written):
                problems.append(f"{name}.{field}: the library leaves bytes {start} to {stop} of it alone")
    for field, value in recorded.get("fields", {}).items():
        if field in found["fields"] and found["fields"][field] != value:
            problems.append(f"{name}.{field} is {found['fields'][field]}, expected {value}")
    return problems


def _answer_problems(found: dict[str, Any], test: dict[str, Any]) -> list[str]:
    problems = []
    if found["tokens"] != test["tokens"]:
        problems.append(f"self-test: the greedy answer is {found['tokens']}, expected {test['tokens']}")
    near = [abs(one - other) for one, other in zip(found["embedding"], test["embedding"], strict=False)]
    if len(found["embedding"]) < len(test["embedding"]) or not max(near) <= _TOLERANCE:
        problems.append("self-test: the embedding differs from the recorded one")
    return problems


def features(system: str) -> tuple[str, ...]:
    """The names that are set in the text that `llama_print_system_info` gives."""
    parts = (part.rpartition(":")[2].partition("=") for part in system.split("|"))
    return tuple(name.strip() for name, _, value in parts if value.strip() == "1")


def _stage(documents: list[dict[str, Any]]) -> str:
    stages = [document["stage"] for document in documents if "stage" in document]
    return _STAGES.get(stages[-1], "") if stages else "when it was started"
