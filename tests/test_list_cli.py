"""`tea-models list`: what is there, what is installed, in any terminal."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tea_models import pull
from tea_models.cli import group, list_view
from tea_models.cli.frame import run
from tea_models.cli.output import Output
from tea_models.cli.quick import quick
from tea_models.settings import Settings
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


def quick_list(*arguments: str) -> int:
    code = quick(["list", *arguments])
    assert code is not None
    return code


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
@pytest.mark.parametrize("extra", [[], ["--all"], ["--fit"]])
def test_no_line_is_wider_than_the_terminal(
    columns: int, extra: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert list_models(*extra) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("NAME")
    assert max(map(len, lines[:-1])) <= max(columns, 45)


def test_a_model_has_one_line_and_each_variant_with_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_models("phi4-mini") == 0
    short = capsys.readouterr().out
    assert [line.split()[0] for line in short.splitlines() if line.startswith("phi4")] == ["phi4-mini"]
    assert "--all" in short
    assert list_models("phi4-mini", "--all") == 0
    assert "phi4-mini:Q4_K_M " in capsys.readouterr().out


def test_every_word_must_be_somewhere_in_what_is_known_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_models("GEMMA", "embedding", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all("gemma" in row["name"] for row in rows)
    assert list_models("no-such-word") == 0
    assert "no such models" in capsys.readouterr().out


def test_installed_models_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = build_gguf()
    (tmp_path / "mine.gguf").write_bytes(data)
    (tmp_path / "registry.yaml").write_text(
        "schema: tea.registry/1\nmodels:\n  zz-mine:\n    variants:\n      F32:\n        files:\n"
        f"          - {{filename: mine.gguf, sha256: '{hashlib.sha256(data).hexdigest()}', sources: ['./mine.gguf']}}\n"
    )
    settings = Settings.resolve(os.environ, cwd=tmp_path)
    pull(["zz-mine"], settings=settings)
    list_view.show(settings, Output(), (), every=False, installed=False, fit=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[0] == "zz-mine"
    assert "installed" in lines[1]


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--all"], ["gemma"], ["--installed"]])
def test_without_click_the_answer_is_the_same(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert list_models(*arguments) == 0
    expected = capsys.readouterr().out
    assert quick_list(*arguments) == 0
    assert capsys.readouterr().out == expected


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
