"""Chat templates: render them safely, find out what they can do, and read tool calls back."""

from __future__ import annotations

from tea_models.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
