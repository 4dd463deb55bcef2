"""The process in which the engine's dry run happens, kept for as many questions as come."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tea_models.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping

_WORKER = Path(__file__).with_name("probe_worker.py")


class ProbeError(EngineError):
    """The dry run gave no answer: the engine crashed, refused the file, or took too long."""


class CrashError(ProbeError):
    """The process ended; `documents` are what it had answered before."""

    def __init__(self, message: str, documents: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.documents = documents


class ProbeProcess:
    """A running worker; ends with `close`, or when it is forgotten.

    Args:
        environ: Its environment; by default that of this process.
        worker: The script that it runs; by default that of the dry run.

    Raises:
        ProbeError: It can't be started.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, worker: Path | None = None) -> None:
        environment = dict(os.environ if environ is None else environ)
        # Without the first, a failed assertion starts gdb.
        environment |= {"GGML_NO_BACKTRACE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(worker or _WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
            )
        except OSError as error:
            self._stderr.close()
            raise ProbeError(f"the dry run can't be started: {error.strerror or error}") from None
        # A thread, because not every system can wait for a pipe with a time limit.
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        reader = threading.Thread(target=_read_lines, args=(self._process.stdout, self._lines), daemon=True)
        reader.start()
        self.close = weakref.finalize(self, _end, self._process, self._stderr, reader)

    @property
    def ended(self) -> bool:
        """Whether nothing can be asked any more."""
        return not self.close.alive

    def ask(self, request: dict[str, Any], timeout: float) -> list[dict[str, Any]]:
        """Ask, and wait for all documents of the answer.

        Args:
            request: See `probe_worker`.
            timeout: Seconds.

        Raises:
            CrashError: The process ended before it had said all.
            ProbeError: It took too long.
        """
        documents: list[dict[str, Any]] = []
        deadline = time.monotonic() + timeout
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            while True:
                line = self._line(deadline, timeout)
                if line is None:
                    break
                try:
                    document = json.loads(line)
                except ValueError:
                    continue  # something else wrote to it
                if isinstance(document, dict):
                    if "done" in document:
                        return documents
                    documents.append(document)
        except BrokenPipeError:
            pass
        except BaseException:
            self.close()
            raise
        raise CrashError(f"llama.cpp {self._why()}", documents)

    def _line(self, deadline: float, timeout: float) -> bytes | None:
        """The next line of the answer; None where the process ended."""
        try:
            return self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise ProbeError(f"the dry run of llama.cpp took longer than {timeout:.0f} s") from None

    def _why(self) -> str:
        """How it ended, with the line of its stderr that tells most."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = 0
        self._stderr.seek(0)
        text = self._stderr.read(1 << 20).decode("utf-8", "replace")
        self.close()
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        telling = next((line for line in lines if "GGML_ASSERT" in line or "error" in line.lower()), "")
        telling = telling or (lines[-1] if lines else "")
        what = f"ended with exit code {code}"
        if code < 0:
            what = f"was stopped by signal {-code} ({signal.strsignal(-code)})"
        return f"{what}: {telling[:300]}" if telling else what


def _read_lines(stdout: IO[bytes] | None, lines: queue.SimpleQueue[bytes | None]) -> None:
    assert stdout is not None
    with stdout:
        for line in stdout:
            lines.put(line)
    lines.put(None)


def _end(process: subprocess.Popen[bytes], stderr: IO[bytes], reader: threading.Thread) -> None:
    process.kill()
    process.wait()
    reader.join(timeout=5)
    for pipe in (process.stdin, stderr):  # stdout ends with its reader
        try:
            if pipe is not None:
                pipe.close()
        except OSError:
            continue  # what could not be written to it any more
