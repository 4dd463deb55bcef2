"""`Caller`: for whom something is done, and who is told how it goes. One argument instead of three."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tea_models.progress import Progress
from tea_models.settings import Settings


def _unheard(_text: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for an operation; `progress` is told about bytes, `note` what a person should know."""

    settings: Settings
    progress: Progress = field(default_factory=Progress)
    note: Callable[[str], None] = _unheard

    @classmethod
    def of(
        cls,
        settings: Settings | None = None,
        progress: Progress | None = None,
        note: Callable[[str], None] | None = None,
    ) -> Caller:
        """The caller of a public function: what it does not say is silent, or comes from the environment."""
        return cls(settings or Settings.resolve(os.environ, cwd=Path.cwd()), progress or Progress(), note or _unheard)
