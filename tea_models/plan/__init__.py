"""From a profile, this machine and the user's settings to the settings a model runs with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tea_models.lazy import lazy_names

if TYPE_CHECKING:
    from tea_models.plan.resolve import plan_profile, resolve_plan
    from tea_models.plan.types import RunPlan
    from tea_models.plan.user_settings import UserSettings

_HOME = {
    "UserSettings": "tea_models.plan.user_settings",
    "plan_profile": "tea_models.plan.resolve",
    "resolve_plan": "tea_models.plan.resolve",
    "RunPlan": "tea_models.plan.types",
}

__all__ = [
    "RunPlan",
    "UserSettings",
    "plan_profile",
    "resolve_plan",
]

__getattr__ = lazy_names(__name__, _HOME)
