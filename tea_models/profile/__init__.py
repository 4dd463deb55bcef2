"""`ModelProfile`: what is true of a model file on every machine, each value with where it came from.

A profile never holds a fact about a machine (threads, memory, paths), so it may be committed and shared. The settings
for a machine are a `RunPlan` (see `tea_models.plan`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tea_models.lazy import lazy_names

if TYPE_CHECKING:
    from tea_models.profile.document import from_json, load_profile, profile_differences, to_json
    from tea_models.profile.facts import (
        KINDS,
        SCHEMA,
        ChatFacts,
        Fact,
        ModelProfile,
        ProfileFile,
        Scalar,
        TokenizerFacts,
        WeightFacts,
    )
    from tea_models.profile.from_headers import profile_from_headers
    from tea_models.profile.resolve import resolve_profile

_HOME = {
    "from_json": "tea_models.profile.document",
    "load_profile": "tea_models.profile.document",
    "profile_differences": "tea_models.profile.document",
    "to_json": "tea_models.profile.document",
    "KINDS": "tea_models.profile.facts",
    "SCHEMA": "tea_models.profile.facts",
    "ChatFacts": "tea_models.profile.facts",
    "Fact": "tea_models.profile.facts",
    "ModelProfile": "tea_models.profile.facts",
    "ProfileFile": "tea_models.profile.facts",
    "Scalar": "tea_models.profile.facts",
    "TokenizerFacts": "tea_models.profile.facts",
    "WeightFacts": "tea_models.profile.facts",
    "profile_from_headers": "tea_models.profile.from_headers",
    "resolve_profile": "tea_models.profile.resolve",
}

__all__ = [
    "KINDS",
    "SCHEMA",
    "ChatFacts",
    "Fact",
    "ModelProfile",
    "ProfileFile",
    "Scalar",
    "TokenizerFacts",
    "WeightFacts",
    "from_json",
    "load_profile",
    "profile_differences",
    "profile_from_headers",
    "resolve_profile",
    "to_json",
]

__getattr__ = lazy_names(__name__, _HOME)
