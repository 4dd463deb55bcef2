"""What a project asks for: the references in its `models.yaml` and in its workflows.

    # models.yaml
    models:
    - smollm2-135m
    - hf:owner/repo:Q4_K_M

A workflow asks for the model in `settings.llm.model`, unless that is one of an API.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from tea_models.errors import UsageError
from tea_models.refs import parse_reference
from tea_models.yamlfile import Document, read_yaml, validate

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MODELS_FILE = "models.yaml"


def read_requirements(path: Path) -> list[str]:
    """The references that a `models.yaml` or a workflow asks for, in its order; a `ConfigError` where it is neither."""
    document = read_yaml(path)
    data = document.data
    if isinstance(data, list):
        lines = {("models", *key): at for key, at in document.lines.items()}
        document = Document(document.file, {"models": data}, lines)
    elif isinstance(data, dict) and ("nodes" in data or "settings" in data) and "models" not in data:
        return _of_workflow(document)
    elif data is None:
        return []
    texts = validate(_ModelsFile, document).models
    for index, text in enumerate(texts):
        _check(text, document, ("models", index))
        if text in texts[:index]:
            raise document.error(f"{text!r} is there twice", ("models", index))
    return texts


def combined(lists: Iterable[Iterable[str]]) -> list[str]:
    """The references of several places, each once, in order."""
    return list(dict.fromkeys(text for texts in lists for text in texts))


class _ModelsFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    schema_: Literal["tea.models/1"] = Field(default="tea.models/1", alias="schema")
    models: list[str]


def _of_workflow(document: Document) -> list[str]:
    settings = document.data.get("settings")
    llm = settings.get("llm") if isinstance(settings, dict) else None
    if not isinstance(llm, dict) or "model" not in llm or llm.get("backend") == "api":
        return []
    model = llm["model"]
    place = ("settings", "llm", "model")
    if not isinstance(model, str):
        raise document.error(f"expected a reference to a model, got {model!r}", place)
    if "{{" in model:
        raise document.error(f"{model!r} is only known when the workflow runs", place, hint="list it in models.yaml")
    _check(model, document, place)
    return [model]


def _check(text: str, document: Document, place: tuple[str | int, ...]) -> None:
    try:
        parse_reference(text)
    except UsageError as error:
        raise document.error(error.message, place, hint=error.hint) from None
