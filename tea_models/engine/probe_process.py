"""The process in which the engine is asked, kept for as many questions as come."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from tea_models.errors import EngineError

_WORKER = Path(__file__).with_name("probe_worker.py")


class ProbeError(EngineError):
    """The dry run gave no answer: the engine crashed, refused the file, or took too long."""


class CrashError(ProbeError):
    """The process ended; `documents` are what it had answered before."""

    def __init__(self, message: str, documents: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.documents = documents


class ProbeProcess:
    """A worker (the dry run's), started when asked and again where it ended; `answered`: has it since then?"""

    def __init__(self, environ: Mapping[str, str] | None = None, worker: Path | None = None) -> None:
        self._environ = environ
        self._worker = worker
        self._end: Callable[[], object] = lambda: None
        self._process: subprocess.Popen[bytes] | None = None
        self.answered = False

    def close(self) -> None:
        self._end()
        self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        environment = dict(os.environ if self._environ is None else self._environ)
        # Without the first, a failed assertion starts gdb.
        environment |= {"GGML_NO_BACKTRACE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", str(self._worker or _WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
            )
        except OSError as error:
            self._stderr.close()
            raise ProbeError(f"the dry run can't be started: {error.strerror or error}") from None
        self._end = weakref.finalize(self, _end, process, self._stderr)
        self._process, self.answered = process, False
        return process

    def ask(self, request: dict[str, Any], timeout: float) -> list[dict[str, Any]]:
        """Ask, and wait so long for all documents of the answer (see `probe_worker`); a ProbeError if it fails."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        documents: list[dict[str, Any]] = []
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(timeout, expire)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            for line in process.stdout:
                document = None
                with contextlib.suppress(ValueError):  # something else wrote to it
                    document = json.loads(line)
                if isinstance(document, dict):
                    if "done" in document:
                        self.answered = True
                        return documents
                    documents.append(document)
        except BrokenPipeError:
            pass
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()
        how = _how_it_ended(process, self._stderr)
        self.close()
        if expired.is_set():
            raise ProbeError(f"the dry run of llama.cpp took longer than {timeout:.0f} s")
        raise CrashError(f"llama.cpp {how}", documents)


def _how_it_ended(process: subprocess.Popen[bytes], stderr: IO[bytes]) -> str:
    """With the line of its stderr that tells most."""
    code = process.wait()
    stderr.seek(0)
    text = stderr.read(1 << 20).decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "GGML_ASSERT" in line or "error" in line.lower()][:1] or lines[-1:]
    what = f"ended with exit code {code}"
    if code < 0:
        what = f"was stopped by signal {-code} ({signal.strsignal(-code)})"
    return f"{what}: {telling[0][:300]}" if telling else what


def _end(process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, stderr):
        with contextlib.suppress(OSError):  # what could not be written to it any more
            if pipe is not None:
                pipe.close()
