"""The subprocess side of the gate: loads a binding with its library and tells what they agree on.

Started as a script by `tea_models.engine.gate`, because a library for another processor kills the process it is in. The
folder of `llama_cpp` is named in the request; its `__init__` is not run, because that needs packages (numpy, …) which
are not installed yet when an engine is looked at. Answers are those of `look`; `{"stage": …}` says what is tried next,
so that the last one before a crash tells.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import math
import os
import platform
import re
import sys
import types
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))
from collections.abc import Callable, Iterator

from tea_models.engine.probe_worker import devices, serve

#: Functions that fill a structure which the caller lends, with the arguments that follow the hidden pointer to it.
FILLED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "llama_model_params": ("llama_model_default_params", ()),
    "llama_context_params": ("llama_context_default_params", ()),
    "llama_model_quantize_params": ("llama_model_quantize_default_params", ()),
    "llama_batch": ("llama_batch_init", (4, 0, 1)),
}
_PATTERNS = (0xA5, 0x5A)
_ROOM = 4096


def load(folder: str) -> Any:
    """The binding's functions and structures, from a folder named `llama_cpp`."""
    package = types.ModuleType("llama_cpp")
    package.__path__ = [folder]
    sys.modules["llama_cpp"] = package
    if Path(folder, "_prebuilt.py").exists():
        importlib.import_module("llama_cpp._prebuilt")
    return importlib.import_module("llama_cpp.llama_cpp")


def structures(binding: Any, library: Any) -> dict[str, Any]:
    """For each structure that the library fills: which bytes it writes, and what the binding reads there."""
    found = {}
    for name, (function, arguments) in FILLED.items():
        structure = getattr(binding, name)
        if not hasattr(library, function):
            continue
        document: dict[str, Any] = {"declared": ctypes.sizeof(structure)}
        value = getattr(binding, function)(*arguments)
        names = [field[0] for field in structure._fields_]
        document["fields"] = {field: _plain(getattr(value, field)) for field in names}
        places = {field: getattr(structure, field) for field in names}
        document["places"] = {field: [place.offset, place.offset + place.size] for field, place in places.items()}
        # Where the caller passes the address as a hidden first argument, the bytes can be looked at: System V on x86-64
        # (above 16 bytes) and Windows. Elsewhere (arm64) a register of its own holds it, which ctypes can't set.
        if platform.machine().lower() in ("x86_64", "amd64") and ctypes.sizeof(structure) > 16:
            document["written"] = _written(library, function, arguments)
        found[name] = document
    return found


def selected(binding: Any) -> int:
    """The index that a greedy sampler takes of three candidates, the second of which is the best."""
    candidates = (binding.llama_token_data * 3)()
    for index, logit in enumerate((0.5, 2.5, -1.0)):
        candidates[index].id, candidates[index].logit = 7 + index, logit
    array = binding.llama_token_data_array(data=candidates, size=3, selected=-1, sorted=False)
    sampler = binding.llama_sampler_init_greedy()
    binding.llama_sampler_apply(sampler, ctypes.byref(array))
    binding.llama_sampler_free(sampler)
    return int(array.selected)


def _written(library: Any, function: str, arguments: tuple[Any, ...]) -> list[list[int]]:
    """Runs of bytes that the function writes: those that don't keep one of two patterns."""
    images = []
    for pattern in _PATTERNS:
        buffer = (ctypes.c_ubyte * _ROOM)(*[pattern] * _ROOM)
        prototype = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int32] * len(arguments))
        prototype((function, library))(ctypes.addressof(buffer), *arguments)
        images.append(bytes(buffer))
    kept = zip(*images, strict=True)
    changed = bytes(pair != _PATTERNS for pair in kept)
    return [list(run.span()) for run in re.finditer(b"\x01+", changed)]


def _plain(value: Any) -> Any:
    """A field as JSON: a number, or of a pointer whether it is set."""
    if isinstance(value, float):
        return round(value, 6)
    return value if isinstance(value, bool | int) else bool(value)


def self_test(binding: Any, model_path: str, prompt: list[int], count: int) -> dict[str, Any]:
    """What a model says to a prompt, greedily, and the mean of its embeddings of it."""
    parameters = binding.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = binding.llama_model_load_from_file(os.fsencode(model_path), parameters)
    if not model:
        return {"error": "the library can't load the model"}
    try:
        if not count:  # only whether it computes numbers
            return {"finite": _finite(binding, model, prompt)}
        tokens = _greedy(binding, model, prompt, count)
        embedding = _embedding(binding, model, prompt)
    finally:
        binding.llama_model_free(model)
    return {"tokens": tokens, "embedding": embedding}


def _finite(binding: Any, model: Any, prompt: list[int]) -> bool:
    """Whether all logits after a prompt are numbers."""
    with _context(binding, model, embeddings=False) as context:
        _decode(binding, context, prompt, 0, every=False)
        logits = binding.llama_get_logits_ith(context, -1)
        count = binding.llama_vocab_n_tokens(binding.llama_model_get_vocab(model))
        return all(math.isfinite(logits[index]) for index in range(count))


@contextlib.contextmanager
def _context(binding: Any, model: Any, *, embeddings: bool) -> Iterator[Any]:
    parameters = binding.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = 256, 64, 64
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.embeddings = embeddings
    if embeddings:
        parameters.pooling_type = binding.LLAMA_POOLING_TYPE_MEAN
    context = binding.llama_init_from_model(model, parameters)
    if not context:
        raise RuntimeError("the library opens no context")
    try:
        yield context
    finally:
        binding.llama_free(context)


def _decode(binding: Any, context: Any, tokens: list[int], start: int, *, every: bool) -> None:
    batch = binding.llama_batch_init(len(tokens), 0, 1)
    try:
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = start + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = every or index == len(tokens) - 1
        batch.n_tokens = len(tokens)
        if binding.llama_decode(context, batch) != 0:
            raise RuntimeError("the library can't decode")
    finally:
        binding.llama_batch_free(batch)


def _greedy(binding: Any, model: Any, prompt: list[int], count: int) -> list[int]:
    chain = binding.llama_sampler_chain_init(binding.llama_sampler_chain_default_params())
    binding.llama_sampler_chain_add(chain, binding.llama_sampler_init_greedy())
    answer: list[int] = []
    with _context(binding, model, embeddings=False) as context:
        _decode(binding, context, prompt, 0, every=False)
        while len(answer) < count:
            answer.append(int(binding.llama_sampler_sample(chain, context, -1)))
            _decode(binding, context, answer[-1:], len(prompt) + len(answer) - 1, every=False)
    binding.llama_sampler_free(chain)
    return answer


def _embedding(binding: Any, model: Any, prompt: list[int]) -> list[float]:
    with _context(binding, model, embeddings=True) as context:
        _decode(binding, context, prompt, 0, every=True)
        values = binding.llama_get_embeddings_seq(context, 0)
        if not values:
            raise RuntimeError("the library gives no embedding")
        vector = [float(values[index]) for index in range(binding.llama_model_n_embd_out(model))]
    length = sum(value * value for value in vector) ** 0.5
    return [round(value / length, 5) for value in vector] if length else vector


def look(request: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
    """Look at one engine, from the least to the most dangerous."""
    answer({"stage": "load"})
    binding = load(request["folder"])
    quiet = binding.llama_log_callback(lambda *_: None)
    binding.llama_log_set(quiet, None)
    library = binding._lib  # noqa: SLF001 - the binding has no other name for it
    loader = sys.modules.get("llama_cpp._prebuilt")  # only a prebuilt library may lack what the binding declares
    answer({
        "library": library._name,  # noqa: SLF001
        "missing": list(loader.MISSING) if loader is not None else [],
        "absent": [name for name in request["functions"] if not hasattr(library, name)],
    })  # fmt: skip
    answer({"stage": "structures"})
    answer({"structures": structures(binding, library), "selected": selected(binding)})
    answer({"stage": "start"})
    binding.llama_backend_init()
    system = binding.llama_print_system_info().decode("utf-8", "replace").strip()
    answer({"system": system, "devices": devices(library)})
    if request.get("model"):
        answer({"stage": "self-test"})
        answer(self_test(binding, request["model"], request["prompt"], request["count"]))


def handle(request: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
    """As `look`; whatever goes wrong, the other side must hear of it."""
    try:
        look(request, answer)
    except Exception as error:  # noqa: BLE001
        answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    serve(handle)
