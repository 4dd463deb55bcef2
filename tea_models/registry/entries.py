"""The registry: which models there are, where their bytes come from, and what is known to be wrong with their metadata.

Layers are read in order and a later one replaces an entry of the same name: the built-in `registry.yaml`, the
user's, the project's, and the one `TEA_REGISTRY` names (see `Settings`). docs/registry.md describes the format.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tea_models.disk.kept_json import keep, read_kept
from tea_models.errors import ConfigError, UnknownModelError
from tea_models.files import Artifact, ModelFile, Source
from tea_models.refs import FileRef, HubRef, NameRef, Reference, parse_reference
from tea_models.registry import CHECKOUT, packaged_text
from tea_models.settings import Settings

if TYPE_CHECKING:
    from tea_models.yamlfile import Document

    # Makes the error for a path of keys: a `Document` knows the lines.
    _Error = Callable[..., ConfigError]

SCHEMA = "tea.registry/1"
_TEMPLATES = Path(__file__).resolve().parents[1] / "chat" / "templates"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}\Z")
_VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")


@dataclass(frozen=True, slots=True)
class Variant:
    """A quantisation (or packaging) of a model: one file, or all shards in order."""

    name: str
    files: tuple[ModelFile, ...]


@dataclass(frozen=True, slots=True)
class TemplateOverride:
    """A chat template that is known to be bad, by the SHA-256 of its text, and the text to use in its place."""

    replaces_sha256: str
    template: str
    reason: str


@dataclass(frozen=True, slots=True)
class MetadataOverride:
    """A value that replaces a metadata key, optionally only where the file says `replaces`."""

    value: Any
    reason: str
    replaces: Any = None


@dataclass(frozen=True, slots=True)
class Overrides:
    """Corrections of what a model's file says about itself."""

    chat_templates: tuple[TemplateOverride, ...] = ()
    metadata: Mapping[str, MetadataOverride] = field(default_factory=dict)
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the registry."""

    name: str
    kind: str
    license: str
    aliases: tuple[str, ...]
    default: str
    variants: Mapping[str, Variant]
    overrides: Overrides
    description: str
    origin: str  # the layer it came from: a path, or `built-in`
    upstream: HubRef | None = None  # the weights its files were made from

    def artifact(self, variant: Variant, text: str) -> Artifact:
        """A variant as something to fetch; `text` is how it was asked for."""
        return Artifact(text, f"{self.name}:{variant.name}", variant.name, variant.files, self.license)


class Registry:
    """All entries of all layers, by name."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = entries
        self._aliases = {alias: entry for entry in entries.values() for alias in entry.aliases}

    @classmethod
    def load(cls, settings: Settings) -> Registry:
        """Read the built-in registry and the layers that `settings` names; a ConfigError has file, line and key."""
        entries = {entry.name: entry for entry in _builtin_entries(settings.store_dir / ".tea" / "registry.json")}
        # In a checkout of this project the working directory's registry.yaml is the built-in one.
        for path in (path for path in settings.registry_files if path.resolve() != CHECKOUT / "registry.yaml"):
            from tea_models.yamlfile import read_yaml  # slow to import, as all of YAML

            entries |= {entry.name: entry for entry in read_entries(read_yaml(path), str(path))}
        return cls(entries)

    def find(self, reference: NameRef) -> tuple[Entry, Variant]:
        """The entry and variant that a name means; an UnknownModelError names the nearest ones."""
        entry = self.entries.get(reference.name) or self._aliases.get(reference.name)
        if entry is None:
            known = [*self.entries, *self._aliases]
            near = difflib.get_close_matches(reference.name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UnknownModelError(
                f"no model {reference.name!r} in the registry", hint=hint + "`tea-models list` shows all of them"
            )
        if reference.variant is None:
            return entry, entry.variants[entry.default]
        for name, variant in entry.variants.items():
            if name.lower() == reference.variant.lower():
                return entry, variant
        hint = f"it has {', '.join(entry.variants)}"
        raise UnknownModelError(f"{entry.name} has no variant {reference.variant!r}", hint=hint)

    def by_sha256(self, sha256: str) -> tuple[Entry, Variant] | None:
        """The entry and variant that a file with this hash belongs to."""
        for entry in self.entries.values():
            for variant in entry.variants.values():
                if any(file.sha256 == sha256 for file in variant.files):
                    return entry, variant
        return None


def _builtin_entries(kept: Path) -> list[Entry]:
    """The built-in registry, which the tests check, from its kept data: parsing YAML is slower than `list`."""
    text = packaged_text("registry.yaml")
    digest = hashlib.sha256(text.encode()).hexdigest()
    found = read_kept(kept)
    if not isinstance(found, dict) or found.get("sha256") != digest:
        from tea_models.yamlfile import plain_yaml

        found = {"sha256": digest, "data": plain_yaml(text)}
        if kept.parent.is_dir():
            keep(kept, found)
    return _entries(found["data"], "built-in", lambda message, _path, **_more: ConfigError(message))


def read_entries(document: Document, origin: str) -> list[Entry]:
    """Validate one registry file; `origin` is recorded in each entry."""
    if document.data is None:
        return []
    from tea_models.registry.schema import RegistryModel
    from tea_models.yamlfile import validate

    validate(RegistryModel, document)
    return _entries(document.data, origin, document.error)


def _entries(document: Mapping[str, Any], origin: str, error: _Error) -> list[Entry]:
    models = document.get("models", {})
    folder = Path(origin).parent if origin != "built-in" else None
    owners: dict[str, str] = {}
    for name, data in models.items():
        for alias in (name, *data.get("aliases", ())):
            if not NAME.match(alias):
                raise error(f"{alias!r}: expected lower-case letters, digits, '.', '_' and '-'", ("models", name))
            if alias in owners:
                raise error(f"{alias!r} is a name of {owners[alias]!r} already", ("models", name))
            owners[alias] = name
    return [_entry(name, data, error, origin, folder) for name, data in models.items()]


def _entry(name: str, data: Mapping[str, Any], error: _Error, origin: str, folder: Path | None) -> Entry:
    path = ("models", name)
    variants = data["variants"]
    default = data.get("default") or next(iter(variants))
    if default not in variants:
        raise error(f"no variant {default!r}", (*path, "default"), hint=f"variants here: {', '.join(variants)}")
    for variant in variants:
        if not _VARIANT.match(variant):
            raise error("expected a name such as Q4_K_M", (*path, "variants", variant))
    upstream = parse_reference(data["upstream"]) if data.get("upstream") else None
    return Entry(
        name=name,
        kind=data.get("kind", "chat"),
        license=data.get("license", "unknown"),
        aliases=tuple(data.get("aliases", ())),
        default=default,
        variants={key: Variant(key, _files(value, folder)) for key, value in variants.items()},
        overrides=_overrides(data.get("overrides", {}), error, (*path, "overrides"), folder),
        description=data.get("description", ""),
        origin=origin,
        upstream=upstream if isinstance(upstream, HubRef) else None,
    )


def _files(data: Mapping[str, Any], folder: Path | None) -> tuple[ModelFile, ...]:
    files = []
    for file in data["files"]:
        sources = []
        for texts in file["sources"]:
            parts = map(parse_reference, [texts] if isinstance(texts, str) else texts["parts"])
            sources.append(Source.of(tuple(_beside(part, folder) for part in parts)))
        files.append(ModelFile(file["filename"], file.get("size"), file.get("sha256"), tuple(sources)))
    return tuple(files)


def _beside(reference: Reference, folder: Path | None) -> Reference:
    """A relative path in a registry file means beside that file."""
    if isinstance(reference, FileRef) and folder is not None:
        return FileRef(folder.resolve() / reference.path)
    return reference


def _overrides(data: Mapping[str, Any], error: _Error, path: tuple[str | int, ...], folder: Path | None) -> Overrides:
    templates = []
    for index, item in enumerate(data.get("chat_templates", ())):
        text = item.get("template")
        if text is None:
            where = (*path, "chat_templates", index, "template_file")
            text = _template_file(item["template_file"], error, where, folder)
        templates.append(TemplateOverride(item["replaces_sha256"], text, item["reason"]))
    metadata = {
        key: MetadataOverride(_frozen(item["value"]), item["reason"], _frozen(item.get("replaces")))
        for key, item in data.get("metadata", {}).items()
    }
    return Overrides(tuple(templates), metadata, tuple(data.get("stop", ())))


def _template_file(name: str, error: _Error, path: tuple[str | int, ...], folder: Path | None) -> str:
    # Beside the registry, or one that comes with this package: a copy of the built-in registry names those.
    packaged = _TEMPLATES / name
    beside = folder / name if folder is not None else packaged
    try:
        return (packaged if packaged.is_file() and not beside.is_file() else beside).read_text("utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as problem:
        raise error(f"{name}: can't be read: {problem}", path) from None


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
