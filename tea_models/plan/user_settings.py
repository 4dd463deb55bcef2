"""`UserSettings`: what a user or a project asks of a plan."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from tea_models.engine.engine_settings import KV_TYPES
from tea_models.errors import UsageError
from tea_models.sizes import parse_bytes


@dataclass(frozen=True, slots=True)
class UserSettings:
    """What was asked for; None means that the plan decides. A UsageError says which value is out of range."""

    n_ctx: int | Literal["auto", "max"] = "auto"  # as much as fits, or the trained context or an error
    n_threads: int | None = None
    n_gpu_layers: int | None = None  # 0 means none, -1 all
    kv_type: str | None = None
    memory: int | None = None  # bytes that may be used, instead of what is available
    n_batch: int | None = None
    n_ubatch: int | None = None
    flash_attn: bool | None = None
    swa_full: bool | None = None
    purpose: Literal["chat", "embed"] | None = None  # by the model's kind
    source: str = "user"  # who asks: `user` or `project`

    def __post_init__(self) -> None:
        for name, least in (("n_ctx", 1), ("n_threads", 1), ("n_batch", 1), ("n_ubatch", 1), ("n_gpu_layers", -1)):
            value = getattr(self, name)
            if value is None or (name == "n_ctx" and value in ("auto", "max")):
                continue
            if type(value) is not int:
                other = "auto, max or a number of tokens" if name == "n_ctx" else "a whole number"
                raise UsageError(f"{name} {value!r}: expected {other}")
            if not least <= value < 1 << 31:
                raise UsageError(f"{name} {value:,}: expected a whole number from {least} to {(1 << 31) - 1:,}")
        if self.kv_type is not None and self.kv_type not in KV_TYPES:
            raise UsageError(f"KV cache type {self.kv_type!r}: expected one of {', '.join(KV_TYPES)}")
        if self.memory is not None and (type(self.memory) is not int or self.memory <= 0):
            raise UsageError(f"memory {self.memory!r}: expected bytes")

    @classmethod
    def of(cls, **asked: Any) -> UserSettings:
        """What was asked for by name; None leaves it to the plan, and `memory` may be a size such as `8GiB`."""
        known = [item.name for item in fields(cls)]
        unknown = set(asked) - set(known)
        if unknown:
            raise UsageError(f"{', '.join(sorted(unknown))}: expected {', '.join(known)}")
        given = {name: value for name, value in asked.items() if value is not None}
        if isinstance(given.get("memory"), str):
            given["memory"] = parse_bytes(given["memory"])
        return cls(**given)
