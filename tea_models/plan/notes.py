"""What a user should know beside the settings: estimates, long RoPE factors, windows that are not used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tea_models.engine.estimator import ESTIMATE_ERROR
from tea_models.engine.formula import Hyperparameters

if TYPE_CHECKING:
    from tea_models.engine.engine_settings import EngineSettings
    from tea_models.engine.formula import CacheLayout
    from tea_models.profile.facts import ModelProfile


def notes_for(
    profile: ModelProfile, settings: EngineSettings, estimated_because: str, layout: CacheLayout
) -> tuple[str, ...]:
    """Notes on a plan, a sentence each, most important first."""
    notes = []
    if estimated_because:
        notes.append(
            f"memory is estimated, not measured: an upper bound, at most {ESTIMATE_ERROR:.0%} above the truth in what "
            f"was measured; {estimated_because}"
        )
        if not layout.exact:
            notes.append(
                f"the KV cache of {profile.architecture.value} is not one that the formulas know: take it as a guess"
            )
    h = Hyperparameters(profile)
    original = h.number("rope.scaling.original_context_length")
    if original and settings.n_ctx > original and profile.architecture.value in ("phi3", "phimoe", "minicpm3"):
        notes.append(
            f"with a context above {original:,} tokens llama.cpp uses the long RoPE factors for every position, "
            f"short prompts too; at {original:,} or less it uses the short ones"
        )
    window = h.number("attention.sliding_window")
    if window and not layout.windowed:
        notes.append(
            f"llama.cpp does not use the sliding window of {window:,} tokens that the file names for this architecture"
        )
    return tuple(notes)
