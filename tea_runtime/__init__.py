"""Run local GGUF models from Python and YAML workflows. The public names; each is imported when it is first used."""

from __future__ import annotations

from tea_models.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
