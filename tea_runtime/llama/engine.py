"""The door to llama.cpp: the package and its version, its log, and the weights that all backends of a process share.

Only the public C API that `llama_cpp` exports is used, never its `Llama` class, which can't share weights, is not
thread-safe and decodes one sequence at a time.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import threading
import weakref
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tea_models.errors import INSTALL_ENGINE, EngineError, UsageError
from tea_runtime.errors import LlmError, MissingEngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping
    from pathlib import Path

#: The oldest llama-cpp-python whose functions and structures this package was written for (see pyproject.toml).
MINIMUM_VERSION = (0, 3, 36)

_logger = logging.getLogger("tea_runtime.llama")
# ggml_log_level of ggml.h; 5 continues the line before.
_ERROR = 4
_CONTINUED = 5
# So few are quickly all wanted at once.
_FEW_CPUS = 4


class EngineLog:
    """Takes llama.cpp's log: into `logging` (`tea_runtime.llama`, level DEBUG), and to whoever captures it."""

    def __init__(self) -> None:
        self._captures: dict[int, list[deque[tuple[int, str]]]] = {}
        self._last = 0

    def write(self, level: int, text: bytes | None, _data: object) -> None:
        """Take a piece of log; called by llama.cpp, so nothing may be raised."""
        try:
            line = (text or b"").decode("utf-8", "replace").rstrip("\n")
            kind = self._last if level == _CONTINUED else level
            self._last = kind
            if not line.strip(". "):
                return
            for capture in self._captures.get(threading.get_ident(), ()):
                capture.append((kind, line))
            if _logger.isEnabledFor(logging.DEBUG):
                _logger.debug("%s", line)
        except Exception:  # noqa: BLE001, S110 - an exception can't cross the C code that called us
            pass

    @contextmanager
    def capture(self) -> Iterator[deque[tuple[int, str]]]:
        """Collect what this thread makes llama.cpp say: pairs of level and line, the newest 2,000."""
        lines: deque[tuple[int, str]] = deque(maxlen=2000)
        mine = self._captures.setdefault(threading.get_ident(), [])
        mine.append(lines)
        try:
            yield lines
        finally:
            mine.remove(lines)
            if not mine:
                self._captures.pop(threading.get_ident(), None)


def explanation(lines: deque[tuple[int, str]]) -> str:
    """Why something failed, in llama.cpp's own words: its errors, without the names of its functions."""
    found: list[str] = []
    for level, line in lines:
        function, colon, rest = line.partition(": ")
        text = rest if colon and function.replace("_", "").isalnum() else line
        if level == _ERROR and text not in found:
            found.append(text)
    return "; ".join(found[:3])


log = EngineLog()


@functools.cache
def llama() -> Any:
    """Import `llama_cpp`, check its version and take over its log.

    Raises:
        MissingExtraError: The package is not installed (this is an ImportError too).
        EngineError: It is too old, or can't be loaded.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        raise MissingEngineError
    prepare(os.environ, cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        module = importlib.import_module("llama_cpp")
    except Exception as error:
        raise EngineError(
            f"llama-cpp-python is installed but can't be loaded: {error}",
            hint=f"{INSTALL_ENGINE} --force",
        ) from error
    check_version(str(getattr(module, "__version__", "unknown")))
    # The callback must live as long as the process: llama.cpp keeps the pointer.
    module.llama_log_set(_keep(module.llama_log_callback(log.write)), None)
    module.llama_backend_init()
    return module


def prepare(environ: MutableMapping[str, str], *, cpus: int) -> None:
    """Set what llama.cpp's libraries read from the environment when they are loaded; what the user has set stays.

    Args:
        environ: The process's environment.
        cpus: CPUs that this process may use.
    """
    # Without it, a failed assertion starts a debugger on this process.
    environ.setdefault("GGML_NO_BACKTRACE", "1")
    # GNU OpenMP's threads wait for each other by spinning for milliseconds, hundreds of times a token. Where something
    # else wants the CPU, they keep it from the very thread that they wait for. Measured on 2 CPUs beside 2 busy
    # processes: 3 to 10 times as fast with shorter spins; on an idle machine 1 to 3 % slower a token. With more CPUs
    # there is less to gain, and it was not measured.
    if cpus <= _FEW_CPUS and "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", "10000")


def check_version(version: str) -> None:
    """Check that an installed version of llama-cpp-python is one this package can use.

    Raises:
        EngineError: It is older than `MINIMUM_VERSION`.
    """
    numbers = tuple(int(part) for part in version.partition("+")[0].split(".")[:3] if part.isdecimal())
    if numbers < MINIMUM_VERSION:
        wanted = ".".join(map(str, MINIMUM_VERSION))
        raise EngineError(
            f"llama-cpp-python {version} is too old: {wanted} or newer is needed",
            hint=f"{INSTALL_ENGINE} --force",
        )


_kept: list[object] = []


def _keep(thing: object) -> object:
    _kept.append(thing)
    return thing


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How weights are loaded.

    Attributes:
        n_gpu_layers: Layers in GPU memory; 0 none, -1 all.
        use_mmap: Map the file instead of reading it.
        use_mlock: Keep the pages in memory.
    """

    n_gpu_layers: int = 0
    use_mmap: bool = True
    use_mlock: bool = False


class EngineLock:
    """Lets one thread in at a time and tells a caller who is inside already, instead of waiting for itself for ever."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._process = os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            # The threads of llama.cpp are not there in a fork: it would wait for them for ever.
            raise LlmError(
                "a model can't be used in a process that was forked after it was loaded",
                hint="load it in the new process, or start processes by multiprocessing's 'spawn'",
            )
        if self._owner == threading.get_ident():
            raise LlmError(
                "a model can't be called from the callback of its own stream",
                hint="collect the text in the callback and make the next call when the stream is over",
            )
        self._lock.acquire()
        self._owner = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self._owner = None
        self._lock.release()

    def is_free_within(self, seconds: float) -> bool:
        """Wait until nobody is inside."""
        if not self._lock.acquire(timeout=seconds):
            return False
        self._lock.release()
        return True


class Weights:
    """The loaded weights of one file. Made by `acquire`, given back by `release`.

    Attributes:
        path: The file, or the first of its shards.
        model: llama.cpp's model.
        vocab: Its vocabulary.
        engine_lock: Held by whoever makes llama.cpp work with this model.
    """

    def __init__(self, path: Path, options: LoadOptions) -> None:
        engine = llama()
        params = engine.llama_model_default_params()
        params.n_gpu_layers = options.n_gpu_layers
        params.load_mode = {
            (True, False): engine.LLAMA_LOAD_MODE_MMAP,
            (True, True): engine.LLAMA_LOAD_MODE_MMAP_MLOCK,
            (False, False): engine.LLAMA_LOAD_MODE_NONE,
            (False, True): engine.LLAMA_LOAD_MODE_MLOCK,
        }[options.use_mmap, options.use_mlock]
        with log.capture() as lines:
            pointer = engine.llama_model_load_from_file(str(path).encode("utf-8", "surrogateescape"), params)
        if not pointer:
            reason = explanation(lines) or "no reason given"
            raise EngineError(f"{path}: llama.cpp can't load it: {reason}", hint=f"tea-models verify {path}")
        self.path = path
        self.options = options
        self.model: Any = pointer
        self.vocab: Any = engine.llama_model_get_vocab(pointer)
        self.engine_lock = EngineLock()
        self.n_ctx_train = int(engine.llama_model_n_ctx_train(pointer))
        self.n_embd = int(engine.llama_model_n_embd_out(pointer))
        self.n_swa = int(engine.llama_model_n_swa(pointer))
        self.n_vocab = int(engine.llama_vocab_n_tokens(self.vocab))
        self.has_encoder = bool(engine.llama_model_has_encoder(pointer))
        self.has_decoder = bool(engine.llama_model_has_decoder(pointer))
        self.recurrent = bool(engine.llama_model_is_recurrent(pointer) or engine.llama_model_is_hybrid(pointer))
        self.log = tuple(lines)
        self._free = weakref.finalize(self, engine.llama_model_free, pointer)
        self._free.atexit = False  # a thread may still compute with them when the process ends
        architecture = self.metadata("general.architecture")
        original = self.metadata(f"{architecture}.rope.scaling.original_context_length") or ""
        #: The context before RoPE scaling, where the header has one.
        self.original_context = int(original) if original.isdecimal() else None

    def metadata(self, key: str) -> str | None:
        """A value of the header as text, or None."""
        import ctypes

        buffer = ctypes.create_string_buffer(256)
        length = llama().llama_model_meta_val_str(self.model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length >= 0 else None

    def close(self) -> None:
        """Free the weights. Every context on them must be closed before."""
        self._free()
        self.model = None


_Key = tuple[str, int, int, LoadOptions]


class _Shared:
    def __init__(self) -> None:
        self.loading = threading.Lock()
        self.weights: Weights | None = None
        self.users = 0


_shared: dict[_Key, _Shared] = {}
_shared_lock = threading.Lock()


def acquire(path: Path, options: LoadOptions) -> Weights:
    """Load a file, or share the weights that this process has loaded from it with the same options.

    Raises:
        EngineError: llama.cpp refuses the file; the message says why.
        MissingExtraError: llama.cpp is not installed.
    """
    if "\0" in str(path):
        raise UsageError(f"model path {str(path)!r}: a path can't hold a NUL character")
    real = path.resolve()
    stat = real.stat()
    key = (str(real), stat.st_size, stat.st_mtime_ns, options)
    with _shared_lock:
        shared = _shared.setdefault(key, _Shared())
        shared.users += 1
    try:
        with shared.loading:
            if shared.weights is None:
                shared.weights = Weights(path, options)
            return shared.weights
    except BaseException:
        _leave(key, shared)
        raise


def release(weights: Weights) -> None:
    """Give weights back; the last one to do so frees them."""
    with _shared_lock:
        found = next(((key, shared) for key, shared in _shared.items() if shared.weights is weights), None)
    if found is not None:
        _leave(*found)


def _leave(key: _Key, shared: _Shared) -> None:
    with _shared_lock:
        shared.users -= 1
        last = shared.users == 0
        if last and _shared.get(key) is shared:
            del _shared[key]
    if last and shared.weights is not None:
        shared.weights.close()


def loaded() -> list[tuple[Path, int]]:
    """The files whose weights this process holds, each with the number of its users."""
    with _shared_lock:
        return [(shared.weights.path, shared.users) for shared in _shared.values() if shared.weights is not None]
