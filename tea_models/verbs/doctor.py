"""`check_up`: this machine, the engine, the store and the registry, each with what to do where it is not well."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tea_models.engine.gate import examine
from tea_models.engine.installed import installed_engine
from tea_models.engine.probe import EngineInfo, engine_info
from tea_models.errors import INSTALL_ENGINE, TeaModelsError
from tea_models.machine.detect import Machine, detect_machine
from tea_models.plan.plan_input import make_budget
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.plan.observed import ObservedLoad
    from tea_models.settings import Settings

_GRAVITY = ("fail", "warn", "ok")
_LITTLE_SPACE = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        status: `ok`, `warn` (works, but not as well as it could) or `fail`.
        detail: What was found.
        hint: What to do next; empty where nothing is needed.
    """

    name: str
    status: str
    detail: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class CheckUp:
    """Everything that was found.

    Attributes:
        machine: This machine, now.
        engine: The installed llama.cpp, or None.
        checks: What was looked at, problems first.
        loads: The last load of each model, newest first.
    """

    machine: Machine
    engine: EngineInfo | None
    checks: tuple[Check, ...]
    loads: tuple[ObservedLoad, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing failed."""
        return all(check.status != "fail" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        machine = asdict(self.machine)
        machine |= {"memory_usable": self.machine.memory_usable, "threads": self.machine.threads}
        return {
            "healthy": self.healthy,
            "machine": machine,
            "engine": asdict(self.engine) if self.engine else None,
            "checks": [asdict(check) for check in self.checks],
            "loads": [asdict(load) | {"differences": load.differences()} for load in self.loads],
        }


def check_up(settings: Settings) -> CheckUp:
    """Look at everything; nothing is fetched and nothing is changed.

    Args:
        settings: Where the store and the registry are.
    """
    from tea_models.plan.observed import all_observed

    engine, engine_check = _engine(settings)
    machine = detect_machine(gpus=engine.gpus if engine else ())
    loads = tuple(all_observed(settings.store_dir))
    checks = [
        _python(),
        _memory(machine),
        _processor(machine),
        engine_check,
        *_gpu(engine),
        _store(settings),
        *_installed(settings),
        _registry(settings),
        *_network(settings),
        *_loads(loads),
    ]
    return CheckUp(machine, engine, tuple(sorted(checks, key=lambda check: _GRAVITY.index(check.status))), loads)


def _python() -> Check:
    from importlib.metadata import version

    return Check("tea-models", "ok", f"{version('tea-models')} on Python {sys.version.split()[0]}")


def _memory(machine: Machine) -> Check:
    try:
        budget = make_budget(machine, None)
    except TeaModelsError as error:
        return Check("memory", "warn", error.message, error.hint)
    detail = f"{human_bytes(budget.budget)} may be used: {budget.budget_reason}"
    if budget.budget < 512 * 1024**2:
        return Check("memory", "warn", detail, "only the smallest models fit; raise the limit or end other programs")
    return Check("memory", "ok", detail)


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
    try:
        engine = engine_info(environ) if not verdict.problems else None
    except TeaModelsError as error:
        return None, Check("engine", "fail", f"{what}: {error.message}", f"{INSTALL_ENGINE} --force")
    if engine is None:
        return None, Check("engine", "fail", f"{what}: {verdict.problems[0]}", f"{INSTALL_ENGINE} --force")
    return engine, Check("engine", "ok", f"{what}: {', '.join(verdict.features)}")


def _gpu(engine: EngineInfo | None) -> list[Check]:
    if engine is None:
        return []
    if engine.gpus:
        names = (
            f"{gpu.description} with {human_bytes(gpu.memory_free)} free of {human_bytes(gpu.memory_total)}"
            for gpu in engine.gpus
        )
        return [Check("gpu", "ok", "; ".join(names))]
    if engine.gpu_offload:
        return [Check("gpu", "warn", "llama.cpp was built for a GPU but finds none", "is the driver running?")]
    if any(os.path.exists(path) for path in ("/dev/nvidia0", "/dev/kfd")):  # noqa: PTH110 - a device, not a file
        hint = f"{INSTALL_ENGINE} --force --accelerator cuda (NVIDIA) or vulkan"
        return [Check("gpu", "warn", "there is a GPU, but llama.cpp was built without support for it", hint)]
    return [Check("gpu", "ok", "none; llama.cpp runs on the processor")]


def _store(settings: Settings) -> Check:
    folder = settings.store_dir
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return Check("store", "fail", f"{folder}: {error.strerror or error}", "set TEA_MODELS_DIR to another folder")
    if not existing.is_dir():
        return Check("store", "fail", f"{existing} is not a folder", "set TEA_MODELS_DIR to another folder")
    detail = f"{folder}, {human_bytes(free)} free"
    if not os.access(existing, os.W_OK):
        return Check("store", "warn", f"{detail}, can't be written", "models can be read; to pull, set TEA_MODELS_DIR")
    if free < _LITTLE_SPACE:
        return Check("store", "warn", detail, "`tea-models gc` shows what can be freed")
    return Check("store", "ok", detail)


def _installed(settings: Settings) -> list[Check]:
    from tea_models.store import Store

    try:
        items = Store.of(settings).installed()
    except (OSError, TeaModelsError) as error:
        return [Check("models", "warn", f"the store can't be read: {error}")]
    changed = [item.record.filename for item in items if item.state != "ok"]
    detail = f"{len(items)} file{'' if len(items) == 1 else 's'} installed"
    if changed:
        return [Check("models", "warn", f"{detail}; changed or missing: {', '.join(changed[:5])}", "tea-models verify")]
    return [Check("models", "ok", detail)]


def _registry(settings: Settings) -> Check:
    from tea_models.registry.entries import Registry

    try:
        entries = Registry.load(settings).entries
    except TeaModelsError as error:
        return Check("registry", "fail", error.message, error.hint)
    origins = dict.fromkeys(entry.origin for entry in entries.values())
    return Check("registry", "ok", f"{len(entries)} models: {', '.join(origins)}")


def _network(settings: Settings) -> list[Check]:
    if settings.offline:
        return [
            Check("network", "warn", "offline: nothing is fetched", "unset TEA_OFFLINE and HF_HUB_OFFLINE to allow it")
        ]
    token = "a token is set" if settings.hf_token else "no HF_TOKEN (only needed for gated models)"
    return [Check("hub", "ok", f"{settings.hf_endpoint}, {token}")]


def _loads(loads: tuple[ObservedLoad, ...]) -> list[Check]:
    from tea_models.plan.observed import describe

    wrong = [
        f"{load.name}: {describe(load, part, difference)}"
        for load in loads
        for part, difference in load.differences().items()
    ]
    if wrong:
        return [
            Check("plans", "warn", "; ".join(wrong[:3]), "a new engine? plan again; it measures anew for each build")
        ]
    models = "model" if len(loads) == 1 else f"{len(loads)} models"
    return [Check("plans", "ok", f"the last load of the {models} took no more than was planned")] if loads else []
