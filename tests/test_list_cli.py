"""`tea-models list`: what is there, what is installed, in any terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tea_models.cli import group
from tea_models.cli.frame import run
from tests.gguf_build import build_gguf


def list_models(*arguments: str) -> int:
    return run(group(), ["list", *arguments])


def test_every_variant_of_the_registry_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_models("--json") == 0
    rows = json.loads(capsys.readouterr().out)
    phi = [row for row in rows if row["name"] == "phi4-mini"]
    assert [row["variant"] for row in phi if row["default"]] == ["Q3_K_S"]
    assert {row["variant"] for row in phi} >= {"Q3_K_S", "Q4_K_M"}
    assert not any(row["installed"] for row in rows)
    assert [row["variant"] for row in rows if not row["pinned"]] == ["Q8_0-unsloth"]


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert list_models() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("NAME")
    assert max(map(len, lines[:-1])) <= max(columns, 45)


def test_only_one_kind_is_listed_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_models("--kind", "embedding", "--json") == 0
    assert {row["kind"] for row in json.loads(capsys.readouterr().out)} == {"embedding"}
    assert list_models("--kind", "wrong") == 2


def test_an_empty_store_says_how_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_models("--installed") == 0
    assert "tea-models pull smollm2-135m" in capsys.readouterr().out


def test_what_was_pulled_by_its_address_is_listed_though_no_registry_has_a_name_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.gguf").write_bytes(build_gguf())
    assert run(group(), ["pull", "--no-adopt", str(tmp_path / "mine.gguf")]) == 0
    capsys.readouterr()
    assert list_models("--installed", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["installed"], row["variant"], row["path"].rpartition("/")[2]) == (True, None, "mine.gguf")
    assert list_models("--installed") == 0
    assert "mine.gguf" in capsys.readouterr().out
