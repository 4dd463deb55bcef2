"""`deploy`: a plan written for a cluster, with the lock that its bytes are held to."""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
import shlex
from dataclasses import replace
from importlib.resources import files
from string import Template
from textwrap import indent
from urllib.parse import urlsplit

from tea_models.caller import Caller
from tea_models.errors import UsageError
from tea_models.lock.pins import make_lock
from tea_models.lockfile import Lock, format_lock, read_lock
from tea_models.plan.export import Export, ExportInput, server_arguments
from tea_models.refs import FileRef
from tea_models.registry.entries import Registry

_MIB = 1024 * 1024
_INIT_IMAGE = "python:3.12-slim"
_SERVER_IMAGE = "ghcr.io/ggml-org/llama.cpp:server"
_GPU_IMAGE = "ghcr.io/ggml-org/llama.cpp:server-cuda"


def deploy(target: str, reference: str, what: ExportInput, caller: Caller, *, mirror: str | None = None) -> Export:
    """Write a plan for a cluster, with the pins of the nearest lock where that names the model.

    `target` is one of `tea_models.deploy.TARGETS`; from `mirror` the init step takes the bytes (`sync --from`).
    """
    name = "vllm.sh" if target == "vllm" else f"{target}.yaml"
    template = Template(files("tea_models.deploy").joinpath("templates", name).read_text("utf-8"))
    values = {"reference": reference, "name": what.name}
    if target == "vllm":
        repository, revision, unpinned = _upstream(reference, what.name, caller)
        values |= {"repository": repository, "revision": revision, "quoted_name": shlex.quote(what.name)}
        text = template.substitute(values, n_ctx=what.plan.settings.n_ctx)
        return Export(target, text, ("the quantisation, threads and KV cache type: vLLM has its own", *unpinned))
    lock = _lock(reference, caller)
    (model,) = lock.models.values()
    what = replace(what, path=f"/models/{model.files[0].filename}")
    arguments = server_arguments(what)
    text = format_lock(lock)
    memory = math.ceil(what.plan.memory.total / _MIB)
    sizes = [file.size for file in model.files]
    disk = math.ceil(sum(size for size in sizes if size) * 2.1 / _MIB) if None not in sizes else None
    values |= {
        "app": re.sub(r"[^a-z0-9]+", "-", what.name.lower()).strip("-")[:50].strip("-") or "model",
        "lock4": indent(text, "    ").rstrip(),
        "lock6": indent(text, "      ").rstrip(),
        "sha256": str(model.files[0].sha256),
        "init_image": _INIT_IMAGE,
        "server_image": _GPU_IMAGE if what.plan.settings.n_gpu_layers else _SERVER_IMAGE,
        "port": str(_port(mirror)),
        "sync": json.dumps(_sync(mirror)),
        "arguments": json.dumps([*arguments, "--host", "0.0.0.0", "--port", "8080"]),  # noqa: S104 - in a container
        "threads": str(what.plan.settings.n_threads),
        "memory": f"{memory}Mi",
        "bytes": str(memory * _MIB),
        "disk": f"{disk}Mi" if disk else "64Gi",
        "gpu": '\n              nvidia.com/gpu: "1"  # plan: n_gpu_layers' if what.plan.settings.n_gpu_layers else "",
    }
    return Export(target, template.substitute(values))


def _port(mirror: str | None) -> int:
    """The port that the init step has to reach."""
    if mirror is None:
        return 443
    if "://" not in mirror:
        raise UsageError(f"--mirror {mirror!r}: a cluster can't reach a path of this machine", hint="oci://… or s3://…")
    return urlsplit(mirror).port or 443


def _sync(mirror: str | None) -> str:
    version = importlib.metadata.version("tea-models")
    come_from = f" --from {shlex.quote(mirror)}" if mirror else ""
    return (
        f"pip install --quiet --target /tmp/tea tea-models=={version} && "
        f"cp /lock/models.lock /tmp && cd /tmp && PYTHONPATH=/tmp/tea python -m tea_models.cli sync --frozen{come_from}"
    )


def _lock(reference: str, caller: Caller) -> Lock:
    """The pins of one model: those of the nearest lock, where that names it."""
    path = caller.settings.lock_file
    model = read_lock(path).find(reference) if path is not None else None
    lock = Lock({model.reference: model}) if model is not None else make_lock([reference], caller)
    parts = [part for one in lock.models.values() for file in one.files for part in file.sources[0].parts]
    if any(isinstance(part, FileRef) for part in parts):
        hint = "name the model by a reference (tea-models list, hf:…, https:…)"
        raise UsageError(f"{reference} is a path of this machine: a cluster can't fetch it from there", hint=hint)
    return replace(lock, names=tuple(lock.models))


def _upstream(reference: str, name: str, caller: Caller) -> tuple[str, str, tuple[str, ...]]:
    """Repository and revision of the weights that the model was quantised from, and what is not pinned."""
    entry = Registry.load(caller.settings).entries.get(reference.partition(":")[0])
    if entry is None or entry.upstream is None:
        raise UsageError(
            f"--to vllm: no upstream weights of {name} are known, and vLLM's own GGUF support is experimental",
            hint="add `upstream: hf:owner/repo@revision` to its registry entry, or use --to kubernetes",
        )
    pinned = entry.upstream.revision
    return entry.upstream.repo, pinned or "main", () if pinned else ("a commit of the upstream weights: none is known",)
