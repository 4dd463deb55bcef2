"""`models.lock`: every file that a project's models are made of, pinned by source, commit, size and hash (docs/ci.md).

Models are in the order of their references, so that two people who add one each get no conflict elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field, create_model, model_validator

from tea_models.disk.atomic import write_document
from tea_models.disk.regular import open_regular
from tea_models.files import Artifact, ModelFile, Source, public
from tea_models.registry.schema import PinnedFile, ReferenceText, Sha256, Strict
from tea_models.yamlfile import Document, load_yaml, read_yaml, validate

if TYPE_CHECKING:  # slow to import, and few locks name an engine
    from tea_models.registry.engines import Catalog

SCHEMA = "tea.models-lock/1"
_HEADER = "# Written by `tea-models lock`. Commit it; `tea-models sync --frozen` installs exactly this.\n"


@dataclass(frozen=True, slots=True)
class LockedModel:
    """One model of a lock: the reference as it was asked for, and what that means."""

    reference: str
    resolved: str
    files: tuple[ModelFile, ...]
    license: str | None
    template_sha256: str | None

    def artifact(self) -> Artifact:
        return Artifact(self.reference, self.resolved, None, self.files, self.license)


@dataclass(frozen=True, slots=True)
class Lock:
    """The content of a `models.lock`; `inputs` are files beside it whose references are locked, `names` others."""

    models: Mapping[str, LockedModel] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    engine: Catalog | None = None

    @property
    def files(self) -> list[ModelFile]:
        return [file for model in self.models.values() for file in model.files]

    def find(self, text: str) -> LockedModel | None:
        """The model that a reference means: by how it was asked for, or by what that was resolved to."""
        shown = public(text)
        if shown in self.models:
            return self.models[shown]
        resolved = [model for model in self.models.values() if model.resolved.lower() == shown.lower()]
        return resolved[0] if len(resolved) == 1 else None


def read_lock(path: Path) -> Lock:
    """Read a lock file; a MissingFileError where there is none, a ConfigError with file, line and key if damaged."""
    return _read(read_yaml(path))


def parse_lock(text: str, file: str) -> Lock:
    """Read the text of a lock; `file` is its name in messages."""
    return _read(load_yaml(text, file))


def _read(document: Document) -> Lock:
    engine = isinstance(document.data, dict) and document.data.get("engine") is not None
    found = validate(_with_engine() if engine else _LockModel, document)
    models = {}
    for reference, item in found.models.items():
        files = tuple(file.model_file() for file in item.files)
        models[reference] = LockedModel(reference, item.resolved, files, item.license, item.template_sha256)
    return Lock(models, tuple(found.inputs), tuple(found.names), found.engine)


def format_lock(lock: Lock) -> str:
    """The text of a lock file; the same lock always has the same text."""
    models = {
        reference: {
            "resolved": model.resolved,
            "license": model.license,
            "template_sha256": model.template_sha256,
            "files": [
                {
                    "filename": file.filename,
                    "size": file.size,
                    "sha256": file.sha256,
                    "revision": file.sources[0].revision,
                    "sources": [source.document() for source in file.sources],
                }
                for file in model.files
            ],
        }
        for reference, model in sorted(lock.models.items())
    }
    document = {"schema": SCHEMA, "inputs": sorted(lock.inputs), "names": sorted(lock.names), "models": models}
    if lock.engine is not None:
        document["engine"] = lock.engine.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude={"engines": {"__all__": {"speed"}}}
        )
    return _HEADER + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1 << 20)


def write_lock(path: Path, lock: Lock) -> bool:
    """Write a lock file atomically, if its text changes; whether it did."""
    text = format_lock(lock)
    with contextlib.suppress(OSError), open_regular(path) as file:
        if file.read() == text.encode():
            return False
    write_document(path, text)
    return True


class _FileModel(PinnedFile):
    sha256: Sha256
    revision: str | None = None

    @model_validator(mode="after")
    def _check(self) -> _FileModel:
        first = self.model_file().sources[0].revision
        if self.revision not in (None, first):
            raise ValueError(f"revision is {self.revision!r}, and the first source is at {first!r}")
        return self

    def model_file(self) -> ModelFile:
        sources = [Source.parse([one] if isinstance(one, str) else one.parts) for one in self.sources]
        if sources[0].revision is None:  # an Ollama tag does not name its manifest
            sources[0] = replace(sources[0], revision=self.revision)
        return ModelFile(self.filename, self.size, self.sha256, tuple(sources))


class _ModelModel(Strict):
    resolved: ReferenceText
    license: str | None = None
    template_sha256: str | None = None
    files: list[_FileModel] = Field(min_length=1)


class _LockModel(Strict):
    schema_: Literal["tea.models-lock/1"] = Field(alias="schema")
    inputs: list[str] = Field(default=[])
    names: list[str] = Field(default=[])
    models: dict[ReferenceText, _ModelModel] = Field(default={})
    engine: Any = None


def _with_engine() -> type[_LockModel]:
    from tea_models.registry.engines import Catalog

    return create_model("_LockModel", __base__=_LockModel, engine=(Catalog, ...))
