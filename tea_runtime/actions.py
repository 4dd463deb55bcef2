"""The actions `llm.call`, `llm.chat`, `llm.stream` and `llm.embed`, for our runner and for The Edge Agent."""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tea_models.errors import TeaModelsError, UnknownModelError, UsageError
from tea_runtime.backend import LlmBackend, LlmCallParams
from tea_runtime.errors import BackendUnavailableError
from tea_runtime.llm_settings import LlmSettings

logger = logging.getLogger(__name__)

Action = Callable[..., dict[str, Any]]
NAMES = ("llm.call", "llm.chat", "llm.stream", "llm.embed")
_DEFAULT_TEMPERATURE = 0.7
_OURS = "__tea_runtime__"
_SHARED = "_tea_runtime_backends"

_OPTIONS = tuple(entry.name for entry in fields(LlmCallParams) if entry.name not in ("prompt", "temperature"))
_WHOLE = ("max_tokens", "top_k", "seed", "logprobs")
_BROKEN = ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
_TEXTS = ("prompt", "system", "messages", "text", "callback", "stream")
# `temperature` is a setting too, but no other backend is needed for another temperature.
_SETTINGS = tuple(name for name in LlmSettings.model_fields if name != "temperature")
_KNOWN = (*_TEXTS, *_OPTIONS, *_BROKEN[:1], *_SETTINGS)
_PROVIDERS = ("auto", "openai", "azure", "ollama")


def _version() -> str:
    try:
        return version("tea-models")
    except PackageNotFoundError:  # run from a source tree
        return "0"


__tea_actions__ = {
    "version": _version(),
    "description": "Local GGUF models (llama.cpp) with any OpenAI-compatible API as fallback",
    "actions": list(NAMES),
}


def register_actions(registry: dict[str, Any], engine: Any) -> None:
    """Put the `llm.*` actions into a registry; whatever else is in it stays.

    Actions of the same name that the host had before stay reachable as `host.llm.call` and so on, and answer what the
    actions here can't: providers they don't know, or any request when neither a model nor an API can be used.

    Args:
        registry: Name → callable `f(state, **params)`.
        engine: Its `llm_settings` (the `settings.llm` block) is read when the first action runs; it may be missing.
            `on_text`, if there is one, gets the pieces of streamed answers; without it they go to stdout.
            Where `raises_errors` is true actions raise; otherwise they answer `{"error": …, "success": False}`.
    """
    backends = _backends_of(engine)
    existing = getattr(engine, "actions_registry", None)
    for name, act in (("llm.call", _call), ("llm.chat", _chat), ("llm.stream", _stream), ("llm.embed", _embed)):
        previous = registry.get(name)
        if previous is None and isinstance(existing, Mapping):
            previous = existing.get(name)
        if getattr(previous, _OURS, False):
            previous = getattr(previous, "__wrapped_host__", None)
        if previous is not None:
            registry[f"host.{name}"] = previous
        registry[name] = _action(name, act, backends, previous)


def close_backends(engine: Any) -> None:
    """Close every backend that the actions of an engine opened; the next action opens what it needs again."""
    backends = getattr(engine, _SHARED, None)
    if isinstance(backends, _Backends):
        backends.close()


class _Backends:
    """Backends of one engine, each made when it is first needed and shared between threads."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self._lock = threading.Lock()
        self._made: dict[str, LlmBackend] = {}
        self._locks: dict[str, threading.Lock] = {}

    def settings(self, given: Mapping[str, Any]) -> LlmSettings:
        """The engine's settings with what an action's parameters say in their place."""
        block = getattr(self.engine, "llm_settings", None)
        settings = LlmSettings.parse(block if isinstance(block, Mapping) else None, lenient=True)
        wanted = {key: given[key] for key in _SETTINGS if given.get(key) not in (None, "", getattr(settings, key))}
        if not wanted:
            return settings
        base = settings.model_dump(exclude_unset=True)
        # A model named by the node is meant, whatever the workflow names for the rest.
        for key in ("model", "model_path", "profile"):
            if {"model", "model_path", "profile"} & wanted.keys():
                base.pop(key, None)
        return LlmSettings.parse(base | wanted, prefix=())

    def get(self, settings: LlmSettings) -> LlmBackend:
        """The backend for these settings; several threads that ask for a new one wait for the same."""
        overrides = dict(getattr(self.engine, "llm_overrides", None) or {})
        key = json.dumps([settings.model_dump(exclude={"temperature"}), overrides], sort_keys=True, default=str)
        with self._lock:
            if key in self._made:
                return self._made[key]
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            with self._lock:
                if key in self._made:
                    return self._made[key]
            from tea_runtime.factory import create_llm_backend

            environ = getattr(self.engine, "environ", None) or os.environ
            backend = create_llm_backend(settings, environ=environ, **overrides)
            with self._lock:
                self._made[key] = backend
            return backend

    def close(self) -> None:
        with self._lock:
            made, self._made = list(self._made.values()), {}
        for backend in made:
            backend.close()


def _backends_of(engine: Any) -> _Backends:
    backends = getattr(engine, _SHARED, None)
    if not isinstance(backends, _Backends):
        backends = _Backends(engine)
        try:
            setattr(engine, _SHARED, backends)
        except AttributeError:
            logger.debug("the engine takes no attributes; its backends live as long as its actions")
    return backends


def _action(name: str, act: Callable[..., dict[str, Any]], backends: _Backends, previous: Action | None) -> Action:
    def action(state: Any = None, **params: Any) -> dict[str, Any]:
        try:
            _check_names(name, params)
            if previous is not None and _is_foreign(params, backends.engine):
                return _ask_host(previous, name, state, params)
            try:
                settings = backends.settings(params)
                return act(lambda: backends.get(settings), settings, params, backends.engine)
            except (BackendUnavailableError, UnknownModelError) as error:
                if previous is None or params.get("fallback") is False:
                    raise
                logger.warning("%s: %s; the host's own action answers", name, error.message)
                return _ask_host(previous, name, state, params)
        except TeaModelsError as error:
            if getattr(backends.engine, "raises_errors", False):
                raise
            logger.error("%s: %s", name, error.message)  # noqa: TRY400 - a user's mistake needs no traceback
            hint = f" ({error.hint})" if error.hint else ""
            return {"error": error.message + hint, "error_type": error.type, "success": False}

    action.__name__ = action.__qualname__ = name.replace(".", "_")
    action.__doc__ = act.__doc__
    setattr(action, _OURS, True)
    setattr(action, "__wrapped_host__", previous)  # noqa: B010 - a function has no such attribute for mypy
    return action


# Each looks at its parameters before it opens the backend: a slip must not cost the loading of a model.
_Open = Callable[[], LlmBackend]


def _call(opened: _Open, settings: LlmSettings, params: Mapping[str, Any], engine: Any) -> dict[str, Any]:
    """`llm.call`: continue `prompt` as it stands; with `messages` or `system`, chat."""
    if params.get("stream") is True:
        return _stream(opened, settings, params, engine)
    messages = _messages(params, chat=False)
    if messages is not None:
        return opened().chat(messages, **_options(settings, params)).to_dict()
    call = LlmCallParams(prompt=_prompt(params), **_options(settings, params))
    return opened().call(call).to_dict()


def _chat(opened: _Open, settings: LlmSettings, params: Mapping[str, Any], engine: Any) -> dict[str, Any]:
    """`llm.chat`: answer `messages`, or `prompt` with an optional `system`."""
    messages = _messages(params, chat=True)
    if params.get("stream") is True:
        return _stream(opened, settings, {**params, "messages": messages, "prompt": None, "system": None}, engine)
    return opened().chat(messages, **_options(settings, params)).to_dict()


def _stream(opened: _Open, settings: LlmSettings, params: Mapping[str, Any], engine: Any) -> dict[str, Any]:
    """`llm.stream`: as `llm.call`, and every piece of text appears as it comes."""
    callback = _callback(params, engine)
    count = 0

    def piece(text: str) -> None:
        nonlocal count
        count += 1
        callback(text)

    messages = _messages(params, chat=False)
    options = _options(settings, params)
    if messages is not None:
        result = opened().stream_chat(messages, piece, **options)
    else:
        call = LlmCallParams(prompt=_prompt(params), **options)
        result = opened().stream(call, piece)
    if callback is _to_stdout:
        _to_stdout("\n")
    return {**result.to_dict(), "streamed": True, "chunk_count": count}


def _embed(opened: _Open, _settings: LlmSettings, params: Mapping[str, Any], _engine: Any) -> dict[str, Any]:
    """`llm.embed`: the vector of `text`, or the vectors of a list of texts."""
    text = params.get("text")
    texts = isinstance(text, Sequence) and not isinstance(text, str | bytes) and all(isinstance(t, str) for t in text)
    if not isinstance(text, str) and not texts:
        raise UsageError(f"text: expected a text or a list of texts, found {_kind(text)}")
    given: list[str] = [text] if isinstance(text, str) else list(text or ())
    backend = opened()
    vectors = backend.embed(given)
    # A local model can count; what an API counts it keeps to itself here.
    count = getattr(backend, "count_tokens", None)
    tokens = sum(map(count, given)) if count is not None else None
    result = {
        "embedding": vectors[0] if isinstance(text, str) else vectors,
        "dimensions": len(vectors[0]) if vectors else 0,
        "model": _model_name(backend),
        "backend": backend.name,
        "tokens_used": tokens,
        "usage": None if tokens is None else {"prompt_tokens": tokens, "total_tokens": tokens},
        "finish_reason": None,
    }
    reason = getattr(backend, "reason", "")
    return result | {"fallback_reason": reason} if reason else result


def _model_name(backend: LlmBackend) -> str:
    path = getattr(backend, "model_path", None)
    return getattr(backend, "embedding_model", "") if path is None else str(path.name)


def _options(settings: LlmSettings, params: Mapping[str, Any]) -> dict[str, Any]:
    """What the parameters say about generating; an empty text, which a template may leave, says nothing."""
    given = {key: _plain(key, params[key]) for key in _OPTIONS if params.get(key, "") != ""}
    return given | {"temperature": _temperature(settings, params)}


def _temperature(settings: LlmSettings, params: Mapping[str, Any]) -> Any:
    given = _plain("temperature", params.get("temperature"))
    if given not in (None, ""):
        return given
    return _DEFAULT_TEMPERATURE if settings.temperature is None else settings.temperature


def _plain(name: str, value: Any) -> Any:
    """Numbers may arrive as text, from the environment or a template with more than one part."""
    if isinstance(value, str) and name in (*_WHOLE, *_BROKEN):
        try:
            return int(value) if name in _WHOLE else float(value)
        except ValueError:
            return value
    return value


def _prompt(params: Mapping[str, Any]) -> str:
    prompt = params.get("prompt")
    if not isinstance(prompt, str):
        raise UsageError(f"prompt: expected a text, found {_kind(prompt)}", hint="give prompt, or messages for a chat")
    return prompt


def _messages(params: Mapping[str, Any], *, chat: bool) -> Any:
    """The conversation that the parameters mean, or None for a raw prompt."""
    messages, prompt, system = params.get("messages"), params.get("prompt"), params.get("system")
    if messages is not None and prompt is not None:
        raise UsageError("give messages or prompt, not both")
    if system is not None and not isinstance(system, str):
        raise UsageError(f"system: expected a text, found {_kind(system)}")
    if messages is None and not chat and not system:
        return None
    if messages is None:
        if not isinstance(prompt, str):
            raise UsageError(f"expected messages, or prompt as a text; found {_kind(prompt)}")
        messages = [{"role": "user", "content": prompt}]
    if system and isinstance(messages, list):
        if any(isinstance(message, Mapping) and message.get("role") == "system" for message in messages):
            raise UsageError("give the system text as system or in messages, not both")
        messages = [{"role": "system", "content": system}, *messages]
    return messages


def _callback(params: Mapping[str, Any], engine: Any) -> Callable[[str], object]:
    given = params.get("callback")
    if callable(given):
        return given  # type: ignore[no-any-return]
    if given is not None:
        raise UsageError(f"callback: expected a function, found {_kind(given)}")
    if hasattr(engine, "on_text"):
        return engine.on_text or (lambda _text: None)
    return _to_stdout


def _to_stdout(text: str) -> None:
    # Under a host there is nobody else to show it; its own llm.stream does the same.
    sys.stdout.write(text)
    sys.stdout.flush()


def _check_names(name: str, params: Mapping[str, Any]) -> None:
    """Refuse what is probably a slip; hosts pass other things along (`config`, `node`, …), which are ignored."""
    for key in params:
        if key not in _KNOWN:
            near = difflib.get_close_matches(key, _KNOWN, n=1, cutoff=0.8)
            if near:
                raise UsageError(f"{name}: unknown parameter {key!r}", hint=f"did you mean {near[0]!r}?")


def _is_foreign(params: Mapping[str, Any], engine: Any) -> bool:
    settings = getattr(engine, "llm_settings", None)
    provider = params.get("provider") or (settings.get("provider") if isinstance(settings, Mapping) else None)
    return isinstance(provider, str) and provider.lower() not in _PROVIDERS


def _ask_host(previous: Action, name: str, state: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(params)
    if name != "llm.embed" and "messages" not in given and _wants_messages(previous):
        given["messages"] = _messages(given, chat=True)
        given.pop("prompt", None)
        given.pop("system", None)
    result = previous(state=state, **given)
    return {"backend": "host", **result} if isinstance(result, dict) else result


def _wants_messages(action: Action) -> bool:
    try:
        parameter = inspect.signature(action).parameters.get("messages")
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
