"""`check_up`: this machine, the engine, the store and the registry, each with what to do where it is not well."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from tea_models.disk.space import free_bytes
from tea_models.engine.gate import examine
from tea_models.engine.installed import installed_engine
from tea_models.engine.probe import EngineInfo, engine_info
from tea_models.errors import INSTALL_ENGINE, TeaModelsError
from tea_models.machine.detect import Machine, detect_machine
from tea_models.plan.observed import all_observed
from tea_models.plan.plan_input import make_budget
from tea_models.registry.entries import Registry
from tea_models.settings import Settings
from tea_models.sizes import human_bytes
from tea_models.store import Store

_GRAVITY = ("fail", "warn", "ok")
_LITTLE_MEMORY = 512 * 1024**2
_LITTLE_SPACE = 2 * 1024**3


class Check(NamedTuple):
    """One thing that was looked at: `ok`, `warn` (works, but not as well as it could) or `fail`; then what to do."""

    name: str
    status: str
    detail: str
    hint: str = ""


def check_up(settings: Settings) -> dict[str, Any]:
    """Look at everything: problems come first, and of the last loads the newest. Nothing is fetched or changed."""
    engine, engine_check = _engine(settings)
    machine = detect_machine(gpus=engine.gpus if engine else ())
    checks = [
        Check("tea-models", "ok", f"{version('tea-models')} on Python {sys.version.split()[0]}"),
        _memory(machine),
        _processor(machine),
        engine_check,
        _store(settings),
        _installed(settings),
        _registry(settings),
        _network(settings),
    ]
    if engine is not None:
        checks.append(_gpu(engine))
    checks = [check._replace(hint="") if check.status == "ok" else check for check in checks]
    checks.sort(key=lambda check: _GRAVITY.index(check.status))
    return {
        "healthy": all(check.status != "fail" for check in checks),
        "machine": asdict(machine) | {"memory_usable": machine.memory_usable, "threads": machine.threads},
        "engine": engine,
        "checks": [check._asdict() for check in checks],
        "loads": [asdict(load) | {"differences": load.differences()} for load in all_observed(settings.store_dir)],
    }


def _memory(machine: Machine) -> Check:
    try:
        budget = make_budget(machine, None)
    except TeaModelsError as error:
        return Check("memory", "warn", error.message, error.hint)
    hint = "only the smallest models fit; raise the limit or end other programs"
    detail = f"{human_bytes(budget.budget)} may be used: {budget.budget_reason}"
    return Check("memory", "warn" if budget.budget < _LITTLE_MEMORY else "ok", detail, hint)


def _processor(machine: Machine) -> Check:
    detail = f"{machine.cpu}: {machine.threads} threads of {machine.cores_physical} physical cores"
    if machine.cpu_quota is not None and machine.cpu_quota < machine.cores_allowed:
        detail += f" (the cgroup grants {machine.cpu_quota:g} processors' time)"
    elif machine.cores_allowed < machine.cores_physical:
        detail += f" (affinity allows {machine.cores_allowed})"
    return Check("processor", "ok", detail)


def _engine(settings: Settings) -> tuple[EngineInfo | None, Check]:
    environ = settings.environ or None
    installed = installed_engine(environ)
    if installed is None:
        detail = "llama.cpp is not installed: no local models, plans are estimates"
        return None, Check("engine", "warn", detail, INSTALL_ENGINE)
    release = f"llama.cpp {installed.llama_cpp}, " if installed.llama_cpp else ""
    what = f"llama-cpp-python {installed.version or 'of unknown version'} ({release}{installed.kind})"
    verdict = examine(installed.package, version=installed.version or "", environ=environ)
    problem = verdict.problems[0] if verdict.problems else ""
    engine = None
    try:
        engine = engine_info(environ) if not problem else None
    except TeaModelsError as error:
        problem = error.message
    if engine is None:
        return None, Check("engine", "fail", f"{what}: {problem}", f"{INSTALL_ENGINE} --force")
    return engine, Check("engine", "ok", f"{what}: {', '.join(verdict.features)}")


def _gpu(engine: EngineInfo) -> Check:
    if engine.gpus:
        names = (f"{gpu.description} with {human_bytes(gpu.memory_free)} free" for gpu in engine.gpus)
        return Check("gpu", "ok", "; ".join(names))
    if engine.gpu_offload:
        return Check("gpu", "warn", "llama.cpp was built for a GPU but finds none", "is the driver running?")
    if Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists():
        hint = f"{INSTALL_ENGINE} --force --accelerator cuda (NVIDIA) or vulkan"
        return Check("gpu", "warn", "there is a GPU, but llama.cpp was built without support for it", hint)
    return Check("gpu", "ok", "none; llama.cpp runs on the processor")


def _store(settings: Settings) -> Check:
    folder = settings.store_dir
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = free_bytes(folder)
    if free is None or not existing.is_dir():
        return Check("store", "fail", f"{existing} is not a folder", "set TEA_MODELS_DIR to another folder")
    detail = f"{folder}, {human_bytes(free)} free"
    if not os.access(existing, os.W_OK):
        return Check("store", "warn", f"{detail}, can't be written", "models can be read; to pull, set TEA_MODELS_DIR")
    status = "warn" if free < _LITTLE_SPACE else "ok"
    return Check("store", status, detail, "`tea-models gc` shows what can be freed")


def _installed(settings: Settings) -> Check:
    try:
        items = Store.of(settings).installed()
    except (OSError, TeaModelsError) as error:
        return Check("models", "warn", f"the store can't be read: {error}")
    changed = [item.record.filename for item in items if item.state != "ok"]
    if changed:
        return Check("models", "warn", f"changed or missing: {', '.join(changed[:5])}", "tea-models verify")
    return Check("models", "ok", f"{len(items)} file{'' if len(items) == 1 else 's'} installed")


def _registry(settings: Settings) -> Check:
    try:
        entries = Registry.load(settings).entries
    except TeaModelsError as error:
        return Check("registry", "fail", error.message, error.hint)
    origins = dict.fromkeys(entry.origin for entry in entries.values())
    return Check("registry", "ok", f"{len(entries)} models: {', '.join(origins)}")


def _network(settings: Settings) -> Check:
    if settings.offline:
        return Check("network", "warn", "offline: nothing is fetched", "unset TEA_OFFLINE and HF_HUB_OFFLINE")
    token = "a token is set" if settings.hf_token else "no HF_TOKEN (only needed for gated models)"
    return Check("hub", "ok", f"{settings.hf_endpoint}, {token}")
