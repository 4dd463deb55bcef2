"""What a registry file may hold, checked with pydantic. Apart from `entries`, because importing pydantic takes long."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from tea_models.errors import UsageError
from tea_models.files import Source, is_plain_name
from tea_models.refs import SHA256


def _sha256(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError("expected text in quotes")  # noqa: TRY004 - pydantic turns ValueErrors into its own
    if isinstance(value, str) and not SHA256.match(value):
        found = "upper-case letters" if SHA256.match(value.lower()) else f"{len(value)} characters"
        raise ValueError(f"expected 64 lower-case hexadecimal digits, found {found}")
    return value


Sha256 = Annotated[str, BeforeValidator(_sha256)]


def _place(text: str) -> str:
    try:
        Source.parse([text])
    except UsageError as error:
        raise ValueError(error.message) from None
    return text


_Place = Annotated[str, AfterValidator(_place)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Parts(Strict):
    parts: list[_Place] = Field(min_length=1)


class _FileModel(Strict):
    filename: str
    size: int | None = Field(default=None, gt=0, lt=1 << 50)
    sha256: Sha256 | None = None
    sources: list[_Place | Parts] = Field(min_length=1)
    seen: list[str] = []  # where size and hash were read; for people who review the entry

    @field_validator("filename")
    @classmethod
    def _check_filename(cls, value: str) -> str:
        if not is_plain_name(value):
            raise ValueError("expected a plain file name, without folders")
        return value


class _VariantModel(Strict):
    files: list[_FileModel] = Field(min_length=1)
    note: str = ""


class _TemplateOverrideModel(Strict):
    replaces_sha256: Sha256
    template: str | None = None
    template_file: str | None = None
    reason: str

    @model_validator(mode="after")
    def _one_text(self) -> _TemplateOverrideModel:
        if (self.template is None) == (self.template_file is None):
            raise ValueError("expected exactly one of template and template_file")
        return self


class _MetadataOverrideModel(Strict):
    value: str | int | float | bool | list[str | int | float | bool] | None
    reason: str
    replaces: str | int | float | bool | list[str | int | float | bool] | None = None


class _OverridesModel(Strict):
    chat_templates: list[_TemplateOverrideModel] = []
    metadata: dict[str, _MetadataOverrideModel] = {}
    stop: list[str] = []


class _EntryModel(Strict):
    kind: Literal["chat", "text", "embedding", "reranker", "projector", "adapter", "test"] = "chat"
    license: str = "unknown"
    upstream: str | None = None
    description: str = ""
    aliases: list[str] = []
    default: str | None = None
    variants: dict[str, _VariantModel] = Field(min_length=1)
    overrides: _OverridesModel = _OverridesModel()

    @field_validator("upstream")
    @classmethod
    def _check_upstream(cls, value: str | None) -> str | None:
        if value is not None and (not value.startswith("hf:") or ":" in value[3:]):
            raise ValueError("expected hf:owner/repo or hf:owner/repo@revision")
        return value


class RegistryModel(Strict):
    schema_: Literal["tea.registry/1"] = Field(alias="schema")
    models: dict[str, _EntryModel] = {}
