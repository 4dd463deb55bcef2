"""The weights of one file, as llama.cpp loads them, and text to tokens and back, by its own tokenizer."""

from __future__ import annotations

import ctypes
import functools
import re
import weakref
from typing import TYPE_CHECKING, Any

from tea_models.errors import EngineError, UsageError
from tea_runtime.errors import CancelledCallError, ContextOverflowError
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


class Vocabulary:
    """The vocabulary of loaded weights. Thread-safe, as llama.cpp's tokenizer is."""

    def __init__(self, weights: Weights, limit: int | None = None) -> None:
        engine = self._engine = llama()
        self._weights, self._vocab = weights, weights.vocab
        # The tokens that can be of use: a text that can't be that short is refused before it is tokenised, because
        # some tokenizers take minutes for a few megabytes of blanks.
        self._limit = limit
        #: Whether a token ends a generation; asked for every token of an answer, as the pieces are.
        self.is_end: Callable[[int], bool] = functools.cache(functools.partial(engine.llama_vocab_is_eog, self._vocab))
        self._piece = functools.cache(functools.partial(_piece, engine, self._vocab))
        self.size = weights.n_vocab
        ends = engine.llama_vocab_bos(self._vocab), engine.llama_vocab_eos(self._vocab)
        self.bos, self.eos = (None if token < 0 else int(token) for token in ends)
        self.bos_text = self.text(self.bos)
        self.eos_text = self.text(self.eos)
        self.add_bos = bool(engine.llama_vocab_get_add_bos(self._vocab))

    def text(self, token: int | None) -> str:
        """A token's name in the vocabulary, such as `<|im_end|>`; "" for None."""
        if token is None:
            return ""
        raw: bytes = self._engine.llama_vocab_get_text(self._vocab, token) or b""
        return raw.decode("utf-8", "replace")

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes a token stands for; control tokens are empty unless `special`."""
        return self._piece(token, special)

    def tokenize(self, text: str, *, special: bool, add_special: bool = False) -> list[int]:
        """Tokens of a text. `special`: control tokens are parsed; `add_special`: what belongs at both ends is added."""
        raw = encode(text)
        self._check_length(len(raw))
        # A token stands for at least one byte, mostly; the tokenizer may add a few at the ends.
        room = len(raw) + 8
        while True:
            tokens = (ctypes.c_int32 * room)()
            count = self._engine.llama_tokenize(self._vocab, raw, len(raw), tokens, room, add_special, special)
            if count >= 0:
                return list(tokens[:count])
            room = -count

    def _check_length(self, size: int) -> None:
        # Most tokens are short: a text of a plausible size needs no closer look.
        if self._limit is not None and size > 16 * self._limit:
            least = size // self._longest
            if least > self._limit:
                raise ContextOverflowError(
                    prompt_tokens=least, n_ctx=self._limit, reserved=0, what="text", at_least=True
                )

    @functools.cached_property
    def _longest(self) -> int:
        names = (self._engine.llama_vocab_get_text(self._vocab, token) or b"" for token in range(self.size))
        return max(1, *map(len, names))

    def prompt(self, text: str) -> list[int]:
        """Tokens of a raw prompt or a rendered template: control tokens parsed, and one BOS where one belongs."""
        return self.with_bos(self.tokenize(text, special=True))

    def with_bos(self, tokens: list[int]) -> list[int]:
        """Put BOS in front where the header (`tokenizer.ggml.add_bos_token`) asks for it and it isn't there."""
        if self.add_bos and self.bos is not None and tokens[:1] != [self.bos]:
            return [self.bos, *tokens]
        return tokens

    def continuation(self, text: str) -> list[int]:
        """Tokens of a text within another one: without the blank that some vocabularies put before a beginning."""
        begin, tokens = (self.tokenize(one, special=True) for one in ("\n", "\n" + text))
        return tokens[len(begin) :] if tokens[: len(begin)] == begin else []

    @functools.cached_property
    def characters(self) -> dict[int, str]:
        """Tokens of one printable ASCII character, and the token of the end as ""."""
        ends = {} if self.eos is None else {self.eos: ""}
        return ends | {
            tokens[-1]: character
            for character in map(chr, range(0x20, 0x7F))
            for tokens in (self.tokenize(character, special=False), self.continuation(character))
            if tokens and self.piece(tokens[-1]) == character.encode()
        }

    def pair(self, query: str, document: str) -> list[int]:
        """Query and document for a reranker, by the same rules as llama-server's `format_prompt_rerank`."""
        if not query or not document:
            raise UsageError(f"{'documents' if query else 'query'}: an empty text can't be scored")
        engine, vocab = self._engine, self._vocab
        template: bytes | None = engine.llama_model_chat_template(self._weights.model, b"rerank")
        if template:
            texts = {"{query}": query, "{document}": document}
            tokens: list[int] = []
            for piece in re.split("({query}|{document})", template.decode("utf-8", "replace")):
                tokens += self.tokenize(texts.get(piece, piece), special=piece not in texts) if piece else []
            return self.with_bos(tokens)
        eos = self.eos if self.eos is not None else engine.llama_vocab_sep(vocab)
        end = [eos] if engine.llama_vocab_get_add_eos(vocab) else []
        between = [engine.llama_vocab_sep(vocab)] if engine.llama_vocab_get_add_sep(vocab) else []
        first, second = (self.tokenize(text, special=False) for text in (query, document))
        begin = [self.bos] if self.add_bos and self.bos is not None else []
        return [*begin, *first, *end, *between, *second, *end]

    @functools.cached_property
    def specials(self) -> dict[str, int]:
        """Text → id of the tokens that are found in a text before it is split (llama.cpp's `cache_special_tokens`)."""
        kinds = (getattr(self._engine, f"LLAMA_TOKEN_ATTR_{name}") for name in ("CONTROL", "UNKNOWN", "USER_DEFINED"))
        wanted = sum(kinds)
        found = [token for token in range(self.size) if self.attributes(token) & wanted]
        return {text: token for token in found if (text := self.text(token))}

    def attributes(self, token: int) -> int:
        """llama.cpp's `llama_token_attr` bits of a token."""
        return int(self._engine.llama_vocab_get_attr(self._vocab, token))


def encode(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the text has half a character (surrogate U+{ord(text[error.start]):04X}) at position {error.start:,}",
            hint="decode the source of the text with errors='replace'",
        ) from None


def _piece(engine: Any, vocab: Any, token: int, special: bool) -> bytes:
    room = 64
    while True:
        buffer = ctypes.create_string_buffer(room)
        length = engine.llama_token_to_piece(vocab, token, buffer, room, 0, special)
        if length >= 0:
            return buffer.raw[:length]
        room = -length
