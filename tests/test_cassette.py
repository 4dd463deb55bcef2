"""Cassettes: what was recorded is answered again without a model, and what was not is an error that says how it differs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tea_models.errors import ConfigError, MissingFileError, UsageError
from tea_runtime import LlmCallParams, LocalLlmBackend, create_llm_backend
from tea_runtime.backend import LlmBackend
from tea_runtime.cassette.backend import CassetteBackend, asked_model, cassette_of, check_cassette
from tea_runtime.cassette.entries import AskedModel, Cassette, Mode, read_cassette
from tea_runtime.errors import CassetteMissError
from tea_runtime.llm_settings import LlmSettings
from tests.api_server import serve_api

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = AskedModel(NAME, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
QUESTION = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]


@pytest.fixture(scope="module")
def llm(real_model: Path) -> Iterator[LocalLlmBackend]:
    with LocalLlmBackend(real_model, n_ctx=1024) as backend:
        yield backend


def nobody() -> LlmBackend:
    raise AssertionError("the model was opened")


def backend(path: Path, mode: Mode, live: LlmBackend | None = None, model: AskedModel = MODEL) -> CassetteBackend:
    return CassetteBackend(Cassette(path, mode), model, (lambda: live) if live is not None else nobody)


@pytest.fixture
def recorded(tmp_path: Path, llm: LocalLlmBackend) -> Path:
    """A cassette with a chat, a raw prompt, a list of vectors and two answers to one question."""
    path = tmp_path / "sub" / "answers.jsonl"
    recording = backend(path, Mode.RECORD, llm)
    recording.chat(QUESTION, 20, 0.0)
    recording.call(LlmCallParams("The sky is", max_tokens=4, temperature=0))
    recording.embed(["one", "two"])
    for seed in (1, 2):
        recording.cassette.add(
            type(recording.cassette.entries[0])(
                {"kind": "chat", "model": NAME, "messages": QUESTION, "parameters": {"temperature": 1.0}},
                {"content": f"answer {seed}", "model": NAME, "backend": "local"},
                {},
            )
        )
    return path


@pytest.mark.real
def test_a_recorded_answer_is_replayed_without_a_model(recorded: Path, llm: LocalLlmBackend) -> None:
    replaying = backend(recorded, Mode.REPLAY)
    live, replayed = llm.chat(QUESTION, 20, 0.0), replaying.chat(QUESTION, 20, 0.0)
    assert "Paris" in replayed.content
    assert (replayed.content, replayed.finish_reason, replayed.backend) == (live.content, live.finish_reason, "local")
    assert replaying.call(LlmCallParams("The sky is", max_tokens=4, temperature=0)).tokens_used == 7
    assert replaying.embed("two") == pytest.approx(llm.embed("two"), abs=1e-6)


@pytest.mark.real
def test_a_replayed_stream_comes_in_pieces_that_make_the_whole(recorded: Path) -> None:
    pieces: list[str] = []
    result = backend(recorded, Mode.REPLAY).stream_chat(QUESTION, pieces.append, 20, 0.0)
    assert len(pieces) > 1
    assert "".join(pieces) == result.content


@pytest.mark.real
def test_one_question_that_was_answered_twice_is_replayed_in_that_order(recorded: Path) -> None:
    replaying = backend(recorded, Mode.REPLAY)
    assert [replaying.chat(QUESTION, temperature=1.0).content for _ in range(3)] == ["answer 1", "answer 2", "answer 2"]


@pytest.mark.real
def test_an_entry_says_which_bytes_which_template_and_which_engine_answered(recorded: Path) -> None:
    entry = read_cassette(recorded)[0]
    assert entry.recorded["model_sha256"] == MODEL.sha256
    assert entry.recorded["engine"].startswith("llama-cpp-python 0.")
    assert len(entry.recorded["template_sha256"]) == 64


@pytest.mark.real
def test_a_request_that_is_not_there_shows_the_nearest_and_what_differs(recorded: Path) -> None:
    other = [QUESTION[0], {"role": "user", "content": "What is the capital of Spain?"}]
    with pytest.raises(CassetteMissError, match=r"differs in messages: .*France.*Spain") as raised:
        backend(recorded, Mode.REPLAY).chat(other, 20, 0.0)
    assert "TEA_CASSETTE_MODE=auto" in raised.value.hint


@pytest.mark.real
def test_a_model_of_other_bytes_is_not_answered_for(recorded: Path) -> None:
    with pytest.raises(CassetteMissError, match="recorded sha256 b179c9523d0e…, asked ffffffffffff…"):
        backend(recorded, Mode.REPLAY, model=AskedModel(NAME, "f" * 64)).chat(QUESTION, 20, 0.0)


@pytest.mark.real
def test_auto_asks_only_for_what_is_new_and_adds_it(recorded: Path, llm: LocalLlmBackend) -> None:
    before = recorded.read_text("utf-8")
    assert "Paris" in backend(recorded, Mode.AUTO).chat(QUESTION, 20, 0.0).content
    assert recorded.read_text("utf-8") == before
    backend(recorded, Mode.AUTO, llm).call(LlmCallParams("Water is", max_tokens=2, temperature=0))
    assert recorded.read_text("utf-8").startswith(before)
    assert len(read_cassette(recorded)) == 7


@pytest.mark.real
def test_asked_again_the_same_model_changes_nothing_and_an_edited_answer_shows(
    recorded: Path, llm: LocalLlmBackend
) -> None:
    entries = read_cassette(recorded)[:4]
    assert [change.status for change in check_cassette(entries, llm)] == ["same"] * 4
    lines = recorded.read_text("utf-8").replace("Paris", "Lyon").splitlines(keepends=True)[:2]
    recorded.write_text("".join(lines), "utf-8")
    (change,) = check_cassette(read_cassette(recorded), llm)
    assert (change.status, "Lyon" in change.before, "Paris" in change.now) == ("changed", True, True)
    assert 0.5 < change.similarity < 1


@pytest.mark.real
def test_the_command_shows_what_answers_otherwise_now(recorded: Path, real_model: Path) -> None:
    def check(*more: str) -> subprocess.CompletedProcess[str]:
        program = "from tea_runtime.cli import main; main()"
        line = [sys.executable, "-c", program, "cassette", "check", str(recorded), *more]
        environ = os.environ | {"TEA_MODELS_DIR": str(real_model.parent)}
        return subprocess.run(line, env=environ, capture_output=True, text=True, check=False, timeout=120)

    lines = recorded.read_text("utf-8").splitlines(keepends=True)[:2]
    recorded.write_text("".join(lines), "utf-8")
    same = check("--n-ctx", "1024", "--json")
    assert (same.returncode, json.loads(same.stdout)["same"]) == (0, 1), same.stderr
    recorded.write_text("".join(lines).replace("Paris", "Lyon"), "utf-8")
    assert "<|im_start|>user\nWhat is the capital of France?" in json.loads(lines[1])["recorded"]["rendered"]
    changed = check("--model", str(real_model), "--n-ctx", "1024")
    assert changed.returncode == 1
    assert "  - The capital of France is Lyon." in changed.stdout
    assert "  + The capital of France is Paris." in changed.stdout
    assert check("--max-changed", "1", "--n-ctx", "1024").returncode == 0
    recorded.write_text("".join(lines).replace(MODEL.sha256 or "", "0" * 64), "utf-8")
    unknown = check()
    assert (unknown.returncode, "--model" in unknown.stderr) == (2, True)


@pytest.mark.real
def test_a_process_records_and_replays_by_its_environment(
    tmp_path: Path, real_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.jsonl"
    environ = {"HOME": str(tmp_path), "TEA_MODEL_PATH": str(real_model), "TEA_CASSETTE": str(path)}
    with create_llm_backend(environ=environ | {"TEA_CASSETTE_MODE": "record"}) as recording:
        said = recording.chat(QUESTION, 20, 0.0).content
    gone = environ | {"TEA_MODEL_PATH": str(tmp_path / real_model.name)}
    with create_llm_backend(environ=gone) as replaying:
        assert replaying.chat(QUESTION, 20, 0.0).content == said


def test_what_is_no_cassette_is_not_overwritten_by_one(tmp_path: Path) -> None:
    flow = tmp_path / "flow.yaml"
    flow.write_text("name: flow\n")
    with pytest.raises(ConfigError):
        Cassette(flow, Mode.RECORD)
    assert flow.read_text() == "name: flow\n"


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        ({"kind": "chat", "model": "m", "messages": "x"}, {"content": ""}),
        ({"kind": "chat", "model": "m", "messages": [5]}, {"content": ""}),
        ({"kind": "call", "model": "m", "prompt": "x", "parameters": [1]}, {"content": ""}),
        ({"kind": "embed", "model": "m", "text": "x"}, {"content": ""}),
        ({"kind": "nope", "model": "m"}, {"content": ""}),
        ({"kind": "chat", "model": 5, "messages": []}, {"content": ""}),
    ],
)
def test_a_damaged_entry_is_refused_with_its_line(
    tmp_path: Path, request_: dict[str, Any], answer: dict[str, Any]
) -> None:
    path = tmp_path / "c.jsonl"
    lines = [{"schema": "tea.cassette/1"}, {"request": request_, "answer": answer, "recorded": {}}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ConfigError) as refused:
        read_cassette(path)
    assert refused.value.line == 2


def test_nothing_to_replay_is_an_error_that_says_how_to_record(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError) as raised:
        Cassette(tmp_path / "none.jsonl", Mode.REPLAY)
    assert "--record" in raised.value.hint


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", None),
        ('{"schema": "tea.cassette/2"}\n', 1),
        ("[1]\n", 1),
        ('{"schema": "tea.cassette/1"}\n{"request": ', 2),
        ('{"schema": "tea.cassette/1"}\n{"request": {}, "answer": {}, "recorded": {}}\n', 2),
        ('{"schema": "tea.cassette/1"}\n[]\n', 2),
    ],
)
def test_a_damaged_cassette_is_refused_with_its_line(tmp_path: Path, text: str, line: int | None) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as raised:
        read_cassette(path)
    assert raised.value.line == line


def test_a_mode_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="expected replay, record, auto"):
        cassette_of({"TEA_CASSETTE": "c.jsonl", "TEA_CASSETTE_MODE": "repaly"})


def test_the_model_is_known_by_its_file_and_pin_without_the_file(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    assert asked_model(LlmSettings.parse({"model": "smollm2-135m"}), environ) == MODEL
    assert asked_model(LlmSettings.parse({"model_path": f"/models/{NAME}"}), environ) == AskedModel(NAME)
    assert asked_model(LlmSettings.parse({"model": "gpt-4o", "backend": "api"}), environ) == AskedModel("gpt-4o")
    assert asked_model(LlmSettings.parse({}), environ | {"TEA_MODEL_PATH": "/x/y.gguf"}) == AskedModel("y.gguf")


def test_an_apis_answer_is_replayed_too_and_its_key_is_not_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    with serve_api() as server:
        environ = {
            "HOME": str(tmp_path),
            "OPENAI_API_KEY": "sk-very-secret-0123456789",
            "TEA_CASSETTE": str(path),
            "TEA_CASSETTE_MODE": "record",
        }
        settings = {"backend": "api", "model": "some-model", "api_base": server.base}
        with create_llm_backend(settings, environ=environ) as recording:
            said = recording.chat(QUESTION).content
    del environ["OPENAI_API_KEY"], environ["TEA_CASSETTE_MODE"]
    with create_llm_backend(settings, environ=environ) as replaying:
        again = replaying.chat(QUESTION)
    assert (again.content, again.backend) == (said, "api")
    assert "sk-very-secret" not in path.read_text("utf-8")
