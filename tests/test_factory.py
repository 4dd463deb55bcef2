"""`create_llm_backend`: which backend, and what is said about it."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from tea_models.errors import ConfigError, IntegrityError, MissingFileError
from tea_runtime import ApiLlmBackend, LlmCallParams, LocalLlmBackend, create_llm_backend
from tea_runtime.errors import BackendUnavailableError
from tests.scripted_model import build_scripted

pytest.importorskip("llama_cpp")
pytest.importorskip("openai")

KEY = {"OPENAI_API_KEY": "sk-test"}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "m.gguf"
    build_scripted(path, [["Hello"]])
    return path


@pytest.fixture
def environ(own_world):
    return {"HOME": str(own_world), "TEA_MODELS_DIR": str(own_world / "models")}


def messages(caplog, level):
    return [record.message for record in caplog.records if record.levelno == level]


@pytest.mark.parametrize("backend", ["local", "auto"])
def test_a_local_model_is_used_where_there_is_one(path, environ, caplog, backend):
    caplog.set_level(logging.INFO, logger="tea_runtime")
    with create_llm_backend({"backend": backend, "model_path": str(path)}, environ=environ | KEY) as made:
        assert isinstance(made, LocalLlmBackend)
        assert made.call(LlmCallParams("\n", temperature=0)).backend == "local"
    assert "backend: local (m.gguf), named by settings.llm.model_path" in messages(caplog, logging.INFO)


def test_api_is_used_when_it_is_asked_for(path, environ, caplog):
    caplog.set_level(logging.INFO, logger="tea_runtime")
    with create_llm_backend({"backend": "api", "model_path": str(path)}, environ=environ | KEY) as made:
        assert isinstance(made, ApiLlmBackend)
    assert any(text.startswith("backend: api") for text in messages(caplog, logging.INFO))


def test_a_missing_file_falls_back_to_the_api_and_says_so(environ, caplog):
    with create_llm_backend({"model_path": "/nowhere/m.gguf"}, environ=environ | KEY) as made:
        assert isinstance(made, ApiLlmBackend)
        assert "/nowhere/m.gguf: no such file" in made.reason
    warnings = messages(caplog, logging.WARNING)
    assert any("/nowhere/m.gguf: no such file" in text for text in warnings)
    assert any("in place of a local model" in text for text in warnings)


def test_a_failed_load_falls_back_to_the_api(tmp_path, environ):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF rubbish")
    with create_llm_backend({"model_path": str(broken)}, environ=environ | KEY) as made:
        assert "broken.gguf" in made.reason


@pytest.mark.parametrize(
    "said", [{"fallback": False}, {"fallback": ""}, {"fallback": None}, {"backend": "local"}, {"provider": "local"}]
)
def test_no_api_stands_in_where_that_is_forbidden(environ, said):
    with pytest.raises(MissingFileError, match="no such file"):
        create_llm_backend({"model_path": "/nowhere/m.gguf", **said}, environ=environ | KEY)


def test_a_missing_model_of_the_command_line_is_an_error_whatever_the_settings_allow(environ):
    with pytest.raises(MissingFileError, match=r"nothing\.gguf"):
        create_llm_backend({"backend": "api", "fallback": True}, gguf="nothing.gguf", environ=environ | KEY)


def test_a_named_model_that_is_absent_says_how_to_get_that_one(environ):
    with pytest.raises(MissingFileError, match="phi4-mini is not in the store") as caught:
        create_llm_backend({"backend": "local", "model": "phi4-mini"}, environ=environ)
    assert caught.value.hint == "tea-models pull phi4-mini"


def test_without_model_and_api_one_error_has_both_reasons(environ):
    with pytest.raises(BackendUnavailableError) as caught:
        create_llm_backend({}, environ=environ)
    assert "local: " in str(caught.value)
    assert "api: OPENAI_API_KEY is not set" in str(caught.value)
    assert caught.value.exit_code == 4
    assert "tea-models pull" in caught.value.hint


def test_without_an_api_a_broken_file_stays_an_integrity_error(tmp_path, environ):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF rubbish")
    with pytest.raises(IntegrityError):
        create_llm_backend({"model_path": str(broken)}, environ=environ)


def test_api_without_a_key_is_unavailable(environ):
    with pytest.raises(BackendUnavailableError, match="OPENAI_API_KEY"):
        create_llm_backend({"backend": "api"}, environ=environ)


def test_a_wrong_setting_is_an_error_and_no_reason_to_fall_back(environ):
    with pytest.raises(ConfigError, match="unknown key"):
        create_llm_backend({"model_pth": "x"}, environ=environ | KEY)
    with pytest.raises(ConfigError, match="expected local, api or auto"):
        create_llm_backend({"backend": "remote"}, environ=environ | KEY)


def test_overrides_replace_settings_and_none_does_not(path, environ):
    settings = {"backend": "api", "model_path": str(path), "n_ctx": 512}
    with create_llm_backend(settings, environ=environ | KEY, backend="local", n_ctx=None) as made:
        assert isinstance(made, LocalLlmBackend)
        assert made.plan.settings.n_ctx == 512


def test_a_model_on_the_command_line_goes_before_the_settings(path, tmp_path, environ):
    other = tmp_path / "other.gguf"
    build_scripted(other, [["Other"]])
    with create_llm_backend({"model_path": str(other)}, environ=environ, gguf=str(path)) as made:
        assert made.model_path == path


def test_a_model_that_is_not_in_the_store_is_pulled_when_that_is_wanted(path, environ):
    settings = {"model": f"file:{path}", "auto_pull": True}
    with create_llm_backend(settings, environ=environ) as made:
        assert made.call(LlmCallParams("\n", temperature=0)).content == "Hello"


def test_the_name_of_a_local_model_is_not_sent_to_a_public_api(environ):
    with create_llm_backend({"model": "smollm2-135m"}, environ=environ | KEY) as made:
        assert made.model != "smollm2-135m"
    with create_llm_backend({"model": "./private/notes.gguf"}, environ=environ | KEY) as made:
        assert "private" not in made.model
    with create_llm_backend({"model": "gpt-5-nano"}, environ=environ | KEY) as made:
        assert made.model == "gpt-5-nano"
    with create_llm_backend({"model": "smollm2-135m", "api_base": "http://127.0.0.1:9/v1"}, environ=environ) as made:
        assert made.model == "smollm2-135m"


def test_without_the_engine_the_api_takes_over_and_alone_it_is_an_import_error(path, environ):
    program = (
        "import sys, importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'llama_cpp' else find(name, *a)\n"
        "from tea_runtime import create_llm_backend\n"
        f"settings, environ = {{'model_path': {str(path)!r}}}, {environ!r}\n"
        "print(create_llm_backend(settings, environ=environ | {'OPENAI_API_KEY': 'x'}).reason)\n"
        "try: create_llm_backend(settings, environ=environ)\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.count("the extra llm-local") == 2
