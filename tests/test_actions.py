"""The `llm.*` actions: under an engine like The Edge Agent's, with a real server behind the API backend."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

import tea_runtime
from tea_models.errors import ConfigError, TeaModelsError, UsageError
from tea_runtime.actions import close_backends, register_actions
from tests.api_server import serve_api


@pytest.fixture
def server():
    with serve_api() as api:
        yield api


def host_engine(server=None, **settings):
    """An engine as the host has it: `llm_settings` and a registry, nothing more."""
    block = {"backend": "api", "api_base": server.base, "model": "m", "max_retries": 0} if server else {}
    return SimpleNamespace(llm_settings=block | settings, actions_registry={})


def registered(engine):
    registry = {}
    register_actions(registry, engine)
    return registry


def test_the_package_itself_is_what_a_host_imports():
    assert callable(tea_runtime.register_actions)
    assert hasattr(tea_runtime, "__tea_actions__")
    metadata = tea_runtime.__tea_actions__
    assert metadata["actions"] == ["llm.call", "llm.chat", "llm.stream", "llm.embed"]
    assert {"version", "description"} <= metadata.keys()


def test_registering_makes_no_backend_and_needs_no_settings():
    registry = registered(object())
    assert set(registry) == {"llm.call", "llm.chat", "llm.stream", "llm.embed"}


def test_results_have_the_keys_that_workflows_use(server):
    registry = registered(host_engine(server))
    call = registry["llm.call"]({}, prompt="The capital of France is", max_tokens=5)
    assert call["content"] == "Paris."
    assert call["backend"] == "api"
    assert call["model"] == "served"
    assert (call["tokens_used"], call["finish_reason"]) == (5, "stop")
    assert call["usage"]["total_tokens"] == 5
    chat = registry["llm.chat"]({}, messages=[{"role": "user", "content": "hi"}])
    assert chat.keys() == call.keys()
    embed = registry["llm.embed"]({}, text="abc")
    assert (embed["embedding"], embed["dimensions"], embed["backend"], embed["model"]) == ([3.0, 0.5], 2, "api", "m")
    many = registry["llm.embed"]({}, text=["a", "bb"])
    assert (many["embedding"], many["dimensions"]) == ([[1.0, 0.5], [2.0, 0.5]], 2)


def test_hosts_call_with_the_state_by_name_and_with_more_than_is_wanted(server):
    registry = registered(host_engine(server))
    more = {"config": {}, "node": "n", "graph": object(), "parallel_results": [], "opik_trace": True}
    assert registry["llm.call"](state={"x": 1}, prompt="p", **more)["content"] == "Paris."


def test_a_prompt_and_a_system_text_make_a_chat(server):
    registry = registered(host_engine(server))
    registry["llm.chat"]({}, prompt="q", system="s")
    registry["llm.chat"]({}, messages=[{"role": "user", "content": "q"}], system="s")
    registry["llm.call"]({}, prompt="q", system="s")
    registry["llm.call"]({}, messages=[{"role": "user", "content": "q"}])
    wanted = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert [body["messages"] for body in server.bodies] == [wanted, wanted, wanted, wanted[1:]]


def test_settings_are_read_when_the_first_action_runs(server):
    engine = host_engine()
    registry = registered(engine)
    engine.llm_settings = {"backend": "api", "api_base": server.base, "temperature": 0.25}
    registry["llm.call"]({}, prompt="p")
    assert server.bodies[0]["temperature"] == 0.25


def test_a_nodes_parameters_come_before_the_settings(server):
    with serve_api() as other:
        registry = registered(host_engine(server, temperature=0.1))
        registry["llm.call"]({}, prompt="p", temperature=0.9, model="another", api_base=other.base)
    assert server.requests == []
    assert (other.bodies[0]["temperature"], other.bodies[0]["model"]) == (0.9, "another")


def test_the_settings_a_host_repeats_as_parameters_change_nothing(server):
    engine = host_engine(server)
    registry = registered(engine)
    registry["llm.call"]({}, prompt="p")
    registry["llm.call"]({}, prompt="p", **engine.llm_settings, timeout=None)
    assert len(engine._tea_runtime_backends._made) == 1


def test_numbers_that_arrive_as_text_are_numbers(server):
    registry = registered(host_engine(server))
    registry["llm.call"]({}, prompt="p", max_tokens="12", temperature="0.5", seed="3", top_p=None)
    body = server.bodies[0]
    assert (body["max_tokens"], body["temperature"], body["seed"]) == (12, 0.5, 3)


def test_no_limit_of_tokens_can_be_asked_for(server):
    registry = registered(host_engine(server))
    registry["llm.call"]({}, prompt="p")
    registry["llm.call"]({}, prompt="p", max_tokens=None)
    registry["llm.chat"]({}, prompt="p", max_tokens="", temperature="", stop=None)
    assert [body.get("max_tokens") for body in server.bodies] == [100, None, 100]
    assert server.bodies[2]["temperature"] == 0.7


@pytest.mark.parametrize("name", ["llm.call", "llm.chat", "llm.stream", "llm.embed"])
def test_a_slip_is_found_before_a_model_is_loaded(name):
    engine = host_engine(backend="local", model_path="/nowhere/model.gguf", fallback=False)
    assert "expected" in registered(engine)[name]({})["error"]


def test_a_stream_goes_to_the_callback_and_the_result_holds_the_whole(server):
    registry = registered(host_engine(server))
    pieces: list[str] = []
    result = registry["llm.stream"]({}, prompt="p", callback=pieces.append)
    assert pieces == ["Par", "is."]
    assert (result["content"], result["streamed"], result["chunk_count"]) == ("Paris.", True, 2)


def test_under_a_host_a_stream_goes_to_stdout(server, capsys):
    registered(host_engine(server))["llm.stream"]({}, messages=[{"role": "user", "content": "q"}])
    assert capsys.readouterr().out == "Paris.\n"


def test_an_engine_that_takes_text_gets_it(server, capsys):
    engine = host_engine(server)
    pieces: list[str] = []
    engine.on_text = pieces.append
    registered(engine)["llm.stream"]({}, prompt="p")
    engine.on_text = None
    registered(engine)["llm.stream"]({}, prompt="p")
    assert pieces == ["Par", "is."]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("llm.call", {}, "prompt: expected a text"),
        ("llm.call", {"prompt": 5}, "prompt: expected a text"),
        ("llm.chat", {}, "expected messages"),
        ("llm.chat", {"messages": "text"}, "messages: expected a list"),
        ("llm.chat", {"messages": []}, "at least one message"),
        ("llm.chat", {"messages": [{"role": "user", "content": "x"}], "prompt": "y"}, "not both"),
        ("llm.chat", {"prompt": "y", "system": 5}, "system: expected a text"),
        ("llm.embed", {}, "text: expected a text"),
        ("llm.embed", {"text": [1]}, "text: expected a text"),
        ("llm.call", {"prompt": "p", "max_token": 5}, "unknown parameter 'max_token'"),
        ("llm.call", {"prompt": "p", "max_tokens": "many"}, "max_tokens: expected"),
        ("llm.call", {"prompt": "p", "temperature": -1}, "temperature: expected"),
        ("llm.call", {"prompt": "p", "backend": "cloud"}, "backend: expected local, api or auto"),
        ("llm.stream", {"prompt": "p", "callback": 5}, "callback: expected a function"),
    ],
)
def test_a_mistake_is_a_result_under_a_host_and_an_error_in_our_runner(server, name, params, message):
    engine = host_engine(server)
    result = registered(engine)[name]({}, **params)
    assert result["success"] is False
    assert message in result["error"]
    engine.raises_errors = True
    with pytest.raises((UsageError, ConfigError)) as caught:
        registered(engine)[name]({}, **params)
    assert message in caught.value.message
    assert server.requests == []


def test_an_api_that_fails_is_a_result_under_a_host(server):
    server.mode = "status:500"
    result = registered(host_engine(server))["llm.call"]({}, prompt="p")
    assert result["success"] is False
    assert result["error_type"] == "Api"
    assert "500" in result["error"]


def test_other_names_stay_and_the_hosts_own_actions_stay_reachable(server):
    def own(state, **params):
        return {"content": "the host's"}

    registry = {"llm.call": own, "llm.tools": own, "http.get": own}
    register_actions(registry, host_engine(server))
    assert registry["llm.tools"] is registry["http.get"] is registry["host.llm.call"] is own
    assert registry["llm.call"]({}, prompt="p")["content"] == "Paris."
    register_actions(registry, host_engine(server))
    assert registry["host.llm.call"] is own


def test_actions_the_engine_has_already_stay_reachable_too(server):
    engine = host_engine(server)
    engine.actions_registry["llm.call"] = own = lambda state, **params: {"content": "the host's"}
    registry = registered(engine)
    assert registry["host.llm.call"] is own
    assert "host.llm.chat" not in registry


def test_what_cannot_be_done_here_goes_to_the_hosts_own_action():
    seen = []

    def own(state, model, messages, temperature=0.7, **params):
        seen.append((model, messages, params))
        return {"content": "the host's"}

    engine = host_engine(provider="litellm", model="anthropic/x")
    engine.actions_registry["llm.call"] = own
    result = registered(engine)["llm.call"]({}, prompt="p", model="anthropic/x")
    assert result == {"content": "the host's", "backend": "host"}
    assert seen == [("anthropic/x", [{"role": "user", "content": "p"}], {})]


def test_without_model_and_api_the_hosts_own_action_answers_unless_that_is_forbidden():
    engine = host_engine(backend="auto", model_path="/nowhere/model.gguf")
    engine.actions_registry["llm.chat"] = lambda state, **params: {"content": "the host's"}
    action = registered(engine)["llm.chat"]
    assert action({}, prompt="p")["content"] == "the host's"
    assert action({}, prompt="p", fallback=False)["success"] is False


def test_parallel_branches_share_one_backend(server):
    engine = host_engine(server)
    action = registered(engine)["llm.call"]
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(action({}, prompt="p")["content"])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["Paris."] * 8
    assert len(engine._tea_runtime_backends._made) == 1


def test_closed_backends_are_opened_again_when_they_are_needed(server):
    engine = host_engine(server)
    action = registered(engine)["llm.call"]
    action({}, prompt="p")
    close_backends(engine)
    close_backends(engine)
    assert action({}, prompt="p")["content"] == "Paris."


def test_an_unknown_setting_is_an_error_that_names_the_nearest():
    engine = host_engine(modell="x")
    engine.raises_errors = True
    with pytest.raises(TeaModelsError, match=r"settings\.llm\.modell: unknown key") as caught:
        registered(engine)["llm.call"]({}, prompt="p")
    assert "model" in caught.value.hint


def test_any_generating_action_streams_when_told(server):
    engine = host_engine(server)
    pieces: list[str] = []
    engine.on_text = pieces.append
    registry = registered(engine)
    assert registry["llm.chat"]({}, prompt="q", system="s", stream=True)["streamed"] is True
    assert registry["llm.call"]({}, prompt="q", stream=True)["content"] == "Paris."
    assert pieces == ["Par", "is."] * 2
    assert [body["stream"] for body in server.bodies] == [True, True]
    assert server.bodies[0]["messages"][0] == {"role": "system", "content": "s"}
    assert "prompt" in server.bodies[1]


def test_the_api_answers_where_no_local_model_can_and_says_why(server, caplog):
    engine = host_engine(server, backend="local", model_path="/nowhere/model.gguf")
    with caplog.at_level("WARNING", "tea_runtime"):
        result = registered(engine)["llm.chat"]({}, prompt="p")
    assert (result["content"], result["backend"]) == ("Paris.", "api")
    assert "/nowhere/model.gguf" in result["fallback_reason"]
    assert "/nowhere/model.gguf" in caplog.text
    assert "/nowhere/model.gguf" in registered(engine)["llm.embed"]({}, text="p")["fallback_reason"]


def test_fallback_can_be_forbidden_and_then_nothing_is_sent(server):
    engine = host_engine(server, backend="local", model_path="/nowhere/model.gguf")
    result = registered(engine)["llm.chat"]({}, prompt="p", fallback=False)
    assert result["success"] is False
    assert server.requests == []


def test_a_load_that_failed_is_tried_again(server, tmp_path):
    engine = host_engine(backend="local", model_path=str(tmp_path / "m.gguf"))
    action = registered(engine)["llm.call"]
    assert action({}, prompt="p")["success"] is False
    engine.llm_settings["api_base"] = server.base
    assert action({}, prompt="p")["content"] == "Paris."


@pytest.mark.real
def test_local_actions_chat_and_embed_with_one_model(real_model):
    engine = host_engine(backend="local", model_path=str(real_model))
    registry = registered(engine)
    try:
        chat = registry["llm.chat"]({}, prompt="Say hi.", max_tokens=5)
        assert (chat["backend"], chat["model"]) == ("local", real_model.name)
        assert chat["tokens_used"] == chat["usage"]["total_tokens"]
        embed = registry["llm.embed"]({}, text="hi")
        assert (embed["backend"], embed["model"], embed["dimensions"]) == (
            "local",
            real_model.name,
            len(embed["embedding"]),
        )
        assert embed["tokens_used"] == embed["usage"]["total_tokens"] > 0
        assert len(engine._tea_runtime_backends._made) == 1
    finally:
        close_backends(engine)


@pytest.mark.real
def test_parallel_branches_share_one_local_model(real_model):
    engine = host_engine(backend="local", model_path=str(real_model))
    action = registered(engine)["llm.call"]
    results: list[str] = []

    def branch():
        results.append(action({}, prompt="One, two, three,", max_tokens=8, temperature=0)["content"])

    threads = [threading.Thread(target=branch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    close_backends(engine)
    assert len(results) == 4
    assert len(set(results)) == 1
