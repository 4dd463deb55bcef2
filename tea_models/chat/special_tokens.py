"""The special texts in rendered prompts: cutting a text at them, and the names that people know them by."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# What vocabularies use for control tokens: <|x|>, <x>, </x>, <|x>, <x|>, [X], [/X], [|x|], <<SYS>>, and DeepSeek's,
# whose bar is U+FF5C.
_MARKER = (
    r"<\|?/?[\w.:-]{1,60}\|?>|<\uff5c[^<>\uff5c\s]{1,60}\uff5c>"
    r"|\[/?[A-Za-z]?[A-Z_]{2,}\]|\[\|[a-z_]+\|\]|<</?SYS>>"
)

#: First whose texts all occur in the rendered probes; a name only for people.
_FORMATS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("harmony", ("<|start|>", "<|channel|>", "<|message|>")),
    ("harmony", ("<|start|>", "<|message|>")),
    ("llama-4", ("<|header_start|>",)),
    ("llama-3", ("<|start_header_id|>",)),
    ("gemma", ("<start_of_turn>",)),
    ("gemma-4", ("<|turn>",)),
    ("chatml", ("<|im_start|>",)),
    ("granite", ("<|start_of_role|>",)),
    ("command-r", ("<|START_OF_TURN_TOKEN|>",)),
    ("deepseek", ("<\uff5cUser\uff5c>",)),
    ("glm", ("[gMASK]", "<sop>")),
    ("phi", ("<|user|>", "<|end|>")),
    ("zephyr", ("<|user|>",)),
    ("llama-2", ("[INST]", "<<SYS>>")),
    ("mistral", ("[INST]",)),
    ("vicuna", ("USER:", "ASSISTANT:")),
    ("alpaca", ("### Instruction:",)),
)


class SpecialTokenSplitter:
    """Cuts texts into markers (known tokens among them, as far as `sample` holds them) and what is between them."""

    def __init__(self, tokens: Iterable[str], sample: str) -> None:
        known = sorted({token for token in tokens if token.strip() and token in sample}, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join([*map(re.escape, known), _MARKER])})")

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Pieces of the text, each with whether it is a marker."""
        # `re.split` gives the groups at odd places.
        return [(piece, index % 2 == 1) for index, piece in enumerate(self._pattern.split(text)) if piece]

    def first(self, text: str) -> str | None:
        """The marker that the text begins with, after white space."""
        pieces = self.split(text.lstrip())
        return pieces[0][0] if pieces and pieces[0][1] else None


def format_name(text: str) -> str:
    """The name of the prompt format whose special texts are in `text`, or `custom`."""
    for name, markers in _FORMATS:
        if all(marker in text for marker in markers):
            return name
    return "custom"
