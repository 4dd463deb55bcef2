"""The `settings.llm` block of a workflow, validated: which backend, which model, with which settings."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tea_models.errors import ConfigError
from tea_models.yamlfile import Document, dotted, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_AZURE = ("azure_openai", "azureopenai")


def _no_bool(value: Any) -> Any:
    # YAML's `yes` and `true` would otherwise pass as 1.
    if isinstance(value, bool):
        raise ValueError("expected a number")  # noqa: TRY004 - pydantic turns ValueError into its own error
    return value


def _words(value: Any) -> Any:
    if isinstance(value, str) and value.strip().lower() in ("auto", "max"):
        return value.strip().lower()
    return _no_bool(value)


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _provider(value: Any) -> Any:
    value = _lower(value)
    return "azure" if value in _AZURE else value


def _permission(value: Any) -> Any:
    # An empty `fallback:` or a template that came out empty permits nothing.
    return False if value is None or (isinstance(value, str) and not value.strip()) else value


Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]
Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]


class LlmSettings(BaseModel):
    """`settings.llm`: every key is optional, and an empty value (`n_ctx:`) means the default.

    Attributes:
        backend: `local`, `api`, or `auto`: local where a model can be used, otherwise the API. `provider: local` says
            `local` too.
        model: A reference (`phi4-mini`, `hf:…`, a path) or the name of an API's model.
        model_path: Path of a GGUF file; `~` and `$VAR` are expanded.
        profile: Path of a profile document or name of a pulled model; the runtime is configured from it.
        n_ctx: Tokens of context: a number, `max` (what the model was trained with) or `auto`.
        n_threads: CPU threads.
        n_gpu_layers: Layers on the GPU; 0 none, -1 all.
        chat_format: Overrides the model's own chat template by a known one.
        kv_type: Type of the KV cache (`f16`, `q8_0`, `q4_0`).
        embedding: The model is for embeddings; chat contexts are not prepared.
        api_base: Base address of an OpenAI-compatible server, e.g. `http://127.0.0.1:8080/v1`.
        provider: `auto`, `openai`, `azure` or `ollama`; `local` is read as `backend: local`.
        temperature: Default of all actions.
        max_tokens: Length of an answer at most, for every action that does not say its own.
        timeout: Seconds an API request may take.
        max_retries: How often a failed API request is repeated.
        fallback: Whether the API may answer when the local model can't. Left out, it may under `auto` only.
        auto_pull: Whether a model that is not in the store is downloaded when it is first used.
        prompt_cache: Whether long prompts are kept on disk for the next process, in the store or in a folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Annotated[Literal["local", "api", "auto"], BeforeValidator(_lower)] = "auto"
    model: str | None = None
    model_path: str | None = None
    profile: str | None = None
    n_ctx: Annotated[Literal["auto", "max"] | Annotated[int, Field(ge=1)], BeforeValidator(_words)] | None = None
    n_threads: Count | None = None
    n_gpu_layers: Annotated[int, BeforeValidator(_no_bool), Field(ge=-1)] | None = None
    chat_format: str | None = None
    kv_type: Annotated[str, BeforeValidator(_lower)] | None = None
    embedding: bool = False
    api_base: str | None = None
    provider: Annotated[Literal["auto", "openai", "azure", "ollama"], BeforeValidator(_provider)] | None = None
    temperature: Annotated[Number, Field(ge=0)] | None = None
    max_tokens: Count | None = None
    timeout: Annotated[Number, Field(gt=0)] | None = None
    max_retries: Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=20)] | None = None
    fallback: Annotated[bool | None, BeforeValidator(_permission)] = None
    auto_pull: bool = False
    prompt_cache: bool | str = False

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {key: value for key, value in data.items() if value not in (None, "") or key == "fallback"}
        if _lower(kept.get("provider")) == "local":
            del kept["provider"]
            if _lower(kept.get("backend", "auto")) == "auto":
                kept["backend"] = "local"
            if _lower(kept["backend"]) != "local":
                raise ValueError("provider: local contradicts backend: " + str(kept["backend"]))
        return kept

    @property
    def may_fall_back(self) -> bool:
        """Whether an API may answer in place of a local model."""
        return self.backend == "auto" if self.fallback is None else self.fallback

    @classmethod
    def parse(
        cls,
        data: Mapping[str, Any] | LlmSettings | None,
        *,
        document: Document | None = None,
        prefix: tuple[str, ...] = ("settings", "llm"),
    ) -> Self:
        """Validate a `settings.llm` block, or a whole `settings` block that holds one under `llm`.

        Args:
            data: The block; None and an empty one give the defaults.
            document: The workflow it was read from, for file and line of an error.
            prefix: Keys that lead to the block, for an error.

        Raises:
            ConfigError: An unknown key or a wrong value, with file, line, key and the nearest known key.
        """
        if isinstance(data, cls):
            return data
        block: Any = data if data is not None else {}
        if not hasattr(block, "items"):
            raise _error(document, f"expected keys and values, got {type(block).__name__}", prefix)
        block = dict(block)
        if "llm" in block:
            # A whole `settings` block, as `create_llm_backend(settings)` of the TEA host takes it.
            return cls.parse(block["llm"], document=document, prefix=prefix)
        try:
            return cls.model_validate(block)
        except ValidationError as error:
            raise _explain(cls, error, document, prefix) from None

    def expanded(self, environ: Mapping[str, str]) -> Self:
        """The same settings with `~` and `$VAR` expanded; a variable that is not set stays as it is written."""
        changes = {
            key: expand(value, environ)
            for key in ("model", "model_path", "profile", "api_base", "prompt_cache")
            if isinstance(value := getattr(self, key), str)
        }
        return self.model_copy(update=changes)

    def overridden(self, **overrides: Any) -> Self:
        """The same settings with those of `overrides` that are not None.

        Raises:
            ConfigError: An override is unknown or has a wrong value.
        """
        changes = {key: value for key, value in overrides.items() if value is not None}
        return self.parse(self.model_dump(exclude_unset=True) | changes, prefix=()) if changes else self


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Expand a leading `~` and `$VAR`/`${VAR}` from `environ`."""
    if text == "~" or text.startswith(("~/", "~\\")):
        home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - a text comes back, not a path
        text = home + text[1:]
    return _VARIABLE.sub(lambda match: environ.get(match.group(1) or match.group(2), match.group()), text)


def _explain(
    model: type[BaseModel], error: ValidationError, document: Document | None, prefix: tuple[str, ...]
) -> ConfigError:
    problems = error.errors(include_url=False)
    problem = next((item for item in problems if item["type"] == "extra_forbidden"), problems[-1])
    key = str(problem["loc"][0]) if problem["loc"] else ""
    path = (*prefix, key) if key else prefix
    if problem["type"] == "extra_forbidden":
        return _error(document, "unknown key", path, hint=nearest(key, list(model.model_fields)))
    message = _EXPECTED.get(key) or problem["msg"].removeprefix("Value error, ")
    if not key:
        return _error(document, message, prefix)
    shown = repr(problem.get("input"))
    return _error(document, f"{message}, got {shown if len(shown) <= 80 else shown[:77] + '…'}", path)


_EXPECTED = {
    **dict.fromkeys(("model", "model_path", "profile", "chat_format", "kv_type", "api_base"), "expected a text"),
    "backend": "expected local, api or auto",
    "n_ctx": "expected a number of tokens, max or auto",
    "n_threads": "expected a number of threads, 1 or more",
    "n_gpu_layers": "expected a number of layers; 0 is none, -1 is all",
    "provider": "expected auto, openai, azure, ollama or local",
    "temperature": "expected a number, 0 or more",
    "max_tokens": "expected a number of tokens, 1 or more",
    "timeout": "expected a number of seconds above 0",
    "max_retries": "expected a whole number from 0 to 20",
    "embedding": "expected true or false",
    "fallback": "expected true or false",
    "auto_pull": "expected true or false",
    "prompt_cache": "expected true, false or a folder",
}


def _error(document: Document | None, message: str, path: tuple[str, ...], *, hint: str = "") -> ConfigError:
    if document is not None:
        return document.error(message, path, hint=hint)
    return ConfigError(message, key=dotted(path), hint=hint)
