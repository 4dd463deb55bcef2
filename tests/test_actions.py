"""The `llm.*` actions as our own runner calls them, with a real server behind the API backend."""

from __future__ import annotations

import threading

import pytest

from tea_models.errors import ConfigError, UsageError
from tea_runtime.actions import PARAMETERS, LlmActions, check_parameters
from tea_runtime.errors import ApiError, UnsupportedError
from tea_runtime.factory import BackendPool
from tea_runtime.llm_settings import LlmSettings
from tests.api_server import serve_api
from tests.scripted_model import build_scripted

pytest.importorskip("openai")

ASK = [{"role": "user", "content": "q"}]


@pytest.fixture
def server():
    with serve_api() as api:
        yield api


@pytest.fixture
def actions():
    """The table of actions over settings; models are closed afterwards."""
    pools = []

    def actions(server=None, **settings):
        block = {"backend": "api", "api_base": server.base, "model": "m", "max_retries": 0} if server else {}
        pools.append(BackendPool())
        pieces = []
        made = LlmActions(LlmSettings.parse(block | settings), pools[-1], on_text=pieces.append)
        table = made.table()
        table["pieces"] = pieces
        table["pool"] = pools[-1]
        return table

    yield actions
    for pool in pools:
        pool.close()


@pytest.fixture
def model(tmp_path):
    pytest.importorskip("llama_cpp")
    build_scripted(tmp_path / "hello.gguf", [["Hello"]])
    return str(tmp_path / "hello.gguf")


def test_results_have_the_keys_that_workflows_use(actions, server):
    table = actions(server)
    call = table["llm.call"]({}, prompt="The capital of France is", max_tokens=5)
    assert (call["content"], call["backend"], call["model"]) == ("Paris.", "api", "served")
    assert (call["tokens_used"], call["finish_reason"], call["usage"]["total_tokens"]) == (5, "stop", 5)
    assert table["llm.chat"]({}, messages=ASK).keys() == call.keys()
    embed = table["llm.embed"]({}, text="abc")
    assert (embed["embedding"], embed["dimensions"], embed["backend"], embed["model"]) == ([3.0, 0.5], 2, "api", "m")
    many = table["llm.embed"]({}, text=["a", "bb"])
    assert (many["embedding"], many["dimensions"]) == ([[1.0, 0.5], [2.0, 0.5]], 2)


def test_a_prompt_and_a_system_text_make_a_chat(actions, server):
    table = actions(server)
    table["llm.chat"]({}, prompt="q", system="s")
    table["llm.chat"]({}, messages=ASK, system="s")
    table["llm.call"]({}, prompt="q", system="s")
    table["llm.call"]({}, messages=ASK)
    wanted = [{"role": "system", "content": "s"}, *ASK]
    assert [body["messages"] for body in server.bodies] == [wanted, wanted, wanted, ASK]


def test_a_bare_prompt_is_continued_as_it_stands_unless_the_node_says_otherwise(actions, server, model):
    table = actions(server)
    table["llm.call"]({}, prompt="p")
    table["llm.call"]({}, prompt="p", raw=False)
    assert [request["path"] for request in server.requests] == ["/v1/completions", "/v1/chat/completions"]
    local = actions(backend="local", model_path=model)
    assert local["llm.call"]({}, prompt="q", raw="false")["content"] == "Hello"
    assert local["llm.call"]({}, prompt="q")["usage"]["prompt_tokens"] < 5


def test_a_nodes_parameters_come_before_the_settings(actions, server):
    with serve_api() as other:
        table = actions(server, temperature=0.1)
        table["llm.call"]({}, prompt="p", temperature=0.9, model="another", api_base=other.base)
    assert server.requests == []
    assert (other.bodies[0]["temperature"], other.bodies[0]["model"]) == (0.9, "another")


def test_numbers_that_arrive_as_text_are_numbers(actions, server):
    actions(server)["llm.call"]({}, prompt="p", max_tokens="12", temperature="0.5", seed="3", top_p=None)
    body = server.bodies[0]
    assert (body["max_tokens"], body["temperature"], body["seed"]) == (12, 0.5, 3)


def test_an_answer_is_as_long_as_it_is_unless_the_settings_or_the_node_say(actions, server):
    table = actions(server)
    table["llm.call"]({}, prompt="p")  # the protocol's own default for raw prompts is 16 tokens
    table["llm.call"]({}, prompt="p", max_tokens=None)
    table["llm.chat"]({}, prompt="p", max_tokens="", temperature="", stop=None)
    actions(server, max_tokens=300)["llm.chat"]({}, prompt="p")
    assert [body.get("max_tokens") for body in server.bodies] == [2048, None, None, 300]
    assert server.bodies[2]["temperature"] == 0.7


def test_streams_go_to_the_runner_or_a_callback_and_the_result_holds_the_whole(actions, server):
    table = actions(server)
    own: list[str] = []
    result = table["llm.stream"]({}, prompt="p", callback=own.append)
    assert (result["content"], result["streamed"], result["chunk_count"]) == ("Paris.", True, 2)
    assert table["llm.chat"]({}, prompt="q", system="s", stream=True)["streamed"] is True
    assert table["llm.call"]({}, prompt="q", stream="true")["content"] == "Paris."
    assert (own, table["pieces"]) == (["Par", "is."], ["Par", "is."] * 2)
    assert [body["stream"] for body in server.bodies] == [True] * 3


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("llm.call", {}, "prompt or messages is missing"),
        ("llm.call", {"prompt": 5}, "prompt: expected a text"),
        ("llm.chat", {"messages": "text"}, "messages: expected a list"),
        ("llm.chat", {"messages": []}, "at least one message"),
        ("llm.chat", {"messages": ASK, "prompt": "y"}, "not both"),
        ("llm.chat", {"prompt": "y", "system": 5}, "system: expected a text"),
        ("llm.embed", {"text": [1]}, "text: expected a text"),
        ("llm.embed", {"text": "x", "max_tokens": 5}, "llm.embed: unknown parameter 'max_tokens'"),
        ("llm.call", {"prompt": "p", "max_token": 5}, "unknown parameter 'max_token'"),
        ("llm.call", {"prompt": "p", "logit_bias": {}}, "unknown parameter 'logit_bias'"),
        ("llm.call", {"prompt": "p", "max_tokens": "many"}, "max_tokens: expected"),
        ("llm.call", {"prompt": "p", "temperature": -1}, "temperature: expected"),
        ("llm.call", {"prompt": "p", "raw": "maybe"}, "raw: expected true or false"),
        ("llm.call", {"prompt": "p", "backend": "cloud"}, "backend: expected local, api or auto"),
        ("llm.call", {"prompt": "p", "provider": "litellm"}, "provider: expected"),
        ("llm.stream", {"prompt": "p", "callback": 5}, "callback: expected a function"),
        ("llm.batch", {"prompts": "p"}, "prompts: expected a list"),
        ("llm.batch", {"prompts": ["p"], "temperature": -1}, "temperature: expected"),
        ("llm.batch", {"prompts": [], "conversations": []}, "one of them"),
        ("llm.rerank", {"query": "q"}, "documents is missing"),
        ("llm.rerank", {"query": "q", "documents": [1]}, "documents: expected"),
    ],
)
def test_a_slip_is_an_error_before_anything_is_sent_or_loaded(actions, server, name, params, message):
    with pytest.raises((UsageError, ConfigError)) as caught:
        actions(server)[name]({}, **params)
    assert message in caught.value.message
    assert server.requests == []


def test_an_unknown_parameter_names_the_nearest_known_one():
    with pytest.raises(UsageError) as caught:
        check_parameters("llm.call", ["prompt", "max_token"])
    assert caught.value.hint == "did you mean 'max_tokens'?"
    for name, known in PARAMETERS.items():
        check_parameters(name, known)


def test_parallel_branches_share_one_backend_and_closed_ones_are_opened_again(actions, server):
    table = actions(server)
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda: results.append(table["llm.call"]({}, prompt="p")["content"])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["Paris."] * 8
    assert len(table["pool"]._made) == 1
    table["pool"].close()
    assert table["llm.call"]({}, prompt="p")["content"] == "Paris."


def test_one_model_is_loaded_once_under_whatever_name(actions, model, monkeypatch):
    table = actions(backend="local")
    monkeypatch.setenv("HOME", model.rpartition("/")[0])
    for said in (model, "~/hello.gguf", f"file:{model}"):
        assert table["llm.chat"]({}, prompt="q", model=said, timeout=7)["content"] == "Hello"
    assert len([one for one in table["pool"]._made.values() if hasattr(one, "close")]) == 1


# llm.batch, llm.rerank ------------------------------------------------------------------------------------------------


def test_a_batch_answers_in_order_and_one_that_fails_does_not_end_the_others(actions, model):
    table = actions(backend="local", model_path=model, n_ctx=64)
    long = "long " * 300
    conversations = [ASK, [{"role": "user", "content": long}], [], ASK, "nonsense", ASK]
    result = table["llm.batch"]({}, conversations=conversations, temperature=0)
    texts = [one.get("content") for one in result["results"]]
    assert texts == ["Hello", None, None, "Hello", None, "Hello"]
    assert result["results"][1]["error_type"] == "ContextOverflow"
    assert "at least one message" in result["results"][2]["error"]
    assert result["usage"]["total_tokens"] == 3 * result["results"][0]["usage"]["total_tokens"]
    assert (result["backend"], result["model"]) == ("local", "hello.gguf")
    prompts = table["llm.batch"]({}, prompts=["\n", 5, "\n"], temperature=0)["results"]
    assert [one.get("content") for one in prompts] == ["Hello", None, "Hello"]
    assert table["llm.batch"]({}, prompts=["q"], system="s")["results"][0]["content"] == "Hello"
    assert table["llm.batch"]({}, prompts=[])["results"] == []


def test_a_batch_at_an_api_has_an_error_for_what_it_refuses(actions, server):
    server.failures_left = 1
    result = actions(server)["llm.batch"]({}, prompts=[f"p{index}" for index in range(9)])
    failed = [one for one in result["results"] if "error" in one]
    assert (len(result["results"]), len(failed), failed[0]["error_type"]) == (9, 1, "Api")
    assert result["usage"]["total_tokens"] == 8 * 5


def test_rerank_orders_by_score_and_says_when_it_is_not_able_to(actions, server, model):
    with pytest.raises(UnsupportedError, match="rerank"):
        actions(server)["llm.rerank"]({}, query="q", documents=["a"])

    class Ranker:
        name = "local"

        def rerank(self, query, documents):
            return [float(len(document)) for document in documents]

        def close(self):
            pass

    table = actions(backend="local", model_path=model)
    table["llm.chat"]({}, prompt="q")
    pool = table["pool"]
    for key, one in list(pool._made.items()):
        if hasattr(one, "chat"):
            one.close()
            pool._made[key] = Ranker()
    result = table["llm.rerank"]({}, query="q", documents=["aa", "a", "aaa"])
    assert (result["scores"], result["order"]) == ([2.0, 1.0, 3.0], [2, 0, 1])


# Fallback -------------------------------------------------------------------------------------------------------------


def test_the_api_answers_where_that_is_allowed_and_says_why(actions, server, caplog):
    table = actions(server, backend="auto", model_path="/nowhere/model.gguf")
    with caplog.at_level("WARNING", "tea_runtime"):
        result = table["llm.chat"]({}, prompt="p")
    assert (result["content"], result["backend"]) == ("Paris.", "api")
    assert "/nowhere/model.gguf" in result["fallback_reason"]
    assert "/nowhere/model.gguf" in caplog.text
    assert "/nowhere/model.gguf" in table["llm.embed"]({}, text="p")["fallback_reason"]


def test_an_api_that_fails_raises(actions, server):
    server.mode = "status:500"
    with pytest.raises(ApiError, match="500"):
        actions(server)["llm.call"]({}, prompt="p")


@pytest.mark.real
def test_one_real_model_chats_embeds_and_answers_in_parallel(actions, real_model):
    table = actions(backend="local", model_path=str(real_model))
    chat = table["llm.chat"]({}, prompt="Say hi.", max_tokens=5)
    assert (chat["backend"], chat["model"]) == ("local", real_model.name)
    embed = table["llm.embed"]({}, text="hi")
    assert embed["dimensions"] == len(embed["embedding"])
    assert embed["tokens_used"] == embed["usage"]["total_tokens"] > 0
    results: list[str] = []

    def branch():
        results.append(table["llm.call"]({}, prompt="One, two, three,", max_tokens=8, temperature=0)["content"])

    threads = [threading.Thread(target=branch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(results), len(set(results))) == (4, 1)
    assert len([one for one in table["pool"]._made.values() if hasattr(one, "close")]) == 1
