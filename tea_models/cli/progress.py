"""A progress bar on stderr: share, amount, rate and time left, on one line that never wraps."""

from __future__ import annotations

import shutil
from typing import Any, TextIO

from tea_models.cli.output import one_line
from tea_models.progress import Progress


class Bar(Progress):
    """Draws one task at a time on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Any = None

    def start(self, name: str, total: int | None, initial: int = 0) -> None:
        """Begin a task; one that is still drawn is ended first."""
        from tqdm import tqdm

        self.finish()
        tqdm.monitor_interval = 0  # no thread of its own
        most = max(12, shutil.get_terminal_size().columns // 3)
        encoding = self._stream.encoding or "utf-8"
        self._bar = tqdm(
            desc=one_line(name, most).encode(encoding, "replace").decode(encoding),
            total=total or None,
            initial=initial,
            file=self._stream,
            dynamic_ncols=True,
            unit="iB",
            unit_scale=True,
            unit_divisor=1024,
        )

    def advance(self, n: int) -> None:
        """Add to what is done; drawn at most ten times a second."""
        if self._bar is not None:
            self._bar.update(n)

    def finish(self) -> None:
        """Leave one line that says how much it was and how long it took."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None
