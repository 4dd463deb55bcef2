"""What may be used and what is used: licences, pins, and a bill of materials that CycloneDX's own schema accepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tea_models.caller import Caller
from tea_models.errors import LockError
from tea_models.files import ModelFile, Source
from tea_models.lock.bom import bill_of_materials
from tea_models.lock.pins import make_lock
from tea_models.lock.sync import sync
from tea_models.lockfile import Lock, LockedModel, write_lock
from tea_models.settings import Settings
from tests.gguf_build import build_gguf


def locked(reference: str, license_: str | None) -> LockedModel:
    file = ModelFile(f"{reference}.gguf", 7, "ab" * 32, (Source.parse(f"hf:owner/repo/{reference}.gguf@main"),))
    return LockedModel(reference, f"{reference}:Q8_0", (file,), license_, None)


def lock_of(*models: LockedModel) -> Lock:
    return Lock({model.reference: model for model in models}, (), tuple(model.reference for model in models))


def test_a_bill_of_materials_is_what_cyclonedx_takes() -> None:
    text = bill_of_materials(
        lock_of(locked("one", "Apache-2.0"), locked("other", "Gemma licence"), locked("third", None))
    )
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    one = next(part for part in json.loads(text)["components"] if part["name"] == "one.gguf")
    assert one["type"] == "machine-learning-model"
    assert one["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    assert one["licenses"] == [{"license": {"id": "Apache-2.0"}}]


@pytest.mark.parametrize(("license_", "allowed"), [("Apache-2.0", ["mit"]), (None, ["mit", "apache-2.0"])])
def test_a_licence_that_is_not_allowed_stops_before_anything_is_fetched(
    tmp_path: Path, license_: str | None, allowed: list[str]
) -> None:
    write_lock(tmp_path / "models.lock", lock_of(locked("one", license_)))
    caller = Caller(Settings.resolve({"HOME": str(tmp_path), "TEA_MODELS_DIR": str(tmp_path / "store")}, cwd=tmp_path))
    with pytest.raises(LockError, match=r"not under an allowed licence: one \((Apache-2\.0|unknown)\)"):
        sync(tmp_path / "models.lock", caller, frozen=True, licenses=allowed)
    assert not list((tmp_path / "store").glob("*.gguf"))


def test_strict_refuses_what_would_be_trusted_on_first_use(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(build_gguf())
    caller = Caller(Settings.resolve({"HOME": str(tmp_path), "TEA_MODELS_DIR": str(tmp_path / "store")}, cwd=tmp_path))
    with pytest.raises(LockError, match=r"nobody states the sha256 of model\.gguf"):
        make_lock([str(path)], caller, strict=True)
    (model,) = make_lock([str(path)], caller).models.values()
    assert model.files[0].sha256
