"""A progress bar on stderr: share, amount, rate and time left, on one line that never wraps."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from tea_models.cli.output import printable
from tea_models.progress import Progress, Silent
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from typing import TextIO

    from tea_models.cli.output import Output

_INTERVAL: Final = 0.1
_WINDOW: Final = 5.0


def progress_for(out: Output) -> Progress:
    """The bar where stderr is a terminal that people look at, else nothing."""
    return Bar(sys.stderr) if out.live else Silent()


class Bar:
    """Draws one task at a time; implements `Progress`.

    Args:
        stream: A terminal.
        columns: Width of the terminal; asked for at each drawing by default, because windows change.
    """

    def __init__(self, stream: TextIO, columns: int | None = None) -> None:
        self._stream = stream
        self._columns = columns
        self._name = ""
        self._total: int | None = None
        self._done = self._initial = 0
        self._began = self._drawn = 0.0
        self._samples: deque[tuple[float, int]] = deque()
        self._active = False

    def start(self, name: str, total: int | None, initial: int = 0) -> None:
        """Begin a task; one that is still drawn is ended first."""
        self.finish()
        self._name = printable(name).replace("\n", " ").replace("\t", " ")
        self._total = total
        self._done = self._initial = initial
        self._began = time.monotonic()
        self._samples = deque([(self._began, initial)])
        self._active = True
        self._draw(self._began)

    def advance(self, n: int) -> None:
        """Add to what is done, and draw at most ten times a second."""
        if not self._active:
            return
        self._done = max(0, self._done + n)
        now = time.monotonic()
        if now - self._drawn >= _INTERVAL:
            self._draw(now)

    def finish(self) -> None:
        """Leave one line that says how much it was and how long it took."""
        if not self._active:
            return
        self._active = False
        now = time.monotonic()
        took = now - self._began
        moved = self._done - self._initial
        rate = f", {human_bytes(moved / took)}/s" if took > 0.05 and moved > 0 else ""
        self._write(f"{self._name}  {human_bytes(self._done)} in {_duration(took)}{rate}", end="\n")

    def _draw(self, now: float) -> None:
        self._drawn = now
        self._samples.append((now, self._done))
        while len(self._samples) > 2 and now - self._samples[0][0] > _WINDOW:
            self._samples.popleft()
        self._write(self._line(now))

    def _line(self, now: float) -> str:
        began, before = self._samples[0]
        rate = max(0.0, (self._done - before) / (now - began)) if now > began else 0.0
        if not self._total:
            return self._fit(human_bytes(self._done), f"{human_bytes(rate)}/s", "")
        share = min(1.0, self._done / self._total)
        left = _duration((self._total - self._done) / rate) + " left" if rate > 0 and share < 1 else ""
        amount = f"{100 * share:3.0f}%  {human_bytes(self._done)} of {human_bytes(self._total)}"
        return self._fit(amount, f"{human_bytes(rate)}/s" if rate > 0 else "", left, share)

    def _fit(self, amount: str, rate: str, left: str, share: float | None = None) -> str:
        """The most important parts that fit into the width: amount, then time left, rate, name, and a bar."""
        room = self._width()
        tail = amount
        for part in (left, rate):
            if part and len(tail) + 2 + len(part) <= room:
                tail += "  " + part
        spare = room - len(tail) - 2
        if spare < 6:
            return tail[:room]
        bar_room = min(24, spare // 3) if share is not None else 0
        name_room = spare - (bar_room + 2 if bar_room >= 6 else 0)
        name = self._name if len(self._name) <= name_room else self._name[: name_room - 1] + "…"
        if share is None or bar_room < 6:
            return f"{name}  {tail}"
        full = round(share * bar_room)
        return f"{name}  {'━' * full}{'─' * (bar_room - full)}  {tail}"

    def _width(self) -> int:
        columns = self._columns or shutil.get_terminal_size((80, 24)).columns
        return max(1, columns - 1)  # a full last column makes some terminals wrap

    def _write(self, line: str, end: str = "") -> None:
        text = f"\r\x1b[2K{line[: self._width()]}{end}"
        try:
            self._stream.write(text)
        except UnicodeEncodeError:  # a terminal without UTF-8
            self._stream.write(
                text.translate({0x2501: "#", 0x2500: "-", 0x2026: "~"}).encode("ascii", "replace").decode()
            )
        self._stream.flush()


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 100 else "days"
