"""`ModelProfile`: what is true of a model file on every machine, each value with where it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tea_models.profile.from_headers import profile_from_headers
from tea_models.profile.model_files import open_model

if TYPE_CHECKING:
    from pathlib import Path

    from tea_models.profile.facts import ModelProfile
    from tea_models.settings import Settings


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
