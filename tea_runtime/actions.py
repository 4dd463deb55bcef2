"""The `llm.*` actions, for our runner and for hosts: parameters of a node → a call of a backend → plain data."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tea_models.errors import TeaModelsError, UsageError
from tea_models.yamlfile import nearest
from tea_runtime.api.backend import api_may_answer
from tea_runtime.backend import Callback, LlmBackend, LlmCallParams, LlmCallResult, check_messages, check_texts
from tea_runtime.call import kind_of
from tea_runtime.factory import BackendPool
from tea_runtime.llm_settings import LlmSettings
from tea_runtime.resolve import is_model_name

logger = logging.getLogger("tea_runtime")

Action = Callable[..., dict[str, Any]]

DEFAULT_TEMPERATURE = 0.7
DEFAULT_MAX_TOKENS = 2048
_INT_OPTIONS = ("max_tokens", "top_k", "seed", "logprobs")
_FLOAT_OPTIONS = ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
_MODEL_KEYS = ("model", "model_path", "profile")

# A node may give any key of `settings.llm`; these two are options of the call, and no reason for another backend.
NODE_SETTINGS = tuple(name for name in LlmSettings.model_fields if name not in ("temperature", "max_tokens"))
_OPTIONS = tuple(entry.name for entry in fields(LlmCallParams) if entry.name != "prompt")
_GENERATING = ("system", "stream", "callback", *_OPTIONS)
# What an action takes besides the keys of `settings.llm`: groups of which one must be there, and the others.
_PARAMETERS: dict[str, tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]] = {
    "llm.call": ((("prompt", "messages"),), (*_GENERATING, "raw")),
    "llm.chat": ((("messages", "prompt"),), _GENERATING),
    "llm.stream": ((("prompt", "messages"),), (*_GENERATING, "raw")),
    "llm.embed": ((("text",),), ()),
    "llm.batch": ((("prompts", "conversations"),), ("system", "raw", *_OPTIONS)),
    "llm.rerank": ((("query",), ("documents",)), ()),
}
#: Every parameter of an action that has a meaning.
PARAMETERS = {
    action: (*(name for group in needed for name in group), *others, *NODE_SETTINGS)
    for action, (needed, others) in _PARAMETERS.items()
}
LLM_ACTION = "__llm_action__"


def check_parameters(action: str, names: Sequence[str]) -> None:
    """Check that an action knows these parameters and that none is missing; the hint names the nearest."""
    for name in names:
        if name not in PARAMETERS[action]:
            raise UsageError(f"{action}: unknown parameter {name!r}", hint=nearest(name, PARAMETERS[action]))
    for group in _PARAMETERS[action][0]:
        if not set(group) & set(names):
            raise UsageError(f"{action}: {' or '.join(group)} is missing")


@dataclass(slots=True)
class LlmActions:
    """The actions under `settings.llm`, over one pool of backends; `on_text` gets the pieces of streamed answers."""

    settings: LlmSettings
    pool: BackendPool
    on_text: Callback | None = None
    # A bare prompt of `llm.call`, `llm.stream` and `llm.batch` is a message where the model is made for messages.
    chat_prompts: bool = False
    _noted: set[str] = field(default_factory=set)
    _known: dict[str, bool] = field(default_factory=dict)

    def table(self) -> dict[str, Action]:
        """Name → `f(state, **params)`, which raises for what it does not understand."""

        def strict(name: str) -> Action:
            def action(_state: Any = None, /, **params: Any) -> dict[str, Any]:
                params.pop("state", None)
                check_parameters(name, list(params))
                return self.run(name, params)

            action.__name__ = action.__qualname__ = name.replace(".", "_")
            action.__doc__ = f"`{name}` of tea_runtime, see docs/yaml.md."
            setattr(action, LLM_ACTION, name)
            return action

        return {name: strict(name) for name in _ACTIONS}

    def run(self, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Run an action on parameters that were checked."""
        settings, requested = self.settings_for(params)
        result = _ACTIONS[name](_Call(self, settings, params))
        return result | {"requested_model": requested} if requested else result

    def settings_for(self, params: Mapping[str, Any]) -> tuple[LlmSettings, str | None]:
        """The settings with what a node says in their place, and the model it named if another one is to answer."""
        wanted = {
            key: params[key]
            for key in NODE_SETTINGS
            if key in params and (key == "fallback" or params[key] not in (None, ""))
        }
        if not wanted:
            return self.settings, None
        settings = self._merged(wanted)
        requested = settings.model if "model" in wanted else None
        if requested is None or settings.backend == "api":
            return settings, None
        if requested not in self._known:
            self._known[requested] = is_model_name(requested, self.pool.environ)
        # Under `backend: local` a name that means nothing here, such as `gpt-4`, stands for the workflow's own model.
        if self._known[requested] or (settings.backend != "local" and api_may_answer(settings, self.pool.environ)):
            return settings, None
        text = "is no model that is known here: the workflow's own local model answers in its place"
        self.note(f"{requested} {text}", topic="requested_model")
        return self._merged({key: value for key, value in wanted.items() if key != "model"}), requested

    def _merged(self, wanted: Mapping[str, Any]) -> LlmSettings:
        base = self.settings.model_dump(exclude_unset=True)
        # A model that the node names is meant, whatever the workflow names for the rest.
        replaced = {key for key in _MODEL_KEYS if any(other in wanted for other in _MODEL_KEYS)}
        if str(wanted.get("provider", "")).strip().lower() == "local":
            replaced.add("backend")
        return LlmSettings.parse({**{key: base[key] for key in base.keys() - replaced}, **wanted}, prefix=())

    def note(self, text: str, *, topic: str) -> None:
        if topic not in self._noted:
            self._noted.add(topic)
            logger.warning("%s", text)


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of an action. Its parameters are looked at before the model is opened: a slip must not cost a load."""

    actions: LlmActions
    settings: LlmSettings
    params: Mapping[str, Any]

    def options(self) -> dict[str, Any]:
        """What the parameters say about generating; an empty text, which a template may leave, says nothing."""
        given = {key: _number(key, self.params[key]) for key in _OPTIONS if self.params.get(key, "") != ""}
        if given.get("temperature") is None:
            own = self.settings.temperature
            given["temperature"] = DEFAULT_TEMPERATURE if own is None else own
        LlmCallParams("", **given)  # what it refuses is refused before a model is loaded
        return given

    def limited(self, options: dict[str, Any], backend: LlmBackend, prompt: str, *, chat: bool) -> LlmCallParams:
        """The options with a length for the answer where the node gives none."""
        limit = self.settings.max_tokens
        if limit is None and not (chat and backend.name == "api"):  # for chats an API has a limit of its own
            limit = DEFAULT_MAX_TOKENS
        return LlmCallParams(prompt, **({"max_tokens": limit} | options))

    def chats(self, backend: LlmBackend) -> bool:
        """Whether a bare prompt is a message here."""
        raw, profile = self.params.get("raw"), getattr(backend, "profile", None)
        wanted = self.actions.chat_prompts if raw in (None, "") else not _flag("raw", raw)
        return wanted and (profile is None or bool(self.settings.chat_format) or profile.chat.format.value is not None)

    def callback(self) -> Callback:
        """Where the pieces of a streamed answer go."""
        given = self.params.get("callback")
        if given is not None and not callable(given):
            raise UsageError(f"callback: expected a function, found {kind_of(given)}")
        return given or self.actions.on_text or (lambda _text: None)


def _generate(call: _Call, *, chat: bool, stream: bool = False) -> dict[str, Any]:
    stream = stream or _flag("stream", call.params.get("stream"))
    messages = chat_messages(call.params, chat=chat)
    callback = call.callback() if stream else None
    prompt = _prompt(call.params) if messages is None else ""
    options = call.options()
    pieces = itertools.count()

    def piece(text: str) -> None:
        next(pieces)
        if callback is not None:
            callback(text)

    with call.actions.pool.use(call.settings) as backend:
        if messages is None and call.chats(backend):
            messages = [{"role": "user", "content": prompt}]
        params = call.limited(options, backend, prompt, chat=messages is not None)
        messages = None if messages is None else check_messages(messages)
        result = backend.generate(params, messages, piece if callback is not None else None)
    return result.to_dict() | ({"streamed": True, "chunk_count": next(pieces)} if callback is not None else {})


def _embed(call: _Call) -> dict[str, Any]:
    text = call.params.get("text")
    given = check_texts(text)
    with call.actions.pool.use(call.settings) as backend:
        vectors = backend.embed(given)
        # A local model can count; what an API counts it keeps to itself here.
        count = getattr(backend, "count_tokens", None)
        tokens = sum(map(count, given)) if count is not None else None
    return {
        "embedding": vectors[0] if isinstance(text, str) else vectors,
        "dimensions": len(vectors[0]) if vectors else 0,
        **_answerer(backend),
        "tokens_used": tokens,
        "usage": None if tokens is None else {"prompt_tokens": tokens, "total_tokens": tokens},
        "finish_reason": None,
    }


def _batch(call: _Call) -> dict[str, Any]:
    prompts, conversations = call.params.get("prompts"), call.params.get("conversations")
    system = call.params.get("system")
    if (prompts is None) == (conversations is None):
        raise UsageError("llm.batch: expected prompts or conversations, one of them")
    options = call.options()
    items = _items("prompts", prompts) if conversations is None else _items("conversations", conversations)
    key = "prompt" if conversations is None else "messages"

    def asked(item: Any, backend: LlmBackend, *, chat: bool) -> tuple[LlmCallParams, Any] | TeaModelsError:
        try:
            messages = chat_messages({key: item, "system": system}) if chat else None
            prompt = "" if chat else _prompt({key: item})
            return call.limited(options, backend, prompt, chat=chat), messages
        except TeaModelsError as error:
            return error

    with call.actions.pool.use(call.settings) as backend:
        chat = conversations is not None or bool(system) or call.chats(backend)
        every = [asked(item, backend, chat=chat) for item in items]
        sound = [one for one in every if not isinstance(one, TeaModelsError)]
        made = iter(backend.generate_many(sound, return_errors=True))
    answers = [one if isinstance(one, TeaModelsError) else next(made) for one in every]
    used = [answer.usage for answer in answers if isinstance(answer, LlmCallResult) and answer.usage]
    usage = {name: sum(one.get(name, 0) for one in used) for name in sorted({name for one in used for name in one})}
    results = [failure(answer) if isinstance(answer, TeaModelsError) else answer.to_dict() for answer in answers]
    return {"results": results, **_answerer(backend), "usage": usage, "tokens_used": usage.get("total_tokens")}


def _rerank(call: _Call) -> dict[str, Any]:
    query = call.params.get("query")
    if not isinstance(query, str):
        raise UsageError(f"query: expected a text, found {kind_of(query)}")
    documents = check_texts(call.params.get("documents"), "documents")
    with call.actions.pool.use(call.settings) as backend:
        scores = backend.rerank(query, documents)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return {"scores": scores, "order": order, **_answerer(backend)}


_ACTIONS: dict[str, Callable[[_Call], dict[str, Any]]] = {
    "llm.call": functools.partial(_generate, chat=False),
    "llm.chat": functools.partial(_generate, chat=True),
    "llm.stream": functools.partial(_generate, chat=False, stream=True),
    "llm.embed": _embed,
    "llm.batch": _batch,
    "llm.rerank": _rerank,
}


def _answerer(backend: LlmBackend) -> dict[str, Any]:
    path = getattr(backend, "model_path", None)
    model = getattr(backend, "embedding_model", "") if path is None else str(path.name)
    reason = getattr(backend, "reason", "")
    return {"model": model, "backend": backend.name} | ({"fallback_reason": reason} if reason else {})


def failure(error: TeaModelsError) -> dict[str, Any]:
    """What an action answers that failed."""
    return {"error": str(error), "error_type": error.type, "success": False}


def _number(name: str, value: Any) -> Any:
    """Numbers may arrive as text, from the environment or a template with more than one part."""
    kind = int if name in _INT_OPTIONS else float if name in _FLOAT_OPTIONS else str
    try:
        return kind(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _flag(name: str, value: Any) -> bool:
    text = value.strip().lower() if isinstance(value, str) else value
    if text in (None, "", False, "false", "no"):
        return False
    if text in (True, "true", "yes"):
        return True
    raise UsageError(f"{name}: expected true or false, found {value!r}")


def _prompt(params: Mapping[str, Any]) -> str:
    prompt = params.get("prompt")
    if not isinstance(prompt, str):
        raise UsageError(
            f"prompt: expected a text, found {kind_of(prompt)}", hint="give prompt, or messages for a chat"
        )
    return prompt


def chat_messages(params: Mapping[str, Any], *, chat: bool = True) -> Any:
    """The conversation that the parameters mean, or None for a raw prompt."""
    messages, prompt, system = params.get("messages"), params.get("prompt"), params.get("system")
    if messages is not None and prompt is not None:
        raise UsageError("give messages or prompt, not both")
    if system is not None and not isinstance(system, str):
        raise UsageError(f"system: expected a text, found {kind_of(system)}")
    if messages is None and not chat and not system:
        return None
    if messages is None:
        if not isinstance(prompt, str):
            raise UsageError(f"expected messages, or prompt as a text; found {kind_of(prompt)}")
        messages = [{"role": "user", "content": prompt}]
    if system and isinstance(messages, list):
        if any(isinstance(message, Mapping) and message.get("role") == "system" for message in messages):
            raise UsageError("give the system text as system or in messages, not both")
        messages = [{"role": "system", "content": system}, *messages]
    return messages


def _items(name: str, value: Any) -> list[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise UsageError(f"{name}: expected a list, found {kind_of(value)}")
    return list(value)
