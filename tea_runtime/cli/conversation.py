"""A conversation with a model: what was said, what it took, and how it is kept in a file."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tea_models.disk.atomic import write_document
from tea_models.errors import MissingFileError, UsageError
from tea_runtime.backend import check_messages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tea_runtime.backend import LlmBackend, LlmCallResult


@dataclass(slots=True)
class Conversation:
    """What was said so far.

    Attributes:
        options: Options of every answer (`max_tokens`, `temperature`, `seed`).
        system: What the model is told first, or "".
        messages: The messages after that.
        answers: How many answers were given.
        tokens: Tokens of the answers.
        seconds: What the answers took.
        context: Tokens of the last prompt and answer together.
    """

    options: dict[str, Any]
    system: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    answers: int = 0
    tokens: int = 0
    seconds: float = 0.0
    context: int = 0

    def say(self, backend: LlmBackend, text: str, callback: Callable[[str], object] | None = None) -> LlmCallResult:
        """Send a message and keep it with its answer; neither is kept where there is no answer.

        Raises:
            TeaModelsError: The model can't answer.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        start = [{"role": "system", "content": self.system}] if self.system else []
        began = time.monotonic()
        if callback is None:
            result = backend.chat([*start, *asked], **self.options)
        else:
            result = backend.stream_chat([*start, *asked], callback, **self.options)
        self.seconds += time.monotonic() - began
        self.messages = [*asked, {"role": "assistant", "content": result.content}]
        usage = result.usage or {}
        self.answers += 1
        self.tokens += usage.get("completion_tokens", 0)
        self.context = usage.get("total_tokens", 0)
        return result

    def clear(self) -> None:
        """Forget what was said, and keep the system text."""
        self.messages = []
        self.context = 0

    def take_back(self) -> str:
        """Remove the last question and its answer, and return the question.

        Raises:
            UsageError: There is none.
        """
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].get("role") == "user":
                question = str(self.messages[index]["content"])
                self.messages = self.messages[:index]
                return question
        raise UsageError("there is no question to ask again")

    def save(self, path: Path) -> None:
        """Write the messages as JSON, with the system text first; `tea-models render --messages` reads them too."""
        start = [{"role": "system", "content": self.system}] if self.system else []
        write_document(path, json.dumps([*start, *self.messages], indent=2, ensure_ascii=False) + "\n")

    def load(self, path: Path) -> None:
        """Go on with the messages of a file.

        Raises:
            MissingFileError: It can't be read.
            UsageError: It holds no messages.
        """
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
