"""Download, verify, inspect and plan local GGUF models. Public names are imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tea_models.lazy import lazy_names

if TYPE_CHECKING:
    from tea_models.plan.resolve import resolve_plan
    from tea_models.plan.types import RunPlan
    from tea_models.profile.facts import ModelProfile
    from tea_models.profile.header_facts import resolve_profile
    from tea_models.profile.inspection import Inspection, inspect_model
    from tea_models.registry.entries import Registry
    from tea_models.settings import Settings
    from tea_models.verbs.pull import PullResult, pull

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

__all__ = [
    "Inspection",
    "ModelProfile",
    "PullResult",
    "Registry",
    "RunPlan",
    "Settings",
    "inspect_model",
    "pull",
    "resolve_plan",
    "resolve_profile",
]

__getattr__ = lazy_names(__name__, _HOME)
