"""Which variant to take, and which models of the registry fit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tea_models.cli.output import Output
from tea_models.cli.plan_view import comparison_text
from tea_models.errors import MemoryDoesNotFitError, UnknownModelError, UsageError
from tea_models.plan.choice import best_fit, compare_variants, fit_table
from tea_models.plan.user_settings import UserSettings
from tea_models.registry.entries import Registry
from tea_models.settings import Settings
from tests.gguf_build import F16, build_gguf, small_llama_metadata, small_llama_tensors

MIB, GIB = 1024**2, 1024**3


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., Settings]:
    """A registry with one model in three variants: one here, one of known size, one of unknown size."""

    def make(big: int = 3 * MIB) -> Settings:
        data = build_gguf()
        (tmp_path / "small.gguf").write_bytes(data)
        entry: dict[str, Any] = {
            "kind": "chat",
            "license": "MIT",
            "default": "SMALL",
            "variants": {
                "SMALL": {
                    "files": [
                        {
                            "filename": "small.gguf",
                            "size": len(data),
                            "sha256": hashlib.sha256(data).hexdigest(),
                            "sources": [f"file:{tmp_path}/small.gguf"],
                        }
                    ]
                },
                "BIG": {"files": [_absent("big.gguf", big)]},
                "ODD": {"files": [_absent("odd.gguf", None)]},
            },
        }
        registry = tmp_path / "registry.yaml"
        registry.write_text(yaml.safe_dump({"schema": "tea.registry/1", "models": {"tiny": entry}}))
        environ = {"HOME": str(tmp_path), "TEA_MODELS_DIR": str(tmp_path / "store")}
        settings = Settings.resolve(environ, cwd=tmp_path)
        from tea_models import pull

        pull(["tiny"], settings=settings)
        return settings

    return make


def _absent(name: str, size: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {"filename": name, "sources": [f"https://127.0.0.1:9/{name}"]}
    return found | ({"size": size, "sha256": "0" * 64} if size else {})


def test_variants_are_judged_by_what_can_be_known_of_them(world: Callable[..., Settings]) -> None:
    comparison = compare_variants("tiny", world(), UserSettings(memory=GIB), measure=False)
    fits = {fit.variant: fit for fit in comparison.fits}
    assert fits["SMALL"].method == "estimated"
    assert fits["BIG"].method == "file size"
    assert fits["ODD"].fits is None
    assert fits["ODD"].summary == "unknown"
    assert fits["SMALL"].fits
    assert fits["BIG"].total is not None
    assert fits["SMALL"].total is not None
    assert fits["BIG"].total > fits["SMALL"].total


def test_the_largest_variant_that_fits_is_chosen(world: Callable[..., Settings]) -> None:
    choice = best_fit("tiny", world(), user=UserSettings(memory=GIB), measure=False)
    assert choice.reference == "tiny:BIG"


def test_a_variant_that_does_not_fit_is_passed_over_with_the_reason(world: Callable[..., Settings]) -> None:
    choice = best_fit("tiny", world(big=2 * GIB), user=UserSettings(memory=GIB), measure=False)
    assert choice.reference == "tiny:SMALL"
    assert "BIG too large: 2." in choice.reason


def test_no_variant_fits_is_an_error_with_the_least_need(world: Callable[..., Settings]) -> None:
    with pytest.raises(MemoryDoesNotFitError, match="no variant of tiny fits"):
        best_fit("tiny", world(), user=UserSettings(memory=10 * MIB), measure=False)


def test_choosing_needs_a_name_without_a_variant(world: Callable[..., Settings]) -> None:
    settings = world()
    with pytest.raises(UsageError, match="without a variant"):
        best_fit("tiny:SMALL", settings, measure=False)
    with pytest.raises(UnknownModelError):
        best_fit("tinny", settings, measure=False)


def test_the_table_for_the_registry_fetches_nothing(world: Callable[..., Settings]) -> None:
    settings = world()
    entries = [entry for entry in Registry.load(settings).entries.values() if entry.name in ("tiny", "qwen3-4b")]
    table = fit_table(entries, settings)
    assert table["tiny", "SMALL"]["summary"]
    assert table["qwen3-4b", "Q4_K_M"]["method"] == "file size"
    assert (
        "by its size" in table["qwen3-4b", "Q4_K_M"]["summary"] or "too large" in table["qwen3-4b", "Q4_K_M"]["summary"]
    )


def test_a_file_alone_is_compared_at_several_contexts(world: Callable[..., Settings], tmp_path: Path) -> None:
    settings = world()
    long = build_gguf(small_llama_metadata(**{"llama.context_length": 16384}), small_llama_tensors(type=F16))
    (tmp_path / "long.gguf").write_bytes(long)
    comparison = compare_variants(str(tmp_path / "long.gguf"), settings, UserSettings(memory=GIB), measure=False)
    (fit,) = comparison.fits
    assert list(fit.contexts) == [4096, 8192, 16384]
    assert sorted(fit.contexts.values()) == list(fit.contexts.values())
    text = comparison_text(comparison, Output())
    assert "16,384" in text
    assert "1.00 GiB may be used" in text
