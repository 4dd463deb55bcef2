"""The OpenAI-compatible endpoint, asked over a real socket by the real `openai` client."""

from __future__ import annotations

import json
import socket
import threading
import time

import httpx2
import openai
import pytest
import uvicorn

from tea_runtime.backend import LlmBackend, LlmCallResult, check_messages
from tea_runtime.errors import ApiError, ContextOverflowError, UnsupportedError
from tea_runtime.server.app import MAX_BODY, build_app


class Parrot(LlmBackend):
    """A real backend without a model: it repeats what it hears, word by word."""

    name = "local"

    def __init__(self):
        self.seen = []
        self.stopped = threading.Event()
        self.slow = False

    def _say(self, text, callback, params):
        self.seen.append(params)
        if "overflow" in text:
            raise ContextOverflowError(prompt_tokens=10, n_ctx=5)
        if "unsupported" in text:
            raise UnsupportedError("not that")
        if "upstream" in text:
            raise ApiError("upstream is down")
        if "bug" in text:
            raise RuntimeError("a bug with a secret")
        words = text.split(" ")
        try:
            for index, word in enumerate(words):
                callback(("" if index == 0 else " ") + word)
                while self.slow:
                    callback(".")
                    time.sleep(0.01)
        except BaseException:
            self.stopped.set()
            raise
        usage = {"prompt_tokens": 1, "completion_tokens": len(words), "total_tokens": 1 + len(words)}
        calls = (
            [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}] if "tool" in text else None
        )
        reason = "tool_calls" if calls else "stop"
        return LlmCallResult(text, "parrot", usage["total_tokens"], reason, usage, "local", tool_calls=calls)

    def call(self, params):
        return self._say(params.prompt, lambda _text: None, params)

    def stream(self, params, callback):
        return self._say(params.prompt, callback, params)

    def chat(self, messages, *args, **options):
        return self.stream_chat(messages, lambda _text: None, *args, **options)

    def stream_chat(self, messages, callback, max_tokens=100, temperature=0.7, stop=None, **options):
        plain = check_messages(messages)
        return self._say(
            plain[-1]["content"],
            callback,
            {"max_tokens": max_tokens, "temperature": temperature, "stop": stop, "messages": plain} | options,
        )

    def embed(self, text):
        if "overflow" in text:
            raise ContextOverflowError(prompt_tokens=10, n_ctx=5)
        return [0.5, -1.0] if isinstance(text, str) else [[0.5, float(len(one))] for one in text]

    def is_available(self):
        return True

    def close(self):
        pass


class Served:
    def __init__(self, backend, key=""):
        self.backend = backend
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.base = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        config = uvicorn.Config(build_app(backend, name="parrot", key=key), log_level="critical", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()

    def close(self):
        self.server.should_exit = True
        self.thread.join()
        self.listener.close()


@pytest.fixture(scope="module")
def served():
    served = Served(Parrot())
    yield served
    served.close()


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=served.base + "/v1", api_key="x", max_retries=0) as client:
        yield client


def ask(served, path, body, **options):
    return httpx2.post(f"{served.base}/v1/{path}", json=body, **{"timeout": 300} | options)


def test_health_and_models(served, client):
    assert httpx2.get(f"{served.base}/health", timeout=300).json() == {"status": "ok"}
    assert [model.id for model in client.models.list()] == ["parrot"]


def test_a_chat_is_answered(served, client):
    messages = [{"role": "user", "content": "hello there"}]
    answer = client.chat.completions.create(
        model="any", messages=messages, max_tokens=5, temperature=0.5, stop="x", seed=1
    )
    assert answer.choices[0].message.content == "hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 3
    assert (answer.model, answer.object) == ("parrot", "chat.completion")
    seen = served.backend.seen[-1]
    assert (seen["max_tokens"], seen["temperature"], seen["stop"], seen["seed"]) == (5, 0.5, "x", 1)


def test_a_chat_is_streamed_piece_by_piece(client):
    messages = [{"role": "user", "content": "hello dear world"}]
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="m", messages=messages, stream=True, stream_options=options))
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert [text for text in texts if text] == ["hello", " dear", " world"]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 3
    assert len({chunk.id for chunk in chunks}) == 1


def test_raw_prompts_are_continued_alone_and_several_at_once(served, client):
    assert client.completions.create(model="m", prompt="a b").choices[0].text == "a b"
    assert served.backend.seen[-1].max_tokens == 16
    many = client.completions.create(model="m", prompt=["a", "b c"], max_tokens=None)
    assert [choice.text for choice in many.choices] == ["a", "b c"]
    assert many.usage.completion_tokens == 3
    assert [c.choices[0].text for c in client.completions.create(model="m", prompt="a b", stream=True)] == [
        "a",
        " b",
        "",
    ]


def test_embeddings_come_as_the_client_wants_them(served, client):
    assert [item.embedding for item in client.embeddings.create(model="m", input=["abc", "d"]).data] == [
        [0.5, 3.0],
        [0.5, 1.0],
    ]
    plain = ask(served, "embeddings", {"input": "abc"}).json()
    assert plain["data"][0]["embedding"] == [0.5, 3.0]
    assert ask(served, "embeddings", {"input": "abc", "dimensions": 9}).status_code == 400


def test_tool_calls_reach_the_client_streamed_or_not(client):
    messages = [{"role": "user", "content": "tool"}]
    whole = client.chat.completions.create(model="m", messages=messages)
    assert whole.choices[0].message.tool_calls[0].function.name == "f"
    assert whole.choices[0].finish_reason == "tool_calls"
    chunks = list(client.chat.completions.create(model="m", messages=messages, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert (calls[0].index, calls[0].function.arguments) == (0, "{}")


def test_content_in_parts_is_joined_and_pictures_are_refused(served):
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    answer = ask(served, "chat/completions", {"messages": [{"role": "user", "content": parts}]}).json()
    assert answer["choices"][0]["message"]["content"] == "one two"
    picture = [{"type": "image_url", "image_url": {"url": "data:"}}]
    refused = ask(served, "chat/completions", {"messages": [{"role": "user", "content": picture}]})
    assert (refused.status_code, "image_url" in refused.text) == (400, True)


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("chat/completions", {}, 400, "messages"),
        ("chat/completions", {"messages": "x"}, 400, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "n": 2}, 400, "n: not possible"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "temperature": "hot"},
            400,
            "temperature",
        ),
        ("chat/completions", {"messages": [{"role": "user", "content": "overflow"}]}, 400, "10 tokens"),
        ("chat/completions", {"messages": [{"role": "user", "content": "overflow"}], "stream": True}, 400, "10 tokens"),
        ("chat/completions", {"messages": [{"role": "user", "content": "unsupported"}]}, 400, "not that"),
        ("chat/completions", {"messages": [{"role": "user", "content": "upstream"}]}, 502, "upstream is down"),
        ("completions", {"prompt": [1, 2]}, 400, "prompt"),
        ("completions", {"prompt": "x", "echo": True}, 400, "echo"),
        ("completions", {"prompt": ["a", "b"], "stream": True}, 400, "one prompt"),
        ("embeddings", {}, 400, "input"),
        ("embeddings", {"input": []}, 400, "input"),
        ("embeddings", {"input": "a", "encoding_format": "zip"}, 400, "encoding_format"),
        ("nope", {}, 404, "/v1/chat/completions"),
    ],
)
def test_what_cannot_be_done_is_said_in_openais_form(served, path, body, status, said):
    answer = ask(served, path, body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert said in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}


def test_a_prompt_that_does_not_fit_has_the_code_that_clients_look_for(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "overflow"}])
    assert caught.value.code == "context_length_exceeded"


def test_a_bug_is_a_500_without_its_details(served, caplog):
    answer = ask(served, "chat/completions", {"messages": [{"role": "user", "content": "bug"}]})
    assert answer.status_code == 500
    assert "secret" not in answer.text


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(served, data):
    answer = httpx2.post(
        f"{served.base}/v1/completions", content=data, headers={"Content-Type": "application/json"}, timeout=300
    )
    assert answer.status_code == 400


def test_what_a_web_page_may_send_unasked_is_refused(served):
    answer = httpx2.post(
        f"{served.base}/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"}, timeout=300
    )
    assert (answer.status_code, "application/json" in answer.text) == (400, True)


def test_a_body_that_is_too_large_is_refused(served):
    data = b'{"prompt": "' + b"x" * MAX_BODY + b'"}'
    answer = httpx2.post(
        f"{served.base}/v1/completions", content=data, headers={"Content-Type": "application/json"}, timeout=300
    )
    assert answer.status_code == 413


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_the_generation(stream):
    served = Served(Parrot())
    served.backend.slow = True
    try:
        body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", int(served.base.rpartition(":")[2]))) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            if stream:
                connection.recv(100)
        assert served.backend.stopped.wait(300)
    finally:
        served.backend.slow = False
        served.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_server_that_ends_tells_the_clients_that_wait(stream):
    served = Served(Parrot())
    served.backend.slow = True
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": stream}
    try:
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(ask(served, "chat/completions", body, timeout=300)))
        waiting.start()
        while not served.backend.seen:
            time.sleep(0.01)
        served.server.config.app.state.end()
        waiting.join()
        assert "the server is ending" in answers[0].text
        assert answers[0].status_code == (200 if stream else 503)
        assert served.backend.stopped.wait(300)
    finally:
        served.backend.slow = False
        served.close()


def test_a_key_is_wanted_where_one_is_set():
    served = Served(Parrot(), key="k-1")
    try:
        body = {"prompt": "x"}
        assert ask(served, "completions", body).status_code == 401
        assert ask(served, "completions", body, headers={"Authorization": "Bearer nö".encode()}).status_code == 401
        assert ask(served, "completions", body, headers={"Authorization": "Bearer k-1"}).status_code == 200
        assert httpx2.get(f"{served.base}/health", timeout=300).status_code == 200
    finally:
        served.close()


def test_several_clients_at_once_are_all_answered(served):
    answers = []

    def one(text):
        answers.append(ask(served, "completions", {"prompt": text}).json()["choices"][0]["text"])

    threads = [threading.Thread(target=one, args=(f"text {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [f"text {number}" for number in range(8)]


def test_sampling_options_of_llama_cpp_are_taken_too(served):
    ask(
        served,
        "chat/completions",
        {"messages": [{"role": "user", "content": "x"}], "top_k": 3, "min_p": 0.1, "max_completion_tokens": 4},
    )
    seen = served.backend.seen[-1]
    assert (seen["top_k"], seen["min_p"], seen["max_tokens"]) == (3, 0.1, 4)
