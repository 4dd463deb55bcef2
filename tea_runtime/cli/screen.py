"""What the commands of `tea-runtime` share: streamed text, log lines as notes, and the readable form of a state."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from tea_models.cli.frame import App
from tea_models.cli.output import Output, printable

_SHOWN_NUMBERS = 4


class Stream:
    """Prints pieces of text as they come, without what could control a terminal; `shown` are whole texts."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._safe = file.isatty()
        self._open_line = False
        self.shown: list[str] = []
        self.used = False

    def __call__(self, text: str) -> None:
        if text:
            self.used = True
            self._open_line = not text.endswith("\n")
            self._file.write(printable(text) if self._safe else text)
            self._file.flush()

    def end_line(self) -> None:
        if self._open_line:
            self("\n")


def environment(app: App, *, locked: bool = False) -> dict[str, str]:
    """The environment for the runtime, with the flags in it."""
    flags = {"TEA_OFFLINE": app.settings.offline, "TEA_LOCKED": locked}
    return dict(app.settings.environ) | {name: "1" for name, is_set in flags.items() if is_set}


@contextlib.contextmanager
def logged(out: Output) -> Iterator[None]:
    """Show what the runtime logs as notes and warnings on stderr."""
    logger = logging.getLogger("tea_runtime")
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: (  # type: ignore[method-assign]
        out.warn(record.getMessage()) if record.levelno >= logging.WARNING else out.note(record.getMessage())
    )
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


@contextlib.contextmanager
def only_json(*, wanted: bool) -> Iterator[None]:
    """Send whatever is printed to stderr, by native code and children too, so that stdout stays one document."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # closed
            saved = os.dup(1)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, 1)
            os.dup2(2, 1)
        stack.callback(sys.stderr.flush)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def plain(value: Any, changes: list[str] | None = None, place: str = "") -> Any:
    """A value as JSON can hold it; `changes` gets the places where that makes something else of it: `scores[2]`."""
    if isinstance(value, Mapping):
        return {str(key): plain(item, changes, f"{place}.{key}" if place else str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, changes, f"{place}[{index}]") for index, item in enumerate(value)]
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist(), changes, place)
    if changes is not None:
        became = f"{value} became null" if isinstance(value, float) else f"{type(value).__name__} became a text"
        changes.append(f"{place} ({became})")
    return None if isinstance(value, float) else str(value)


def readable(state: Mapping[str, Any], out: Output) -> str:
    """The state for a person: a key a line, long texts indented, vectors shortened."""
    lines: list[str] = []
    for key, value in state.items():
        _show(lines, out.style(printable(str(key)), "bold") + ":", plain(value), "")
    return "\n".join(lines)


def _show(lines: list[str], label: str, value: Any, indent: str) -> None:
    if isinstance(value, str) and "\n" in value.strip():
        lines.append(f"{indent}{label}")
        lines += [f"{indent}  {printable(line)}".rstrip() for line in value.strip().splitlines()]
    elif isinstance(value, dict) and value:
        lines.append(f"{indent}{label}")
        for key, item in value.items():
            _show(lines, printable(key) + ":", item, indent + "  ")
    elif isinstance(value, list) and not all(type(item) in (int, float) for item in value):
        lines.append(f"{indent}{label}")
        for item in value:
            _show(lines, "-", item, indent + "  ")
    else:
        lines.append(f"{indent}{label} {_short(value)}".rstrip())


def _short(value: Any) -> str:
    if isinstance(value, list):
        more = f", … {len(value):,} numbers" if len(value) > _SHOWN_NUMBERS + 1 else ""
        return "[" + ", ".join(map(_short, value[:_SHOWN_NUMBERS] if more else value)) + more + "]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(value.strip() if isinstance(value, str) else json.dumps(value))
