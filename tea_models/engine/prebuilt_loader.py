"""Makes llama-cpp-python's binding load a prebuilt llama.cpp. Lies in the assembled wheel as `llama_cpp/_prebuilt.py`.

Never imported here: `tea_models.engine.wheel` copies its text. It runs before anything else of `llama_cpp` and changes
two functions of `llama_cpp._ctypes_extensions`: a library is the file that `prebuilt.json` names, with the processor's
backend from plug-ins; and a function that the library lacks raises when it is called, not at import.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import pathlib
import typing

from llama_cpp import _ctypes_extensions as extensions

FOLDER = pathlib.Path(os.path.abspath(__file__)).parent / "lib"  # noqa: PTH100 - as the binding itself names it
ABOUT: dict[str, typing.Any] = json.loads(FOLDER.with_name("prebuilt.json").read_text(encoding="utf-8"))
#: What stands in for a function that tells a constant of the build: the smallest that any release since 2025 has.
CONSTANTS = {"llama_max_parallel_sequences": 64}
#: Functions that the binding declares and the library does not have.
MISSING: list[str] = []

_load = extensions.load_shared_library
_declare = extensions.ctypes_function_for_shared_library


def load_shared_library(lib_base_name: str, base_path: pathlib.Path) -> ctypes.CDLL:
    """Load a library of this wheel; another folder (`LLAMA_CPP_LIB_PATH`) is left to the binding."""
    name = ABOUT["libraries"].get(lib_base_name)
    if name is None or pathlib.Path(base_path) != FOLDER:
        library: ctypes.CDLL = _load(lib_base_name, base_path)
        return library
    path = str(FOLDER / name)
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise RuntimeError(f"Failed to load shared library '{path}': {error}") from None
    if lib_base_name == "llama" and ABOUT["plugins"]:
        quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        library.llama_log_set(quiet, None)  # it tells stderr which one it took
        load_all = library.ggml_backend_load_all_from_path
        load_all.argtypes, load_all.restype = [ctypes.c_char_p], None
        load_all(os.fsencode(FOLDER))
        library.llama_log_set(None, None)
    return library


def ctypes_function_for_shared_library(lib: ctypes.CDLL) -> typing.Callable[..., typing.Any]:
    """Declare functions as the binding does, and put one that raises in the place of one that is missing."""
    declare = _declare(lib)

    def ctypes_function(name: str, *arguments: typing.Any, **options: typing.Any) -> typing.Callable[..., typing.Any]:
        bind = declare(name, *arguments, **options)

        def decorator(function: typing.Callable[..., typing.Any]) -> typing.Callable[..., typing.Any]:
            try:
                bound: typing.Callable[..., typing.Any] = bind(function)
            except AttributeError:
                MISSING.append(name)
                return _raising(name, function)
            return bound

        return decorator

    return ctypes_function


def _raising(name: str, function: typing.Callable[..., typing.Any]) -> typing.Callable[..., typing.Any]:
    if name in CONSTANTS:
        return lambda: CONSTANTS[name]

    @functools.wraps(function)
    def missing(*_: typing.Any, **__: typing.Any) -> typing.NoReturn:
        raise NotImplementedError(
            f"{name}: the prebuilt llama.cpp {ABOUT['llama_cpp']} has no such function; "
            "a compiled one has: tea-models engine install --compile --force"
        )

    return missing


extensions.load_shared_library = load_shared_library
extensions.ctypes_function_for_shared_library = ctypes_function_for_shared_library
