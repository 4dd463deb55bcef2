"""Memory measured: llama.cpp's own dry run, in a subprocess, from a header alone.

The engine opens the model with `no_alloc`, which reads the header and no weights, and then makes contexts whose
buffers it only counts. For a model that is not on this machine, a sparse file with only the header in it does.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tea_models.disk.kept_json import keep, read_kept
from tea_models.engine.engine_settings import EngineSettings
from tea_models.engine.formula import MemoryUse
from tea_models.engine.installed import DISTRIBUTION, installed_engine
from tea_models.engine.probe_process import CrashError, ProbeError, ProbeProcess
from tea_models.errors import INSTALL_ENGINE
from tea_models.machine.detect import Gpu
from tea_models.profile.model_files import ModelFiles

#: Seconds that a dry run may take; the largest vocabulary takes half a second.
TIMEOUT = 60.0
#: Python with the engine loaded, where no process tells.
ENGINE = 80 * 1024 * 1024
#: What the runtime's own libraries take beside Python, the engine and the tokenizer.
LIBRARIES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The installed llama.cpp, as it reports itself: of llama-cpp-python the version."""

    version: str
    gpu_offload: bool
    gpus: tuple[Gpu, ...]


class RefusedError(ProbeError):
    """The engine refuses one combination of settings."""


def engine_version() -> str | None:
    """Version of the installed llama-cpp-python, without importing it; None where it is not installed."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None


def engine_build() -> str | None:
    """A short hash that changes when the engine is installed anew or built otherwise; None without an engine."""
    engine = installed_engine()
    if engine is None:
        return None
    digest = hashlib.sha256(str(engine.version).encode())
    for library in sorted((engine.package / "lib").glob("*")):
        status = library.stat()
        digest.update(f"{library.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def engine_info(environ: Mapping[str, str] | None = None, *, cache_dir: Path | None = None) -> EngineInfo:
    """Ask the engine what it is and which devices it has; kept, unless it can use a GPU, whose free memory changes."""
    file = cache_dir / f"engine-{engine_build()}.json" if cache_dir else None
    known = _engine(read_kept(file)) if file is not None else None
    if known is not None and not known.gpu_offload:
        return known
    _require_engine()
    document = next(iter(ProbeProcess(environ).ask({"points": []}, TIMEOUT)), {})
    info = _engine(document)
    if info is None:
        raise ProbeError("llama.cpp did not answer")
    if file is not None:
        keep(file, document)
    return info


def _require_engine() -> None:
    if engine_version() is None:
        raise ProbeError("llama.cpp is not installed", hint=INSTALL_ENGINE)


class Prober:
    """Measures one model, by its (first) file or sparse files made of its open headers; the answers are kept."""

    def __init__(
        self,
        header_sha256: str,
        model: Path | ModelFiles,
        cache_dir: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        _require_engine()
        self._model = model
        self._file = cache_dir / f"{header_sha256[:32]}-{engine_build()}.json" if cache_dir else None
        self._known: dict[str, dict[str, Any]] = self._read_cache()
        self._process = ProbeProcess(environ)
        self._path: Path | None = None
        self._remove: weakref.finalize[..., Any] | None = None

    def measure(self, points: Sequence[EngineSettings]) -> list[MemoryUse | RefusedError]:
        """What each combination of settings takes, or why it is refused; a ProbeError if the engine gives no answer."""
        unknown = [point for point in dict.fromkeys(points) if _key(point) not in self._known]
        if unknown:
            self._measure(unknown)
            if self._file is not None:
                keep(self._file, {"points": self._read_cache() | self._known})
        return [_result(self._known[_key(point)]) for point in points]

    def close(self) -> None:
        """End the dry run; it is started again if more is asked."""
        self._process.close()
        if self._remove is not None:
            self._remove()
        self._path = self._remove = None

    def _measure(self, points: list[EngineSettings]) -> None:
        if isinstance(self._model, Path):
            self._path = self._model
        elif self._path is None:
            folder = Path(tempfile.mkdtemp(prefix="tea-probe-"))
            self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self._path = _write_headers(self._model, folder)
        request = {"model": str(self._path), "points": [point.deciding_memory() for point in points]}
        try:
            documents = self._process.ask(request, TIMEOUT)
        except CrashError as error:
            # Reading the exact sizes is the one thing that another build of the engine may not survive.
            documents = error.documents
            if not any("point" in document for document in documents):
                documents = self._process.ask(request | {"exact": False}, TIMEOUT)
        loads: dict[int, dict[str, Any]] = {}
        for document in documents:
            if "load" in document:
                if "error" in document:
                    raise ProbeError(f"llama.cpp does not load this file: {document['error']}")
                loads[document["load"]] = document
            elif "point" in document:
                point = points[document["point"]]
                self._known[_key(point)] = document | {"load": loads[point.n_gpu_layers]}
        missing = [point for point in points if _key(point) not in self._known]
        if missing:
            raise ProbeError(f"the dry run of llama.cpp ended before it had measured n_ctx {missing[0].n_ctx:,}")

    def _read_cache(self) -> dict[str, dict[str, Any]]:
        if self._file is None:
            return {}
        try:
            points: dict[str, dict[str, Any]] = read_kept(self._file)["points"]
            for document in points.values():
                _result(document)
        except (AttributeError, KeyError, TypeError):
            return {}  # none, or damaged
        return points


def _key(point: EngineSettings) -> str:
    """What memory depends on as a text, the same in every run."""
    return json.dumps(point.deciding_memory(), sort_keys=True)


def _result(document: dict[str, Any]) -> MemoryUse | RefusedError:
    if "error" in document:
        return RefusedError(f"llama.cpp refuses these settings: {document['error']}")
    load = document["load"]
    buffers = document["buffers"]
    weights = sum(row["model"] for row in buffers) or load["size"]
    devices = {
        row["buffer"]: (row["model"], row["context"], row["compute"])
        for row in buffers
        if not row["host"] and not row["buffer"].startswith("CPU")  # `CPU_REPACK` is none of the host's either
    }
    repacked = sum(row["model"] for row in buffers if row["buffer"].startswith("CPU_"))
    on_host = weights - sum(parts[0] for parts in devices.values())
    mapped = repacked * 4 <= on_host
    return MemoryUse(
        weights=weights + (repacked if mapped else 0),
        kv_cache=document["kv_cache"],
        compute=document["compute"],
        overhead=(load["rss"] or ENGINE) + document["output"] + LIBRARIES,
        method="measured",
        flash_attn=document["flash_attn"],
        repacked=repacked,
        mapped=mapped,
        devices=devices,
    )


def _engine(answer: Any) -> EngineInfo | None:
    """What the engine says of itself; None where it is damaged, or was never kept."""
    try:
        document = answer["engine"]
        gpus = tuple(
            Gpu(*(device[name] for name in ("name", "description", "kind", "memory_total", "memory_free")))
            for device in document["devices"]
            if device["kind"] in ("gpu", "igpu")
        )
        return EngineInfo(document["version"], document["gpu_offload"], gpus)
    except (KeyError, TypeError):
        return None


def _write_headers(model: ModelFiles, folder: Path) -> Path:
    """Sparse files with only the headers of a model; shards find each other by their names."""
    try:
        for file, header, source in zip(model.files, model.headers, model.sources, strict=True):
            with (folder / Path(file.name).name).open("wb") as sparse:
                sparse.write(source.read(0, header.data_offset))
                sparse.truncate(max(file.size, header.data_offset))
    except OSError as error:
        raise ProbeError(f"a file for the dry run can't be written: {error.strerror or error}") from None
    return folder / Path(model.files[0].name).name
