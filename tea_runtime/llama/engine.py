"""The door to llama.cpp: the package, its version, its log.

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
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from tea_models.errors import INSTALL_ENGINE, EngineError
from tea_runtime.errors import MissingEngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

#: The oldest llama-cpp-python whose functions and structures this package was written for (see pyproject.toml).
MINIMUM_VERSION = "0.3.36"

_logger = logging.getLogger("tea_runtime.llama")
# ggml_log_level of ggml.h; 5 continues the line before.
_ERROR = 4
_CONTINUED = 5
#: Turns that OpenMP's threads wait for each other before they sleep.
SPIN_COUNT = "500"
# So few are quickly all wanted at once.
_FEW_CPUS = 4


class EngineLog:
    """Takes llama.cpp's log: into `logging` (`tea_runtime.llama`, level DEBUG), and to whoever captures it."""

    def __init__(self) -> None:
        self._captures: dict[int, deque[tuple[int, str]]] = {}
        self._last = 0
        self.callback: Any = None

    def write(self, level: int, text: bytes | None, _data: object) -> None:
        """Take a piece of log; called by llama.cpp, so nothing may be raised."""
        try:
            line = (text or b"").decode("utf-8", "replace").rstrip("\n")
            kind = self._last if level == _CONTINUED else level
            self._last = kind
            if not line.strip(". "):
                return
            capture = self._captures.get(threading.get_ident())
            if capture is not None:
                capture.append((kind, line))
            if _logger.isEnabledFor(logging.DEBUG):
                _logger.debug("%s", line)
        except Exception:  # noqa: BLE001, S110 - an exception can't cross the C code that called us
            pass

    @contextmanager
    def capture(self) -> Iterator[deque[tuple[int, str]]]:
        """Collect what this thread makes llama.cpp say: pairs of level and line, the newest 2,000."""
        lines: deque[tuple[int, str]] = deque(maxlen=2000)
        self._captures[threading.get_ident()] = lines
        try:
            yield lines
        finally:
            del self._captures[threading.get_ident()]


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
    """Import `llama_cpp`, check its version and take over its log."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise MissingEngineError
    prepare(os.environ, cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        module = importlib.import_module("llama_cpp")
    except Exception as error:
        raise EngineError(
            f"llama-cpp-python is installed but can't be loaded: {error}", hint=f"{INSTALL_ENGINE} --force"
        ) from error
    check_version(module.__version__)
    # The callback must live as long as the process: llama.cpp keeps the pointer.
    log.callback = module.llama_log_callback(log.write)
    module.llama_log_set(log.callback, None)
    module.llama_backend_init()
    return module


def prepare(environ: MutableMapping[str, str], *, cpus: int) -> None:
    """Set what llama.cpp's libraries read from the environment when they are loaded; what the user has set stays."""
    # Without it, a failed assertion starts a debugger on this process.
    environ.setdefault("GGML_NO_BACKTRACE", "1")
    # GNU OpenMP's threads wait for each other by spinning for milliseconds, hundreds of times a token. Where something
    # else wants the CPU, they keep it from the very thread that they wait for. Tokens/s on 2 CPUs with 5 to 10 others
    # that want them (benchmarks/engine.py, policies): no spinning 29, 100 turns 26, 1,000 17, 3,000 10, 10,000 4. With
    # more CPUs it was not measured.
    if cpus <= _FEW_CPUS and "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def check_version(version: str) -> None:
    """Check that an installed version of llama-cpp-python is one this package can use."""
    if Version(version) < Version(MINIMUM_VERSION):
        raise EngineError(
            f"llama-cpp-python {version} is too old: {MINIMUM_VERSION} or newer is needed",
            hint=f"{INSTALL_ENGINE} --force",
        )


@functools.cache
def build() -> str:
    """What tells this build of llama.cpp from others: its version, its library, what it makes of the processor."""
    engine = llama()
    libraries = sorted((Path(engine.__file__).parent / "lib").glob("*llama*"))
    stamps = [f"{path.name} {stat.st_size} {stat.st_mtime_ns}" for path in libraries for stat in (path.stat(),)]
    system: bytes = engine.llama_print_system_info()
    return " ".join([str(engine.__version__), *stamps, system.decode("utf-8", "replace")])
