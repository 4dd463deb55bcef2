"""The parent's side of the worker process: start, ask, watch the clock, kill, start again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import marshal
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

from tea_models.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Mapping

SECONDS = 5.0
MEMORY = 512 * 1024 * 1024
OUTPUT = 8 * 1024 * 1024

#: What a request in `marshal`'s format begins with; any other is JSON.
MARSHAL = b"M"

_START_SECONDS = 30.0
# What it may take to find libpython and, in a relocated Python, the standard library; everything else (tokens among it)
# stays out of the worker.
_LOADER_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "PYTHONHOME")
# Long prompts come and go as large blocks: glibc should keep them instead of asking the kernel for fresh pages again.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "67108864", "MALLOC_TRIM_THRESHOLD_": "134217728"}
# Collecting garbage while modules are imported takes a tenth of the start; `main` in the worker turns it on again.
_BOOT = (
    "import gc, sys; gc.disable(); from importlib.machinery import SourceFileLoader as L; sys.path += sys.argv[3:]; "
    "exec(L('__main__', sys.argv[2]).get_code('__main__'))"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request.

    Attributes:
        seconds: Wall time for all its jobs.
        output: Characters that one job may render.
    """

    seconds: float = SECONDS
    output: int = OUTPUT


def broken_limit(result: Mapping[str, Any], limits: Limits) -> str | None:
    """Which limit ended a template, in words for people; None if it was none of them."""
    return {
        "time": f"not done after {limits.seconds:g} s",
        "memory": "needs more memory than a template may use",
        "output": f"renders more than {limits.output:,} characters",
        "recursion": "nested too deeply",
        "crash": "crashed the process it runs in",
    }.get(result["kind"])


class _WorkerLostError(Exception):
    """The worker ended or fell silent; the text says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Worker:
    """One process with its two pipes."""

    def __init__(self) -> None:
        if not sys.executable:
            raise TemplateError(
                "chat templates run in a process of their own, and this Python does not know its executable",
                hint="set sys.executable before rendering",
            )
        request_read, self._out = _pipe()
        self._in, reply_write = _pipe()
        try:
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-P", "-s", "-S", "-c", _BOOT, str(MEMORY), _worker_file(), *_library_folders()],
                _ALLOCATOR | {name: os.environ[name] for name in _LOADER_VARIABLES if name in os.environ},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, request_read, 0),
                    (os.POSIX_SPAWN_DUP2, reply_write, 1),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
                setpgroup=0,  # Ctrl-C is for the parent, which then ends the worker itself
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGALRM, signal.SIGTERM],
            )
        except OSError as error:
            os.close(self._out)
            os.close(self._in)
            raise TemplateError(
                f"chat templates run in a process of their own, which could not be started: {error}"
            ) from None
        finally:
            os.close(request_read)
            os.close(reply_write)
        os.set_blocking(self._out, False)
        os.set_blocking(self._in, False)
        self._started = False

    @property
    def started(self) -> bool:
        """Whether it has ever answered."""
        return self._started

    def ask(self, body: bytes, seconds: float, most: int) -> bytes:
        deadline = time.monotonic() + _START_SECONDS + seconds
        self._send(len(body).to_bytes(4, "big") + body, deadline)
        if not self._started:
            self._receive(1024, time.monotonic() + _START_SECONDS)
            self._started = True
        return self._receive(most, time.monotonic() + seconds)

    def forget(self) -> None:
        """Close the pipes without touching the process: in a forked child it belongs to the parent."""
        os.close(self._out)
        os.close(self._in)

    def kill(self, *, grace: float = 0.0) -> int | None:
        """End the process (one that ends by itself gets `grace` seconds); return its wait status where it is known."""
        self.forget()
        deadline = time.monotonic() + grace
        try:
            while True:
                process, status = os.waitpid(self._pid, os.WNOHANG)
                if process:
                    return status
                if time.monotonic() >= deadline:
                    break
                time.sleep(0.002)
            os.kill(self._pid, signal.SIGKILL)
            return os.waitpid(self._pid, 0)[1]
        except (ChildProcessError, ProcessLookupError):  # somebody else reaps children here (SIGCHLD ignored)
            return None

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._out, view) :]
            except BlockingIOError:
                self._wait(self._out, select.POLLOUT, deadline)
            except BrokenPipeError:
                raise _WorkerLostError("ended") from None

    def _receive(self, most: int, deadline: float) -> bytes:
        length = int.from_bytes(self._exactly(4, deadline), "big")
        if length > most:
            raise _WorkerLostError("output")
        return self._exactly(length, deadline)

    def _exactly(self, count: int, deadline: float) -> bytes:
        pieces = []
        while count:
            try:
                piece = os.read(self._in, min(count, 1 << 20))
            except BlockingIOError:
                self._wait(self._in, select.POLLIN, deadline)
                continue
            if not piece:
                raise _WorkerLostError("ended")
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        left = deadline - time.monotonic()
        poll = select.poll()
        poll.register(descriptor, event)
        if left <= 0 or not poll.poll(left * 1000):
            raise _WorkerLostError("time")


class Sandbox:
    """Renders in a worker that is started when it is first needed and replaced when it had to be killed.

    Safe to use from several threads (they take turns) and across `os.fork` (a child starts its own worker).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        os.register_at_fork(after_in_child=self._after_fork)

    def start(self) -> None:
        """Start the worker now, so that it comes up while the caller does something else."""
        with self._lock:
            if self._worker is None:
                self._worker = _Worker()

    def close(self) -> None:
        """End the worker; the next request starts another."""
        with self._lock:
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.kill()

    def request(self, request: dict[str, Any], limits: Limits) -> dict[str, Any]:
        """Ask the worker, under limits.

        Args:
            request: `template`, `jobs` and perhaps `analyse`; see `worker.py`.
            limits: Time and output.

        Returns:
            The worker's reply; a job or a worker that broke a limit is a result with an `error` and a `kind`.

        Raises:
            TemplateError: The variables are no JSON, or the worker can't be started.
        """
        body = encode(request | {"seconds": limits.seconds, "limit": limits.output})
        return self._exchange(body, limits, jobs=len(request["jobs"]))

    def evaluate(self, source: str, names: Mapping[str, Any], *, expression: bool, limits: Limits) -> dict[str, Any]:
        """Evaluate a template of a workflow.

        Args:
            source: The template, or the expression alone.
            names: What it may use.
            expression: Give back the expression's value with its type, not a text.
            limits: Time and output.

        Returns:
            `{"value"}`, or `{"error", "kind", "line"}`.

        Raises:
            TemplateError: The worker can't be started.
        """
        request = {"source": source, "expression": expression, "seconds": limits.seconds, "limit": limits.output}
        try:
            body = marshal.dumps(request | {"names": names})
        except ValueError:  # something that is no plain data
            try:
                body = marshal.dumps(request | {"names": plain_data(names)})
            except (ValueError, RecursionError):
                raise TemplateError("values for a template are nested too deeply, or hold themselves") from None
        result: dict[str, Any] = self._exchange(MARSHAL + body, limits)["results"][0]
        return result

    def _exchange(self, body: bytes, limits: Limits, jobs: int = 1) -> dict[str, Any]:
        # Four bytes a character at most, and JSON's escapes for what a prompt rarely holds.
        most = 65536 + 6 * limits.output + 4096 * jobs
        with self._lock:
            for attempt in (1, 2):
                if self._worker is None:
                    self._worker = _Worker()
                    attempt = 2  # noqa: PLW2901 - a new worker that fails is the template's doing
                try:
                    reply: dict[str, Any] = json.loads(
                        self._worker.ask(body, limits.seconds, most).decode("utf-8", "surrogatepass")
                    )
                except _WorkerLostError as lost:
                    started = self._worker.started
                    status = self._drop(grace=0.2 if lost.reason == "ended" else 0.0)
                    if not started:
                        raise _not_started(status) from None
                    # An idle worker may have been killed from outside (out of memory, a terminal closed): one more try.
                    if lost.reason == "ended" and attempt == 1:
                        continue
                    return _lost(lost.reason, status)
                except BaseException:
                    # An interrupt in the middle of an exchange: an answer may still come, to a question nobody asked.
                    self._drop()
                    raise
                if any(result.get("kind") == "memory" for result in reply["results"]):
                    self._drop()
                return reply
        raise AssertionError

    def _drop(self, *, grace: float = 0.0) -> int | None:
        worker, self._worker = self._worker, None
        return worker.kill(grace=grace) if worker is not None else None

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        if self._worker is not None:
            self._worker.forget()
            self._worker = None


#: The process's sandbox. One is enough: a render takes tens of microseconds.
SANDBOX = Sandbox()


def encode(value: Any) -> bytes:
    """JSON as the worker reads it; dataclasses, mappings and pydantic models become objects.

    Raises:
        TemplateError: Something in it is no JSON.
    """
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise TemplateError(f"{_culprit(value)}can't be given to a chat template: {reason}") from None


def _culprit(value: Any) -> str:
    jobs = value.get("jobs") if isinstance(value, dict) else None
    for job in jobs or []:
        for name, variable in job["variables"].items():
            try:
                json.dumps(variable, default=_plain)
            except (TypeError, ValueError, RecursionError):
                return f"variable {name!r} "
    return "the variables "


def _plain(value: Any) -> Any:
    import dataclasses
    from collections.abc import Mapping

    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return dump()
    raise TypeError(f"a {type(value).__name__} is not JSON")


def plain_data(value: Any) -> Any:
    """Copy a value into what Python's `marshal` takes: objects with fields become mappings, others their text."""
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, str | bool | int | float):  # of a class of its own, such as an enumeration's
        base = next(kind for kind in (str, bool, int, float) if isinstance(value, kind))
        return base(value) if base is not str else str.__str__(value)
    if isinstance(value, list | tuple | set | frozenset | deque):
        items = [plain_data(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    try:
        value = _plain(value)
    except TypeError:
        return str(value)
    return {plain_data(key): plain_data(item) for key, item in value.items()}


def _not_started(status: int | None) -> TemplateError:
    reason = "it did not answer"
    if status is not None and os.WIFEXITED(status):
        reason = f"it ended with status {os.WEXITSTATUS(status)}"
    elif status is not None and os.WTERMSIG(status) != signal.SIGKILL:
        reason = f"it was ended by signal {os.WTERMSIG(status)}"
    return TemplateError(f"the process that chat templates run in could not be started: {reason}")


def _lost(reason: str, status: int | None) -> dict[str, Any]:
    kind = {"time": "time", "output": "output"}.get(reason, "crash")
    if kind == "crash" and status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        kind = "time"
    return {"results": [{"error": "", "kind": kind, "line": None}]}


def _pipe() -> tuple[int, int]:
    """A pipe above the standard descriptors, which may be closed here and are written over in the child."""
    ends = list(os.pipe())
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        # A long prompt should go over in one piece, not in sixteen with a switch of process after each.
        with contextlib.suppress(OSError):
            fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 1 << 20)
    low = [end for end in ends if end < 3]
    if low:
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) if end < 3 else end for end in ends]
        for end in low:
            os.close(end)
    return ends[0], ends[1]


def _worker_file() -> str:
    return __file__.removesuffix("sandbox.py") + "worker.py"


def _library_folders() -> list[str]:
    folders: list[str] = []
    for name in ("jinja2", "markupsafe"):
        spec = PathFinder.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise TemplateError(
                f"chat templates need the package {name}, which is not installed", hint=f"pip install {name}"
            )
        folder = os.path.dirname(os.path.abspath(next(iter(spec.submodule_search_locations))))  # noqa: PTH100, PTH120
        if folder not in folders:
            folders.append(folder)
    return [*folders, __file__.removesuffix("/tea_models/chat/sandbox.py")]
