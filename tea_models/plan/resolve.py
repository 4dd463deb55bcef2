"""`resolve_plan`: from a profile, this machine and the user's settings to the settings a model runs with here and now.

Order of decisions: what must be (purpose, the user's settings), what memory there is, where layers run, then the
largest context that fits beside everything else. A user's explicit setting is honoured, or refused with the numbers; it
is never changed silently.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tea_models.engine.estimator import Estimator
from tea_models.engine.measurer import Measured, Measurer
from tea_models.engine.probe import Prober, ProbeTarget, engine_info
from tea_models.engine.probe_process import ProbeError
from tea_models.files import base_name
from tea_models.machine.detect import Machine, detect_machine
from tea_models.plan.user_settings import UserSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tea_models.plan.curve import Curve
    from tea_models.plan.types import RunPlan
    from tea_models.plan.user_settings import Purpose
    from tea_models.profile import ModelProfile
    from tea_models.profile.model_files import ModelFiles
    from tea_models.settings import Settings


def resolve_plan(
    path_or_ref: str | Path | ModelProfile,
    *,
    settings: Settings | None = None,
    n_ctx: int | Literal["auto", "max"] = "auto",
    n_threads: int | None = None,
    n_gpu_layers: int | None = None,
    kv_type: str | None = None,
    memory: int | str | None = None,
    purpose: Purpose | None = None,
    measure: bool = True,
    n_batch: int | None = None,
    n_ubatch: int | None = None,
    flash_attn: bool | None = None,
    swa_full: bool | None = None,
    source: str = "user",
    machine: Machine | None = None,
) -> RunPlan:
    """Plan a model that lies here or that is still far away (then only its header is fetched).

    Args:
        path_or_ref: A path, a reference as a user types it, or a profile (or the path of a saved one, `.json`), which
            is planned by formula, because there is no header to measure.
        settings: Where the store and the hosts are; by default from the environment.
        n_ctx: Tokens, `auto` or `max`.
        n_threads: Threads; by default one a physical core that may be used.
        n_gpu_layers: Layers on a GPU; by default as many as fit.
        kv_type: Type of the KV cache.
        memory: Bytes that may be used, or a size such as `8GiB`; by default what is available now, less a margin.
        purpose: `chat` or `embed`; by default what the model is for.
        measure: Ask the engine, if it is installed; otherwise estimate.
        n_batch: Logical batch in tokens.
        n_ubatch: Physical batch in tokens.
        flash_attn: On or off.
        swa_full: Keep the whole context in layers with a sliding window.
        source: Who asks: `user` or `project`.
        machine: The machine to plan for; by default this one, now.

    Raises:
        MemoryDoesNotFitError: What was asked for does not fit; says by how much and what would.
        UsageError: A value is out of range, or the file is no model that runs by itself.
        MalformedGGUFError: The file is broken.
        NotAvailableError: The model can't be had from here.
    """
    if isinstance(memory, str):
        from tea_models.sizes import parse_bytes

        memory = parse_bytes(memory)
    user = UserSettings(
        n_ctx=n_ctx,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        kv_type=kv_type,
        memory=memory,
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        flash_attn=flash_attn,
        swa_full=swa_full,
        purpose=purpose,
        source=source,
    )
    if settings is None:
        from tea_models.settings import Settings as SettingsType

        settings = SettingsType.resolve(os.environ, cwd=Path.cwd())
    return resolve_for(path_or_ref, settings, user, measure=measure, machine=machine)


def resolve_for(
    path_or_ref: str | Path | ModelProfile,
    settings: Settings,
    user: UserSettings,
    *,
    measure: bool = True,
    machine: Machine | None = None,
) -> RunPlan:
    """Plan a model for settings that were put together before; as `resolve_plan` otherwise."""
    with _opened(path_or_ref, settings, user, measure=measure, machine=machine) as (plan, _measurer):
        return plan


def plan_with_curve(
    path_or_ref: str | Path | ModelProfile,
    settings: Settings,
    user: UserSettings,
    *,
    measure: bool = True,
    machine: Machine | None = None,
) -> tuple[RunPlan, Curve]:
    """Plan a model, and measure what it would take at other contexts; as `resolve_plan` otherwise."""
    from tea_models.plan.curve import memory_curve

    with _opened(path_or_ref, settings, user, measure=measure, machine=machine) as (plan, measurer):
        return plan, memory_curve(plan, measurer)


@contextmanager
def _opened(
    path_or_ref: str | Path | ModelProfile,
    settings: Settings,
    user: UserSettings,
    *,
    measure: bool,
    machine: Machine | None,
) -> Iterator[tuple[RunPlan, Measurer]]:
    from tea_models.plan.observed import read_observed
    from tea_models.profile import ModelProfile, load_profile, profile_from_headers
    from tea_models.profile.model_files import open_model

    user.check()
    with ExitStack() as stack:
        model = None
        if isinstance(path_or_ref, ModelProfile):
            profile = path_or_ref
        elif str(path_or_ref).endswith(".json"):
            profile = load_profile(Path(path_or_ref))
        else:
            model = stack.enter_context(open_model(path_or_ref, settings=settings))
            model.require_loadable()
            profile = profile_from_headers(model.headers, model.files, entry=model.entry)
        measurer = stack.enter_context(closing(choose_measurer(profile, settings, model=model, measure=measure)))
        machine = machine or machine_now(settings, measure=measure)
        name = profile.files[0].name if isinstance(path_or_ref, ModelProfile) else _name(path_or_ref)
        plan = plan_profile(profile, machine, user, measurer, name=name)
        yield replace(plan, observed=read_observed(settings.store_dir, plan)), measurer


def plan_profile(
    profile: ModelProfile, machine: Machine, user: UserSettings, measurer: Measurer, *, name: str = ""
) -> RunPlan:
    """Plan a model that is known by its profile.

    Args:
        profile: Facts about the model.
        machine: Where it is to run.
        user: What was asked for.
        measurer: Answers what settings take.
        name: What to call the model; by default what the file says.

    Raises:
        MemoryDoesNotFitError: What was asked for does not fit; says by how much and what would.
        UsageError: The file is no model that runs by itself.
    """
    from tea_models.plan.planner import Planner

    user.check()
    return Planner(profile, machine, user, measurer, name=name).plan()


def choose_measurer(
    profile: ModelProfile,
    settings: Settings,
    *,
    model: ModelFiles | None = None,
    path: Path | None = None,
    measure: bool,
) -> Measurer:
    """The engine's dry run if it is installed and wanted, otherwise the formulas.

    Args:
        profile: The model.
        settings: Where answers are kept.
        model: Its open headers.
        path: Its (first) file, where there are no open headers.
        measure: Whether the engine may be asked.
    """
    if not measure:
        return Estimator(profile, "that was asked for")
    if path is None and model is not None:
        path = model_path(model)
    if path is None and model is None:
        return Estimator(profile, "there is neither a file nor a header to measure")
    problems = [problem for header in model.headers for problem in header.problems] if model else []
    if problems:
        # What llama.cpp refuses, or crashes on, is not shown to it.
        return Estimator(profile, f"llama.cpp would not load this file: {problems[0]}")
    target = ProbeTarget(profile.header_sha256, path=path, model=None if path else model)
    try:
        prober = Prober(target, cache_dir=_cache_dir(settings), environ=settings.environ or None)
    except ProbeError as error:
        return Estimator(profile, error.message)
    return Measured(prober, profile)


def model_path(model: ModelFiles) -> Path | None:
    """Where the (first) file of an opened model lies; None if it is not on this machine.

    Args:
        model: From `open_model`.
    """
    if model.located is None:
        return Path(model.where)
    return model.located.paths[0] if model.located.paths else None


def machine_now(settings: Settings, *, measure: bool = True) -> Machine:
    """This machine, now, with the devices that the installed engine reports.

    Args:
        settings: The environment for asking the engine.
        measure: Whether the engine may be asked.
    """
    machine = detect_machine()
    if not measure:
        return machine
    try:
        info = engine_info(settings.environ or None, cache_dir=_cache_dir(settings))
    except ProbeError:
        return machine
    return machine.with_gpus(info.gpus)


def _cache_dir(settings: Settings) -> Path:
    return settings.store_dir / ".tea" / "probe"


def _name(path_or_ref: str | Path) -> str:
    """What the user called it, shortened to a file's name where it is a path or an address."""
    return base_name(str(path_or_ref)) or str(path_or_ref)
