"""A llama.cpp context: memory for some sequences of tokens, and the batch they are evaluated with."""

from __future__ import annotations

import ctypes
import os
import re
import weakref
from typing import TYPE_CHECKING, Any

from tea_models.errors import EngineError
from tea_runtime.errors import GenerationError
from tea_runtime.llama.engine import explanation, llama, log

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tea_models.engine.engine_settings import EngineSettings
    from tea_runtime.llama.weights import Weights

_NOT_CAUSAL = re.compile(r"\bcausal_attn\s+= 0\b")
_BUFFER = re.compile(r"(KV|RS|compute) buffer size =\s*([0-9.]+) MiB")
# What llama_decode answers.
_NO_ROOM, _ABORTED = 1, 2
_MEANINGS = {_NO_ROOM: "no room left in the KV cache", _ABORTED: "it was aborted", -1: "it refused the batch"}


class NoRoomError(GenerationError):
    pass


class AbortedError(GenerationError):
    pass


class AbortFlag:
    """Ends evaluations from any thread: llama.cpp looks at it between two operations of a step."""

    def __init__(self) -> None:
        # llama.cpp calls the callback some hundred times a step, out of threads that don't hold Python's lock. So it
        # gets a function of the C library that never enters Python: `strlen` of this text is 0, or 1 once it is raised.
        self._text = ctypes.create_string_buffer(2)
        self.data = ctypes.cast(self._text, ctypes.c_void_p)
        self.callback = ctypes.cast(ctypes.CDLL(None).strlen, llama().ggml_abort_callback)

    def set(self, *, ended: bool) -> None:
        """End what is being evaluated, and everything after it; or let evaluations run again."""
        self._text[0] = b"\x01" if ended else b"\x00"


class Context:
    """A context on shared weights. Only for the engine's thread."""

    def __init__(
        self, weights: Weights, settings: EngineSettings, abort: AbortFlag | None = None, *, pooling: int | None = None
    ) -> None:
        engine = self._engine = llama()
        self.weights = weights
        self.settings = settings
        self.n_ctx = settings.n_ctx
        params = engine.llama_context_default_params()
        for name, value in settings.context_parameters().items():
            setattr(params, name, value)
        # One buffer for all sequences: a long one may use what short ones leave, and a common beginning is there once.
        params.kv_unified = True
        params.no_perf = True
        # Only the last token of each sequence needs logits: those of a whole batch would fill most of the buffer.
        params.n_outputs_max = settings.n_seq_max if pooling is None else 0
        params.embeddings = pooling is not None
        if pooling is not None:
            params.pooling_type = pooling
        with log.capture() as lines:
            pointer = engine.llama_init_from_model(weights.model, params)
        self.log = tuple(lines)
        if not pointer:
            raise EngineError(
                f"{weights.path}: llama.cpp can't open a context of {settings.n_ctx:,} tokens: "
                f"{explanation(lines) or 'no reason given'}",
                hint="a smaller n_ctx or another kv_type needs less memory",
            )
        self.pointer: Any = pointer
        self._abort = abort  # as long as llama.cpp may ask it
        if abort is not None:
            engine.llama_set_abort_callback(pointer, abort.callback, abort.data)
        self._memory: Any = engine.llama_get_memory(pointer)
        self.batch = Batch(engine, settings.n_batch)
        self._free = weakref.finalize(self, engine.llama_free, pointer)
        self._free.atexit = False  # the engine's thread may still compute with it when the process ends

    def evaluate(self) -> None:
        """Compute the batch, and begin an empty one. NoRoomError: nothing is changed; other errors: no known state."""
        struct = self.batch.take()
        with log.capture() as lines:
            code = self._engine.llama_decode(self.pointer, struct)
        if code == 0:
            return
        said = explanation(lines)
        problem = f"llama.cpp could not evaluate the tokens: {_MEANINGS.get(code, f'code {code}')}"
        problem += f" ({said})" if said else ""
        raise {_NO_ROOM: NoRoomError, _ABORTED: AbortedError}.get(code, GenerationError)(problem)

    def logits(self, index: int) -> Any:
        """The logits at a place of the last batch: a view, valid until the next one is evaluated."""
        return self._row(self._engine.llama_get_logits_ith(self.pointer, index), self.weights.n_vocab)

    def embedding(self, index: int) -> Any:
        """The embedding at a place of the last batch: a view, valid until the next one is evaluated."""
        return self._row(self._engine.llama_get_embeddings_ith(self.pointer, index), self.weights.n_embd)

    def pooled(self, sequence: int, size: int) -> Any:
        """What llama.cpp pooled of a sequence: a view, valid until the next batch is evaluated."""
        return self._row(self._engine.llama_get_embeddings_seq(self.pointer, sequence), size)

    def _row(self, pointer: Any, size: int) -> Any:
        import numpy as np

        if not pointer:
            raise GenerationError(f"{self.weights.path}: llama.cpp gave no output for a token")
        memory: Any = (ctypes.c_float * size).from_address(ctypes.addressof(pointer.contents))
        return np.frombuffer(memory, np.float32)

    def reaches_back(self, sequence: int, length: int) -> bool:
        """Whether the memory holds what a token after the first `length` ones of a sequence attends to."""
        # The same test as llama-server's: the oldest position in memory may not be inside the window of the next token.
        if not self.weights.n_swa:
            return True
        oldest: int = self._engine.llama_memory_seq_pos_min(self._memory, sequence)
        return 0 <= oldest <= max(0, length - self.weights.n_swa)

    def copy(self, source: int, target: int, length: int) -> None:
        """Let an empty sequence begin with the first `length` tokens of another one; they share the memory of it."""
        self._engine.llama_memory_seq_cp(self._memory, source, target, 0, length)

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it. Read from the log: `llama_get_causal_attn` is new in llama.cpp."""
        return not any(_NOT_CAUSAL.search(line) for _, line in self.log)

    def cut(self, sequence: int, length: int) -> bool:
        """Drop everything after the first `length` tokens of a sequence; False where the memory can't be cut back."""
        return bool(self._engine.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def drop(self, sequence: int) -> None:
        """Empty one sequence."""
        self._engine.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def clear(self) -> None:
        if self._memory:  # encoders have none
            self._engine.llama_memory_clear(self._memory, False)

    def buffers(self, kind: str) -> list[int]:
        """Bytes of each buffer of a kind (`KV`, `RS`, `compute`), as llama.cpp reported them: to 0.01 MiB."""
        found = (match for _, line in self.log if (match := _BUFFER.search(line)) and match[1] == kind)
        return [round(float(match[2]) * 1024 * 1024) for match in found]

    def state_size(self, sequence: int) -> int:
        return int(self._engine.llama_state_seq_get_size(self.pointer, sequence))

    def save(self, sequence: int, path: Path, tokens: Sequence[int]) -> bool:
        """Write the state of a sequence to a file, for `restore` in another context of the same weights."""
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        name = os.fsencode(path)
        return bool(self._engine.llama_state_seq_save_file(self.pointer, name, sequence, array, len(tokens)))

    def restore(self, sequence: int, path: Path) -> list[int] | None:
        """Put a saved state into an empty sequence: its tokens, or None if llama.cpp does not take it."""
        tokens = (ctypes.c_int32 * self.n_ctx)()
        count = ctypes.c_size_t()
        if self._engine.llama_state_seq_load_file(
            self.pointer, os.fsencode(path), sequence, tokens, self.n_ctx, ctypes.byref(count)
        ):
            return tokens[: count.value]
        self.drop(sequence)
        return None

    def close(self) -> None:
        self._free()
        self.pointer = None
        self._memory = None


class Batch:
    """A `llama_batch` over numpy arrays, which are filled a whole prompt at a time."""

    def __init__(self, engine: Any, size: int) -> None:
        import numpy as np

        self._token, self._position, self._sequence = np.zeros((3, size), np.int32)
        self._output = np.zeros(size, np.int8)
        self._places = np.arange(size, dtype=np.int32)
        # Each token is in one sequence: pointers to the elements of the array above, which never change.
        self._n_sequence = np.ones(size, np.int32)
        step = self._sequence.itemsize
        self._pointers = self._sequence.ctypes.data + step * np.arange(size, dtype=np.uintp)
        self._struct = engine.llama_batch()
        arrays: dict[str, Any] = {"token": self._token, "pos": self._position, "logits": self._output}
        arrays |= {"n_seq_id": self._n_sequence, "seq_id": self._pointers}
        for name, array in arrays.items():
            kind = dict(engine.llama_batch._fields_)[name]
            setattr(self._struct, name, ctypes.cast(array.ctypes.data, kind))
        self.count = 0

    @property
    def room(self) -> int:
        return len(self._token) - self.count

    def add(self, sequence: int, tokens: Sequence[int], position: int, *, output: bool, every: bool = False) -> int:
        """Put tokens of a sequence in; the place of the last one, whose `output` is wanted, or that of `every` one."""
        start, end = self.count, self.count + len(tokens)
        if len(tokens) == 1:
            self._token[start], self._position[start] = tokens[0], position
            self._sequence[start], self._output[start] = sequence, output or every
        else:
            self._token[start:end] = tokens
            self._position[start:end] = self._places[: end - start] + position
            self._sequence[start:end] = sequence
            self._output[start:end] = every
            self._output[end - 1] = output or every
        self.count = end
        return end - 1

    def take(self) -> Any:
        """The batch for llama.cpp; what is put in afterwards begins an empty one."""
        self._struct.n_tokens, self.count = self.count, 0
        return self._struct
