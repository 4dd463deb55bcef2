"""Which file a workflow means: the order of the design, and what is said about what was passed over."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tea_models import Settings, pull
from tea_models.errors import ConfigError, MissingFileError, UnknownModelError
from tea_models.profile.document import to_json
from tea_models.profile.header_facts import resolve_profile
from tea_runtime import create_llm_backend, resolve_model_path
from tea_runtime.errors import BackendUnavailableError
from tea_runtime.llm_settings import LlmSettings
from tea_runtime.resolve import is_model_name, search
from tests.gguf_build import build_gguf


def found_model(block, *, gguf=None, environ):
    return search(LlmSettings.parse(block), gguf=gguf, environ=environ)


def model(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(build_gguf())
    return path


@pytest.fixture
def world(own_world, tmp_path, monkeypatch):
    """Every level has a model of its own."""
    monkeypatch.chdir(tmp_path)
    profiled = model(tmp_path / "profiled" / "profiled.gguf")
    (profiled.parent / "facts.json").write_text(json.dumps(to_json(resolve_profile(profiled))))
    given = model(tmp_path / "elsewhere" / "model.gguf")
    levels = {
        "the command line": model(tmp_path / "gguf.gguf"),
        "TEA_MODEL_PATH": model(tmp_path / "env.gguf"),
        "settings.llm.profile": profiled,
        "settings.llm.model_path": model(tmp_path / "path.gguf"),
        "settings.llm.model": given,
        "APPDIR": model(tmp_path / "app" / "usr" / "share" / "models" / "bundled.gguf"),
        "store": model(own_world / "models" / "stored.gguf"),
    }
    environ = {
        "HOME": str(own_world),
        "TEA_MODELS_DIR": str(own_world / "models"),
        "TEA_MODEL_PATH": str(levels["TEA_MODEL_PATH"]),
        "APPDIR": str(tmp_path / "app"),
    }
    block = {
        "profile": str(profiled.parent / "facts.json"),
        "model_path": str(levels["settings.llm.model_path"]),
        "model": str(given),
    }
    return levels, environ, block


def test_the_first_that_exists_is_taken_level_by_level(world):
    levels, environ, block = world
    gguf = str(levels["the command line"])
    for source, path in levels.items():
        found = found_model(block, gguf=gguf, environ=environ)
        assert (found.source, found.path) == (source, path)
        path.unlink()
        if source == "the command line":
            gguf = None
        if source == "APPDIR":  # what is left is for workflows that name no model
            block, environ = {}, {**environ, "TEA_MODEL_PATH": ""}
    assert resolve_model_path(block, environ=environ) is None


@pytest.mark.parametrize("block", [{"model_path": "/nope.gguf"}, {"model": "/nope.gguf"}, {"model": "smollm2-135m"}])
def test_a_named_model_that_is_missing_is_not_replaced_by_another_one(own_world, block):
    model(own_world / "models" / "stored.gguf")
    environ = {"HOME": str(own_world), "TEA_MODELS_DIR": str(own_world / "models")}
    assert resolve_model_path(block, environ=environ) is None
    assert resolve_model_path({}, environ={**environ, "TEA_MODEL_PATH": "/nope.gguf"}) is None
    with pytest.raises(BackendUnavailableError, match=r"nope|smollm2"):
        create_llm_backend(block, environ=environ)


def test_a_path_of_another_machine_finds_the_file_of_that_name_in_the_store(own_world):
    path = model(own_world / "models" / "named.gguf")
    model(own_world / "models" / "other.gguf")
    environ = {"HOME": str(own_world), "TEA_MODELS_DIR": str(own_world / "models")}
    found = found_model({"model_path": "/elsewhere/named.gguf"}, environ=environ)
    assert (found.path, found.source, len(found.skipped)) == (path, "store", 1)


@pytest.mark.parametrize(("block", "key"), [({}, {}), ({"backend": "local"}, {"OPENAI_API_KEY": "k"})])
def test_a_mistyped_name_is_an_error_that_says_the_nearest(own_world, block, key):
    model(own_world / "models" / "stored.gguf")
    environ = {"HOME": str(own_world), "TEA_MODELS_DIR": str(own_world / "models")} | key
    for ask in (resolve_model_path, create_llm_backend):
        with pytest.raises(UnknownModelError, match="phi5-mini") as caught:
            ask(block | {"model": "phi5-mini"}, environ=environ)
        assert "phi4-mini" in caught.value.hint
        assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("block", "key"),
    [({"backend": "api"}, {}), ({}, {"OPENAI_API_KEY": "k"}), ({"api_base": "http://127.0.0.1:9/v1"}, {})],
)
def test_an_unknown_name_may_be_that_of_an_apis_model(own_world, block, key):
    pytest.importorskip("openai")
    model(own_world / "models" / "stored.gguf")
    environ = {"HOME": str(own_world), "TEA_MODELS_DIR": str(own_world / "models")} | key
    assert resolve_model_path(block | {"model": "gpt-next"}, environ=environ) is None


def test_what_was_passed_over_is_told_with_its_reason(world, caplog):
    levels, environ, block = world
    levels["TEA_MODEL_PATH"].unlink()
    found = found_model(block, environ=environ)
    assert any("TEA_MODEL_PATH: " in reason and "no such file" in reason for reason in found.skipped)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert any("TEA_MODEL_PATH" in text and "profiled.gguf" in text for text in warnings)


def test_a_model_given_on_the_command_line_is_never_replaced(world):
    _, environ, block = world
    with pytest.raises(MissingFileError, match=r"nothing\.gguf"):
        resolve_model_path(block, gguf="nothing.gguf", environ=environ)


def test_home_and_variables_are_expanded(own_world, tmp_path):
    path = model(own_world / "mine" / "a.gguf")
    environ = {"HOME": str(own_world), "WHERE": str(path.parent)}
    for text in ("~/mine/a.gguf", "$WHERE/a.gguf", "${WHERE}/a.gguf"):
        assert resolve_model_path({"model_path": text}, environ=environ) == path


def test_a_whole_settings_block_is_understood_too(world):
    levels, _, block = world
    found = found_model({"llm": block}, environ={"HOME": "/nowhere"})
    assert found.path == levels["settings.llm.profile"]
    assert found.profile is not None


def test_a_bare_file_name_may_lie_in_the_store(own_world):
    path = model(own_world / "models" / "named.gguf")
    model(own_world / "models" / "other.gguf")
    environ = {"HOME": str(own_world), "TEA_MODELS_DIR": str(own_world / "models")}
    assert resolve_model_path({"model_path": "named.gguf"}, environ=environ) == path


def test_several_models_in_the_store_are_no_choice(own_world):
    model(own_world / "models" / "one.gguf")
    model(own_world / "models" / "two.gguf")
    environ = {"HOME": str(own_world), "TEA_MODELS_DIR": str(own_world / "models")}
    assert resolve_model_path({}, environ=environ) is None


def test_the_shards_of_one_model_are_one_model(own_world):
    first = model(own_world / "models" / "big-00001-of-00002.gguf")
    model(own_world / "models" / "big-00002-of-00002.gguf")
    environ = {"HOME": str(own_world), "TEA_MODELS_DIR": str(own_world / "models")}
    assert resolve_model_path({}, environ=environ) == first


def test_a_folder_is_no_model(tmp_path):
    found = resolve_model_path({"model_path": str(tmp_path)}, environ={"HOME": str(tmp_path)})
    assert found is None


def test_a_pulled_model_is_found_by_the_reference_it_was_pulled_as(own_world, tmp_path):
    source = model(tmp_path / "source.gguf")
    environ = {"HOME": str(own_world), "TEA_MODELS_DIR": str(own_world / "models")}
    (result,) = pull([f"file:{source}"], settings=Settings.resolve(environ, cwd=tmp_path))
    found = resolve_model_path({"model": f"file:{source}"}, environ=environ)
    assert found is not None
    assert found.read_bytes() == Path(result.path).read_bytes()


def test_a_profile_without_its_model_is_passed_over(world):
    levels, environ, block = world
    levels["settings.llm.profile"].unlink()
    found = found_model({"profile": block["profile"]}, environ={**environ, "TEA_MODEL_PATH": ""})
    assert found.source == "APPDIR"
    assert "neither beside it nor in the store" in found.skipped[0]


def test_an_unknown_key_is_an_error():
    with pytest.raises(ConfigError, match="unknown key"):
        resolve_model_path({"modelpath": "x"}, environ={})


def test_the_result_is_a_path_that_hashes_as_it_compares(world):
    levels, environ, block = world
    found = resolve_model_path(block, environ=environ)
    assert found == levels["TEA_MODEL_PATH"]
    assert {found: 1}[levels["TEA_MODEL_PATH"]] == 1


def test_an_app_stands_in_for_a_path_of_another_machine_but_not_for_a_name(world):
    levels, environ, _ = world
    environ = {**environ, "TEA_MODEL_PATH": ""}
    assert resolve_model_path({"model_path": "/elsewhere/x.gguf"}, environ=environ) == levels["APPDIR"]
    assert resolve_model_path({"model": "phi4-mini"}, environ=environ) is None
    assert resolve_model_path({"profile": "phi4-mini"}, environ=environ) is None


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("smollm2-135m", True),
        ("smollm2-135m:Q9", True),
        ("hf:o/r:Q4_0", True),
        ("https://h.example/m.gguf", True),
        ("ollama:gemma3:4b", True),
        ("./gone.gguf", True),
        ("gone.gguf", True),
        ("$WHERE/gone", True),
        ("gpt-4", False),
        ("gpt-4o-mini", False),
        ("ollama/gemma3:4b", False),
        ("anthropic/claude-3-opus", False),
        ("gemma3:4b", False),
        ("text-embedding-3-small", False),
        ("", False),
        ("a name", False),
    ],
)
def test_what_is_a_name_of_a_model_here(own_world, text, known):
    assert is_model_name(text, {"HOME": str(own_world), "WHERE": "/data"}) is known
