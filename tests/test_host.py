"""The actions in The Edge Agent, against a stand-in of its engine."""

from __future__ import annotations

import gc
import json
import logging
import threading
import weakref

import pytest

import tea_runtime
from tea_models import Settings, pull
from tea_models.errors import TeaModelsError
from tea_runtime.errors import ApiError
from tests.api_server import serve_api
from tests.scripted_model import build_scripted
from tests.tea_host import TeaEngine, workflow

pytest.importorskip("llama_cpp")
pytest.importorskip("openai")

ASK = [{"role": "user", "content": "q"}]


@pytest.fixture
def server():
    with serve_api() as api:
        yield api


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "hello.gguf"
    build_scripted(path, [["Hello"]])
    return str(path)


@pytest.fixture
def other(tmp_path):
    path = tmp_path / "other.gguf"
    build_scripted(path, [["Other"]])
    return str(path)


@pytest.fixture
def engine():
    """Load a workflow's `settings.llm` into an engine; it is closed afterwards."""
    made = []

    def engine(llm=None, nodes=None, *, namespace="", **cli):
        one = TeaEngine(**cli).load(workflow(llm, nodes, namespace))
        made.append(one)
        return one

    yield engine
    for one in made:
        one.close()


@pytest.fixture
def key(monkeypatch, server):
    """An API is configured: whatever may leave, leaves to the test's server."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base)
    return server


GENERATING = ["llm.call", "llm.chat", "llm.stream", "llm.local.call", "actions.llm_call", "llm.retry", "llm.tools"]


# 1. Nothing leaves that may not ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("llm", [{"backend": "local"}, {"provider": "local"}, {"fallback": False}, {"fallback": ""}])
@pytest.mark.parametrize("name", [*GENERATING, "llm.embed", "llm.similarity", "llm.batch"])
def test_nothing_is_sent_where_no_api_was_allowed(engine, key, llm, name):
    host = engine({**llm, "model_path": "/nowhere/m.gguf"})
    given = {
        "llm.embed": {"text": "x"},
        "llm.similarity": {"text_a": "a", "text_b": "b"},
        "llm.batch": {"prompts": ["x"]},
    }
    result = host.node(name, given.get(name, {"messages": ASK}))
    assert result["success"] is False
    assert "/nowhere/m.gguf" in result["error"]
    assert (key.requests, host.asked) == ([], [])


@pytest.mark.parametrize("name", ["llm.call", "llm.chat", "llm.stream", "llm.embed"])
@pytest.mark.parametrize("said", [{"fallback": False}, {"fallback": "no"}, {"fallback": None}, {"fallback": ""}])
def test_a_node_may_forbid_it_too(engine, key, name, said):
    host = engine({"model_path": "/nowhere/m.gguf"})
    result = host.node(name, {"text": "x"} | said if name == "llm.embed" else {"prompt": "q"} | said)
    assert result["success"] is False
    assert (key.requests, host.asked) == ([], [])


@pytest.mark.parametrize("llm", [{"backend": "local", "fallback": True}, {"provider": "local", "fallback": "true"}, {}])
def test_where_it_is_allowed_the_result_and_a_warning_say_so(engine, key, caplog, llm):
    host = engine({**llm, "model_path": "/nowhere/m.gguf"})
    with caplog.at_level(logging.WARNING, "tea_runtime"):
        result = host.node("llm.chat", {"messages": ASK})
    assert (result["content"], result["backend"]) == ("Paris.", "api")
    assert "/nowhere/m.gguf" in result["fallback_reason"]
    assert "leaves this machine" in caplog.text


def test_a_node_may_allow_it(engine, key):
    host = engine({"backend": "local", "model_path": "/nowhere/m.gguf"})
    assert host.node("llm.call", {"prompt": "q", "fallback": True})["backend"] == "api"


def test_a_node_that_asks_for_an_api_under_backend_local_is_warned_about_once(engine, key, model, caplog):
    host = engine({"backend": "local", "model_path": model})
    with caplog.at_level(logging.WARNING, "tea_runtime"):
        assert [host.node("llm.call", {"prompt": "q", "backend": "API"})["backend"] for _ in range(2)] == ["api"] * 2
    assert caplog.text.count("its words leave this machine") == 1
    with_cli = engine({"model_path": model}, backend="local")
    assert with_cli.node("llm.call", {"prompt": "q", "backend": "api"})["backend"] == "local"
    assert len(key.requests) == 2


def test_the_name_of_a_local_model_is_not_sent_to_a_public_api(engine, key):
    host = engine({"fallback": True, "model": "smollm2-135m"})
    assert host.node("llm.call", {"prompt": "q"})["backend"] == "api"
    assert key.bodies[0]["model"] == "gpt-4o-mini"


# 2. and 3. Which model answers ----------------------------------------------------------------------------------------


def test_a_named_model_that_is_absent_is_an_error_and_no_other_one_answers(engine, own_world):
    (own_world / "models").mkdir()
    build_scripted(own_world / "models" / "lies-here.gguf", [["Wrong"]])
    for llm, given in (({"model": "phi4-mini"}, {}), ({}, {"model": "phi4-mini"}), ({"profile": "phi4-mini"}, {})):
        result = engine({"backend": "local", **llm}).node("llm.call", {"prompt": "q", **given})
        assert result["success"] is False
        assert "phi4-mini" in result["error"]
        assert "tea-models pull phi4-mini" in result["error"]


def test_the_profile_of_the_raw_block_is_honoured(engine, model, tmp_path):
    from tea_models.profile.document import to_json
    from tea_models.profile.header_facts import resolve_profile

    (tmp_path / "p.json").write_text(json.dumps(to_json(resolve_profile(tmp_path / "hello.gguf"))))
    result = engine({"backend": "local", "profile": str(tmp_path / "p.json")}).node("llm.call", {"prompt": "q"})
    assert (result["content"], result["model"]) == ("Hello", "hello.gguf")


@pytest.mark.parametrize("name", ["gpt-4", "gpt-4o-mini", "ollama/gemma3:4b", "anthropic/claude-3", "gemma3:4b"])
def test_a_name_that_nobody_knows_means_the_workflows_model(engine, model, caplog, name):
    host = engine({"backend": "local", "model_path": model})
    with caplog.at_level(logging.WARNING, "tea_runtime"):
        results = [host.node("llm.call", {"prompt": "q", "model": name}) for _ in range(3)]
    assert [(one["content"], one["model"], one["requested_model"]) for one in results] == [
        ("Hello", "hello.gguf", name)
    ] * 3
    assert sum(name in record.getMessage() for record in caplog.records) == 1
    assert host.asked == []


def test_a_name_that_is_known_is_honoured(engine, model, other):
    host = engine({"backend": "local", "model_path": model})
    result = host.node("llm.call", {"prompt": "q", "model": other})
    assert (result["content"], "requested_model" in result) == ("Other", False)
    assert "gone.gguf" in host.node("llm.call", {"prompt": "q", "model": "./gone.gguf"})["error"]
    assert "pull hf:o/r:Q4_0" in host.node("llm.call", {"prompt": "q", "model": "hf:o/r:Q4_0"})["error"]


def test_local_by_the_node_with_a_file_as_the_model(engine, model):
    host = engine({"model": "gpt-4", "backend": "api"})
    result = host.node("llm.call", {"prompt": "q", "provider": "local", "model": model})
    assert (result["content"], result["backend"]) == ("Hello", "local")


def test_a_model_that_the_host_invents_is_no_mistake(engine, model):
    host = engine({"backend": "local", "model_path": model})
    result = host.node("semantic.probe")
    assert (result["content"], result["requested_model"]) == ("Hello", "ollama/gemma3:4b")


def test_under_auto_an_unknown_name_is_the_apis_model_if_there_is_an_api(engine, model, key, monkeypatch):
    host = engine({"model_path": model})
    assert host.node("llm.call", {"prompt": "q", "model": "gpt-4"})["backend"] == "api"
    assert key.bodies[0]["model"] == "gpt-4"
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL")
    result = engine({"model_path": model}).node("llm.call", {"prompt": "q", "model": "gpt-4"})
    assert (result["backend"], result["requested_model"]) == ("local", "gpt-4")


# 4. The command line --------------------------------------------------------------------------------------------------


def test_the_command_line_comes_first(engine, model, other, key):
    block = {"backend": "api", "model_path": other, "model": "gpt-4"}
    for said in ({}, {"backend": "api"}, {"model": "gpt-4"}, {"model_path": other}, {"provider": "openai"}):
        result = engine(block, model_path=model, backend=None).node("llm.call", {"prompt": "q", **said})
        assert result["content"] == "Hello"
    assert (
        engine({"backend": "local", "model_path": model}, backend="api").node("llm.call", {"prompt": "q"})["backend"]
        == "api"
    )
    assert engine({"provider": "local"}, backend="api").node("llm.call", {"prompt": "q"})["backend"] == "api"
    result = engine({"fallback": True}, model_path="/nowhere/x.gguf", backend=None).node("llm.call", {"prompt": "q"})
    assert "/nowhere/x.gguf" in result["error"]


# 5. Parameters as the host's own action takes them --------------------------------------------------------------------


def test_values_may_come_by_position(engine, key):
    call = engine({"backend": "api"}).actions_registry["llm.call"]
    assert call({}, "gpt-4", ASK, None, None, 0.25, 0)["content"] == "Paris."
    assert (key.bodies[0]["model"], key.bodies[0]["messages"], key.bodies[0]["temperature"]) == ("gpt-4", ASK, 0.25)
    with pytest.raises(TypeError, match="several values for model"):
        call({}, "gpt-4", model="gpt-5")
    with pytest.raises(TypeError, match="at most"):
        call({}, *range(30))


def test_messages_come_before_a_prompt_and_a_system_text(engine, key):
    host = engine({"backend": "api"})
    for given in ({"messages": ASK, "prompt": "p"}, {"messages": ASK, "system": "s"}, {"prompt": "q", "system": "s"}):
        assert host.node("llm.call", given)["content"] == "Paris."
    assert [body["messages"] for body in key.bodies] == [ASK, ASK, [{"role": "system", "content": "s"}, *ASK]]


def test_numbers_as_text_null_and_other_names_of_options(engine, key):
    host = engine({"backend": "api", "timeout": "30", "max_retries": "0"})
    host.node(
        "llm.call", {"prompt": "q", "max_tokens": "12", "temperature": "0.5", "top_logprobs": "2", "logprobs": True}
    )
    host.node("llm.call", {"prompt": "q", "max_tokens": None})
    host.node("llm.call", {"prompt": "q", "max_completion_tokens": 7})
    first, second, third = key.bodies
    assert (first["max_tokens"], first["temperature"], first["top_logprobs"]) == (12, 0.5, 2)
    assert ("max_tokens" in second, third["max_tokens"]) == (False, 7)


def test_what_the_host_passes_along_is_ignored_and_the_rest_is_remarked_once(engine, key, caplog):
    host = engine({"backend": "api"})
    with caplog.at_level(logging.WARNING, "tea_runtime"):
        for _ in range(2):
            host.node("llm.call", {"prompt": "q", "opik_trace": True, "base_delay": 1, "max_token": 5, "shiny": 1})
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if "parameter" in text] == [
        "llm.call: parameter 'max_token' has no effect here; did you mean 'max_tokens'?",
        "llm.call: parameter 'shiny' has no effect here",
    ]


@pytest.mark.parametrize("option", [{"logit_bias": {"5": 1}}, {"n": 3}, {"functions": [{}]}])
def test_an_option_that_would_change_the_answer_is_refused(engine, key, option):
    result = engine({"backend": "api"}).node("llm.call", {"prompt": "q", **option})
    assert f"{next(iter(option))} is not offered" in result["error"]
    assert key.requests == []


@pytest.mark.parametrize("provider", ["azure_openai", "AzureOpenAI", "azure"])
def test_azure_has_several_names(engine, server, monkeypatch, provider):
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "k")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", server.base.removesuffix("/v1"))
    host = engine({"backend": "api", "provider": provider, "deployment": "mine"})
    assert host.node("llm.call", {"prompt": "q"})["content"] == "Paris."
    assert "/deployments/mine/" in server.requests[0]["path"]


@pytest.mark.parametrize("how", [{"backend": "local"}, {"provider": "local"}, {}])
def test_a_deployment_in_the_block_does_not_hide_its_local_model(engine, server, monkeypatch, model, how):
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "k")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", server.base.removesuffix("/v1"))
    block = {"provider": "azure_openai", "deployment": "{{ env.NOT_SET }}mine", "model": model}
    result = engine(block | how).node("llm.call", {"prompt": "q"})
    assert (result["content"], "requested_model" in result) == ("Hello", False)
    monkeypatch.setenv("TEA_MODEL_PATH", model)
    del block["model"]
    assert engine(block | {"backend": "local"}).node("llm.call", {"prompt": "q"})["content"] == "Hello"
    assert server.requests == []
    assert engine(block | {"backend": "api"}).node("llm.call", {"prompt": "q"})["backend"] == "api"
    assert "/deployments/mine/" in server.requests[0]["path"]


def test_a_prompt_chats_with_a_model_made_for_it_and_raw_keeps_it(engine, model, tmp_path):
    host = engine({"backend": "local", "model_path": model})
    chat = host.node("llm.call", {"prompt": "q"})
    raw = host.node("llm.call", {"prompt": "q", "raw": True})
    assert chat["usage"]["prompt_tokens"] > raw["usage"]["prompt_tokens"]
    local = host.node("llm.local.call", {"prompt": "q"})
    assert local["usage"]["prompt_tokens"] == raw["usage"]["prompt_tokens"]
    build_scripted(tmp_path / "base.gguf", [["Base"]], template=None)
    base = engine({"backend": "local", "model_path": str(tmp_path / "base.gguf")}).node("llm.call", {"prompt": "\n"})
    assert base["content"] == "Base"


# 6. The length of an answer -------------------------------------------------------------------------------------------


def test_without_max_tokens_an_answer_ends_when_it_is_finished_or_at_the_setting(engine, tmp_path):
    words = [f"w{index} " for index in range(150)]
    build_scripted(tmp_path / "long.gguf", [words])
    build_scripted(tmp_path / "endless.gguf", [words], loop=True, metadata={"llama.context_length": 256})
    long = {"backend": "local", "model_path": str(tmp_path / "long.gguf")}
    for name in ("llm.call", "llm.chat", "llm.stream", "llm.local.chat"):
        result = engine(long).node(name, {"prompt": "q"} if name != "llm.local.chat" else {"messages": ASK})
        assert (result["usage"]["completion_tokens"] > 100, result["finish_reason"]) == (True, "stop")
    short = engine({**long, "max_tokens": 20}).node("llm.call", {"prompt": "q"})
    assert (short["usage"]["completion_tokens"], short["finish_reason"]) == (20, "length")
    endless = engine({**long, "model_path": str(tmp_path / "endless.gguf")}).node("llm.call", {"prompt": "q"})
    assert (endless["finish_reason"], endless["usage"]["total_tokens"] <= 257) == ("length", True)


# 7. Names, hand-overs, tools ------------------------------------------------------------------------------------------


def test_every_alias_leads_here_and_what_was_there_stays_reachable(engine, model):
    host = engine({"backend": "local", "model_path": model})
    for name in [one for one in TeaEngine().actions_registry if "llm" in one]:
        given = (
            {"text": "x"}
            if "embed" in name
            else {"text_a": "a", "text_b": "b"}
            if "similarity" in name
            else {"messages": ASK}
        )
        result = host.node(name, given)
        assert result.get("backend") == "local", (name, result)
        assert host.actions_registry[f"host.{name}"]({}, "m", ASK)["content"] == "the host's"
    assert tea_runtime.__tea_actions__["actions"] == [
        name for name in tea_runtime.__tea_actions__["actions"] if name in host.actions_registry
    ]


def test_a_namespace_leaves_the_hosts_names_alone(engine, model):
    host = engine({"backend": "local", "model_path": model}, namespace="local")
    assert host.node("local.llm.call", {"prompt": "q"})["content"] == "Hello"
    assert host.actions_registry["llm.call"]({}, "m", ASK)["content"] == "the host's"


def test_another_provider_is_the_hosts_and_gets_nothing_that_it_was_not_meant_to(engine, model):
    host = engine(
        {"provider": "litellm", "model": "anthropic/x", "n_ctx": 512, "model_path": model, "temperature": 0.1}
    )
    result = host.node("llm.call", {"prompt": "p", "max_tokens": 5})
    assert (result["content"], result["backend"], result["provider"]) == ("the host's", "host", "litellm")
    ((name, params),) = host.asked
    assert name == "llm.call"
    assert params == {
        "model": "anthropic/x", "messages": [{"role": "user", "content": "p"}], "max_tokens": 5, "temperature": 0.1,
        "provider": "litellm",
    }  # fmt: skip
    assert host.node("llm.call", {"prompt": "p", "provider": "shell", "shell_provider": "x"})["provider"] == "shell"


def test_under_local_another_provider_is_not_asked(engine, model, caplog):
    host = engine({"backend": "local", "model_path": model})
    result = host.node("llm.call", {"prompt": "p", "provider": "litellm", "model": "anthropic/x"})
    assert (result["content"], result["requested_model"], host.asked) == ("Hello", "anthropic/x", [])
    assert "provider litellm is not used" in caplog.text


def test_without_model_and_api_the_hosts_own_action_answers_where_that_is_allowed(engine, caplog):
    host = engine({"model_path": "/nowhere/m.gguf", "provider": "openai"})
    result = host.node("llm.chat", {"messages": ASK})
    assert (result["backend"], result["provider"]) == ("host", "openai")
    assert "/nowhere/m.gguf" in result["fallback_reason"]
    assert "may leave this machine" in caplog.text


def weather(calls):
    def action(state, city, **_):
        calls.append((state["n"], city))
        return {"degrees": 21}

    return action


def test_tools_run_the_actions_they_name_in_a_bounded_loop(engine, key):
    host = engine({"backend": "api"})
    calls = []
    host.actions_registry["weather.get"] = weather(calls)
    tool = {
        "name": "weather", "description": "d", "action": "weather.get",
        "parameters": {"city": {"type": "string", "required": True}, "unit": "string"},
    }  # fmt: skip
    key.mode = "tool-call"
    result = host.node("llm.tools", {"prompt": "Rome?", "tools": [tool], "max_tool_rounds": 3}, n=1)
    assert (result["rounds"], len(calls), calls[0]) == (3, 3, (1, "Rome"))
    assert "3 rounds" in result["warning"]
    assert json.loads(result["tool_results"][0]["result"]) == {"degrees": 21}
    assert len(key.requests) == 3
    schema = key.bodies[0]["tools"][0]["function"]["parameters"]
    assert (schema["required"], schema["properties"]["unit"]) == (["city"], {"type": "string"})
    key.mode = "ok"
    assert host.node("llm.tools", {"prompt": "Rome?", "tools": [tool]})["content"] == "Paris."


def test_a_tool_that_fails_or_was_not_offered_is_told_to_the_model(engine, key):
    host = engine({"backend": "api"})
    host.actions_registry["broken"] = lambda state, **_: 1 / 0
    key.mode = "tool-call"
    for tools, said in (
        ([{"name": "weather", "action": "broken"}], "division"),
        ([{"name": "weather"}], "no action mapped"),
    ):
        result = host.node("llm.tools", {"prompt": "Rome?", "tools": tools, "max_tool_rounds": 1})
        assert said in result["tool_results"][0]["result"]
    missing = host.node("llm.tools", {"prompt": "q", "tools": [{"name": "x", "action": "no.such"}]})
    assert "no action 'no.such'" in missing["error"]


def test_a_model_without_a_place_for_tools_is_told_of_them_in_words(engine, tmp_path, caplog):
    build_scripted(tmp_path / "calls.gguf", [['{"name": "weather", "arguments": {"city": "Rome"}}']])
    host = engine({"backend": "local", "model_path": str(tmp_path / "calls.gguf")})
    calls = []
    host.actions_registry["weather.get"] = weather(calls)
    tool = {"name": "weather", "action": "weather.get", "parameters": {"city": "string"}}
    result = host.node("llm.tools", {"prompt": "Rome?", "tools": [tool], "max_tool_rounds": 2}, n=1)
    assert (result["rounds"], calls, result["backend"]) == (2, [(1, "Rome")] * 2, "local")
    assert "described to it in words" in caplog.text
    build_scripted(tmp_path / "words.gguf", [["Sunny"]])
    host = engine({"backend": "local", "model_path": str(tmp_path / "words.gguf")})
    told = {"messages": [{"role": "system", "content": "s"}, *ASK], "tools": [{"name": "weather"}]}
    result = host.node("llm.tools", told)
    assert (result["content"], result["rounds"], result["tool_calls"]) == ("Sunny", 0, [])


def test_similarity_compares_vectors_without_a_model_and_texts_with_it(engine, key):
    host = engine({"backend": "local", "model_path": "/nowhere/m.gguf"})
    result = host.node("llm.similarity", {"vector_a": [1, 0], "vector_b": [1, 0]})
    assert (result["cosine_similarity"], result["interpretation"]) == (1.0, "Very similar")
    assert "different lengths" in host.node("llm.similarity", {"vector_a": [1], "vector_b": [1, 0]})["error"]
    texts = engine({"backend": "api"}).node("llm.similarity", {"text_a": "a", "text_b": "bb"})
    assert (texts["backend"], texts["text_a"], 0.9 < texts["cosine_similarity"] < 1) == ("api", "a", True)


# 8. Streaming ---------------------------------------------------------------------------------------------------------


def test_pieces_go_to_the_engine_or_a_callback_and_never_into_its_events(engine, model, capfd):
    nodes = [{"name": "say", "uses": "llm.stream", "with": {"prompt": "q"}, "output": "said"}]
    host = engine({"backend": "local", "model_path": model}, nodes)
    pieces = []
    state = host.run({}, stream=True)
    assert (state["said"]["content"], state["said"]["streamed"]) == ("Hello", True)
    host.on_text = pieces.append
    host.run({}, stream=True)
    host.node("llm.stream", {"prompt": "q", "callback": lambda text: pieces.append("to " + text)})
    assert "".join(pieces).startswith("Hello")
    assert "to " in "".join(pieces)
    assert all(json.loads(line)["type"] == "state" for line in capfd.readouterr().out.splitlines())


# 9. One model an engine -----------------------------------------------------------------------------------------------


def test_one_load_whatever_the_api_settings_say_and_closed_with_the_engine(engine, model, caplog):
    host = engine({"backend": "local", "model_path": model})
    with caplog.at_level(logging.INFO, "tea_runtime"):
        for said in (
            {},
            {"timeout": 5},
            {"max_retries": 2},
            {"provider": "ollama"},
            {"temperature": 0},
            {"model": "gpt-4"},
        ):
            assert host.node("llm.call", {"prompt": "q", **said})["content"] == "Hello"
        host.node("llm.embed", {"text": "x", "embedding": True})
    assert sum("loaded hello.gguf" in record.getMessage() for record in caplog.records) == 1
    (pool,) = host._tea_runtime_host._pools.values()
    (backend,) = [one for one in pool._made.values() if hasattr(one, "is_available")]
    host.close()
    assert (host.closed, backend.is_available()) == (1, False)


def test_an_engine_that_is_dropped_takes_its_model_with_it(model):
    host = TeaEngine().load(workflow({"backend": "local", "model_path": model}))
    host.node("llm.call", {"prompt": "q"})
    (pool,) = host._tea_runtime_host._pools.values()
    gone = weakref.ref(pool)
    del host, pool
    gc.collect()
    assert gone() is None


def test_parallel_branches_share_the_model(engine, model):
    nodes = [[{"name": f"n{i}", "uses": "llm.call", "with": {"prompt": "q"}, "output": f"o{i}"} for i in range(6)]]
    state = engine({"backend": "local", "model_path": model}, nodes).run({})
    assert [state[f"o{i}"]["content"] for i in range(6)] == ["Hello"] * 6
    assert threading.active_count() < 20


# 10. What the host sees -----------------------------------------------------------------------------------------------


def test_the_trace_gets_the_payload_of_a_call(engine, model):
    host = engine({"backend": "local", "model_path": model})
    host.node("llm.call", {"messages": ASK})
    assert "llm_payload" not in host._trace_context.spans[-1]["metadata"]
    host._llm_payload_capture = True
    result = host.node("llm.call", {"messages": ASK})
    payload = host._trace_context.spans[-1]["metadata"]["llm_payload"]
    assert (payload["messages_input"], payload["response_content"], payload["stop_reason"]) == (ASK, "Hello", "stop")
    assert payload["tokens_input"] == result["usage"]["prompt_tokens"]


def test_on_error_sees_what_an_api_raises_and_other_failures_are_results(engine, key):
    key.failures_left = 2
    node = {"name": "a", "uses": "llm.call", "with": {"prompt": "q"}, "on_error": {"max_retries": 2}, "output": "r"}
    host = engine({"backend": "api", "max_retries": 0}, [node])
    assert host.run({})["r"]["content"] == "Paris."
    key.mode = "status:500"
    with pytest.raises(ApiError):
        host.node("llm.call", {"prompt": "q"})
    for name, given in (("llm.stream", {}), ("llm.chat", {}), ("llm.call", {"max_retries": 1})):
        result = host.node(name, {"messages": ASK, **given})
        assert (result["success"], "500" in result["error"]) == (False, True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "prompt: expected a text"),
        ({"messages": []}, "at least one message"),
        ({"prompt": 5}, "prompt: expected a text"),
        ({"prompt": "q", "max_tokens": "many"}, "max_tokens: expected"),
        ({"prompt": "q", "backend": "cloud"}, "backend: expected local, api or auto"),
    ],
)
def test_a_mistake_is_a_result(engine, key, given, message):
    result = engine({"backend": "api"}).node("llm.call", given)
    assert (result["success"], message in result["error"]) == (False, True)
    assert key.requests == []


def test_a_slip_in_the_block_is_an_error_and_what_is_the_hosts_is_not(engine, key):
    fine = {"backend": "api", "shell_providers": {"x": {}}, "shell_provider": "x", "anything": 1}
    assert engine(fine).node("llm.call", {"prompt": "q"})["content"] == "Paris."
    result = engine({"falback": False}).node("llm.call", {"prompt": "q"})
    assert "settings.llm.falback: unknown key" in result["error"]
    assert "did you mean 'fallback'?" in result["error"]


def test_settings_that_change_are_read_again(engine, key, model):
    host = engine({"backend": "api"})
    assert host.node("llm.call", {"prompt": "q"})["backend"] == "api"
    host.load(workflow({"backend": "local", "model_path": model}))
    assert host.node("llm.call", {"prompt": "q"})["backend"] == "local"


def test_a_template_in_a_key_that_the_host_drops_is_filled_in(engine, key):
    result = engine({"fallback": "{{ env.NOBODY_SET_THIS }}", "model_path": "/nowhere/m.gguf"}).node(
        "llm.call", {"prompt": "q"}
    )
    assert (result["success"], key.requests) == (False, [])


def test_an_engine_without_anything_is_an_engine_too():
    registry = {}
    tea_runtime.register_actions(registry, object())
    assert "llm.call" in registry
    with pytest.raises(TeaModelsError):
        tea_runtime.create_llm_backend({"backend": "local"})


def test_a_pulled_model_is_found_by_name(engine, model, own_world, tmp_path):
    pull([f"file:{model}"], settings=Settings.resolve({"TEA_MODELS_DIR": str(own_world / "models")}, cwd=tmp_path))
    assert engine({"backend": "local"}).node("llm.call", {"prompt": "q"})["model"] == "hello.gguf"
