"""A tiny model with written weights: after a certain token it always says the same script, whatever came before.

Attention and feed-forward are zero, so the next token depends on the current one only: the row of the output matrix for
token B is the sum of the embeddings of the tokens that B follows. A token of a script can't come twice, therefore.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.gguf_build import CHATML, Tensor, array, build_gguf, small_llama_metadata, small_llama_tensors

WIDTH = 64
CONTROL, NORMAL, USER_DEFINED, UNKNOWN, BYTE = 3, 1, 4, 2, 6


class Vocabulary:
    """Byte tokens, BOS, EOS, the ChatML marks, and what a test adds. `add` returns the id."""

    def __init__(self) -> None:
        self.texts = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
        self.types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
        self.im_start = self.add("<|im_start|>", CONTROL)
        self.im_end = self.add("<|im_end|>", CONTROL)
        self.space = self.add("\u2581")

    def add(self, text: str, kind: int = NORMAL) -> int:
        self.texts.append(text.replace(" ", "\u2581"))
        self.types.append(kind)
        return len(self.texts) - 1

    @staticmethod
    def byte(value: int) -> int:
        return 3 + value


def build_scripted(
    path: Path,
    scripts: Sequence[Sequence[str | int]],
    *,
    starts: Sequence[int] | None = None,
    vocabulary: Vocabulary | None = None,
    template: str | None = CHATML,
    metadata: Mapping[str, Any] | None = None,
    loop: bool = False,
) -> Vocabulary:
    """Write a model that says `scripts[i]` after the token `starts[i]` (by default a newline), and then EOS.

    Args:
        path: Where to write it.
        scripts: Tokens: ids, or texts that get a token of their own.
        starts: The token after which each script begins.
        vocabulary: To which tokens are added.
        template: Chat template, or None.
        loop: A script begins again where it ends, in place of EOS.
        metadata: Further metadata (`{"llama.context_length": 512}`); None removes a key.
    """
    vocabulary = vocabulary or Vocabulary()
    successor: dict[int, int] = {}
    for index, script in enumerate(scripts):
        tokens = [token if isinstance(token, int) else vocabulary.add(token) for token in script]
        before = starts[index] if starts else Vocabulary.byte(0x0A)
        for token in (*tokens, tokens[0] if loop else 2):
            assert before not in successor, f"token {before} can't be followed by two others"
            successor[before] = token
            before = token
    size = len(vocabulary.texts)
    values: dict[str, Any] = small_llama_metadata() | {
        "tokenizer.ggml.tokens": array("string", vocabulary.texts),
        "tokenizer.ggml.scores": array("float32", [-float(index) for index in range(size)]),
        "tokenizer.ggml.token_type": array("int32", vocabulary.types),
        "tokenizer.ggml.add_space_prefix": False,
        "llama.vocab_size": size,
        "tokenizer.chat_template": template,
    }
    values |= metadata or {}
    values = {key: value for key, value in values.items() if value is not None}
    source = random.Random(0)
    vectors = [[source.gauss(0, 1) for _ in range(WIDTH)] for _ in range(size)]
    rows = [[0.0] * WIDTH for _ in range(size)]
    for before, token in successor.items():
        rows[token] = [ours + more for ours, more in zip(rows[token], vectors[before], strict=True)]
    data = {
        "token_embd.weight": _floats(value for row in vectors for value in row),
        "output.weight": _floats(value for row in rows for value in row),
        "output_norm.weight": _floats([1.0] * WIDTH),
    }
    tensors = [
        Tensor(item.name, item.shape, item.type, data.get(item.name, item.data)) for item in small_llama_tensors(values)
    ]
    path.write_bytes(build_gguf(values, tensors))
    return vocabulary


def loaded() -> list[tuple[Path, int]]:
    """The files whose weights this process uses, each with the number of its backends."""
    from tea_runtime.engine.thread import engine

    users: Counter[Path] = Counter()
    engine().call(lambda _request: [users.update({model.spec.path: len(model.owners)}) for model in engine().models])
    return list(users.items())


def _floats(values: Any) -> bytes:
    numbers = list(values)
    return struct.pack(f"<{len(numbers)}f", *numbers)
