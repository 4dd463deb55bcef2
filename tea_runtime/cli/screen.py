"""What the commands of `tea-runtime` share: streamed text, log lines as notes, and the readable form of a state."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from tea_models.cli.output import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tea_models.cli.frame import App
    from tea_models.cli.output import Output

_SHOWN_NUMBERS = 4


class Stream:
    """Prints pieces of text as they come, without what could control a terminal."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._safe = file.isatty()
        self._open_line = False
        self._texts: list[str] = []
        self.used = False

    def __call__(self, text: str) -> None:
        if text:
            self.used = True
            self._open_line = not text.endswith("\n")
            self._file.write(printable(text) if self._safe else text)
            self._file.flush()

    def end_line(self) -> None:
        """Finish a line that is still open."""
        if self._open_line:
            self("\n")

    def remember(self, text: Any) -> None:
        """Note that a text was shown whole."""
        if self.used and isinstance(text, str):
            self._texts.append(text)

    def showed(self, value: Any) -> bool:
        """Whether a value of the state is a text that was shown already."""
        return isinstance(value, str) and value in self._texts


def environment(app: App, *, locked: bool = False) -> dict[str, str]:
    """The environment for the runtime, with the flags in it."""
    flags = {"TEA_OFFLINE": app.settings.offline, "TEA_LOCKED": locked}
    return dict(app.settings.environ) | {name: "1" for name, is_set in flags.items() if is_set}


@contextlib.contextmanager
def logged(out: Output) -> Iterator[None]:
    """Show what the runtime logs as notes and warnings on stderr."""
    handler = _Notes(out)
    logger = logging.getLogger("tea_runtime")
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


class _Notes(logging.Handler):
    def __init__(self, out: Output) -> None:
        super().__init__(logging.INFO)
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self._out.warn(record.getMessage())
        else:
            self._out.note(record.getMessage())


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send whatever is printed to stderr, by native code and children too, so that stdout stays one document."""
    sys.stdout.flush()
    try:
        saved = os.dup(1)
    except OSError:  # closed
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 1)
        os.close(saved)


def plain(value: Any) -> Any:
    """A value as JSON can hold it: other objects become their text, NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def changed(value: Any, place: str = "") -> Iterator[str]:
    """Where `plain` makes something else of a value: places such as `scores[2]`."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from changed(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(value):
            yield from changed(item, f"{place}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield f"{place} ({value} became null)"
    elif hasattr(value, "tolist"):
        yield from changed(value.tolist(), place)
    elif not (value is None or isinstance(value, str | bool | int)):
        yield f"{place} ({type(value).__name__} became a text)"


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
    elif isinstance(value, list) and value and not _numbers(value):
        lines.append(f"{indent}{label}")
        for item in value:
            if isinstance(item, dict) and item.keys() == {"role", "content"}:
                _show(lines, f"- {printable(str(item['role']))}:", item["content"], indent + "  ")
            else:
                _show(lines, "-", item, indent + "  ")
    else:
        lines.append(f"{indent}{label} {_short(value)}".rstrip())


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > _SHOWN_NUMBERS + 1:
        return "[" + ", ".join(map(_short, value[:_SHOWN_NUMBERS])) + f", … {len(value):,} numbers]"
    if isinstance(value, list):
        return "[" + ", ".join(map(_short, value)) + "]"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return printable(str(value).strip()) if value != {} else "{}"


def _numbers(value: list[Any]) -> bool:
    return all(isinstance(item, int | float) and not isinstance(item, bool) for item in value)
