"""Download, verify, inspect and plan local GGUF models. Public names are imported when first used."""

from __future__ import annotations

from tea_models.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
