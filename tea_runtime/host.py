"""In The Edge Agent: what its engine does differently from our runner, in one place.

The engine fills node parameters with its own settings, calls actions by position, drops the keys of `settings.llm` that
it does not know, expects errors as results, and has actions of the same names. Here all of that becomes a plain call of
`LlmActions`; what its own actions must answer (other providers) goes to them, without what the engine filled in.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
import os
import threading
import weakref
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

from tea_models.errors import TeaModelsError, UnknownModelError, UsageError
from tea_runtime.actions import NODE_SETTINGS, PARAMETERS, Action, LlmActions, chat_messages, failure
from tea_runtime.errors import ApiError, BackendUnavailableError, MissingExtraError, UnsupportedError
from tea_runtime.factory import BackendPool
from tea_runtime.llm_settings import LlmSettings
from tea_runtime.tool_loop import answer_with_tools, describing_tools, similarity

logger = logging.getLogger("tea_runtime")

_HOST_ACTION = "__tea_host_action__"
_ATTRIBUTE = "_tea_runtime_host"

# Names whose nodes the engine fills with every one of its settings.
_FILLED = ("llm.call", "llm.chat", "llm.stream", "llm.tools", "actions.llm_call", "actions.llm_stream")
# What the engine, its agents and its tracing pass along; it has no meaning for a model.
_IGNORED = frozenset(
    {
        "config", "node", "graph", "parallel_results", "opik_trace", "opik_project_name", "base_delay", "max_delay",
        "shell_provider", "shell_providers", "deployment", "max_tool_rounds", "metadata", "user", "thread_state",
        "initial_task",
    }
)  # fmt: skip
# Options of OpenAI's API that change the answer and that are not offered here: refused, not ignored.
_REFUSED = ("logit_bias", "n", "best_of", "functions", "function_call", "modalities", "audio", "prediction", "suffix")
_APIS = ("openai", "azure", "azure_openai", "azureopenai", "ollama")
_HOST_SETTINGS = ("model", "provider", "shell_provider", "temperature", "api_base", "timeout", "max_retries")
_MOST_ROUNDS = 50
_NO_BACKEND = (BackendUnavailableError, UnknownModelError, MissingExtraError)

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


__tea_actions__ = {
    "version": version("tea-models"),
    "description": "Local GGUF models (llama.cpp), and any OpenAI-compatible API where that is allowed",
    "actions": list(SIGNATURES),
}


def register_actions(registry: dict[str, Any], engine: Any) -> None:
    """Put the `llm.*` actions into a registry; whatever else is in it stays.

    Actions of the same names that a host had before stay reachable as `host.llm.call` and so on. They answer what the
    actions here can't: other providers (`litellm`, `shell`), and where an API is allowed and ours can't be used.

    Args:
        registry: Name → callable.
        engine: The Edge Agent's engine, or whatever has some of its attributes. Its settings are read when an action
            runs, because it has none yet when it imports this package. `on_text`, if there is one, gets the pieces of
            streamed answers. Our own runner's engine has `llm_actions`.
    """
    actions = getattr(engine, "llm_actions", None)
    if isinstance(actions, LlmActions):
        registry.update(actions.table())
        return
    host = getattr(engine, _ATTRIBUTE, None)
    if not isinstance(host, Host):
        host = Host(engine)
        with contextlib.suppress(AttributeError):  # one that takes none: its models live as long as its actions
            setattr(engine, _ATTRIBUTE, host)
        host.close_with_engine()
    host.register(registry)


class Host:
    """The actions of one engine of The Edge Agent."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._read: tuple[Any, ...] | None = None
        self._actions: LlmActions | None = None
        self._pools: dict[str | None, BackendPool] = {}
        self._provider: str | None = None

    def register(self, registry: dict[str, Any]) -> None:
        """Put every action into a registry, and beside it the one whose name it takes."""
        existing = self._mapping("actions_registry")
        for name in SIGNATURES:
            previous = registry.get(name) or existing.get(name)
            if hasattr(previous, _HOST_ACTION):
                previous = getattr(previous, _HOST_ACTION)
            if previous is not None:
                registry[f"host.{name}"] = previous
            registry[name] = self._action(name, previous)

    def close(self) -> None:
        """Close every model that the engine's actions opened; the next action opens what it needs again."""
        for pool in list(self._pools.values()):
            pool.close()

    def close_with_engine(self) -> None:
        """Let `engine.close()` close the models too."""
        own = getattr(self._engine, "close", None)
        if not callable(own):
            return
        host = weakref.ref(self)

        @functools.wraps(own)
        def close(*args: Any, **options: Any) -> Any:
            if (alive := host()) is not None:
                alive.close()
            return own(*args, **options)

        with contextlib.suppress(AttributeError):
            self._engine.close = close

    def _action(self, name: str, previous: Action | None) -> Action:
        def action(*args: Any, **params: Any) -> Any:
            return self._answer(name, *_by_name(name, args, params), previous)

        action.__name__ = action.__qualname__ = name.replace(".", "_")
        action.__doc__ = f"`{name}` of tea_runtime; the engine's own is `host.{name}`."
        setattr(action, _HOST_ACTION, previous)
        return action

    def _answer(self, name: str, state: Any, given: dict[str, Any], previous: Action | None) -> Any:
        said = self._said(name, given)
        try:
            actions = self._current()
            provider = said.get("provider") or self._provider
            if _is_foreign(provider):
                settings, _ = actions.settings_for(self._wanted(said, actions))
                if settings.backend != "local" and previous is not None:
                    return self._hand_over(name, state, said, given, previous)
                if settings.backend != "local":
                    raise UsageError(f"{name}: provider {provider!r} is not known here")
                text = f"provider {provider} is not used: backend is local, so a local model answers"
                actions.note(text, topic=f"provider {provider}")
            result = self._run(name, actions, state, said)
        except TeaModelsError as error:
            # The host's own llm.call raises what its API raises, for the retries and `on_error` of the node.
            if isinstance(error, ApiError) and SIGNATURES[name].action == "llm.call" and not said.get("max_retries"):
                raise
            if not isinstance(error, _NO_BACKEND) or previous is None or not self._may_hand_over(said):
                logger.error("%s: %s", name, error)  # noqa: TRY400 - no traceback for what a user can mend
                return failure(error)
            logger.warning("%s: %s; the host's own action answers: what is asked may leave this machine", name, error)
            result = self._hand_over(name, state, said, given, previous)
            return {**result, "fallback_reason": error.message} if isinstance(result, dict) else result
        self._trace(said, result)
        return result

    def _run(self, name: str, actions: LlmActions, state: Any, said: dict[str, Any]) -> dict[str, Any]:
        action, _, defaults = SIGNATURES[name]
        given = defaults | said
        params = {key: given[key] for key in given if key not in NODE_SETTINGS} | self._wanted(given, actions)
        if action == "llm.similarity":
            settings = {key: params[key] for key in NODE_SETTINGS if key in params}
            return similarity(params, lambda texts: actions.run("llm.embed", settings | {"text": texts}))
        params = self._understood("llm.chat" if action == "llm.tools" else action, params, actions)
        if action == "llm.tools":
            registry = self._mapping("actions_registry")
            tools, rounds = said.get("tools") or [], _rounds(said)
            ask = functools.partial(actions.run, "llm.chat")
            try:
                return answer_with_tools(tools, registry, state, ask, params, rounds=rounds)
            except UnsupportedError as error:
                actions.note(f"{error.message}; they are described to it in words", topic="tools in words")
                return answer_with_tools(tools, registry, state, describing_tools(ask), params, rounds=rounds)
        result = actions.run(action, params)
        if action == "llm.call" and said.get("max_retries") and result.get("backend") == "local":
            result |= {"attempts": 1, "total_delay": 0.0}
        return result

    def _wanted(self, said: Mapping[str, Any], actions: LlmActions) -> dict[str, Any]:
        """The keys of `settings.llm` that a node says for itself, where the command line leaves it a say."""
        wanted = {key: said[key] for key in said if key in NODE_SETTINGS}
        provider = str(wanted.get("provider") or "").lower()
        if said.get("deployment") and not wanted.get("model"):
            wanted["model"] = said["deployment"]
        overridden = bool(self._overrides())
        if overridden or _is_foreign(provider):
            wanted.pop("provider", None)
        if overridden:
            wanted.pop("backend", None)
        elif str(wanted.get("backend")).lower() == "api" and actions.settings.backend == "local":
            actions.note("a node says backend: api, settings.llm local: its words leave this machine", topic="api node")
        elif provider in _APIS and actions.settings.backend == "auto" and actions.settings.may_fall_back:
            wanted.setdefault("backend", "api")  # who names a provider of an API means it
        return wanted

    def _understood(self, action: str, params: dict[str, Any], actions: LlmActions) -> dict[str, Any]:
        """The parameters that our action knows, as the host's own action takes them."""
        for name in _REFUSED:
            if params.get(name) not in (None, "", 1 if name == "n" else None):
                raise UsageError(f"{name} is not offered here", hint="leave it out, or use host.llm.call")
        if params.get("messages") is not None:
            for name in ("prompt", "system"):
                if params.pop(name, None) is not None:
                    actions.note(f"{name} is ignored beside messages, as the host does it", topic=f"{name} beside")
        if "max_completion_tokens" in params:
            params.setdefault("max_tokens", params["max_completion_tokens"])
        top = params.get("top_logprobs")
        if top not in (None, "") and params.get("logprobs") is not False:
            params["logprobs"] = top
        known = PARAMETERS[action]
        for name in [name for name in params if name not in known]:
            del params[name]
            if name not in _IGNORED and name not in ("max_completion_tokens", "top_logprobs", *_REFUSED):
                text = f"{action}: parameter {name!r} has no effect here"
                near = _near(name, known)
                actions.note(text + (f"; did you mean {near[0]!r}?" if near else ""), topic=f"parameter {name}")
        return params

    def _mapping(self, name: str) -> Mapping[str, Any]:
        """An attribute of the engine that is a mapping, as far as it is one."""
        found = getattr(self._engine, name, None)
        return found if isinstance(found, Mapping) else {}

    def _said(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the node itself says: the parameters without those that the engine put in."""
        filled = self._mapping("llm_settings") if name in _FILLED else {}
        return {key: value for key, value in given.items() if not (key in filled and _same(value, filled[key]))}

    def _overrides(self) -> dict[str, Any]:
        given = self._mapping("cli_overrides")
        return {key: given[key] for key in ("model_path", "backend") if given.get(key)}

    def _current(self) -> LlmActions:
        """The actions under the settings that the engine has now; read again only when they changed."""
        settings = self._mapping("_config").get("settings")
        raw = settings.get("llm") if isinstance(settings, Mapping) else None
        raw = dict(raw) if isinstance(raw, Mapping) else {}
        seen = filtered, overrides = dict(self._mapping("llm_settings")), self._overrides()
        with self._lock:
            if self._actions is None or (raw, seen) != self._read:
                block, provider = self._block(raw, filtered)
                gguf = overrides.get("model_path")
                if overrides:
                    if str(block.get("provider")).lower() == "local":
                        del block["provider"]
                    block["backend"] = overrides.get("backend") or "local"
                if "deployment" in raw:
                    self._without_deployment(block, raw)
                pool = self._pools.setdefault(gguf, BackendPool(environ=self._environ(), gguf=gguf))
                self._actions = LlmActions(LlmSettings.parse(block), pool, on_text=self._on_text, chat_prompts=True)
                self._provider, self._read = provider, (raw, seen)
            return self._actions

    def _block(self, raw: Mapping[str, Any], filtered: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
        """`settings.llm` whole: what the engine dropped comes from the workflow, the rest as the engine read it."""
        known = tuple(LlmSettings.model_fields)
        block: dict[str, Any] = {}
        for key, value in {**raw, **filtered}.items():
            if key not in known:
                near = _near(str(key), known)
                if near and key not in _IGNORED:
                    raise UsageError(f"settings.llm.{key}: unknown key", hint=f"did you mean {near[0]!r}?")
                continue
            block[key] = value if key in filtered else self._rendered(value)
        return block, block.pop("provider") if _is_foreign(block.get("provider")) else None

    def _without_deployment(self, block: dict[str, Any], raw: Mapping[str, Any]) -> None:
        """The engine puts `deployment`, a name at Azure, in the place of `model`, which names the local one."""
        words = {str(block.get(key) or "").strip().lower() for key in ("backend", "provider")}
        if "api" not in words and (raw.get("model") or "local" in words):
            block["model"] = self._rendered(raw.get("model"))

    def _rendered(self, value: Any) -> Any:
        render = getattr(self._engine, "_process_template", None)
        return render(value, {}) if callable(render) and isinstance(value, str) and "{{" in value else value

    def _environ(self) -> Mapping[str, str]:
        return getattr(self._engine, "environ", None) or os.environ

    def _on_text(self, text: str) -> None:
        # Never to stdout: with --stream it carries the engine's events.
        on_text = getattr(self._engine, "on_text", None)
        if callable(on_text):
            on_text(text)

    def _may_hand_over(self, said: Mapping[str, Any]) -> bool:
        actions = self._current()
        settings, _ = actions.settings_for(self._wanted(said, actions))
        return not self._overrides().get("model_path") and (settings.backend == "api" or settings.may_fall_back)

    def _hand_over(
        self, name: str, state: Any, said: Mapping[str, Any], given: Mapping[str, Any], previous: Action
    ) -> Any:
        """Let the host's own action answer, with what the node says and the host's settings for its providers."""
        filled = self._mapping("llm_settings")
        params = {key: filled[key] for key in _HOST_SETTINGS if key in filled}
        ours = {*NODE_SETTINGS, "raw", "callback"} - set(_HOST_SETTINGS)
        params |= {key: value for key, value in said.items() if key not in ours}
        params |= {key: given[key] for key in ("config", "node", "graph", "parallel_results") if key in given}
        if SIGNATURES[name].action in ("llm.embed", "llm.similarity"):
            params = {key: value for key, value in params.items() if key in said or key in ("provider", "api_base")}
        elif params.get("messages") is None and isinstance(params.get("prompt"), str):
            params["messages"] = chat_messages({key: params.pop(key, None) for key in ("prompt", "system")})
        result = previous(state=state, **params)
        who = {"backend": "host", "provider": self._host_provider(params)}
        return {**result, **who} if isinstance(result, dict) else result

    def _host_provider(self, params: Mapping[str, Any]) -> str:
        provider = str(params.get("provider") or "auto").lower()
        if provider == "auto":
            environ = self._environ()
            azure = environ.get("AZURE_OPENAI_API_KEY") and environ.get("AZURE_OPENAI_ENDPOINT")
            return "ollama" if environ.get("OLLAMA_API_BASE") else "azure" if azure else "openai"
        return "azure" if provider in _APIS[1:4] else provider

    def _trace(self, said: Mapping[str, Any], result: Any) -> None:
        """What `--trace-llm-payloads` records of the host's own llm.call, into the same span."""
        capture = getattr(self._engine, "_llm_payload_capture", False)
        context = getattr(self._engine, "_trace_context", None)
        if not capture or context is None or not isinstance(result, dict):
            return
        try:
            span = context.current_span()
            metadata = span["metadata"] = span.get("metadata") or {}
            is_wanted = getattr(type(self._engine), "_should_capture_payload", None)
            if is_wanted is not None and not is_wanted(metadata.get("node"), capture):
                return
            usage = result.get("usage") or {}
            metadata["llm_payload"] = {
                "messages_input": said.get("messages") or [{"role": "user", "content": said.get("prompt")}],
                "response_content": result.get("content"),
                "tokens_input": usage.get("prompt_tokens"),
                "tokens_output": usage.get("completion_tokens"),
                "model": result.get("model"),
                "stop_reason": result.get("finish_reason"),
                "cost_usd": None,
            }
        except Exception:
            logger.debug("the host's trace took no payload", exc_info=True)


def _by_name(name: str, args: tuple[Any, ...], params: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
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


_near = functools.partial(difflib.get_close_matches, n=1, cutoff=0.8)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _is_foreign(provider: Any) -> bool:
    return isinstance(provider, str) and provider.strip().lower() not in ("", "auto", "local", *_APIS)


def _rounds(said: Mapping[str, Any]) -> int:
    try:
        return max(1, min(int(said.get("max_tool_rounds") or 10), _MOST_ROUNDS))
    except (TypeError, ValueError):
        raise UsageError(f"max_tool_rounds: expected a number, found {said['max_tool_rounds']!r}") from None
