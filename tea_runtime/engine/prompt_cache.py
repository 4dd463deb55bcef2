"""Long prompts on disk: what one process has evaluated, the next one reads.

A file a prompt, as `llama_state_seq_save_file` writes it, in a folder for each model, engine and settings. Its name is
the SHA-256 of its bytes, which is checked before llama.cpp reads it. Files are written under another name first, so two
processes can share a folder; what is used least goes when they take too much room.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import struct
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tea_models.disk.hashing import holds, sha256_file
from tea_runtime.engine.sequences import HeldSequence, SequencePool, common_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tea_models.engine.engine_settings import EngineSettings
    from tea_runtime.llama.context import Context

_logger = logging.getLogger("tea_runtime")

# What evaluating again costs less than a file.
_LEAST_SAVED = 128
# Bytes that the files of one model may take.
_LIMIT = 1024**3
# Seconds after which nobody still writes a file.
_ABANDONED = 3600
# How a file begins (llama.h, LLAMA_STATE_SEQ_MAGIC): magic, version, number of tokens, tokens.
_HEAD = struct.Struct("<III")
_MAGIC = 0x67677371


@dataclass(frozen=True, slots=True)
class PromptCache:
    """The prompts of one model, for one engine and one way to open contexts."""

    folder: Path

    @classmethod
    def of(cls, base: Path, *, model: str, engine: str, settings: EngineSettings) -> PromptCache:
        """The cache for a model and an engine; what changes a state is part of the key."""
        key = json.dumps([model, engine, settings.type_k, settings.type_v, settings.flash_attn, settings.swa_full])
        return cls(base / hashlib.sha256(key.encode()).hexdigest()[:32])

    def load(self, pool: SequencePool, tokens: list[int]) -> None:
        """Put the file that has most in common with a prompt into a sequence, if that saves enough."""
        context = pool.context
        if context.weights.original_context:  # its states depend on the size of the context
            return
        path, common = self._best(tokens)
        stored = len(_tokens(path)) if path is not None else 0
        if path is None or common < pool.best(tokens)[1] + _LEAST_SAVED or pool.cells + stored > context.n_ctx:
            return
        if (context.weights.recurrent and common < stored) or not _is_intact(path):
            return
        held = pool.new()
        if held is None:
            return
        held.tokens = context.restore(held.id, path) or []
        if held.tokens:
            pool.release(held)
            with contextlib.suppress(OSError):
                os.utime(path)
        else:
            pool.drop(held)

    def keep(self, context: Context, held: HeldSequence) -> None:
        """Write a prompt that was just evaluated, unless most of it is on disk already. Failures are no errors."""
        tokens = list(held.tokens)
        if context.weights.original_context or len(tokens) < 2 * _LEAST_SAVED:
            return
        if len(tokens) - self._best([*tokens, 0])[1] < 2 * _LEAST_SAVED:
            return
        size = context.state_size(held.id)
        temporary = self.folder / f".{uuid.uuid4().hex}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if size > _LIMIT or shutil.disk_usage(self.folder).free < 2 * size:
                return
            self._make_room(size, tokens)
            if context.save(held.id, temporary, tokens):
                temporary.replace(self.folder / sha256_file(temporary))
        except OSError as error:
            _logger.debug("prompt cache: %s", error)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _best(self, tokens: list[int]) -> tuple[Path | None, int]:
        best, most = None, 0
        for path in self._files():
            common = common_prefix(_tokens(path), tokens[:-1])
            if common > most:
                best, most = path, common
        return best, most

    def _make_room(self, size: int, tokens: list[int]) -> None:
        """Remove what the new file holds too, and the longest unused."""
        entries = []
        for path in self._files():
            with contextlib.suppress(OSError):
                held = _tokens(path)
                if held == tokens[: len(held)]:
                    path.unlink()
                else:
                    stat = path.stat()
                    entries.append((stat.st_mtime, stat.st_size, path))
        for path in self.folder.glob(".*"):  # of a process that was killed
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()
        left = _LIMIT - size - sum(entry[1] for entry in entries)
        for _, taken, path in sorted(entries):
            if left >= 0:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                left += taken

    def _files(self) -> Iterator[Path]:
        try:
            paths = sorted(self.folder.iterdir())
        except OSError:
            return
        yield from (path for path in paths if len(path.name) == hashlib.sha256().digest_size * 2)


def _tokens(path: Path) -> list[int]:
    """The tokens that a file is about; none if it is no such file."""
    try:
        with path.open("rb") as file:
            magic, _version, count = _HEAD.unpack(file.read(_HEAD.size))
            data = file.read(4 * count) if magic == _MAGIC and count < 2**24 else b""
        return list(struct.unpack(f"<{count}i", data))
    except (OSError, struct.error):
        return []


def _is_intact(path: Path) -> bool:
    with contextlib.suppress(OSError):
        if holds(path, path.name):
            return True
        path.unlink()
    return False
