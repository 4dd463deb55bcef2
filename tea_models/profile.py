"""`ModelProfile`: what is true of a model file on every machine, each value with where it came from.

A profile never holds a fact about a machine (threads, memory, paths), so it may be committed and shared. The settings
for a machine are a `RunPlan` (see `plan.py`). `facts.py` has the types, `profile_facts.py`
gathers them, `profile_document.py` has the document's form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tea_models.facts import (
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
from tea_models.model_files import open_model
from tea_models.profile_document import from_json, load_profile, profile_differences, to_json
from tea_models.profile_facts import profile_from_headers

if TYPE_CHECKING:
    from pathlib import Path

    from tea_models.settings import Settings

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


def resolve_profile(path_or_ref: Path | str, *, settings: Settings | None = None) -> ModelProfile:
    """The profile of a model that lies here, is installed, or is remote (then only its header is fetched).

    Args:
        path_or_ref: A path, or a reference as a user types it.
        settings: Where the store and the hosts are; by default from the environment.

    Raises:
        MalformedGGUFError: A file is not GGUF or breaks the specification.
        NotAvailableError: The model can't be had from here.
        UsageError: The text is no reference.
    """
    with open_model(path_or_ref, settings=settings) as model:
        return profile_from_headers(model.headers, model.files, entry=model.entry)
