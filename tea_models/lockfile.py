"""`models.lock`: every file that a project's models are made of, pinned by source, commit, size and hash (docs/ci.md).

Models are in the order of their references, so that two people who add one each get no conflict elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tea_models.disk.atomic import write_document
from tea_models.disk.regular import open_regular
from tea_models.files import Artifact, ModelFile, Source, is_plain_name, public
from tea_models.refs import SHA256, parse_reference
from tea_models.yamlfile import Document, Path_, load_yaml, read_yaml, validate

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
    return _Reader(read_yaml(path)).lock()


def parse_lock(text: str, file: str) -> Lock:
    """Read the text of a lock; `file` is its name in messages."""
    return _Reader(load_yaml(text, file)).lock()


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


class _Reader:
    """Reads a lock value by value: pydantic takes longer to import than a `sync` takes for all the rest."""

    def __init__(self, document: Document) -> None:
        self._document = document

    def lock(self) -> Lock:
        self._document.refuse_newer(SCHEMA)
        data = self._document.keys((), self._document.data, ("schema",), ("inputs", "names", "models", "engine"))
        if data["schema"] != SCHEMA:
            raise self._document.wrong(f"expected {SCHEMA!r}", ("schema",), data["schema"])
        models = {}
        for reference, item in self._document.mapping(("models",), data.get("models", {})).items():
            models[self._reference(("models", reference), reference)] = self._model(reference, item)
        inputs, names = (
            tuple(
                self._document.text((key, index), one)
                for index, one in enumerate(self._document.list_of((key,), data.get(key, [])))
            )
            for key in ("inputs", "names")
        )
        return Lock(models, inputs, names, self._engine() if data.get("engine") is not None else None)

    def _model(self, reference: str, item: Any) -> LockedModel:
        place = ("models", reference)
        self._document.keys(place, item, ("resolved", "files"), ("license", "template_sha256"))
        given = self._document.list_of((*place, "files"), item["files"], least=1)
        files = tuple(self._file((*place, "files", index), file) for index, file in enumerate(given))
        license_id, template = (
            None if item.get(key) is None else self._document.text((*place, key), item[key])
            for key in ("license", "template_sha256")
        )
        resolved = self._reference((*place, "resolved"), item["resolved"])
        return LockedModel(reference, resolved, files, license_id, template)

    def _file(self, place: Path_, file: Any) -> ModelFile:
        self._document.keys(place, file, ("filename", "sha256", "sources"), ("size", "revision"))
        size, revision, sha256 = file.get("size"), file.get("revision"), file["sha256"]
        if not is_plain_name(self._document.text((*place, "filename"), file["filename"])):
            problem = "expected a plain file name, without folders"
            raise self._document.wrong(problem, (*place, "filename"), file["filename"])
        if size is not None and (type(size) is not int or not 0 < size < 1 << 50):
            raise self._document.wrong("expected a number of bytes", (*place, "size"), size)
        if not isinstance(sha256, str) or not SHA256.match(sha256):
            problem = "expected 64 lower-case hexadecimal digits in quotes"
            raise self._document.wrong(problem, (*place, "sha256"), sha256)
        sources = []
        for index, one in enumerate(self._document.list_of((*place, "sources"), file["sources"], least=1)):
            at = (*place, "sources", index)
            parts = [one]
            if isinstance(one, dict):
                parts = self._document.list_of(
                    (*at, "parts"), self._document.keys(at, one, ("parts",))["parts"], least=1
                )
            texts = [self._document.text(at, part) for part in parts]
            sources.append(self._document.parsed(at, Source.parse, texts))
        first = sources[0].revision
        if first is None:  # an Ollama tag does not name its manifest
            sources[0] = replace(
                sources[0], revision=None if revision is None else self._document.text((*place, "revision"), revision)
            )
        elif revision not in (None, first):
            problem = f"revision is {revision!r}, and the first source is at {first!r}"
            raise self._document.error(problem, (*place, "revision"))
        return ModelFile(file["filename"], size, sha256, tuple(sources))

    def _engine(self) -> Catalog:
        from pydantic import create_model

        from tea_models.registry.engines import Catalog

        engine: Catalog = validate(create_model("_WithEngine", engine=(Catalog, ...)), self._document).engine  # type: ignore[attr-defined]
        return engine

    def _reference(self, place: Path_, value: Any) -> str:
        self._document.parsed(place, parse_reference, self._document.text(place, value))
        return str(value)
