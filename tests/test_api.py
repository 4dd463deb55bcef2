"""`ApiLlmBackend` against a real server on the loopback interface."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import threading

import pytest

from tea_models.errors import TeaModelsError, UsageError
from tea_runtime.api.backend import ApiLlmBackend
from tea_runtime.backend import LlmCallParams
from tea_runtime.errors import ApiError, ApiUnavailableError, MissingExtraError, UnsupportedError
from tests.api_server import USAGE, ApiServer, serve_api

KEY = "sk-very-secret-0123456789"
WEATHER = {"type": "function", "function": {"name": "weather"}}
HELLO = [{"role": "user", "content": "capital of France?"}]


@pytest.fixture
def server():
    with serve_api() as api:
        yield api


def backend(server: ApiServer, **options) -> ApiLlmBackend:
    settings = {"timeout": 120, "max_retries": 0, "environ": {"OPENAI_API_KEY": KEY}} | options
    return ApiLlmBackend("some-model", api_base=server.base, **settings)


def test_a_raw_prompt_goes_to_completions(server):
    with backend(server) as api:
        result = api.call(LlmCallParams("The capital of France is", max_tokens=7, temperature=0.2, stop="\n"))
    assert (result.content, result.model, result.backend, result.finish_reason) == ("Paris.", "served", "api", "stop")
    assert result.usage == USAGE
    assert result.tokens_used == 5
    (request,) = server.requests
    assert request["path"] == "/v1/completions"
    wanted = {
        "model": "some-model",
        "prompt": "The capital of France is",
        "max_tokens": 7,
        "temperature": 0.2,
        "stop": ["\n"],
    }
    assert request["body"] == wanted


def test_messages_and_options_go_to_chat_as_they_are(server):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    with backend(server) as api:
        api.chat(HELLO, max_tokens=9, top_p=0.5, seed=3, tools=tools, tool_choice="auto", top_k=40, logprobs=2)
    body = server.bodies[0]
    assert body["messages"] == HELLO
    assert body["tools"] == tools
    assert (body["top_p"], body["seed"], body["top_k"], body["max_tokens"]) == (0.5, 3, 40, 9)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    assert "min_p" not in body


@pytest.mark.parametrize("chat", [True, False])
def test_a_stream_comes_in_pieces_and_the_result_holds_them_all(server, chat):
    pieces: list[str] = []
    with backend(server) as api:
        result = api.stream_chat(HELLO, pieces.append) if chat else api.stream(LlmCallParams("x"), pieces.append)
    assert pieces == ["Par", "is."]
    assert result.content == "Paris."
    assert result.usage == USAGE
    assert server.bodies[0]["stream"] is True


def test_what_a_callback_raises_reaches_the_caller_as_it_is(server):
    def callback(_text: str) -> None:
        raise ValueError("my own")

    with backend(server) as api, pytest.raises(ValueError, match="my own"):
        api.stream_chat(HELLO, callback)
    with backend(server) as api:
        assert api.chat(HELLO).content == "Paris."


def test_embeddings_keep_the_order_of_the_texts(server):
    with backend(server) as api:
        assert api.embed("abc") == [3.0, 0.5]
        assert api.embed(["a", "bbbb"]) == [[1.0, 0.5], [4.0, 0.5]]
        assert api.embed([]) == []
    assert server.bodies[0]["encoding_format"] == "float"


def test_tool_calls_come_back_in_openais_form(server):
    server.mode = "tool-call"
    wanted = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    with backend(server) as api:
        result = api.chat(HELLO, tools=[WEATHER])
        streamed = api.stream_chat(HELLO, lambda _text: None, tools=[WEATHER])
    assert list(result.tool_calls) == [wanted]
    assert result.content == ""
    assert list(streamed.tool_calls) == [wanted]
    assert streamed.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("html", "expected a JSON object"),
        ("empty", "found nothing"),
        ("no-choices", "choices"),
        ("null-content", "expected a text"),
        ("wrong-types", "expected a text"),
        ("error-200", "model is loading"),
        ("close", "can't be reached"),
        ("reset", "can't be reached"),
        ("half", "the connection broke"),
    ],
)
def test_nonsense_is_one_clear_error(server, mode, said):
    server.mode = mode
    with backend(server) as api, pytest.raises(ApiError) as caught:
        api.chat(HELLO)
    assert said in caught.value.message
    assert caught.value.message.startswith(f"API {server.base.split('/')[2]}, model some-model: ")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("mode", ["html", "empty", "no-choices", "bad-event", "cut-stream", "close", "reset", "half"])
def test_a_broken_stream_is_one_clear_error(server, mode):
    server.mode = mode
    with backend(server) as api, pytest.raises(ApiError) as caught:
        api.stream_chat(HELLO, lambda _text: None)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "OPENAI_API_KEY"), (404, "api_base"), (429, "quota"), (500, "later"), (418, "")]
)
def test_a_refusal_says_the_status_and_what_to_do(server, status, hint):
    server.mode = f"status:{status}"
    with backend(server) as api, pytest.raises(ApiError) as caught:
        api.chat(HELLO)
    assert str(status) in caught.value.message
    assert caught.value.status == status
    assert hint in caught.value.hint


def test_the_key_is_sent_and_never_shown(server):
    server.mode = "status:401"
    with backend(server) as api, pytest.raises(ApiError) as caught:
        api.chat(HELLO)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(caught.value) + caught.value.hint + repr(api) + repr(vars(api))
    assert "***" in caught.value.message


def test_the_key_does_not_follow_a_redirect_to_another_host(server):
    with serve_api() as other:
        server.mode = f"redirect:{other.base.replace('127.0.0.1', 'localhost').removesuffix('/v1')}"
        with backend(server) as api:
            api.chat(HELLO)
        assert "authorization" not in other.headers[0]


def test_a_server_that_never_answers_ends_in_time(server):
    server.mode = "silent"
    with backend(server, timeout=0.3) as api, pytest.raises(ApiUnavailableError, match=r"no answer within 0\.3 s"):
        api.chat(HELLO)


def test_a_server_that_drips_ends_in_time(server):
    server.mode = "slow"
    with backend(server, timeout=0.5) as api, pytest.raises(ApiUnavailableError, match="no complete answer"):
        api.chat(HELLO)


def test_nobody_there_is_not_available():
    with (
        ApiLlmBackend("m", api_base="http://127.0.0.1:1/v1", max_retries=0) as api,
        pytest.raises(ApiUnavailableError) as caught,
    ):
        api.chat(HELLO)
    assert caught.value.exit_code == 4
    assert "http://127.0.0.1:1/v1" in caught.value.hint


def test_an_overloaded_server_is_asked_again(server):
    server.failures_left = 1
    with backend(server, max_retries=2) as api:
        assert api.chat(HELLO).content == "Paris."
    assert len(server.requests) == 2


def test_a_wait_that_is_too_long_is_left_to_the_user(server):
    server.mode, server.retry_after = "status:429", "3600"
    with backend(server, max_retries=5) as api, pytest.raises(ApiError) as caught:
        api.chat(HELLO)
    assert len(server.requests) == 1
    assert "wait 3600 s" in caught.value.hint


def test_what_timed_out_is_not_asked_again(server):
    server.mode = "silent"
    with backend(server, timeout=0.3, max_retries=5) as api, pytest.raises(ApiUnavailableError):
        api.chat(HELLO)
    assert len(server.requests) == 1


def test_a_server_that_only_chats_gets_the_prompt_as_a_message(server):
    server.mode = "chat-only"
    with backend(server) as api:
        assert api.call(LlmCallParams("Say hi")).content == "Paris."
        assert api.stream(LlmCallParams("Say hi"), lambda _text: None).content == "Paris."
    assert [request["path"] for request in server.requests] == ["/v1/completions"] + ["/v1/chat/completions"] * 2
    assert server.bodies[1]["messages"] == [{"role": "user", "content": "Say hi"}]


def test_a_model_that_wants_the_new_name_gets_it_and_is_remembered(server):
    server.mode = "new-names"
    with backend(server) as api:
        api.chat(HELLO, max_tokens=5)
        api.chat(HELLO, max_tokens=6)
    assert [body.get("max_completion_tokens") for body in server.bodies] == [None, 5, 6]


@pytest.mark.parametrize("stream", [True, False])
def test_free_text_does_not_pass_for_json(server, stream):
    server.mode = "free-text"
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "required": ["a"]}}}
    with backend(server) as api:
        ask = (
            functools.partial(api.stream_chat, HELLO, lambda _text: None)
            if stream
            else functools.partial(api.chat, HELLO)
        )
        with pytest.raises(ApiError, match="asked for json_schema"):
            ask(response_format=wanted)


def test_json_that_lacks_a_required_key_does_not_pass(server):
    server.content = '{"b": 1}'
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "required": ["a"]}}}
    with backend(server) as api:
        with pytest.raises(ApiError, match="asked for json_schema"):
            api.chat(HELLO, response_format=wanted)
        server.content = '{"a": 1}'
        assert api.chat(HELLO, response_format=wanted).content == '{"a": 1}'


def test_a_grammar_is_refused_before_anything_is_sent(server):
    with backend(server) as api, pytest.raises(UnsupportedError, match="grammar"):
        api.chat(HELLO, grammar='root ::= "a"')
    assert server.requests == []


def test_openais_own_api_is_not_asked_for_options_it_does_not_have():
    with (
        ApiLlmBackend("gpt-4o-mini", environ={"OPENAI_API_KEY": KEY}) as api,
        pytest.raises(UnsupportedError, match="top_k"),
    ):
        api.chat(HELLO, top_k=4)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([], "empty list"),
        ("text", "found str"),
        ([{"content": "x"}], r"messages\[0\]"),
        ([{"role": "user"}], "content"),
    ],
)
def test_messages_are_checked_before_anything_is_sent(server, bad, said):
    with backend(server) as api, pytest.raises(UsageError, match=said):
        api.chat(bad)
    assert server.requests == []


def test_what_json_or_utf8_can_not_carry_is_refused_by_name(server):
    with backend(server) as api:
        with pytest.raises(UsageError, match="prompt: a lone surrogate"):
            api.call(LlmCallParams("a\ud800b"))
        with pytest.raises(UsageError, match="messages: a lone surrogate"):
            api.chat([{"role": "user", "content": "\udfff"}])
        with pytest.raises(UsageError, match="tools: can't be sent"):
            api.chat(HELLO, tools=[{"type": "function", "function": {"name": "f", "parameters": object()}}])
        with pytest.raises(UsageError, match="text: a lone surrogate"):
            api.embed(["ok", "\ud800"])
        assert server.requests == []
        assert api.call(LlmCallParams("a\x00b 🌍")).content == "Paris."
    assert server.bodies[0]["prompt"] == "a\x00b 🌍"


def test_the_key_of_openai_is_not_shown_to_ollama(server):
    keys = {"OPENAI_API_KEY": KEY, "OLLAMA_API_KEY": "for-ollama"}
    for environ in ({"OPENAI_API_KEY": KEY}, keys):
        with backend(server, provider="ollama", environ=environ) as api:
            api.chat(HELLO)
    assert [sent["authorization"] for sent in server.headers] == ["Bearer not-needed", "Bearer for-ollama"]


def test_without_a_key_and_a_server_it_is_not_available():
    api = ApiLlmBackend(environ={})
    assert not api.is_available()
    assert "OPENAI_API_KEY" in api.unavailable_reason()
    with pytest.raises(ApiUnavailableError, match="OPENAI_API_KEY is not set"):
        api.chat(HELLO)


def test_a_server_of_ones_own_needs_no_key(server):
    api = backend(server, environ={})
    assert api.is_available()
    assert api.chat(HELLO).content == "Paris."
    api.close()
    api.close()
    assert not api.is_available()
    with pytest.raises(TeaModelsError, match="closed"):
        api.chat(HELLO)


@pytest.mark.parametrize(
    ("environ", "options", "base", "provider"),
    [
        ({}, {}, "https://api.openai.com/v1", "openai"),
        ({"OPENAI_BASE_URL": "http://h:1/v1/"}, {}, "http://h:1/v1", "openai"),
        ({"OLLAMA_API_BASE": "http://h:2/v1"}, {}, "http://h:2/v1", "ollama"),
        ({}, {"provider": "ollama"}, "http://localhost:11434/v1", "ollama"),
        ({"OLLAMA_API_BASE": "http://h:2/v1"}, {"api_base": "http://h:3/v1"}, "http://h:3/v1", "openai"),
        (
            {"AZURE_OPENAI_API_KEY": "k", "AZURE_OPENAI_ENDPOINT": "https://x.azure.com"},
            {},
            "https://x.azure.com",
            "azure",
        ),
    ],
)
def test_the_server_is_found_from_settings_and_environment(environ, options, base, provider):
    api = ApiLlmBackend(environ=environ, **options)
    assert (api.api_base, api.provider) == (base, provider)


@pytest.mark.parametrize("base", ["ftp://h/v1", "localhost:8080", "http://", "http://h:99999999/v1", "file:///etc"])
def test_an_address_that_is_none_is_refused(base):
    with pytest.raises(UsageError, match="api_base"):
        ApiLlmBackend(api_base=base, environ={})


def test_several_threads_may_use_one_backend(server):
    with backend(server) as api:
        results: list[str] = []
        threads = [threading.Thread(target=lambda: results.append(api.chat(HELLO).content)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == ["Paris."] * 6


def test_without_the_extra_an_import_error_names_it():
    code = (
        "import sys; sys.modules['openai'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'openai' else find(name, *a)\n"
        "import tea_runtime\n"
        "try: tea_runtime.ApiLlmBackend('m')\n"
        "except ImportError as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "tea-models[api]" in done.stdout
    assert issubclass(MissingExtraError, ImportError)


CITY = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "twin": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('{"name": "Rome", "twin": {"name": "Paris", "twin": null}}', None),
        ('{"name": "Constantinople"}', "name"),
        ('{"name": "Rome", "twin": {"name": 1}}', "twin"),
        ('{"name": "Rome", "mayor": "x"}', "mayor"),
        ("[]", "object"),
        ("Sure!", "not JSON"),
    ],
)
def test_an_answer_is_held_to_the_schema_that_was_asked_for(server, answer, said):
    server.content = answer
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    with ApiLlmBackend("m", api_base=server.base) as api:
        if said is None:
            assert api.chat(HELLO, response_format=wanted).content == answer
        else:
            with pytest.raises(ApiError, match=re.escape(said)):
                api.chat(HELLO, response_format=wanted)


@pytest.mark.parametrize("schema", [{"$ref": "http://127.0.0.1:9/x"}, {"$ref": "#/nowhere"}])
def test_a_schema_that_leads_elsewhere_is_never_fetched_and_never_fulfilled(server, schema):
    server.content = "{}"
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with ApiLlmBackend("m", api_base=server.base) as api, pytest.raises(TeaModelsError):
        api.chat(HELLO, response_format=wanted)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "unknown"}}}},
            "JSON schema",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format: expected"),
        ({"tools": [{"name": "x"}]}, "tools[0]"),
        ({"tool_choice": "required"}, "no tools to choose from"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "x"}}],
                "tool_choice": {"type": "function", "function": {"name": "other"}},
            },
            "no tool 'other'",
        ),
        ({"logit_bias": {"5": 1}}, "unknown option 'logit_bias'"),
    ],
)
def test_what_no_answer_could_fulfil_is_refused_before_anything_is_sent(server, options, said):
    with ApiLlmBackend("m", api_base=server.base) as api, pytest.raises(UsageError) as caught:
        api.chat(HELLO, **options)
    assert said in caught.value.message
    assert server.requests == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_of_a_tool_that_was_not_offered_is_an_error(server, stream):
    server.mode = "tool-call"
    other = {"type": "function", "function": {"name": "other"}}
    with ApiLlmBackend("m", api_base=server.base) as api, pytest.raises(ApiError, match="not offered: 'weather'"):
        api.stream_chat(HELLO, print, tools=[other]) if stream else api.chat(HELLO, tools=[other])
