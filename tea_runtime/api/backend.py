"""`ApiLlmBackend`: any OpenAI-compatible server, through the `openai` client."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import weakref
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar
from urllib.parse import urlsplit

from tea_models.errors import TeaModelsError, UsageError
from tea_models.redact import redact
from tea_runtime.answer_format import check_schema, wanted_schema
from tea_runtime.api.answers import StreamedAnswer, read_completion, read_vectors
from tea_runtime.api.client import EXTENSIONS, ApiClient
from tea_runtime.backend import Callback, LlmBackend, LlmCallParams, LlmCallResult, Message
from tea_runtime.call import CancelScope, LlmStream
from tea_runtime.errors import ApiError, ApiUnavailableError, MissingExtraError, UnsupportedError
from tea_runtime.llama.constraint import check_tools, demanded_tools
from tea_runtime.llm_settings import LlmSettings

logger = logging.getLogger(__name__)

# Provider → the variables of its key (which goes to no other) and of its server, and the server where that is not set.
_SERVERS = {
    "openai": ("OPENAI_API_KEY", "OPENAI_BASE_URL", "https://api.openai.com/v1"),
    "azure": ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", ""),
    "ollama": ("OLLAMA_API_KEY", "OLLAMA_API_BASE", "http://localhost:11434/v1"),
}
DEFAULT_MODEL = "gpt-4o-mini"
DEFAULT_EMBEDDING_MODEL = "text-embedding-3-small"
DEFAULT_TIMEOUT = 300.0
# An API answers requests that come together faster than one after another, and refuses too many.
_THREADS = 8
#: Keys of `settings.llm` that decide which API is asked, and how.
API_SETTINGS = ("model", "api_base", "provider", "timeout", "max_retries")
# What goes to the API as it stands.
_PASSED = ("top_p", "presence_penalty", "frequency_penalty", "seed", "response_format", "tools", "tool_choice")


class ApiLlmBackend(LlmBackend):
    """A model behind an OpenAI-compatible API. Nothing is sent before the first call.

    Args:
        model: Name of the model at the server; by default `OPENAI_MODEL`, or `gpt-4o-mini`.
        api_base: Base address, e.g. `http://127.0.0.1:8080/v1`; by default what the environment names.
        api_key: Key; by default what the environment holds for the provider. It is never shown.
        provider: `auto`, `openai`, `azure` or `ollama`; `auto` looks at the environment.
        embedding_model: Model for `embed`; by default `model`, and at OpenAI `text-embedding-3-small`.
        timeout: Seconds that a request may take.
        max_retries: How often a request that failed by overload or network is repeated.
        environ: `OPENAI_API_KEY`, `OPENAI_BASE_URL`, `OPENAI_MODEL`, `OLLAMA_API_BASE`, `OLLAMA_API_KEY`,
            `AZURE_OPENAI_API_KEY`, `AZURE_OPENAI_ENDPOINT` and `OPENAI_API_VERSION` are read; the process's own by
            default.
        reason: Why it answers in the place of a local model; each result carries it.

    Raises:
        MissingExtraError: The extra `api` is not installed.
        UsageError: `api_base` is not an address.
    """

    name: ClassVar[str] = "api"

    def __init__(
        self,
        model: str | None = None,
        *,
        api_base: str | None = None,
        api_key: str | None = None,
        provider: str | None = None,
        embedding_model: str | None = None,
        timeout: float | None = None,
        max_retries: int | None = None,
        environ: Mapping[str, str] | None = None,
        reason: str | None = None,
    ) -> None:
        if importlib.util.find_spec("openai") is None:  # it is imported with the first request
            raise MissingExtraError("the API backend", package="openai", extra="api")
        environ = os.environ if environ is None else environ
        self.provider = _provider(provider, api_base, environ)
        self.api_base = _api_base(self.provider, api_base, environ)
        self.model = model or environ.get("OPENAI_MODEL") or DEFAULT_MODEL
        self.reason = reason
        openai = self._is_openai = self.provider == "azure" or urlsplit(self.api_base).hostname == "api.openai.com"
        chat_model = openai and "embed" not in self.model
        self.embedding_model = embedding_model or (DEFAULT_EMBEDDING_MODEL if chat_model else self.model)
        key_name = _SERVERS[self.provider][0]
        self._client = ApiClient(
            base=self.api_base,
            key=api_key or environ.get(key_name, ""),
            key_name=key_name,
            azure_version=environ.get("OPENAI_API_VERSION", "2024-10-21") if self.provider == "azure" else None,
            timeout=timeout or DEFAULT_TIMEOUT,
            max_retries=2 if max_retries is None else max_retries,
        )
        # Whether the server continues raw prompts; where it is not known it is found out by asking.
        self._raw_prompts = not openai or "instruct" in self.model
        # Hosts never close what their actions opened.
        self._finalizer = weakref.finalize(self, self._client.close)

    def generate(
        self, params: LlmCallParams, messages: Sequence[Message] | None = None, callback: Callback | None = None
    ) -> LlmCallResult:
        """Continue a raw prompt or answer messages; at servers that only chat a prompt becomes a user's message.

        Raises:
            ApiError: The API refused, failed, or answered with nonsense.
            ApiUnavailableError: The API can't be reached, or there is no key for it.
            UnsupportedError: The API can't do what was asked.
        """
        if callback is not None:
            return self.open_stream(params, messages).run(callback)
        return LlmStream(self._answer(params, messages), lambda: None).result

    def open_stream(self, params: LlmCallParams, messages: Sequence[Message] | None = None) -> LlmStream:
        """As `generate`, as an iterator; raises as `generate` does."""
        scope = CancelScope()
        return LlmStream(self._answer(params, messages, scope), scope.cancel)

    def generate_many(
        self, asked: Sequence[tuple[LlmCallParams, Sequence[Message] | None]], *, return_errors: bool = False
    ) -> list[LlmCallResult | TeaModelsError]:
        """As `LlmBackend.generate_many`, several at a time."""

        def one(pair: tuple[LlmCallParams, Sequence[Message] | None]) -> LlmCallResult | TeaModelsError:
            return LlmBackend.generate_many(self, [pair], return_errors=return_errors)[0]

        with ThreadPoolExecutor(_THREADS) as threads:
            return list(threads.map(one, asked))

    def embed_texts(self, texts: list[str]) -> list[list[float]]:
        """The vectors of texts; raises as `call` does."""
        if not texts:
            return []
        where = self._where(self.embedding_model)
        _check_plain({"text": texts})
        body = {"model": self.embedding_model, "input": texts, "encoding_format": "float"}
        return read_vectors(self._client.post("embeddings", body, where), where, len(texts))

    def is_available(self) -> bool:
        """Tell whether there is a server and, where one is needed, a key. Nothing is sent."""
        return not self.unavailable_reason()

    def unavailable_reason(self) -> str:
        """Why the API can't be used, or an empty text. Nothing is sent."""
        if not self._finalizer.alive:
            return "the backend is closed"
        if self._client.key or not self._is_openai:
            return ""
        return f"{self._client.key_name} is not set, and no api_base names a server that needs no key"

    def close(self) -> None:
        """Close the connections. Closing twice is fine."""
        self._finalizer()

    def _where(self, model: str) -> str:
        """Who is asked, for messages; raises where that can't be."""
        where, reason = f"API {self._client.host}, model {model}", self.unavailable_reason()
        if reason:
            hint = f"set {self._client.key_name}, or settings.llm.api_base for a server of your own"
            raise ApiUnavailableError(f"{where}: {reason}", hint=hint)
        return where

    def _answer(
        self, params: LlmCallParams, messages: Sequence[Message] | None, scope: CancelScope | None = None
    ) -> Generator[str, None, LlmCallResult]:
        """The pieces of an answer that `scope` can end; without one it comes as a whole."""
        where = self._where(self.model)
        body = self._body(params, where)
        _check_plain({"prompt": params.prompt, "messages": messages, **body})
        as_message = [{"role": "user", "content": params.prompt}]
        if messages is None and not self._raw_prompts:
            messages = as_message
        try:
            result = yield from self._pieces(params, messages, body, scope)
        except ApiError as error:
            only_chats = error.status in (404, 405) or (error.status == 400 and "chat" in error.message)
            if messages is not None or not only_chats:
                raise
            result = yield from self._pieces(params, as_message, body, scope)
            logger.info("%s: no raw completions here; the prompt went as a user's message", where)
            self._raw_prompts = False
        return replace(result, fallback_reason=self.reason)

    def _pieces(
        self, params: LlmCallParams, messages: Sequence[Message] | None, body: dict[str, Any], scope: CancelScope | None
    ) -> Generator[str, None, LlmCallResult]:
        if messages is None:
            path, body = "completions", {**body, "prompt": params.prompt}
            if "logprobs" in body:  # the older endpoint takes a number
                body["logprobs"] = body.pop("top_logprobs", 1)
        else:
            path, body = "chat/completions", {**body, "messages": messages}
        where = self._where(self.model)
        if scope is None:
            return read_completion(self._client.post(path, body, where), where, params, self.model)
        answer = StreamedAnswer(where, chat=messages is not None)
        with contextlib.closing(self._client.events(path, body, where)) as events:
            for event in events:
                scope.check()
                if text := answer.add(event):
                    yield text
        return answer.finish(params, self.model)

    def _body(self, params: LlmCallParams, where: str) -> dict[str, Any]:
        """What is sent; what no answer could fulfil is refused before."""
        if params.grammar is not None:
            raise UnsupportedError(
                f"{where}: an API can't be trusted to enforce a GBNF grammar",
                hint="use response_format with a JSON schema, or the local backend",
            )
        refused = [key for key in EXTENSIONS if self._is_openai and getattr(params, key) is not None]
        if refused:
            raise UnsupportedError(
                f"{where}: {refused[0]} is not an option of OpenAI's API",
                hint=f"leave {refused[0]} out, or use the local backend",
            )
        schema = wanted_schema(params.response_format)
        if schema is not None:
            check_schema(schema, extra="api")
        check_tools(params.tools or ())
        demanded_tools(params)
        body: dict[str, Any] = {key: getattr(params, key) for key in (*_PASSED, *EXTENSIONS)}
        body |= {"model": self.model, "temperature": params.temperature, "max_tokens": params.max_tokens}
        body["stop"] = list(params.stops) or None
        if params.logprobs is not None and params.logprobs is not False:
            body["logprobs"] = True
            body["top_logprobs"] = params.logprobs if params.logprobs is not True else None
        return {key: value for key, value in body.items() if value is not None}


def api_of(block: LlmSettings, environ: Mapping[str, str], *, reason: str | None = None) -> ApiLlmBackend:
    block = block.expanded(environ)
    given: dict[str, Any] = {key: getattr(block, key) for key in API_SETTINGS}
    return ApiLlmBackend(**given, environ=environ, reason=reason)


def api_problem(block: LlmSettings, environ: Mapping[str, str]) -> str:
    """Why the API of `settings.llm` can't be used, or ""."""
    try:
        return api_of(block, environ).unavailable_reason()
    except MissingExtraError as error:
        return str(error)


def api_may_answer(block: LlmSettings, environ: Mapping[str, str]) -> bool:
    """Whether an API could answer in the place of a local model."""
    return block.may_fall_back and not api_problem(block, environ)


def _provider(provider: str | None, api_base: str | None, environ: Mapping[str, str]) -> str:
    if provider and provider != "auto":
        if provider not in _SERVERS:
            raise UsageError(f"provider: expected auto, {', '.join(_SERVERS)}, found {provider!r}")
        return provider
    if api_base or environ.get("OPENAI_BASE_URL"):
        return "openai"
    if environ.get("OLLAMA_API_BASE"):
        return "ollama"
    return "azure" if environ.get("AZURE_OPENAI_API_KEY") and environ.get("AZURE_OPENAI_ENDPOINT") else "openai"


def _api_base(provider: str, api_base: str | None, environ: Mapping[str, str]) -> str:
    _, variable, default = _SERVERS[provider]
    api_base = api_base or environ.get(variable) or default
    if not api_base:
        raise UsageError("provider azure: AZURE_OPENAI_ENDPOINT is not set", hint="or give settings.llm.api_base")
    try:
        parts = urlsplit(api_base)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        hint = f"for example {_SERVERS['ollama'][2]}"
        shown = redact(f"://{api_base}").removeprefix("://")  # a slip in the scheme is no reason to show a password
        raise UsageError(f"api_base: expected an http(s) address, found {shown!r}", hint=hint)
    return api_base.rstrip("/")


def _check_plain(body: Mapping[str, Any]) -> None:
    """Refuse what JSON or UTF-8 can't carry, with the name of the parameter it is in."""
    for name, value in body.items():
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise UsageError(f"{name}: a lone surrogate is not text; it can't be sent") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"{name}: can't be sent as JSON: {error}") from None
