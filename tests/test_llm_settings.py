"""`settings.llm`: what is accepted, what is refused, and how the message helps."""

from __future__ import annotations

import pytest

from tea_models.errors import ConfigError
from tea_models.yamlfile import load_yaml
from tea_runtime.llm_settings import LlmSettings, expand


def test_every_key_is_optional_and_empty_values_mean_the_default():
    assert LlmSettings.parse(None) == LlmSettings.parse({}) == LlmSettings.parse({"n_ctx": None, "model": ""})
    settings = LlmSettings.parse(None)
    assert (settings.backend, settings.may_fall_back, settings.auto_pull) == ("auto", True, False)


@pytest.mark.parametrize(
    ("key", "given", "wanted"),
    [
        ("n_ctx", "MAX", "max"),
        ("n_ctx", "4096", 4096),
        ("n_gpu_layers", -1, -1),
        ("backend", "Local", "local"),
        ("kv_type", "Q8_0", "q8_0"),
        ("temperature", 0, 0.0),
        ("fallback", "no", False),
        ("timeout", 2.5, 2.5),
        ("max_tokens", "300", 300),
    ],
)
def test_values_are_read_as_people_write_them(key, given, wanted):
    assert getattr(LlmSettings.parse({key: given}), key) == wanted


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_ctx", True),
        ("n_ctx", 0),
        ("n_ctx", 1.5),
        ("n_ctx", "much"),
        ("n_threads", -1),
        ("n_threads", True),
        ("n_gpu_layers", -2),
        ("backend", "cloud"),
        ("provider", "litellm"),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("timeout", 0),
        ("max_retries", -1),
        ("max_tokens", 0),
        ("model", 5),
        ("model_path", ["a"]),
        ("fallback", "maybe"),
    ],
)
def test_a_wrong_value_names_key_and_value(key, value):
    with pytest.raises(ConfigError) as caught:
        LlmSettings.parse({key: value})
    assert caught.value.message.startswith(f"settings.llm.{key}: expected ")
    assert repr(value) in caught.value.message
    assert caught.value.exit_code == 2


def test_an_unknown_key_names_file_line_and_the_nearest_known_one():
    text = "name: x\nsettings:\n  llm:\n    backend: local\n    n_cxt: 5\n"
    document = load_yaml(text, "flow.yaml")
    with pytest.raises(ConfigError) as caught:
        LlmSettings.parse(document.data["settings"]["llm"], document=document)
    assert caught.value.message == "flow.yaml:5: settings.llm.n_cxt: unknown key"
    assert caught.value.hint == "did you mean 'n_ctx'?"


def test_a_whole_settings_block_is_taken_too():
    assert LlmSettings.parse({"llm": {"model": "phi4-mini"}}).model == "phi4-mini"


@pytest.mark.parametrize("block", [5, "text", [1], {"llm": []}])
def test_a_block_that_is_no_mapping_is_refused(block):
    with pytest.raises(ConfigError, match="expected keys and values"):
        LlmSettings.parse(block)


@pytest.mark.parametrize(
    ("block", "allowed"),
    [
        ({}, True),
        ({"backend": "auto"}, True),
        ({"backend": "local"}, False),
        ({"provider": "Local"}, False),
        ({"backend": "local", "fallback": True}, True),
        ({"backend": "local", "fallback": "yes"}, True),
        ({"fallback": False}, False),
        ({"fallback": ""}, False),
        ({"fallback": " "}, False),
        ({"fallback": None}, False),
    ],
)
def test_an_api_may_stand_in_only_where_that_was_said(block, allowed):
    assert LlmSettings.parse(block).may_fall_back is allowed


def test_provider_local_means_backend_local():
    for backend in ({}, {"backend": "auto"}, {"backend": None}):
        settings = LlmSettings.parse({"provider": "local"} | backend)
        assert (settings.backend, settings.provider, settings.may_fall_back) == ("local", None, False)
    with pytest.raises(ConfigError, match="contradicts backend: api"):
        LlmSettings.parse({"provider": "local", "backend": "api"})


@pytest.mark.parametrize("name", ["azure", "azure_openai", "AzureOpenAI"])
def test_azure_has_several_names(name):
    assert LlmSettings.parse({"provider": name}).provider == "azure"


def test_home_and_variables_are_expanded():
    environ = {"HOME": "/home/me", "MODELS": "/data"}
    settings = LlmSettings.parse({"model_path": "~/m.gguf", "profile": "$MODELS/p.json", "api_base": "http://${H}/v1"})
    expanded = settings.expanded(environ | {"H": "h:1"})
    assert expanded.model_path == "/home/me/m.gguf"
    assert expanded.profile == "/data/p.json"
    assert expanded.api_base == "http://h:1/v1"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("~", "/h"),
        ("~other/x", "~other/x"),
        ("a~/b", "a~/b"),
        ("$NOT_SET/x", "$NOT_SET/x"),
        ("a$$A", "a$v"),
        ("$A$A", "vv"),
    ],
)
def test_only_what_is_a_variable_is_expanded(text, wanted):
    assert expand(text, {"HOME": "/h", "A": "v"}) == wanted


def test_overrides_replace_and_none_does_not():
    settings = LlmSettings.parse({"model": "a", "n_ctx": 10}).overridden(model="b", n_ctx=None)
    assert (settings.model, settings.n_ctx) == ("b", 10)
    with pytest.raises(ConfigError, match=r"^modle: unknown key"):
        settings.overridden(modle="x")
