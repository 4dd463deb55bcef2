"""A llama.cpp context: memory for some sequences of tokens, and the batch they are evaluated with."""

from __future__ import annotations

import ctypes
import os
import re
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tea_models.errors import EngineError, UsageError
from tea_runtime.errors import GenerationError
from tea_runtime.llama.engine import explanation, llama, log

if TYPE_CHECKING:
    from pathlib import Path

    from tea_runtime.llama.engine import Weights

#: KV-cache types by their llama.cpp names; the numbers are those of ggml.h (enum ggml_type).
KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
_FLASH = {None: -1, False: 0, True: 1}
_NOT_CAUSAL = re.compile(r"\bcausal_attn\s+= 0\b")
_BUFFER = re.compile(r"(KV|RS|compute) buffer size =\s*([0-9.]+) MiB")


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """What a context is opened with.

    Attributes:
        n_ctx: Tokens of all sequences together.
        n_batch: Tokens handed to llama.cpp at once.
        n_ubatch: Tokens it computes at once.
        n_seq_max: Sequences side by side.
        n_threads: Threads for one token a sequence.
        n_threads_batch: Threads for prompts.
        flash_attn: On, off, or None to let llama.cpp choose.
        type_k: Type of the keys in the cache.
        type_v: Type of the values in the cache.
        swa_full: A full-size cache for layers with a sliding window.
        pooling: Makes it a context for embeddings, with llama.cpp's pooling of that number.
    """

    n_ctx: int
    n_batch: int = 512
    n_ubatch: int = 512
    n_seq_max: int = 1
    n_threads: int = 2
    n_threads_batch: int = 2
    flash_attn: bool | None = None
    type_k: str = "f16"
    type_v: str = "f16"
    swa_full: bool = False
    pooling: int | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One token to evaluate: which sequence, whether its logits (or its embedding) are wanted."""

    sequence: int
    token: int
    output: bool


class Context:
    """A context on shared weights, and what each sequence holds. Only for the holder of the weights' lock.

    Attributes:
        n_ctx: Tokens it has room for.
        sequences: The tokens in memory, a list a sequence.
    """

    def __init__(self, weights: Weights, options: ContextOptions) -> None:
        engine = llama()
        self._engine = engine
        self.weights = weights
        self.options = options
        self.n_ctx = options.n_ctx
        with log.capture() as lines:
            pointer = engine.llama_init_from_model(weights.model, _parameters(engine, options))
        self.log = tuple(lines)
        if not pointer:
            raise EngineError(
                f"{weights.path}: llama.cpp can't open a context of {options.n_ctx:,} tokens: "
                f"{explanation(lines) or 'no reason given'}",
                hint="a smaller n_ctx or another kv_type needs less memory",
            )
        self.pointer: Any = pointer
        self._memory: Any = engine.llama_get_memory(pointer)
        self._batch: Any = engine.llama_batch_init(options.n_batch, 0, 1)
        self._free = weakref.finalize(self, _free, engine, pointer, self._batch)
        self._free.atexit = False  # a thread may still compute with it when the process ends
        self.sequences: list[list[int]] = [[] for _ in range(options.n_seq_max)]

    @property
    def used(self) -> int:
        """Tokens in memory, over all sequences."""
        return sum(map(len, self.sequences))

    def evaluate(self, items: list[Item]) -> None:
        """Put tokens behind their sequences and compute them; outputs are numbered in the order of `items`.

        Whatever ends it early (an error of llama.cpp, Ctrl-C) leaves an empty memory, never a wrong one.

        Raises:
            GenerationError: llama.cpp refused or failed.
        """
        if _ending.is_set():
            raise SystemExit  # which ends a thread without a word
        batch = self._batch
        lengths = {item.sequence: len(self.sequences[item.sequence]) for item in items}
        for index, item in enumerate(items):
            batch.token[index] = item.token
            batch.pos[index] = lengths[item.sequence]
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = item.sequence
            batch.logits[index] = item.output
            lengths[item.sequence] += 1
        batch.n_tokens = len(items)
        try:
            with log.capture() as lines:
                code = self._engine.llama_decode(self.pointer, batch)
            _check_decoded(code, lines)
            for item in items:
                self.sequences[item.sequence].append(item.token)
        except BaseException:
            self.clear()
            raise

    def reuse(self, sequence: int, tokens: list[int]) -> int:
        """Keep what a sequence has in common with `tokens`, drop the rest, and say how much was kept.

        At least the last token is always left to evaluate, because its logits are needed. Where the memory can't be cut
        back (recurrent models) or has forgotten what the window of a sliding attention needs, everything is dropped.
        """
        held = self.sequences[sequence]
        most = min(len(held), len(tokens) - 1)
        common = next((index for index in range(most) if held[index] != tokens[index]), max(most, 0))
        if common == len(held):
            return common
        if common and not self._window_is_whole(sequence, common):
            common = 0
        if self._memory and not self._engine.llama_memory_seq_rm(self._memory, sequence, common, -1):
            common = 0
            self._engine.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        del held[common:]
        return common

    def _window_is_whole(self, sequence: int, length: int) -> bool:
        # The same test as llama-server's: the oldest position in memory may not be inside the window of the next token.
        if not self.weights.n_swa:
            return True
        oldest: int = self._engine.llama_memory_seq_pos_min(self._memory, sequence)
        return 0 <= oldest <= max(0, length - self.weights.n_swa)

    def copy(self, source: int, target: int) -> None:
        """Let a sequence begin with everything that another one holds; the two share the memory of it."""
        self.drop(target)
        self._engine.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self.sequences[target][:] = self.sequences[source]

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it. Read from the log: `llama_get_causal_attn` is new in llama.cpp."""
        return not any(_NOT_CAUSAL.search(line) for _, line in self.log)

    def buffers(self, kind: str) -> int:
        """Bytes of the buffers of a kind (`KV`, `RS`, `compute`), as llama.cpp reported them: to 0.01 MiB each."""
        found = (match for _, line in self.log if (match := _BUFFER.search(line)) and match[1] == kind)
        return sum(round(float(match[2]) * 1024 * 1024) for match in found)

    def drop(self, sequence: int) -> None:
        """Empty one sequence."""
        if self._memory:
            self._engine.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self.sequences[sequence].clear()

    def clear(self) -> None:
        """Empty all sequences."""
        if self._memory:
            self._engine.llama_memory_clear(self._memory, False)
        for held in self.sequences:
            held.clear()

    def state_size(self, sequence: int) -> int:
        """Bytes of the state of a sequence."""
        return int(self._engine.llama_state_seq_get_size(self.pointer, sequence))

    def save(self, sequence: int) -> ctypes.Array[ctypes.c_uint8]:
        """The state of a sequence, for `restore` in another context of the same weights."""
        buffer = (ctypes.c_uint8 * self.state_size(sequence))()
        self._engine.llama_state_seq_get_data(self.pointer, buffer, len(buffer), sequence)
        return buffer

    def restore(self, sequence: int, state: ctypes.Array[ctypes.c_uint8], tokens: list[int]) -> bool:
        """Put a saved state into an empty sequence; False (and an empty sequence) if llama.cpp does not take it."""
        if not self._engine.llama_state_seq_set_data(self.pointer, state, len(state), sequence):
            self.drop(sequence)
            return False
        self.sequences[sequence][:] = tokens
        return True

    def save_file(self, sequence: int, path: Path) -> bool:
        """As `save`, into a file; False if it can't be written."""
        held = self.sequences[sequence]
        tokens = (ctypes.c_int32 * len(held))(*held)
        name = os.fsencode(path)
        return bool(self._engine.llama_state_seq_save_file(self.pointer, name, sequence, tokens, len(held)))

    def restore_file(self, sequence: int, path: Path) -> bool:
        """As `restore`, from a file of `save_file`."""
        tokens = (ctypes.c_int32 * self.n_ctx)()
        count = ctypes.c_size_t()
        if not self._engine.llama_state_seq_load_file(
            self.pointer, os.fsencode(path), sequence, tokens, self.n_ctx, ctypes.byref(count)
        ):
            self.drop(sequence)
            return False
        self.sequences[sequence][:] = tokens[: count.value]
        return True

    def close(self) -> None:
        """Free the context and its batch."""
        self._free()
        self.pointer = None
        self._memory = None
        self.sequences = [[] for _ in self.sequences]


_ending = threading.Event()


def end_process() -> None:
    """Let every thread that is computing stop at its next batch: the process is about to end."""
    _ending.set()


def kv_type(name: str) -> int:
    """llama.cpp's number of a KV-cache type.

    Raises:
        UsageError: No such type.
    """
    if name.lower() not in KV_TYPES:
        raise UsageError(f"kv_type {name!r}: expected one of {', '.join(KV_TYPES)}")
    return KV_TYPES[name.lower()]


def _parameters(engine: Any, options: ContextOptions) -> Any:
    params = engine.llama_context_default_params()
    params.n_ctx = options.n_ctx
    params.n_batch = options.n_batch
    params.n_ubatch = options.n_ubatch
    params.n_seq_max = options.n_seq_max
    params.n_threads = options.n_threads
    params.n_threads_batch = options.n_threads_batch
    params.flash_attn_type = _FLASH[options.flash_attn]
    params.type_k = kv_type(options.type_k)
    params.type_v = kv_type(options.type_v)
    params.swa_full = options.swa_full
    # One buffer for all sequences: a long one may use what short ones leave.
    params.kv_unified = True
    params.no_perf = True
    if options.pooling is not None:
        params.embeddings = True
        params.pooling_type = options.pooling
    return params


def _check_decoded(code: int, lines: Any) -> None:
    if code == 0:
        return
    meaning = {1: "no room left in the KV cache", 2: "it was aborted", -1: "it refused the batch"}
    said = explanation(lines)
    problem = f"llama.cpp could not evaluate the tokens: {meaning.get(code, f'code {code}')}"
    raise GenerationError(problem + (f" ({said})" if said else ""))


def _free(engine: Any, pointer: Any, batch: Any) -> None:
    engine.llama_free(pointer)
    engine.llama_batch_free(batch)
