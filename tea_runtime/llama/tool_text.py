"""The text of an answer that may hold tool calls, while it comes: what is certainly no call may be shown."""

from __future__ import annotations

import re

# Every form of a call begins with one of these, or with the words of Command R.
_BEGINNING = re.compile(r"[<\[{`]|Action:|functools")
_PARTIAL = re.compile(r"(?:A|Ac|Act|Acti|Actio|Action|f|fu|fun|func|funct|functo|functoo|functool)\Z")


class ToolTextFilter:
    """Lets text through up to where a call could begin; white space waits for what comes after it."""

    def __init__(self) -> None:
        self.shown = ""
        self._held = ""
        self._stopped = False

    def feed(self, text: str) -> str:
        """Add text and return what may be shown."""
        self._held += text
        if self._stopped:
            return ""
        begins = _BEGINNING.search(self._held)
        end = begins.start() if begins else len(self._held)
        if not begins and (partial := _PARTIAL.search(self._held)):
            end = partial.start()
        self._stopped = bool(begins)
        safe = self._held[:end].rstrip()
        self._held = self._held[len(safe) :]
        self.shown += safe
        return safe

    def rest(self, content: str) -> str:
        """What is still to be shown, once the answer is there without its calls."""
        return content[len(self.shown) :] if content.startswith(self.shown) else ""
