"""The `settings.llm` block of a workflow, validated: which backend, which model, with which settings."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tea_models.yamlfile import Document, nearest

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_AZURE = ("azure_openai", "azureopenai")


def _no_bool(value: Any) -> Any:
    # YAML's `yes` and `true` would otherwise pass as 1.
    if isinstance(value, bool):
        raise ValueError("expected a number")  # noqa: TRY004 - pydantic turns ValueError into its own error
    return value


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
    """`settings.llm`: every key is optional, and an empty value (`n_ctx:`) means the default. See docs/yaml.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Annotated[Literal["local", "api", "auto"], BeforeValidator(_lower)] = "auto"
    model: str | None = None
    model_path: str | None = None
    profile: str | None = None
    n_ctx: Annotated[Literal["auto", "max"] | Count, BeforeValidator(_no_bool), BeforeValidator(_lower)] | None = None
    n_threads: Count | None = None
    n_gpu_layers: Annotated[int, BeforeValidator(_no_bool), Field(ge=-1)] | None = None
    chat_format: str | None = None
    kv_type: Annotated[str, BeforeValidator(_lower)] | None = None
    memory: int | str | None = None
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
        """Validate a `settings.llm` or whole `settings` block; an error has the file and line of `document`."""
        if isinstance(data, cls):
            return data
        document = document or Document("", None, {})
        block: Any = data if data is not None else {}
        if not hasattr(block, "items"):
            raise document.error(f"expected keys and values, got {type(block).__name__}", prefix)
        block = dict(block)
        if "llm" in block:
            # A whole `settings` block, as `create_llm_backend(settings)` of the TEA host takes it.
            return cls.parse(block["llm"], document=document, prefix=prefix)
        try:
            return cls.model_validate(block)
        except ValidationError as error:
            problems = error.errors(include_url=False)
        problem = next((item for item in problems if item["type"] == "extra_forbidden"), problems[-1])
        key = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            raise document.error("unknown key", (*prefix, key), hint=nearest(key, list(cls.model_fields)))
        if not key:
            raise document.error(problem["msg"].removeprefix("Value error, "), prefix)
        raise document.error(f"expected {_EXPECTED[key]}, got {problem['input']!r:.80}", (*prefix, key))

    def expanded(self, environ: Mapping[str, str]) -> Self:
        """The same settings with `~` and `$VAR` expanded; a variable that is not set stays as it is written."""
        changes = {
            key: expand(value, environ)
            for key in ("model", "model_path", "profile", "api_base", "prompt_cache")
            if isinstance(value := getattr(self, key), str)
        }
        return self.model_copy(update=changes)

    def overridden(self, **overrides: Any) -> Self:
        """The same settings with those of `overrides` that are not None."""
        changes = {key: value for key, value in overrides.items() if value is not None}
        return self.parse(self.model_dump(exclude_unset=True) | changes, prefix=()) if changes else self


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Expand a leading `~` and `$VAR`/`${VAR}` from `environ`."""
    if text == "~" or text.startswith(("~/", "~\\")):
        home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - a text comes back, not a path
        text = home + text[1:]
    return _VARIABLE.sub(lambda match: environ.get(match.group(1) or match.group(2), match.group()), text)


_EXPECTED = {
    **dict.fromkeys(("model", "model_path", "profile", "chat_format", "kv_type", "api_base"), "a text"),
    **dict.fromkeys(("embedding", "fallback", "auto_pull"), "true or false"),
    "memory": "a size such as 4GiB",
    "prompt_cache": "true, false or a folder",
    "backend": "local, api or auto",
    "n_ctx": "a number of tokens, max or auto",
    "n_threads": "a number of threads, 1 or more",
    "n_gpu_layers": "a number of layers; 0 is none, -1 is all",
    "provider": "auto, openai, azure, ollama or local",
    "temperature": "a number, 0 or more",
    "max_tokens": "a number of tokens, 1 or more",
    "timeout": "a number of seconds above 0",
    "max_retries": "a whole number from 0 to 20",
}
