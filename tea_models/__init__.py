"""Download, verify, inspect and plan local GGUF models. Public names are imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tea_models.lazy import lazy_names

if TYPE_CHECKING:
    from tea_models.plan.resolve import resolve_plan as resolve_plan
    from tea_models.plan.types import RunPlan as RunPlan
    from tea_models.profile.facts import ModelProfile as ModelProfile
    from tea_models.profile.header_facts import resolve_profile as resolve_profile
    from tea_models.profile.inspection import Inspection as Inspection
    from tea_models.profile.inspection import inspect_model as inspect_model
    from tea_models.registry.entries import Registry as Registry
    from tea_models.settings import Settings as Settings
    from tea_models.verbs.pull import PullResult as PullResult
    from tea_models.verbs.pull import pull as pull

_HOME = {
    "Inspection": "tea_models.profile.inspection",
    "ModelProfile": "tea_models.profile.facts",
    "PullResult": "tea_models.verbs.pull",
    "Registry": "tea_models.registry.entries",
    "RunPlan": "tea_models.plan.types",
    "Settings": "tea_models.settings",
    "inspect_model": "tea_models.profile.inspection",
    "pull": "tea_models.verbs.pull",
    "resolve_plan": "tea_models.plan.resolve",
    "resolve_profile": "tea_models.profile.header_facts",
}

__all__ = list(_HOME)
__getattr__ = lazy_names(__name__, _HOME)
