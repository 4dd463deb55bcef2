"""`plan_for_export`: the plan of a model, with what another server has to know besides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tea_models.errors import MissingFileError
from tea_models.files import base_name
from tea_models.plan.export_formats import ExportInput
from tea_models.plan.resolve import machine_now, open_for_plan, plan_profile

if TYPE_CHECKING:
    from pathlib import Path

    from tea_models.plan.user_settings import UserSettings
    from tea_models.settings import Settings


def plan_for_export(
    reference: str,
    settings: Settings,
    user: UserSettings,
    *,
    path: str | None = None,
    measure: bool = True,
) -> ExportInput:
    """Plan a model that another server is to run.

    Args:
        reference: A path, or a reference as a user types it.
        settings: Where the store and the hosts are.
        user: What was asked for.
        path: Where the file lies on the machine that will serve it; by default where it lies here.
        measure: Whether the engine may be asked.

    Raises:
        MissingFileError: The file is not here, and no path was given.
        MemoryDoesNotFitError: What was asked for does not fit.
    """
    with open_for_plan(reference, settings, measure=measure) as opened:
        here, profile = opened.path, opened.profile
        if path is None and here is None:
            raise MissingFileError(
                f"{reference} is not on this machine, so its path is not known",
                hint=f"tea-models pull {reference}, or say with --path where it will lie",
            )
        name = _short(reference, here)
        plan = plan_profile(profile, machine_now(settings, measure=measure), user, opened.measurer, name=name)
    where = path if path is not None else str(here.resolve() if here else "")
    return ExportInput(plan=plan, profile=profile, path=where, name=name)


def _short(reference: str, here: Path | None) -> str:
    """A name that servers accept: that of the registry, or the file's without its suffix."""
    if "/" not in reference and not reference.endswith(".gguf"):
        return reference
    return here.name.removesuffix(".gguf") if here else base_name(reference).removesuffix(".gguf")
