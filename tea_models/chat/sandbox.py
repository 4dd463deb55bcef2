"""The parent's side of the worker process: start, ask, watch the clock, kill, start again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import marshal
import os
import select
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from tea_models.errors import TemplateError

SECONDS = 5.0
MEMORY = 512 * 1024 * 1024
OUTPUT = 8 * 1024 * 1024

_START_SECONDS = 30.0
# What it may take to find libpython and, in a relocated Python, the standard library; everything else (tokens among it)
# stays out of the worker.
_LOADER_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "PYTHONHOME")
_BOOT = "import sys; sys.path += sys.argv[2:]; from tea_models.chat.worker import main; main(int(sys.argv[1]))"


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request: wall time for all its jobs, and characters that one job may render."""

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


@dataclasses.dataclass(eq=False)
class _WorkerLostError(Exception):
    """The worker ended (`crash`), fell silent (`time`) or says too much (`output`)."""

    kind: str


class Sandbox:
    """A worker, started when it is needed; safe to use from threads (they take turns) and across `os.fork`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._answered = False
        os.register_at_fork(after_in_child=self._after_fork)

    def close(self) -> None:
        """End the worker; the next request starts another."""
        with self._lock:
            self._drop()

    def request(self, request: dict[str, Any], limits: Limits) -> dict[str, Any]:
        """Ask the worker for `jobs` of a `template`, as plain data; a broken limit is a result with an `error`."""
        body = marshal.dumps(request | {"seconds": limits.seconds, "limit": limits.output})
        # Four bytes a character at most, and JSON's escapes for what a prompt rarely holds.
        most = 65536 + 6 * limits.output + 4096 * len(request.get("jobs", ()))
        with self._lock:
            idle = self._process is not None
            reply = self._reply(body, limits, most)
            # An idle worker may have been killed from outside (out of memory, a terminal closed): one more try.
            if idle and self._process is None and reply["results"][0].get("kind") == "crash":
                reply = self._reply(body, limits, most)
        return reply

    def evaluate(self, source: str, names: Mapping[str, Any], *, expression: bool, limits: Limits) -> dict[str, Any]:
        """`{"value"}` of a workflow's template, or of an `expression` with its type, or `{"error", "kind", "line"}`."""
        request = {"source": source, "expression": expression, "names": names}
        try:
            reply = self.request(request, limits)
        except ValueError:  # something that is no plain data
            try:
                reply = self.request(request | {"names": plain_data(names)}, limits)
            except (ValueError, RecursionError):
                raise TemplateError("values for a template are nested too deeply, or hold themselves") from None
        result: dict[str, Any] = reply["results"][0]
        return result

    def _reply(self, body: bytes, limits: Limits, most: int) -> dict[str, Any]:
        if self._process is None:
            self._process, self._answered = _started(), False
        try:
            reply: dict[str, Any] = json.loads(
                self._ask(self._process, body, limits, most).decode("utf-8", "surrogatepass")
            )
        except _WorkerLostError as lost:
            status = self._drop(grace=0.2 if lost.kind == "crash" else 0.0)
            if not self._answered:
                reason = f"it ended with status {status}" if lost.kind == "crash" else "it did not answer"
                raise TemplateError(f"the process that chat templates run in could not be started: {reason}") from None
            kind = "time" if status == -signal.SIGALRM else lost.kind
            return {"results": [{"error": "", "kind": kind, "line": None}]}
        except BaseException:
            # An interrupt in the middle of an exchange: an answer may still come, to a question nobody asked.
            self._drop()
            raise
        return reply

    def _ask(self, process: subprocess.Popen[bytes], body: bytes, limits: Limits, most: int) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        if not self._answered:
            _received(process.stdout, _START_SECONDS, 1024)
            self._answered = True
        try:
            process.stdin.write(len(body).to_bytes(4, "big") + body)
            process.stdin.flush()
        except BrokenPipeError:
            raise _WorkerLostError("crash") from None
        return _received(process.stdout, limits.seconds, most)

    def _drop(self, *, grace: float = 0.0) -> int | None:
        """End the process (one that ends by itself gets `grace` seconds); return its status as `Popen` has it."""
        process = self._forget()
        if process is None:
            return None
        try:
            return process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _forget(self) -> subprocess.Popen[bytes] | None:
        process, self._process = self._process, None
        for pipe in (process.stdin, process.stdout) if process is not None else ():
            with contextlib.suppress(BrokenPipeError):  # of what was left to be written
                pipe.close()  # type: ignore[union-attr]
        return process

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        process = self._forget()
        if process is not None:
            process.returncode = 0  # it belongs to the parent: nothing to wait for here


def _started() -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise TemplateError(
            "chat templates run in a process of their own, and this Python does not know its executable",
            hint="set sys.executable before rendering",
        )
    folders = [*filter(os.path.isabs, sys.path), str(Path(__file__).parents[2])]
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", "-c", _BOOT, str(MEMORY), *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _LOADER_VARIABLES if name in os.environ},
            process_group=0,  # Ctrl-C is for the parent, which then ends the worker itself
        )
    except OSError as error:
        raise TemplateError(
            f"chat templates run in a process of their own, which could not be started: {error}"
        ) from None


def _received(pipe: IO[bytes], seconds: float, most: int) -> bytes:
    # The worker writes a reply in one go, and ends by itself soon after its time: only the beginning is waited for.
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    if not poll.poll(seconds * 1000):
        raise _WorkerLostError("time")
    length = int.from_bytes(pipe.read(4), "big")
    if length > most:
        raise _WorkerLostError("output")
    reply = pipe.read(length)
    if not reply or len(reply) < length:
        raise _WorkerLostError("crash")
    return reply


#: The process's sandbox. One is enough: a render takes tens of microseconds.
SANDBOX = Sandbox()


def plain_data(value: Any, *, strict: bool = False) -> Any:
    """Copy a value for `marshal`: objects with fields become mappings, others their text (a TypeError if `strict`)."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, str):  # of a class of its own, such as an enumeration's
        return str.__str__(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, list | tuple):
        items = [plain_data(item, strict=strict) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif callable(getattr(value, "model_dump", None)) and not isinstance(value, type):
        value = value.model_dump()
    if isinstance(value, Mapping):
        return {plain_data(key, strict=strict): plain_data(item, strict=strict) for key, item in value.items()}
    if strict:
        raise TypeError(f"a {type(value).__name__} is not JSON")
    if isinstance(value, set | frozenset | deque):
        return list(map(plain_data, value))
    return value if type(value) is bytes else str(value)
