"""`plan`, `export` and `doctor` as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tea_models.cli import group
from tea_models.cli.frame import run
from tests.gguf_build import build_gguf, small_llama_metadata


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.gguf").write_bytes(build_gguf())
    return "tiny.gguf"


def tea(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(group(), list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def document(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    found, out, err = tea(capsys, *arguments, "--json")
    assert found == code, out + err
    return json.loads(out)


def test_plan_is_one_document_with_the_contracts_keys(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "plan", tiny, "--estimate")
    assert {"settings", "memory", "decisions", "speed"} <= set(found)
    assert set(found["speed"]) == {"prompt_tokens_per_s", "tokens_per_s", "method"}
    assert found["memory"]["method"] == "estimated"


def test_plan_for_people_says_how_to_learn_more(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _err = tea(capsys, "plan", tiny, "--estimate")
    assert code == 0
    assert "tokens of context" in out
    assert "tea-models plan tiny.gguf --explain" in out
    assert len(out.splitlines()) < 30


@pytest.mark.parametrize("extra", [[], ["--explain"], ["--compare"]])
def test_the_same_question_twice_gets_the_same_answer(
    extra: list[str], tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = document(capsys, "plan", tiny, "--estimate", "--memory", "1GiB", *extra)
    assert document(capsys, "plan", tiny, "--estimate", "--memory", "1GiB", *extra) == first


def test_what_does_not_fit_is_exit_code_5_with_the_numbers(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = tea(capsys, "plan", tiny, "--estimate", "--memory", "5MiB")
    assert code == 5
    assert out == ""
    assert "5.00 MiB may be used" in err
    assert "Traceback" not in err
    error = document(capsys, "plan", tiny, "--estimate", "--memory", "5MiB", code=5)["error"]
    assert error["type"] == "MemoryDoesNotFit"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--n-ctx", "lots"], "--n-ctx 'lots'"),
        (["--n-ctx", "0"], "--n-ctx '0'"),
        (["--memory", "much"], "size 'much'"),
        (["--memory", "0"], "more than nothing"),
        (["--kv-type", "q7_1"], "q8_0"),
        (["--gpu", "some"], "--gpu 'some'"),
        (["--threads", "-1"], "n_threads -1"),
        (["--for", "cooking"], "'cooking'"),
    ],
)
def test_a_wish_that_cannot_be_understood_is_exit_code_2(
    arguments: list[str], words: str, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = tea(capsys, "plan", tiny, "--estimate", *arguments)
    assert code == 2
    assert out == ""
    assert words in err


@pytest.mark.parametrize(("text", "tokens"), [("512", 512), ("1k", 1024), ("1,024", 1024), ("256", 256)])
def test_contexts_may_be_written_as_people_do(
    text: str, tokens: int, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert document(capsys, "plan", tiny, "--estimate", "--n-ctx", text)["settings"]["n_ctx"] == tokens


def test_a_missing_model_and_a_broken_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tea(capsys, "plan", str(tmp_path / "absent.gguf"))[0] == 4
    assert tea(capsys, "plan", "no-such-model-at-all")[0] == 4
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    assert tea(capsys, "plan", str(tmp_path / "broken.gguf"))[0] == 3


def test_a_name_full_of_escapes_does_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = tmp_path / "a\x1b[31mb.gguf"
    evil.write_bytes(build_gguf(small_llama_metadata(**{"general.name": "x\x1b]0;evil\x07"})))
    code, out, err = tea(capsys, "plan", str(evil), "--estimate", "--explain")
    assert "\x1b" not in out + err
    assert code in (0, 2)


def test_export_prints_only_the_settings(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _err = tea(capsys, "export", tiny, "--to", "env", "--estimate")
    assert code == 0
    assert all("=" in line for line in out.splitlines())
    found = document(capsys, "export", tiny, "--to", "llama-server", "--estimate")
    assert found["target"] == "llama-server"


def test_export_writes_a_file_where_that_is_asked_for(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _err = tea(capsys, "export", tiny, "--to", "ollama", "--estimate", "-o", "Modelfile")
    assert code == 0
    assert "wrote Modelfile" in out
    assert (tmp_path / "Modelfile").read_text().splitlines()[2].startswith("FROM ")


def test_export_of_a_model_that_is_not_here_asks_for_its_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert tea(capsys, "export", "phi4-mini", "--to", "env", "--offline")[0] == 4


def test_doctor_looks_at_everything(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "doctor")
    names = {check["name"] for check in found["checks"]}
    assert {"memory", "processor", "engine", "store", "models", "registry"} <= names
    assert {check["status"] for check in found["checks"]} <= {"ok", "warn", "fail"}
    assert found["machine"]["memory_usable"] > 0
    assert found["machine"]["threads"] >= 1


def test_doctor_begins_with_what_is_wrong_and_says_how_to_mend_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "registry.yaml").write_text("schema: tea.registry/1\nmodells: {}\n")
    _code, out, _err = tea(capsys, "doctor", "--offline")
    lines = out.splitlines()
    assert lines[0].startswith("1 problem, ")
    marks = [line[:4].strip() for line in lines if line[:4] in ("FAIL", "warn", "ok  ")]
    assert marks == sorted(marks, key=("FAIL", "warn", "ok").index)
    assert sum(line.strip().startswith("→") for line in lines) == len(marks) - marks.count("ok") >= 2


def test_doctor_names_each_source_of_the_registry_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    found = document(capsys, "doctor")
    (registry,) = [check for check in found["checks"] if check["name"] == "registry"]
    assert registry["detail"].endswith("models: built-in")


def test_doctor_fails_on_a_broken_registry_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "registry.yaml").write_text("schema: tea.registry/1\nmodells: {}\n")
    code, out, _err = tea(capsys, "doctor")
    assert code == 1
    assert "FAIL" in out
    assert "registry.yaml:2" in out


def test_doctor_says_that_a_store_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TEA_MODELS_DIR", str(tmp_path / "file" / "store"))
    code, out, _err = tea(capsys, "doctor")
    assert code == 1
    assert "TEA_MODELS_DIR" in out


def test_without_the_engine_everything_still_answers(tmp_path: Path) -> None:
    """A folder in front of site-packages that hides the engine, as if the extra had not been installed."""
    (tmp_path / "tiny.gguf").write_bytes(build_gguf())
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(
        "import importlib.metadata as m\n"
        "from importlib.machinery import PathFinder\n"
        "real, find = m.version, PathFinder.find_spec\n"
        "def version(name):\n"
        "    if name == 'llama-cpp-python':\n"
        "        raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "def find_spec(name, *rest):\n"
        "    return None if name == 'llama_cpp' else find(name, *rest)\n"
        "m.version, PathFinder.find_spec = version, find_spec\n"
    )
    environ = dict(os.environ) | {"PYTHONPATH": str(tmp_path / "hide")}
    for arguments in (["plan", "tiny.gguf", "--json"], ["doctor", "--json"], ["export", "tiny.gguf", "--to", "env"]):
        done = subprocess.run(
            [sys.executable, "-m", "tea_models.cli", *arguments],
            cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        if arguments[0] == "plan":
            found = json.loads(done.stdout)
            assert found["memory"]["method"] == "estimated"
            assert any("not installed" in note for note in found["notes"])


@pytest.mark.parametrize("module", ["llama_cpp", "huggingface_hub", "pydantic", "jinja2"])
def test_planning_a_file_imports_nothing_heavy(module: str, tiny: str) -> None:
    program = (
        "import sys; from tea_models.cli import main\n"
        "try: main(['plan', 'tiny.gguf', '--estimate', '-q'])\n"
        f"except SystemExit as end: sys.exit(end.code or int({module!r} in sys.modules) * 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def test_a_table_of_variants_goes_without_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(group(), ["plan", "smollm2-135m", "--compare", "--explain"]) == 2
    assert "--compare" in capsys.readouterr().err


@pytest.mark.real
def test_a_model_of_a_wheel_is_planned_before_it_is_fetched(
    tmp_path: Path, real_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned(store: Path) -> dict[str, Any]:
        monkeypatch.setenv("TEA_MODELS_DIR", str(store))
        line = [sys.executable, "-m", "tea_models.cli", "plan", "smollm2-135m", "--memory", "4GiB", "--json"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    before, after = planned(tmp_path / "empty"), planned(real_model.parent)
    assert before["settings"]["n_ctx"] == after["settings"]["n_ctx"] == 8192
    assert before["memory"]["method"] == "estimated"
    assert before["memory"]["kv_cache"] == after["memory"]["kv_cache"]
    assert before["memory"]["total"] == pytest.approx(after["memory"]["total"], rel=0.1)


@pytest.mark.real
def test_doctor_shows_what_loads_took(tmp_path: Path, real_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEA_MODELS_DIR", str(tmp_path))
    program = "from tea_runtime.cli import main; main()"
    chat = ["chat", str(real_model), "Name a color.", "--max-tokens", "2", "--n-ctx", "512", "-q"]
    subprocess.run([sys.executable, "-c", program, *chat], capture_output=True, timeout=120, check=True)
    line = [sys.executable, "-m", "tea_models.cli", "doctor", "--offline"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert f"{real_model.name[:20]}" in done.stdout, done.stderr
    assert " 512 " in done.stdout.partition("LAST LOADS")[2]
