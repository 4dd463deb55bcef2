"""`inspect_model`: what a GGUF file says about itself, wherever it lies."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tea_models.gguf.arrays import ArrayValue
from tea_models.gguf.header import Header, TensorInfo, Value
from tea_models.gguf.loadable import check_loadable, check_tokenizable
from tea_models.gguf.types import ValueType
from tea_models.profile.facts import ModelProfile, values_of
from tea_models.profile.header_facts import profile_from_headers
from tea_models.profile.model_files import open_model
from tea_models.settings import Settings

MOST_ITEMS = 1 << 22  # of an array that is shown whole; the largest real ones have 2^20
_FACTS = (
    "kind", "name", "architecture", "quantization", "bits_per_weight", "parameters", "context_length",
    "embedding_length", "pooling", "license",
)  # fmt: skip
_SPECIAL = {math.inf: "Infinity", -math.inf: "-Infinity"}


@dataclass(frozen=True, slots=True)
class Transfer:
    """What it took to look at a remote file: bytes, requests, seconds, and the commit that was read."""

    revision: str | None
    bytes_read: int
    requests: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        path: Path of the (first) file, or the reference of a remote one.
        profile: The facts.
        header: The header of the first file. Its arrays can't be read any more: the file is closed.
        tensors: Tensors of all files.
        metadata: Values by key as JSON; arrays as `{"type", "count"}`, or complete with `full`.
        with_tensors: `to_json` has the tensor table.
        problems: Why llama.cpp would not load it.
        risks: Why it would load and then end the process.
        transfer: What was fetched, for a remote file.
    """

    path: str
    profile: ModelProfile
    header: Header
    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, Any]
    with_tensors: bool
    problems: tuple[str, ...]
    risks: tuple[str, ...]
    transfer: Transfer | None

    @property
    def size(self) -> int:
        return sum(file.size for file in self.profile.files)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know, the gravest first."""
        unloadable = tuple(f"llama.cpp would not load it: {problem}" for problem in self.problems)
        crashing = tuple(f"llama.cpp would load it, but crash at the first text: {risk}" for risk in self.risks)
        return unloadable + crashing + self.profile.warnings + self.profile.chat.warnings

    def to_json(self) -> dict[str, Any]:
        """The document that `inspect --json` prints."""
        profile, header = self.profile, self.header
        document: dict[str, Any] = {
            "path": self.path,
            "size": self.size,
            "gguf": {name: getattr(header, name) for name in ("version", "byte_order", "alignment", "header_size")}
            | {"kv_count": len(header.metadata), "tensor_count": len(self.tensors)},
            **{name: getattr(profile, name).value for name in _FACTS},
            "architecture": profile.architecture.value or None,
            "tokenizer": values_of(profile.tokenizer),
            "chat": values_of(profile.chat),
            "files": list(map(asdict, profile.files)),
            "metadata": self.metadata,
        }
        if self.with_tensors:
            keys = ("name", "shape", "type", "offset", "bytes")
            rows = ((info.name, list(info.shape), info.type.name, info.offset, info.size) for info in self.tensors)
            document["tensors"] = [dict(zip(keys, row, strict=True)) for row in rows]
        if self.transfer is not None:
            document["remote"] = asdict(self.transfer)
        document["loadable"] = not self.problems
        document["warnings"] = list(self.warnings)
        return document


def inspect_model(
    path_or_ref: Path | str, *, settings: Settings | None = None, full: bool = False, tensors: bool = False
) -> Inspection:
    """Read what a model says about itself: a file, all its shards, or only the header of a remote one.

    Args:
        path_or_ref: A path, or a reference as a user types it.
        settings: Where the store and the hosts are; by default from the environment.
        full: Metadata hold whole arrays.
        tensors: The document has the tensor table.

    Raises:
        MalformedGGUFError: A file is not GGUF or breaks the specification.
        NotAvailableError: The model, or one of its shards, can't be had from here.
        UsageError: The text is no reference.
    """
    started = time.monotonic()
    with open_model(path_or_ref, settings=settings, hashes=False) as model:
        profile = profile_from_headers(model.headers, model.files, entry=model.entry, header_sha256="")
        header = model.headers[0]
        problems = check_loadable(header, thorough=False)
        transfer = None
        if not model.located.paths:
            origin = model.located.artifact.files[0].sources
            transfer = Transfer(
                revision=origin[0].revision if origin else None,
                bytes_read=sum(getattr(source, "bytes_read", 0) for source in model.sources),
                requests=sum(getattr(source, "requests", 0) for source in model.sources),
                seconds=round(time.monotonic() - started, 3),
            )
        return Inspection(
            path=model.where,
            profile=profile,
            header=header,
            tensors=tuple(info for part in model.headers for info in part.tensors),
            metadata={key: json_value(value, full=full) for key, value in header.metadata.items()},
            with_tensors=tensors,
            problems=problems,
            risks=() if problems else check_tokenizable(header),
            transfer=transfer,
        )


def json_value(value: Value, *, full: bool = False) -> Any:
    """A metadata value as JSON (arrays with all their items if `full`); NaN and infinity, which JSON lacks, by name."""
    if isinstance(value, float):
        return value if math.isfinite(value) else _SPECIAL.get(value, "NaN")
    if not isinstance(value, ArrayValue):
        return value
    if not full or value.count > MOST_ITEMS:
        return {"type": value.item_type.label, "count": value.count}
    if value.item_type in (ValueType.ARRAY, ValueType.FLOAT32, ValueType.FLOAT64):
        return [json_value(item, full=True) for item in value]
    return list(value)
