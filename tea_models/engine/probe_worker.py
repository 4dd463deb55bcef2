"""The subprocess side of the memory dry run: asks llama.cpp what a model would take, without loading a weight.

Started as a script by `tea_models.engine.probe` (never imported there), because an assertion in ggml kills the process
it is in. Each line of stdin is a JSON request; the answer is a JSON document a line, so that what was measured before
a crash is not lost:

    {"engine": {"version", "gpu_offload", "devices": [...]}}
    {"load": 0, "rss", "size"}                                   the model was opened, with so many layers on a GPU
    {"point": 3, "kv_cache", "compute", "output", ...}           one combination of settings
    {"point": 4, "error": "…"}                                   the engine refused it
    {"done": true}                                               the end of the answer
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import sys
from collections.abc import Callable
from typing import Any

MIB = 1024 * 1024
_DEVICE_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accelerator"}
_SIZE = re.compile(r"\S+\s+(output|compute) buffer size =\s*([0-9.]+) MiB")
_CACHE = re.compile(r"size =\s*([0-9.]+) MiB \(\s*\d+ cells,\s*\d+ layers")
_ERROR_LEVEL, _CONTINUE_LEVEL, _DEBUG_LEVEL = 4, 5, 1


class _Log:
    """Collects the engine's log; the last error line says why something was refused."""

    def __init__(self, engine: Any) -> None:
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._level = 0
        self._callback = engine.llama_log_callback(self._write)  # ctypes keeps no reference to it
        engine.llama_log_set(self._callback, None)

    def _write(self, level: int, text: bytes, _data: object) -> None:
        self._level = self._level if level == _CONTINUE_LEVEL else level
        line = text.decode("utf-8", "replace").strip()
        if line and self._level != _DEBUG_LEVEL:
            (self.errors if self._level == _ERROR_LEVEL else self.lines).append(line)

    def clear(self) -> None:
        self.lines.clear()
        self.errors.clear()

    def size(self, kind: str) -> int:
        """Bytes of the buffers of a kind, as logged: each rounded to 0.01 MiB."""
        matches = map(_SIZE.search, self.lines)
        return sum(round(float(match[2]) * MIB) for match in matches if match and match[1] == kind)

    def caches(self) -> list[int]:
        """Bytes of each part of the KV cache, as logged."""
        matches = (_CACHE.search(line) for line in self.lines if "K (" in line or "R (" in line)
        return [round(float(match[1]) * MIB) for match in matches if match]


class _Map(ctypes.Structure):
    """`std::map` of libstdc++, as `llama_get_memory_breakdown` returns it: a red-black tree with its header inside."""

    _fields_ = (("compare", ctypes.c_uint64), ("color", ctypes.c_uint64), ("root", ctypes.c_uint64),
                ("leftmost", ctypes.c_uint64), ("rightmost", ctypes.c_uint64), ("count", ctypes.c_uint64))  # fmt: skip


def _breakdown(engine: Any, context: Any) -> list[dict[str, Any]]:
    """Bytes by buffer type, exact; none where this build has no such function or answers what can't be.

    The log rounds to 0.01 MiB and says nothing about repacked weights, and there is no C function for it, so the C++
    one is called. The caller checks the sums against the log.
    """
    library = engine.llama_cpp._lib  # noqa: SLF001 - llama.cpp's; the binding has no other name for it
    try:
        function = library["_Z26llama_get_memory_breakdownPK13llama_context"]
        name_of = library["ggml_backend_buft_name"]
        is_host = library["ggml_backend_buft_is_host"]
    except AttributeError:
        return []
    function.restype, function.argtypes = _Map, [ctypes.c_void_p]
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    is_host.restype, is_host.argtypes = ctypes.c_bool, [ctypes.c_void_p]
    tree = function(context)
    rows: list[dict[str, Any]] = []
    waiting = [tree.root] if 0 < tree.count < 64 else []
    while waiting and len(rows) < tree.count:
        _, _, left, right, buffer, model, of_context, compute = (ctypes.c_uint64 * 8).from_address(waiting.pop())
        name = name_of(buffer).decode("ascii")
        rows.append({
            "buffer": name, "host": is_host(buffer), "model": model, "context": of_context, "compute": compute,
        })  # fmt: skip
        waiting.extend(child for child in (left, right) if child)
    return rows if len(rows) == tree.count and not waiting else []


def devices(library: Any) -> list[dict[str, Any]]:
    """What llama.cpp would compute on; names of ggml's library are found through llama.cpp's, which needs it."""
    library.ggml_backend_dev_get.restype, library.ggml_backend_dev_get.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.ggml_backend_dev_count.restype = ctypes.c_size_t
    library.ggml_backend_dev_name.restype = library.ggml_backend_dev_description.restype = ctypes.c_char_p
    found = []
    for index in range(min(64, library.ggml_backend_dev_count())):
        device = ctypes.c_void_p(library.ggml_backend_dev_get(index))
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        library.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        found.append({
            "name": library.ggml_backend_dev_name(device).decode("utf-8", "replace"),
            "description": library.ggml_backend_dev_description(device).decode("utf-8", "replace"),
            "kind": _DEVICE_KINDS.get(library.ggml_backend_dev_type(device), "other"),
            "memory_total": total.value, "memory_free": free.value,
        })  # fmt: skip
    return found


def _resident() -> int:
    """Bytes of this process that are in memory; 0 where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:")), 0)
    except OSError:
        return 0


def _measure(engine: Any, model: Any, point: dict[str, Any], log: _Log, *, exact: bool) -> dict[str, Any]:
    log.clear()
    parameters = engine.llama_context_default_params()
    for name in point.keys() - {"n_gpu_layers"}:
        setattr(parameters, name, point[name])
    context = engine.llama_init_from_model(model, parameters)
    if not context:
        return {"error": ["the engine refused these settings", *log.errors][-1]}
    try:
        caches = log.caches()
        sizes = {"kv_cache": sum(caches), "compute": log.size("compute")}
        rows = _breakdown(engine, context) if exact and sys.platform.startswith("linux") else []
        exactly = {"kv_cache": sum(row["context"] for row in rows), "compute": sum(row["compute"] for row in rows)}
        # Each logged number is off by at most half of 0.01 MiB.
        if any(abs(exactly[part] - sizes[part]) > (len(caches) + 4) * MIB // 100 for part in sizes):
            rows = []
        flash_attn = point.get("flash_attn_type", -1)
        chosen = [line for line in log.lines if "Flash Attention" in line][-1:]
        return (exactly if rows else sizes) | {
            "output": log.size("output"),
            "buffers": rows,
            "flash_attn": flash_attn > 0 if flash_attn >= 0 else "enabled" in chosen[0] if chosen else None,
        }
    finally:
        engine.llama_free(context)


class _Session:
    """The engine, and the one model that is open in it."""

    def __init__(self) -> None:
        self.engine: Any = None
        self._model: Any = None
        self._key: tuple[str, int] | None = None
        self._load: dict[str, Any] = {}

    def run(self, request: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
        if self.engine is None:
            import llama_cpp as engine

            self.engine, self.log = engine, _Log(engine)
            engine.llama_backend_init()
            told = {"version": engine.__version__, "gpu_offload": bool(engine.llama_supports_gpu_offload())}
            answer({"engine": told | {"devices": devices(engine.llama_cpp._lib)}})  # noqa: SLF001
        points = request["points"]
        for layers in sorted({point.get("n_gpu_layers", 0) for point in points}):
            answer(self._open(request["model"], layers))
            for index, point in enumerate(points if self._model else ()):
                if point.get("n_gpu_layers", 0) == layers:
                    exact = request.get("exact", True)
                    answer({"point": index, **_measure(self.engine, self._model, point, self.log, exact=exact)})

    def _open(self, path: str, layers: int) -> dict[str, Any]:
        if self._key == (path, layers):
            return self._load
        engine, log = self.engine, self.log
        if self._model:
            engine.llama_model_free(self._model)
        log.clear()
        parameters = engine.llama_model_default_params()
        parameters.no_alloc = True
        parameters.load_mode = 0  # LLAMA_LOAD_MODE_NONE: with a memory map it asserts
        parameters.n_gpu_layers = layers
        self._model = engine.llama_model_load_from_file(os.fsencode(path), parameters)
        self._key, self._load = (path, layers), {"load": layers}
        if self._model:
            self._load |= {"rss": _resident(), "size": engine.llama_model_size(self._model)}
        else:
            # The first error says what is wrong, the last only that something was.
            self._load["error"] = [*log.errors, "the engine refused the file"][0].removeprefix("llama_model_load: ")
        return self._load


def serve(handle: Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], None]) -> None:
    """Answer the requests on stdin, a line each; whatever the engine prints itself goes to stderr."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(document: dict[str, Any]) -> None:
        answers.write(json.dumps(document) + "\n")
        answers.flush()

    for line in sys.stdin:
        handle(json.loads(line), answer)
        answer({"done": True})
    # Unloading the backends has crashed on some drivers after all was said.
    answers.close()
    os._exit(0)


if __name__ == "__main__":
    serve(_Session().run)
