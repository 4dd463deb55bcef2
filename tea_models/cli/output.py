"""The one sink for what a command says: human text, JSON, or nothing but the answer.

Modules that only some answers need are imported by those: `inspect` is to be as fast as Python starts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tea_models.errors import TeaModelsError
from tea_models.redact import redact, redact_data
from tea_models.settings import Settings

# C0 and C1 controls, DEL, bidirectional controls and separators: what a file's text could do to a terminal.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


@dataclass(frozen=True, slots=True)
class Output:
    """Where answers, notes and errors go; `live`: stderr is a terminal that can show progress."""

    as_json: bool = False
    quiet: bool = False
    color: bool = False
    live: bool = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], *, as_json: bool, quiet: bool) -> Output:
        """Decide from the terminal, `NO_COLOR` and `TERM`."""
        dumb = environ.get("TERM", "") == "dumb"
        color = sys.stdout.isatty() and not environ.get("NO_COLOR") and not dumb and not as_json
        return cls(as_json=as_json, quiet=quiet, color=color, live=sys.stderr.isatty() and not quiet and not dumb)

    @property
    def width(self) -> int:
        """Columns of the terminal (80 where there is none)."""
        import shutil

        return max(20, shutil.get_terminal_size((80, 24)).columns)

    def answer(self, data: Any, human: Callable[[], str], *, exact: bool = False) -> None:
        """Print `data` as JSON, or the text that `human` makes; addresses lose their secrets.

        `exact`: it is a model's or the user's own text, printed as it is.
        """
        if self.as_json:
            import json

            # stdout may be a terminal, and lone surrogates can't be encoded; as \\u escapes the values are the same.
            text = json.dumps(data if exact else redact_data(data), indent=2, ensure_ascii=False, allow_nan=False)
            sys.stdout.write(_CONTROL.sub(lambda match: f"\\u{ord(match.group()):04x}", text) + "\n")
            return
        text = human() if exact else redact(human())
        if text:
            sys.stdout.write(text if text.endswith("\n") else text + "\n")

    def note(self, text: str) -> None:
        """Say something on stderr that is not the answer."""
        if not self.quiet:
            sys.stderr.write(printable(redact(text)) + "\n")
            sys.stderr.flush()

    def note_foreign_registry(self, settings: Settings) -> None:
        """Say that the project's `registry.yaml` is another program's, where it is."""
        if settings.foreign_registry is not None:
            self.note(f"{settings.foreign_registry}: not read: no registry of models (no `schema: tea.registry/1`)")

    def warn(self, text: str) -> None:
        """Say something on stderr that the user should act on; shown with `--quiet` too."""
        sys.stderr.write(f"warning: {printable(redact(text))}\n")

    def error(self, error: TeaModelsError) -> int:
        """Report an error and return its exit code."""
        message, hint = printable(redact(error.message)), printable(redact(error.hint))
        if self.as_json:
            import json

            document = {"error": {"type": error.type, "message": message, "hint": hint}}
            sys.stdout.write(json.dumps(document, indent=2) + "\n")
        else:
            sys.stderr.write(f"error: {message}\n" + (f"  {hint}\n" if hint else ""))
        return error.exit_code

    def style(self, text: str, style: str) -> str:
        """Colour a text for stdout where that is wanted."""
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self.color else text


def printable(text: str) -> str:
    """Replace what could control a terminal (escape sequences, bidi overrides, lone surrogates) by visible escapes."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)


def one_line(text: str, most: int = 0) -> str:
    """A text that is safe to print, on one line, cut to a number of columns."""
    flat = printable(text.replace("\n", "\\n").replace("\t", "\\t"))
    return flat if not most or len(flat) <= most else flat[: most - 1] + "…"


def table(rows: list[list[str]], *, header: list[str] | None = None, right: frozenset[int] = frozenset()) -> str:
    """Align rows of cells in columns, two spaces apart and safe to print; columns in `right` are flushed right."""
    every = [[one_line(cell) for cell in row] for row in ([header] if header else []) + rows]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    lines = []
    for row in every:
        cells = [cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
