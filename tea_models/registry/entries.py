"""The registry: which models there are, where their bytes come from, and what is known to be wrong with their metadata.

Layers are read in order and a later one replaces an entry of the same name: the built-in `registry.yaml`, the
user's, the project's, and the one `TEA_REGISTRY` names (see `Settings`). docs/registry.md describes the format.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from tea_models.errors import ConfigError, UnknownModelError, UsageError
from tea_models.files import Artifact, ModelFile, Source
from tea_models.refs import FileRef, NameRef, Reference, parse_reference
from tea_models.yamlfile import Document, load_yaml, read_yaml, validate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tea_models.settings import Settings

SCHEMA = "tea.registry/1"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}\Z")
_VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

Kind = Literal["chat", "text", "embedding", "reranker", "projector", "adapter", "test"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A quantisation (or packaging) of a model: one file, or all shards in order."""

    name: str
    files: tuple[ModelFile, ...]
    note: str = ""


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
    """A model of the registry.

    Attributes:
        name: Its name.
        kind: What it is for.
        license: SPDX identifier or the licence's name.
        aliases: Other names.
        default: Name of the variant that is meant when none is given.
        variants: By name, in the order of the file.
        overrides: Corrections of its metadata.
        description: A line for people.
        origin: The layer it came from (a path, or `built-in`).
    """

    name: str
    kind: str
    license: str
    aliases: tuple[str, ...]
    default: str
    variants: Mapping[str, Variant]
    overrides: Overrides
    description: str
    origin: str

    def artifact(self, variant: Variant, text: str) -> Artifact:
        """A variant as something to fetch; `text` is how it was asked for."""
        return Artifact(text, f"{self.name}:{variant.name}", variant.name, variant.files, self.license)


class Registry:
    """All entries of all layers.

    Args:
        entries: By name.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = entries
        self._aliases = {alias: entry for entry in entries.values() for alias in entry.aliases}

    @classmethod
    def load(cls, settings: Settings) -> Registry:
        """Read the built-in registry and the layers that `settings` names.

        Raises:
            ConfigError: A layer is wrong: file, line, key, what was expected.
        """
        documents = [("built-in", load_yaml(builtin_text(), "registry.yaml (built-in)"))]
        documents += [(str(path), read_yaml(path)) for path in settings.registry_files]
        entries: dict[str, Entry] = {}
        for origin, document in documents:
            for entry in read_entries(document, origin):
                entries.pop(entry.name, None)
                entries[entry.name] = entry
        return cls(entries)

    def find(self, reference: NameRef) -> tuple[Entry, Variant]:
        """The entry and variant that a name means.

        Raises:
            UnknownModelError: There is no such model or variant; the message names the nearest ones.
        """
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
        raise UnknownModelError(
            f"{entry.name} has no variant {reference.variant!r}", hint=f"it has {', '.join(entry.variants)}"
        )

    def by_sha256(self, sha256: str) -> tuple[Entry, Variant] | None:
        """The entry and variant that a file with this hash belongs to."""
        for entry in self.entries.values():
            for variant in entry.variants.values():
                if any(file.sha256 == sha256 for file in variant.files):
                    return entry, variant
        return None


def builtin_text() -> str:
    """The text of the registry that comes with this distribution."""
    return (resources.files("tea_models") / "registry.yaml").read_text("utf-8")


def read_entries(document: Document, origin: str) -> list[Entry]:
    """Validate one registry file.

    Args:
        document: The parsed file.
        origin: Recorded in each entry.

    Raises:
        ConfigError: File, line, key, and what was expected.
    """
    if document.data is None:
        return []
    model = validate(_RegistryModel, document)
    _check_names(model, document)
    folder = Path(origin).parent if origin != "built-in" else None
    return [_entry(name, entry, document, origin, folder) for name, entry in model.models.items()]


def _check_names(model: _RegistryModel, document: Document) -> None:
    owners: dict[str, str] = {}
    for name, entry in model.models.items():
        for alias in (name, *entry.aliases):
            if not _NAME.match(alias):
                raise document.error(
                    f"{alias!r}: expected lower-case letters, digits, '.', '_' and '-'", ("models", name)
                )
            if alias in owners:
                raise document.error(f"{alias!r} is a name of {owners[alias]!r} already", ("models", name))
            owners[alias] = name


def _entry(name: str, model: _EntryModel, document: Document, origin: str, folder: Path | None) -> Entry:
    path = ("models", name)
    default = model.default or next(iter(model.variants))
    if default not in model.variants:
        raise document.error(
            f"no variant {default!r}", (*path, "default"), hint=f"variants here: {', '.join(model.variants)}"
        )
    for variant in model.variants:
        if not _VARIANT.match(variant):
            raise document.error("expected a name such as Q4_K_M", (*path, "variants", variant))
    return Entry(
        name=name,
        kind=model.kind,
        license=model.license,
        aliases=tuple(model.aliases),
        default=default,
        variants={key: _variant(key, value, folder) for key, value in model.variants.items()},
        overrides=_overrides(model.overrides, document, (*path, "overrides"), folder),
        description=model.description,
        origin=origin,
    )


def _variant(name: str, model: _VariantModel, folder: Path | None) -> Variant:
    files = tuple(
        ModelFile(file.filename, file.size, file.sha256, tuple(_source(source, folder) for source in file.sources))
        for file in model.files
    )
    return Variant(name, files, model.note)


def _source(texts: str | _PartsModel, folder: Path | None) -> Source:
    parts = [texts] if isinstance(texts, str) else texts.parts
    return Source.of(tuple(_beside(parse_reference(part), folder) for part in parts))


def _beside(reference: Reference, folder: Path | None) -> Reference:
    """A relative path in a registry file means beside that file."""
    if isinstance(reference, FileRef) and folder is not None and not reference.path.is_absolute():
        return FileRef(folder.resolve() / reference.path)
    return reference


def _overrides(
    model: _OverridesModel, document: Document, path: tuple[str | int, ...], folder: Path | None
) -> Overrides:
    templates = []
    for index, item in enumerate(model.chat_templates):
        text = item.template
        if text is None:
            where = (*path, "chat_templates", index, "template_file")
            text = _template_file(str(item.template_file), document, where, folder)
        templates.append(TemplateOverride(item.replaces_sha256, text, item.reason))
    metadata = {
        key: MetadataOverride(_frozen(item.value), item.reason, _frozen(item.replaces))
        for key, item in model.metadata.items()
    }
    return Overrides(tuple(templates), metadata, tuple(model.stop))


def _template_file(name: str, document: Document, path: tuple[str | int, ...], folder: Path | None) -> str:
    # Beside the registry, or one that comes with this package: a copy of the built-in registry names those.
    packaged = resources.files("tea_models") / "chat" / "templates" / name
    beside = folder / name if folder is not None else packaged
    try:
        return (packaged if packaged.is_file() and not beside.is_file() else beside).read_text("utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise document.error(f"{name}: can't be read: {error}", path) from None


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _no_number(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError("expected text in quotes")  # noqa: TRY004 - pydantic turns ValueErrors into its own
    return value


def _sha256(value: str) -> str:
    if not _SHA256.match(value):
        found = "upper-case letters" if _SHA256.match(value.lower()) else f"{len(value)} characters"
        raise ValueError(f"expected 64 lower-case hexadecimal digits, found {found}")
    return value


Sha256 = Annotated[str, BeforeValidator(_no_number), Field(strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _PartsModel(_Strict):
    parts: list[str] = Field(min_length=1)


class _FileModel(_Strict):
    filename: str
    size: int | None = Field(default=None, gt=0, lt=1 << 50)
    sha256: Sha256 | None = None
    sources: list[str | _PartsModel] = Field(min_length=1)
    seen: list[str] = []  # where size and hash were read; for people who review the entry

    @field_validator("sha256")
    @classmethod
    def _check_sha256(cls, value: str | None) -> str | None:
        return value if value is None else _sha256(value)

    @field_validator("filename")
    @classmethod
    def _check_filename(cls, value: str) -> str:
        hostile = value.startswith((".", "-")) or re.search(r"[\x00-\x1f/\\:\x7f]", value)
        if not value or len(value.encode()) > 200 or hostile:
            raise ValueError("expected a plain file name, without folders")
        return value

    @field_validator("sources")
    @classmethod
    def _check_sources(cls, value: list[str | _PartsModel]) -> list[str | _PartsModel]:
        for source in value:
            for text in [source] if isinstance(source, str) else source.parts:
                try:
                    reference = parse_reference(text)
                except UsageError as error:
                    raise ValueError(error.message) from None
                if isinstance(reference, NameRef):
                    raise ValueError(f"{text!r} is a name; expected hf:…, https:…, pypi:… or a path")  # noqa: TRY004
        return value


class _VariantModel(_Strict):
    files: list[_FileModel] = Field(min_length=1)
    note: str = ""


class _TemplateOverrideModel(_Strict):
    replaces_sha256: Sha256
    template: str | None = None
    template_file: str | None = None
    reason: str

    @field_validator("replaces_sha256")
    @classmethod
    def _check_sha256(cls, value: str) -> str:
        return _sha256(value)

    @model_validator(mode="after")
    def _one_text(self) -> _TemplateOverrideModel:
        if (self.template is None) == (self.template_file is None):
            raise ValueError("expected exactly one of template and template_file")
        return self


class _MetadataOverrideModel(_Strict):
    value: str | int | float | bool | list[str | int | float | bool] | None
    reason: str
    replaces: str | int | float | bool | list[str | int | float | bool] | None = None


class _OverridesModel(_Strict):
    chat_templates: list[_TemplateOverrideModel] = []
    metadata: dict[str, _MetadataOverrideModel] = {}
    stop: list[str] = []


class _EntryModel(_Strict):
    kind: Kind = "chat"
    license: str = "unknown"
    description: str = ""
    aliases: list[str] = []
    default: str | None = None
    variants: dict[str, _VariantModel] = Field(min_length=1)
    overrides: _OverridesModel = _OverridesModel()


class _RegistryModel(_Strict):
    schema_: Literal["tea.registry/1"] = Field(alias="schema")
    models: dict[str, _EntryModel] = {}


__all__ = [
    "SCHEMA",
    "ConfigError",
    "Entry",
    "MetadataOverride",
    "Overrides",
    "Registry",
    "TemplateOverride",
    "Variant",
    "builtin_text",
    "read_entries",
]
