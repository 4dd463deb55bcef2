"""The weights of one file, as llama.cpp loads them."""

from __future__ import annotations

import ctypes
import functools
import weakref
from typing import TYPE_CHECKING, Any

from tea_models.errors import EngineError
from tea_runtime.errors import CancelledCallError
from tea_runtime.llama.engine import explanation, llama, log

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tea_models.engine.engine_settings import EngineSettings


class Weights:
    """The weights of a file (of shards, the first); `free` runs what frees them when nothing refers to them."""

    def __init__(
        self,
        path: Path,
        settings: EngineSettings,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        free: Callable[[Callable[[], None]], None] = lambda work: work(),
    ) -> None:
        engine = llama()
        params = engine.llama_model_default_params()
        params.n_gpu_layers = settings.n_gpu_layers
        params.load_mode = engine.LLAMA_LOAD_MODE_MMAP if settings.use_mmap else engine.LLAMA_LOAD_MODE_NONE
        go_on = engine.llama_progress_callback(lambda _progress, _data: not cancelled())
        params.progress_callback = go_on
        with log.capture() as lines:
            pointer = engine.llama_model_load_from_file(str(path).encode("utf-8", "surrogateescape"), params)
        if not pointer:
            if cancelled():
                raise CancelledCallError("nobody waits for the weights any more")
            reason = explanation(lines) or "no reason given"
            raise EngineError(f"{path}: llama.cpp can't load it: {reason}", hint=f"tea-models verify {path}")
        self.path = path
        self.model: Any = pointer
        self.vocab: Any = engine.llama_model_get_vocab(pointer)
        self.n_ctx_train = int(engine.llama_model_n_ctx_train(pointer))
        self.n_embd = int(engine.llama_model_n_embd_out(pointer))
        self.n_swa = int(engine.llama_model_n_swa(pointer))
        self.n_vocab = int(engine.llama_vocab_n_tokens(self.vocab))
        self.n_cls_out = int(engine.llama_model_n_cls_out(pointer))
        self.recurrent = bool(engine.llama_model_is_recurrent(pointer) or engine.llama_model_is_hybrid(pointer))
        self._free = weakref.finalize(self, free, functools.partial(engine.llama_model_free, pointer))
        self._free.atexit = False  # the engine's thread sees to it where it matters
        original = self._metadata(f"{self._metadata('general.architecture')}.rope.scaling.original_context_length")
        #: The context before RoPE scaling, where the header has one.
        self.original_context = int(original) if original.isdecimal() else None

    def _metadata(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        llama().llama_model_meta_val_str(self.model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def close(self) -> None:
        """Free the weights now. Every context on them must be closed before, and nobody may use their vocabulary."""
        self._free()
        self.model = None
