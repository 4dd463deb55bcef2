"""`ApiLlmBackend`: any OpenAI-compatible server, through the `openai` client."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Self, overload
from urllib.parse import urlsplit

from tea_models.errors import UsageError
from tea_runtime.answer_format import check_schema, wanted_schema
from tea_runtime.api.answers import StreamedAnswer, read_completion, read_vectors
from tea_runtime.api.client import EXTENSIONS, ApiClient
from tea_runtime.backend import LlmBackend, check_texts
from tea_runtime.errors import ApiError, ApiUnavailableError, MissingExtraError, UnsupportedError
from tea_runtime.llama.constraint import check_tools, demanded_tools

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tea_runtime.backend import Callback, LlmCallParams, LlmCallResult, Message
    from tea_runtime.llm_settings import LlmSettings

logger = logging.getLogger(__name__)

OPENAI_BASE = "https://api.openai.com/v1"
OLLAMA_BASE = "http://localhost:11434/v1"
DEFAULT_MODEL = "gpt-4o-mini"
DEFAULT_EMBEDDING_MODEL = "text-embedding-3-small"
DEFAULT_TIMEOUT = 300.0
# A key goes to its own provider only.
_KEYS = {"openai": "OPENAI_API_KEY", "azure": "AZURE_OPENAI_API_KEY", "ollama": "OLLAMA_API_KEY"}
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
    ) -> None:
        if not is_installed():
            raise MissingExtraError("the API backend", package="openai", extra="api")
        environ = os.environ if environ is None else environ
        self.provider = _provider(provider, api_base, environ)
        self.api_base = _api_base(self.provider, api_base, environ)
        self.model = model or environ.get("OPENAI_MODEL") or DEFAULT_MODEL
        openai = self._is_openai
        chat_model = openai and "embed" not in self.model
        self.embedding_model = embedding_model or (DEFAULT_EMBEDDING_MODEL if chat_model else self.model)
        key_name = _KEYS[self.provider]
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
        self._closed = False
        # Hosts never close what their actions opened.
        self._finalizer = weakref.finalize(self, self._client.close)

    @classmethod
    def from_settings(
        cls, settings: LlmSettings, *, model: str | None = None, environ: Mapping[str, str] | None = None
    ) -> Self:
        """Make a backend from `settings.llm`; `model` replaces the model that is named there."""
        return cls(
            model or settings.model,
            api_base=settings.api_base,
            provider=settings.provider,
            timeout=settings.timeout,
            max_retries=settings.max_retries,
            environ=environ,
        )

    def __repr__(self) -> str:
        return f"ApiLlmBackend(model={self.model!r}, api_base={self.api_base!r})"

    def generate(
        self,
        params: LlmCallParams,
        messages: Sequence[Message] | None = None,
        callback: Callback | None = None,
    ) -> LlmCallResult:
        """Continue a raw prompt or answer messages; at servers that only chat a prompt becomes a user's message.

        Raises:
            ApiError: The API refused, failed, or answered with nonsense.
            ApiUnavailableError: The API can't be reached, or there is no key for it.
            UnsupportedError: The API can't do what was asked.
        """
        where = self._where(self.model)
        self._check_available(where)
        body = self._body(params, where)
        _check_plain({"prompt": params.prompt, "messages": messages, **body})
        as_message = [{"role": "user", "content": params.prompt}]
        if messages is None and not self._raw_prompts:
            messages = as_message
        try:
            return self._complete(params, messages, body, callback)
        except ApiError as error:
            if messages is not None or not _only_chats(error):
                raise
        result = self._complete(params, as_message, body, callback)
        logger.info("%s: no raw completions here; the prompt went as a user's message", where)
        self._raw_prompts = False
        return result

    @overload
    def embed(self, text: str) -> list[float]: ...
    @overload
    def embed(self, text: list[str] | tuple[str, ...]) -> list[list[float]]: ...
    def embed(self, text: str | list[str] | tuple[str, ...]) -> list[float] | list[list[float]]:
        """Turn a text into a vector, or several texts into a list of vectors; raises as `call` does."""
        texts = check_texts(text)
        if not texts:
            return []
        where = self._where(self.embedding_model)
        self._check_available(where)
        _check_plain({"text": texts})
        body = {"model": self.embedding_model, "input": texts, "encoding_format": "float"}
        vectors = read_vectors(self._client.post("embeddings", body, where), where, len(texts))
        return vectors[0] if isinstance(text, str) else vectors

    def is_available(self) -> bool:
        """Tell whether there is a server and, where one is needed, a key. Nothing is sent."""
        return not self.unavailable_reason()

    def unavailable_reason(self) -> str:
        """Why the API can't be used, or an empty text. Nothing is sent."""
        if self._closed:
            return "the backend is closed"
        if self._client.key or not self._is_openai:
            return ""
        return f"{self._client.key_name} is not set, and no api_base names a server that needs no key"

    def close(self) -> None:
        """Close the connections. Closing twice is fine."""
        self._closed = True
        self._finalizer()

    @property
    def _is_openai(self) -> bool:
        return self.provider == "azure" or urlsplit(self.api_base).hostname == "api.openai.com"

    def _where(self, model: str) -> str:
        return f"API {self._client.host}, model {model}"

    def _check_available(self, where: str) -> None:
        reason = self.unavailable_reason()
        if reason:
            hint = f"set {self._client.key_name}, or settings.llm.api_base for a server of your own"
            raise ApiUnavailableError(f"{where}: {reason}", hint=hint)

    def _complete(
        self,
        params: LlmCallParams,
        messages: Sequence[Message] | None,
        body: dict[str, Any],
        callback: Callback | None,
    ) -> LlmCallResult:
        where = self._where(self.model)
        if messages is None:
            path, body = "completions", {**body, "prompt": params.prompt}
            if "logprobs" in body:  # the older endpoint takes a number
                body["logprobs"] = body.pop("top_logprobs", 1)
        else:
            path, body = "chat/completions", {**body, "messages": messages}
        if callback is None:
            return read_completion(self._client.post(path, body, where), where, params, self.model)
        answer = StreamedAnswer(where, chat=messages is not None)
        with contextlib.closing(self._client.events(path, body, where)) as events:
            for event in events:
                text = answer.add(event)
                if text:
                    callback(text)
        return answer.finish(params, self.model)

    def _body(self, params: LlmCallParams, where: str) -> dict[str, Any]:
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
        body: dict[str, Any] = {key: getattr(params, key) for key in (*_PASSED, *EXTENSIONS)}
        body |= {"model": self.model, "temperature": params.temperature, "max_tokens": params.max_tokens}
        body["stop"] = list(params.stops) or None
        _check_asked(params)
        if params.logprobs is not None and params.logprobs is not False:
            body["logprobs"] = True
            body["top_logprobs"] = params.logprobs if params.logprobs is not True else None
        return {key: value for key, value in body.items() if value is not None}


def is_installed() -> bool:
    """Tell whether the `openai` client is there, without importing it."""
    return importlib.util.find_spec("openai") is not None


def _provider(provider: str | None, api_base: str | None, environ: Mapping[str, str]) -> str:
    if provider and provider != "auto":
        if provider not in ("openai", "azure", "ollama"):
            raise UsageError(f"provider: expected auto, openai, azure or ollama, found {provider!r}")
        return provider
    if api_base or environ.get("OPENAI_BASE_URL"):
        return "openai"
    if environ.get("OLLAMA_API_BASE"):
        return "ollama"
    return "azure" if environ.get("AZURE_OPENAI_API_KEY") and environ.get("AZURE_OPENAI_ENDPOINT") else "openai"


def _api_base(provider: str, api_base: str | None, environ: Mapping[str, str]) -> str:
    if not api_base:
        api_base = {
            "azure": environ.get("AZURE_OPENAI_ENDPOINT", ""),
            "ollama": environ.get("OLLAMA_API_BASE") or OLLAMA_BASE,
        }.get(provider, environ.get("OPENAI_BASE_URL") or OPENAI_BASE)
    if not api_base:
        raise UsageError("provider azure: AZURE_OPENAI_ENDPOINT is not set", hint="or give settings.llm.api_base")
    try:
        parts = urlsplit(api_base)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        hint = f"for example {OLLAMA_BASE}"
        raise UsageError(f"api_base: expected an http(s) address, found {api_base!r}", hint=hint)
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


def _check_asked(params: LlmCallParams) -> None:
    """Refuse what no answer could fulfil, before anything is sent."""
    schema = wanted_schema(params.response_format)
    if schema is not None:
        check_schema(schema, extra="api")
    check_tools(params.tools or ())
    demanded_tools(params)


def _only_chats(error: ApiError) -> bool:
    return error.status in (404, 405) or (error.status == 400 and "chat" in error.message)
