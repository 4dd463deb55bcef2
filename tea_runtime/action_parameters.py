"""Which parameters the `llm.*` actions take, known without running one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING

from tea_models.errors import UsageError
from tea_models.yamlfile import nearest
from tea_runtime.backend import LlmCallParams
from tea_runtime.llm_settings import LlmSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OPTIONS = tuple(entry.name for entry in fields(LlmCallParams) if entry.name != "prompt")
# A node may give any key of `settings.llm`; these two are options of the call, and no reason for another backend.
NODE_SETTINGS = tuple(name for name in LlmSettings.model_fields if name not in ("temperature", "max_tokens"))
LLM_ACTION = "__llm_action__"


@dataclass(frozen=True, slots=True)
class Parameters:
    """What an action takes besides the keys of `settings.llm`: `one_of` must be there, one of each group."""

    one_of: tuple[tuple[str, ...], ...]
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every parameter that has a meaning."""
        return (*(name for group in self.one_of for name in group), *self.others, *NODE_SETTINGS)


_GENERATING = ("system", "stream", "callback", *OPTIONS)
PARAMETERS: Mapping[str, Parameters] = MappingProxyType(
    {
        "llm.call": Parameters((("prompt", "messages"),), (*_GENERATING, "raw")),
        "llm.chat": Parameters((("messages", "prompt"),), _GENERATING),
        "llm.stream": Parameters((("prompt", "messages"),), (*_GENERATING, "raw")),
        "llm.embed": Parameters((("text",),)),
        "llm.batch": Parameters((("prompts", "conversations"),), ("system", "raw", *OPTIONS)),
        "llm.rerank": Parameters((("query",), ("documents",))),
    }
)


def check_parameters(action: str, names: Sequence[str]) -> None:
    """Check that an action knows these parameters and that none is missing; the hint names the nearest."""
    known = PARAMETERS[action].names
    for name in names:
        if name not in known:
            raise UsageError(f"{action}: unknown parameter {name!r}", hint=nearest(name, known))
    for group in PARAMETERS[action].one_of:
        if not set(group) & set(names):
            raise UsageError(f"{action}: {' or '.join(group)} is missing")


def llm_action_name(action: object) -> str | None:
    """Which of our actions a callable is, under whatever name a workflow imported it."""
    name = getattr(action, LLM_ACTION, None)
    return name if isinstance(name, str) else None
