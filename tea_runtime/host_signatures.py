"""The names of The Edge Agent's `llm.*` actions, and how its own actions of these names are called."""

from __future__ import annotations

from typing import Any, NamedTuple

# Parameters in the order in which the host's own action takes them.
_CALL = (
    "model", "messages", "prompt", "system", "temperature", "max_retries", "base_delay", "max_delay", "opik_trace",
    "opik_project_name", "provider", "api_base", "deployment", "timeout", "shell_provider",
)  # fmt: skip
_STREAM = tuple(name for name in _CALL if name not in ("max_retries", "base_delay", "max_delay"))
_TOOLS = ("model", "messages", "prompt", "system", "tools", "tool_choice", "max_tool_rounds", *_STREAM[4:-2])
_RETRY = ("model", "messages", "max_retries", "base_delay", "max_delay", "temperature")
_SIMILARITY = ("text_a", "text_b", "vector_a", "vector_b", "model", "provider", "api_base")
_LOCAL = ("prompt", "messages", "max_tokens", "temperature", "stop")


class Signature(NamedTuple):
    """How the host's own action of a name is called: what it means here, its parameters by position after the state."""

    action: str
    order: tuple[str, ...]
    defaults: dict[str, Any]


SIGNATURES: dict[str, Signature] = {
    **dict.fromkeys(("llm.call", "actions.llm_call"), Signature("llm.call", _CALL, {})),
    **dict.fromkeys(("llm.stream", "actions.llm_stream"), Signature("llm.stream", _STREAM, {})),
    **dict.fromkeys(("llm.retry", "actions.llm_retry"), Signature("llm.call", _RETRY, {"max_retries": 3})),
    **dict.fromkeys(("llm.tools", "actions.llm_tools"), Signature("llm.tools", _TOOLS, {})),
    **dict.fromkeys(("llm.similarity", "actions.llm_similarity"), Signature("llm.similarity", _SIMILARITY, {})),
    "llm.chat": Signature("llm.chat", _LOCAL[1:], {}),
    "llm.embed": Signature("llm.embed", ("text",), {}),
    "llm.batch": Signature("llm.batch", ("prompts",), {}),
    "llm.rerank": Signature("llm.rerank", ("query", "documents"), {}),
    # The host's own `llm.local.*` continue a bare prompt as it stands.
    "llm.local.call": Signature("llm.call", _LOCAL, {"raw": True}),
    "llm.local.chat": Signature("llm.chat", _LOCAL[1:], {}),
    "llm.local.stream": Signature("llm.stream", _LOCAL, {"raw": True}),
    "llm.local.embed": Signature("llm.embed", ("text",), {}),
}


def by_name(name: str, args: tuple[Any, ...], params: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The state and the parameters by name, whichever came by position; errors are those of a Python function."""
    order = ("state", *SIGNATURES[name].order)
    if len(args) > len(order):
        raise TypeError(f"{name} takes at most {len(order)} values by position, {len(args)} were given")
    placed = dict(zip(order, args, strict=False))
    twice = placed.keys() & params.keys()
    if twice:
        raise TypeError(f"{name} got several values for {', '.join(sorted(twice))}")
    given = {key: value for key, value in placed.items() if key == "state" or value is not None} | params
    return given.pop("state", None), given
