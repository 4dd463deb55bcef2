"""`resolve_plan`: from a profile, this machine and the user's settings to the settings a model runs with here and now.

A user's explicit setting is honoured, or refused with the numbers; it is never changed silently.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tea_models.engine.estimator import Estimator, Measured
from tea_models.engine.probe import Prober, engine_info
from tea_models.engine.probe_process import ProbeError
from tea_models.errors import IntegrityError, NotAvailableError, UsageError
from tea_models.files import base_name
from tea_models.machine.detect import Gpu, Machine, detect_machine
from tea_models.plan.observed import read_observed
from tea_models.plan.planner import plan_profile
from tea_models.plan.speed import speed_of
from tea_models.plan.types import RunPlan
from tea_models.plan.user_settings import UserSettings
from tea_models.profile.document import load_profile, shipped_profile
from tea_models.profile.facts import ModelProfile
from tea_models.profile.header_facts import profile_from_headers
from tea_models.profile.model_files import ModelFiles, open_model
from tea_models.profile.stored import read_profile
from tea_models.refs import NameRef, parse_reference
from tea_models.registry.entries import Registry
from tea_models.settings import Settings


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model that is about to be planned: its header is read, and something can say what settings take."""

    name: str  # what the user called it
    profile: ModelProfile
    measurer: Estimator
    path: Path | None  # its (first) file, if it is on this machine


def resolve_plan(
    path_or_ref: str | Path | ModelProfile,
    *,
    settings: Settings | None = None,
    measure: bool = True,
    machine: Machine | None = None,
    **user: Any,
) -> RunPlan:
    """Plan a model that lies here or that is still far away (then only its header is fetched).

    Args:
        path_or_ref: A path, a reference as a user types it, or a profile (or the path of a saved one, `.json`), which
            is planned by formula, because there is no header to measure.
        settings: Where the store and the hosts are; by default from the environment.
        measure: Ask the engine, if it is installed; otherwise estimate.
        machine: The machine to plan for; by default this one, now.
        **user: What is asked for, by the names of `UserSettings`: `n_ctx`, `n_threads`, `n_gpu_layers`, `kv_type`,
            `memory` (bytes, or a size such as `8GiB`), `purpose`, …

    Raises:
        MemoryDoesNotFitError: What was asked for does not fit; says by how much and what would.
        UsageError: A value is out of range, or the file is no model that runs by itself.
        MalformedGGUFError: The file is broken.
        NotAvailableError: The model can't be had from here.
    """
    settings = settings or Settings.resolve(os.environ, cwd=Path.cwd())
    asked = UserSettings.of(**user)
    with open_for_plan(path_or_ref, settings, measure=measure) as opened:
        return plan_opened(opened, settings, asked, machine=machine, measure=measure)


def plan_opened(
    opened: OpenedModel, settings: Settings, user: UserSettings, *, machine: Machine | None = None, measure: bool = True
) -> RunPlan:
    """Plan a model, with what is known of how it has run here; as `resolve_plan` otherwise."""
    here = machine or machine_now(settings, measure=measure)
    plan = plan_profile(opened.profile, here, user, opened.measurer, name=opened.name)
    speed = None if machine else speed_of(opened.profile, plan.settings, here, settings.store_dir)
    return replace(plan, speed=speed, observed=read_observed(settings.store_dir, plan))


def plan_model(
    path: Path,
    settings: Settings,
    user: UserSettings,
    *,
    profile: ModelProfile | None = None,
    check: Callable[[ModelProfile], None] | None = None,
) -> tuple[ModelProfile, RunPlan]:
    """Plan a file that is about to be loaded; `check` raises if its facts are of no use. Errors as `resolve_plan`."""
    with open_for_plan(path, settings, to_load=True) as opened:
        if profile is not None and profile.header_sha256 != opened.profile.header_sha256:
            raise UsageError(
                f"the profile of {profile.files[0].name} is not one of {path}: their headers differ",
                hint=f"make a new one: tea-models profile {path} --json",
            )
        profile = profile or opened.profile
        if check is not None:
            check(profile)
        plan = plan_profile(profile, machine_now(settings), user, opened.measurer, name=opened.name)
        plan = replace(plan, observed=read_observed(settings.store_dir, plan))
    if plan.memory.use.method != "measured":  # the dry run that measures loads the model too
        from tea_models.engine.dry_load import DryLoader

        refusal = DryLoader(settings).refusal(path)
        if refusal is not None and refusal.crashed:
            raise IntegrityError(f"{path}: {refusal.reason}", hint="get the file again, or another one")
    return profile, plan


@contextmanager
def open_for_plan(
    path_or_ref: str | Path | ModelProfile, settings: Settings, *, measure: bool = True, to_load: bool = False
) -> Iterator[OpenedModel]:
    """Open what is to be planned, and choose who measures it; `to_load`: check all, and take a stored profile."""
    name = path_or_ref.files[0].name if isinstance(path_or_ref, ModelProfile) else str(path_or_ref)
    name = base_name(name) or name
    with ExitStack() as stack:
        if isinstance(path_or_ref, ModelProfile) or str(path_or_ref).endswith(".json"):
            profile = path_or_ref if isinstance(path_or_ref, ModelProfile) else load_profile(Path(path_or_ref))
            why = "there is neither a file nor a header to measure"
            yield OpenedModel(name, profile, Estimator(profile, why), None)
            return
        try:
            model = stack.enter_context(open_model(path_or_ref, settings=settings))
        except NotAvailableError:
            shipped = None if to_load else _shipped(str(path_or_ref), settings)
            if shipped is None:
                raise
            why = "it is not here yet, and its header can't be read where it is"
            yield OpenedModel(name, shipped, Estimator(shipped, why), None)
            return
        model.require_loadable(thorough=to_load)
        known = read_profile(model.path, model.files, settings) if to_load and model.path is not None else None
        profile = known or profile_from_headers(model.headers, model.files, entry=model.entry)
        measurer = stack.enter_context(closing(choose_measurer(profile, settings, model, measure=measure)))
        yield OpenedModel(name, profile, measurer, model.path)


def _shipped(text: str, settings: Settings) -> ModelProfile | None:
    reference = parse_reference(text)
    if not isinstance(reference, NameRef):
        return None
    _, variant = Registry.load(settings).find(reference)
    return shipped_profile(str(variant.files[0].sha256))


def choose_measurer(profile: ModelProfile, settings: Settings, model: ModelFiles, *, measure: bool) -> Estimator:
    """The engine's dry run if it is installed and wanted, otherwise the formulas."""
    if not measure:
        return Estimator(profile, "that was asked for")
    problems = [problem for header in model.headers for problem in header.problems]
    if problems:
        # What llama.cpp refuses, or crashes on, is not shown to it.
        return Estimator(profile, f"llama.cpp would not load this file: {problems[0]}")
    try:
        prober = Prober(profile.header_sha256, model.path or model, _cache_dir(settings), settings.environ or None)
    except ProbeError as error:
        return Estimator(profile, error.message)
    return Measured(prober, profile)


def machine_now(settings: Settings, *, measure: bool = True) -> Machine:
    """This machine, now, with the devices that the installed engine reports."""
    gpus: tuple[Gpu, ...] = ()
    if measure:
        with suppress(ProbeError):
            gpus = engine_info(settings.environ or None, cache_dir=_cache_dir(settings)).gpus
    return detect_machine(gpus=gpus)


def _cache_dir(settings: Settings) -> Path:
    return settings.store_dir / ".tea" / "probe"
