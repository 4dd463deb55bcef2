"""Writes `tea_models/engine/reference.json` from the installed (compiled) engine: python tests/record_engine_reference.py.

The prompt of the self-test ("a b c d e f g h i j") is one whose greedy answer is decided by clear margins, so that the
rounding of another processor's kernels does not change it.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from tea_models.engine.probe_process import ProbeProcess

PROJECT = Path(__file__).parents[1]
WORKER = PROJECT / "tea_models" / "engine" / "gate_worker.py"
REFERENCE = WORKER.with_name("reference.json")
PROMPT = [81, 278, 265, 287, 297, 275, 310, 294, 2056, 544]
TOKENS = 13
DIMENSIONS = 64
_CALL = re.compile(r"\.((?:llama|ggml)_[a-z0-9_]+)\b")
_DECLARED = re.compile(r'ctypes_function\(\s*"(llama_[a-z0-9_]+)"')


def called_functions(binding: Path) -> list[str]:
    """Every function of llama.cpp and ggml that our code names and the C API has."""
    declared = set(_DECLARED.findall((binding / "llama_cpp.py").read_text("utf-8")))
    code = [*(PROJECT / "tea_runtime").rglob("*.py"), *WORKER.parent.glob("*.py")]
    # What is looked for in the library only if it is there is not called.
    named = {
        name for path in code if path.name != "prebuilt_loader.py" for name in _CALL.findall(path.read_text("utf-8"))
    }
    return sorted(name for name in named if name in declared or name.startswith("ggml_"))


def main(model: str) -> None:
    binding = Path(find_spec("llama_cpp").origin).parent
    functions = called_functions(binding)
    process = ProbeProcess(worker=WORKER)
    found = {}
    request = {"folder": str(binding), "functions": functions, "model": model, "prompt": PROMPT, "count": TOKENS}
    for document in process.ask(request, 120):
        found |= document
    process.close()
    assert not found["absent"], found
    assert "error" not in found, found
    document = {
        "made_by": "tests/record_engine_reference.py, with llama-cpp-python compiled by its own build",
        "binding": version("llama-cpp-python"),
        "functions": functions,
        "structures": {name: {"fields": one["fields"]} for name, one in found["structures"].items()},
        "self_test": {
            "model": "smollm2-135m",
            "prompt": PROMPT,
            "tokens": found["tokens"],
            "embedding": found["embedding"][:DIMENSIONS],
        },
    }
    REFERENCE.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
