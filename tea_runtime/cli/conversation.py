"""A conversation with a model: what was said, what it took, and how it is kept in a file."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tea_models.disk.atomic import write_document
from tea_models.errors import MissingFileError, UsageError
from tea_runtime.backend import LlmCallParams, check_messages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tea_runtime.backend import LlmBackend, LlmCallResult


@dataclass(slots=True)
class Conversation:
    """What was said so far, after what the model is told first (`system`), and what all answers took.

    `options` are those of every answer; `context` is the last prompt and answer together, in tokens.
    """

    options: dict[str, Any]
    system: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    answers: int = 0
    tokens: int = 0
    seconds: float = 0.0
    context: int = 0

    def say(self, backend: LlmBackend, text: str, callback: Callable[[str], object] | None = None) -> LlmCallResult:
        """Send a message and keep it with its answer; neither is kept where there is no answer."""
        question = {"role": "user", "content": text}
        began = time.monotonic()
        result = backend.generate(LlmCallParams("", **self.options), [*self.whole(), question], callback)
        self.seconds += time.monotonic() - began
        self.messages = [*self.messages, question, {"role": "assistant", "content": result.content}]
        usage = result.usage or {}
        self.answers += 1
        self.tokens += usage.get("completion_tokens", 0)
        self.context = usage.get("total_tokens", 0)
        return result

    def whole(self) -> list[dict[str, Any]]:
        """The messages with the system text first."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.messages]

    def clear(self) -> str:
        """Forget what was said, and keep the system text."""
        self.messages, self.context = [], 0
        return "forgotten"

    def take_back(self) -> str:
        """Remove the last question and its answer, and return the question."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].get("role") == "user":
                question = str(self.messages[index]["content"])
                self.messages = self.messages[:index]
                return question
        raise UsageError("there is no question to ask again")

    def save(self, path: Path) -> None:
        """Write the messages as JSON; `tea-models render --messages` reads them too."""
        write_document(path, json.dumps(self.whole(), indent=2, ensure_ascii=False) + "\n")

    def load(self, path: Path) -> None:
        """Go on with the messages of a file."""
        try:
            data = json.loads(path.read_text("utf-8-sig"))
        except OSError as error:
            raise MissingFileError(f"{path}: {(error.strerror or 'can not be read').lower()}") from None
        except ValueError:
            raise UsageError(f"{path}: not a JSON list of messages") from None
        messages = check_messages(data)
        first = messages[0]
        self.system = str(first["content"]) if first["role"] == "system" else ""
        self.messages = messages[1:] if first["role"] == "system" else messages
        self.context = 0

    def stats(self) -> str:
        """A line about tokens and speed."""
        if not self.answers:
            return "nothing was said yet"
        rate = f", {self.tokens / self.seconds:.0f} tokens/s" if self.seconds else ""
        return (
            f"{self.answers} answer{'s' * (self.answers != 1)}, {self.tokens:,} tokens in {self.seconds:.1f} s{rate}; "
            f"{self.context:,} tokens of context in use"
        )
