"""The OpenAI-compatible endpoint, asked over a real socket by the real `openai` client."""

from __future__ import annotations

import json
import socket
import threading
import time
from types import SimpleNamespace

import httpx2
import openai
import pytest
import uvicorn

from tea_models.errors import DoesNotFitError, NotAvailableError
from tea_runtime.backend import LlmBackend, LlmCallResult
from tea_runtime.call import current_scope
from tea_runtime.errors import ApiError, ContextOverflowError, UnsupportedError
from tea_runtime.server.app import MAX_BODY, build_app
from tea_runtime.server.pool import ModelPool, ServedModel


class Parrot(LlmBackend):
    """A real backend without a model: it repeats what it hears, word by word."""

    name = "local"

    def __init__(self):
        self.seen = []
        self.stopped = threading.Event()
        self.slow = False
        self.closed = 0

    def generate(self, params, messages=None, callback=None):
        callback = callback or (lambda _text: None)
        text = messages[-1]["content"] if messages else params.prompt
        self.seen.append((params, messages))
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
                    if (scope := current_scope()) is not None:
                        scope.check()
                    time.sleep(0.01)
        except BaseException:
            self.stopped.set()
            raise
        usage = {"prompt_tokens": 1, "completion_tokens": len(words), "total_tokens": 1 + len(words)}
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"text": "' + "x" * 80 + '"}'}}
        entry = {"token": "é", "bytes": [195, 169], "logprob": -0.5, "top_logprobs": [{"token": "e", "logprob": -0.4}]}
        return LlmCallResult(
            text,
            "parrot",
            usage["total_tokens"],
            "tool_calls" if "tool" in text else "stop",
            usage,
            "local",
            tool_calls=[call] if "tool" in text else None,
            logprobs={"content": [entry, entry]} if params.logprobs else None,
            timings={"prompt_ms": 2.0, "predicted_ms": 3.0},
        )

    def embed(self, text):
        if "overflow" in text:
            raise ContextOverflowError(prompt_tokens=10, n_ctx=5)
        return [0.5, -1.0] if isinstance(text, str) else [[0.5, float(len(one))] for one in text]

    def rerank(self, query, documents):
        return [float(query in document) - index / 100 for index, document in enumerate(documents)]

    def is_available(self):
        return True

    def close(self):
        self.closed += 1


class Served:
    def __init__(self, backend, pool=None, **options):
        self.backend = backend
        pool = pool or ModelPool([ServedModel("parrot", lambda: backend)])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.base = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        config = uvicorn.Config(build_app(pool, **options), log_level="critical", lifespan="off")
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
        model="parrot", messages=messages, max_tokens=5, temperature=0.5, stop="x", seed=1
    )
    assert answer.choices[0].message.content == "hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 3
    assert (answer.model, answer.object) == ("parrot", "chat.completion")
    seen, _ = served.backend.seen[-1]
    assert (seen.max_tokens, seen.temperature, seen.stop, seen.seed) == (5, 0.5, "x", 1)


def test_a_chat_is_streamed_piece_by_piece(client):
    messages = [{"role": "user", "content": "hello dear world"}]
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(model="parrot", messages=messages, stream=True, stream_options=options)
    )
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert [text for text in texts if text] == ["hello", " dear", " world"]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 3
    assert len({chunk.id for chunk in chunks}) == 1


def test_raw_prompts_are_continued_alone_and_several_at_once(served, client):
    assert client.completions.create(model="parrot", prompt="a b").choices[0].text == "a b"
    assert served.backend.seen[-1][0].max_tokens == 16
    many = client.completions.create(model="parrot", prompt=["a", "b c"], max_tokens=None)
    assert [choice.text for choice in many.choices] == ["a", "b c"]
    assert many.usage.completion_tokens == 3
    assert [c.choices[0].text for c in client.completions.create(model="parrot", prompt="a b", stream=True)] == [
        "a",
        " b",
        "",
    ]


def test_embeddings_come_as_the_client_wants_them(served, client):
    assert [item.embedding for item in client.embeddings.create(model="parrot", input=["abc", "d"]).data] == [
        [0.5, 3.0],
        [0.5, 1.0],
    ]
    plain = ask(served, "embeddings", {"input": "abc"}).json()
    assert plain["data"][0]["embedding"] == [0.5, 3.0]
    assert ask(served, "embeddings", {"input": "abc", "dimensions": 9}).status_code == 400


def test_tool_calls_reach_the_client_streamed_or_not(client):
    messages = [{"role": "user", "content": "tool"}]
    whole = client.chat.completions.create(model="parrot", messages=messages)
    assert whole.choices[0].message.tool_calls[0].function.name == "f"
    assert whole.choices[0].finish_reason == "tool_calls"
    chunks = list(client.chat.completions.create(model="parrot", messages=messages, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [(call.index, call.id, call.function.name) for call in calls] == [(0, "c", "f")]
    assert calls[0].function.arguments == whole.choices[0].message.tool_calls[0].function.arguments


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
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "n": 99}, 400, "n: expected"),
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
        ("completions", {"prompt": "a", "model": "other"}, 404, "'other' is not served"),
        ("completions", {"prompt": "a", "model": 3}, 404, "3 is not served"),
        ("rerank", {"query": "a"}, 400, "documents"),
        ("rerank", {"query": "a", "documents": ["b"], "top_n": 0}, 400, "top_n"),
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
        client.chat.completions.create(model="parrot", messages=[{"role": "user", "content": "overflow"}])
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
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
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
        time.sleep(0.2)  # until its first piece has arrived
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
    seen, _ = served.backend.seen[-1]
    assert (seen.top_k, seen.min_p, seen.max_tokens) == (3, 0.1, 4)


def test_a_model_that_is_not_served_is_not_found_in_openais_form(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"
    assert "parrot" in caught.value.message


@pytest.mark.parametrize("stream", [True, False])
def test_several_choices_are_numbered_and_have_seeds_of_their_own(served, client, stream):
    options = {"prompt": ["a b", "c"], "n": 2, "seed": 5, "stream": stream}
    answer = client.completions.create(model="parrot", **options)
    texts = ["", "", "", ""]
    for chunk in answer if stream else [answer]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == ["a b", "a b", "c", "c"]
    assert sorted(params.seed for params, _ in served.backend.seen[-4:]) == [5, 5, 6, 6]


def test_logprobs_of_completions_have_the_shape_of_completions(client):
    found = client.completions.create(model="parrot", prompt="a", logprobs=1).choices[0].logprobs
    assert (found.tokens, found.token_logprobs, found.text_offset) == (["é", "é"], [-0.5, -0.5], [0, 1])
    assert found.top_logprobs == [{"e": -0.4}] * 2
    messages = [{"role": "user", "content": "x"}]
    chat = client.chat.completions.create(model="parrot", messages=messages, logprobs=True).choices[0].logprobs
    assert chat.content[0].token == "é"


def test_documents_are_ranked(served):
    body = {"model": "parrot", "query": "panda", "documents": ["a city", {"text": "a panda"}], "top_n": 1}
    answer = ask(served, "rerank", body | {"return_documents": True}).json()
    assert answer["results"] == [{"index": 1, "relevance_score": 0.99, "document": {"text": "a panda"}}]
    assert len(ask(served, "rerank", body | {"top_n": None}).json()["results"]) == 2


def test_answers_tell_tokens_and_times(served):
    answer = ask(served, "completions", {"prompt": "a b"}).json()
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert answer["timings"] == {"prompt_ms": 2.0, "predicted_ms": 3.0}


def test_metrics_count_what_was_answered():
    served = Served(Parrot())
    try:
        ask(served, "completions", {"prompt": "a b c"})
        lines = httpx2.get(f"{served.base}/metrics").text.splitlines()
    finally:
        served.close()
    assert 'llamacpp:tokens_predicted_total{model_name="parrot"} 3.0' in lines
    assert 'vllm:generation_tokens_total{model_name="parrot"} 3.0' in lines
    assert 'vllm:request_success_total{finished_reason="stop",model_name="parrot"} 1.0' in lines
    assert 'vllm:num_requests_running{model_name="parrot"} 0.0' in lines


# Who may ask ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "headers", "status"),
    [
        ({}, {"Host": "localhost:8080"}, 200),
        ({}, {"Host": "127.0.0.5"}, 200),
        ({}, {"Host": "[::1]:99"}, 200),
        ({}, {"Host": "evil.example"}, 403),
        ({}, {"Host": "evil.example:80"}, 403),
        ({}, {"Host": "localhost.evil.example"}, 403),
        ({}, {"Host": "192.168.1.5"}, 403),
        ({}, {"Host": "a b["}, 403),
        ({"allowed_hosts": ["box.example"]}, {"Host": "BOX.example:8080"}, 200),
        ({"listen": "192.168.1.5"}, {"Host": "192.168.1.5:8080"}, 200),
        ({"listen": "0.0.0.0"}, {"Host": "192.168.1.5:8080"}, 200),
        ({"listen": "0.0.0.0"}, {"Host": "evil.example"}, 403),
        ({}, {"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
        ({}, {"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ({}, {"Origin": "https://evil.example"}, 403),
        ({}, {"Origin": "null"}, 403),
        ({"origins": ["https://good.example"]}, {"Origin": "https://good.example"}, 200),
        ({"origins": ["https://good.example"]}, {"Origin": "https://evil.example"}, 403),
        ({"origins": ["*"]}, {"Origin": "https://any.example"}, 200),
    ],
)
def test_foreign_names_and_pages_are_refused(options, headers, status):
    served = Served(Parrot(), **options)
    try:
        answer = ask(served, "completions", {"prompt": "x"}, headers=headers)
        assert answer.status_code == status
        assert bool(served.backend.seen) == (status == 200)
    finally:
        served.close()


def test_a_browser_asks_first_and_is_told_who_may():
    served = Served(Parrot(), origins=["https://good.example"])
    ask_first = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    try:
        url = f"{served.base}/v1/completions"
        good = httpx2.options(url, headers={"Origin": "https://good.example", **ask_first})
        assert good.headers["access-control-allow-origin"] == "https://good.example"
        assert httpx2.options(url, headers={"Origin": "https://evil.example", **ask_first}).status_code == 403
    finally:
        served.close()


def test_every_request_is_a_line_in_the_log(served, caplog):
    caplog.set_level("INFO", logger="tea_runtime.access")
    ask(served, "completions", {"prompt": "x"})
    ask(served, "nope%0A", {})
    lines = [record.message for record in caplog.records]
    assert lines[0].startswith("127.0.0.1 POST /v1/completions 200 ")
    assert all("\n" not in line for line in lines)


# Several models -------------------------------------------------------------------------------------------------------


class Opener:
    """Opens parrots, and remembers them."""

    def __init__(self, total=0, budget=0, fails=()):
        self.opened = []
        self._fails = list(fails)
        self._memory = total, budget

    def __call__(self):
        if self._fails:
            raise self._fails.pop()
        parrot = Parrot()
        total, budget = self._memory
        memory = SimpleNamespace(use=SimpleNamespace(overhead=0), total=total, budget=budget)
        parrot.plan = SimpleNamespace(memory=memory)
        self.opened.append(parrot)
        return parrot


def named(served, model):
    return ask(served, "completions", {"model": model, "prompt": "x"})


def test_a_model_is_loaded_when_somebody_asks_for_it_and_only_once():
    one, two = Opener(), Opener()
    served = Served(None, ModelPool([ServedModel("one", one), ServedModel("two", two)]))
    try:
        listed = httpx2.get(f"{served.base}/v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["one", "two"]
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(named(served, "two").json())) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {answer["model"] for answer in answers} == {"two"}
        assert (len(one.opened), len(two.opened)) == (0, 1)
    finally:
        served.close()


def test_the_longest_unused_model_is_closed_where_the_budget_is_too_small_for_all():
    openers = {name: Opener(total=4, budget=10) for name in ("one", "two", "three")}
    served = Served(None, ModelPool([ServedModel(name, one) for name, one in openers.items()], room=10))
    try:
        for name in ("one", "two", "one", "three"):
            assert named(served, name).status_code == 200
        assert [openers[name].opened[0].closed for name in ("one", "two", "three")] == [0, 1, 0]
        assert named(served, "two").status_code == 200
        assert len(openers["two"].opened) == 2
    finally:
        served.close()


def test_a_model_that_does_not_fit_gets_the_room_of_the_others():
    one, two = Opener(), Opener(fails=[DoesNotFitError("too large")])
    served = Served(None, ModelPool([ServedModel("one", one), ServedModel("two", two)]))
    try:
        named(served, "one")
        assert named(served, "two").status_code == 200
        assert one.opened[0].closed == 1
    finally:
        served.close()


def test_a_model_that_cant_be_loaded_is_an_error_and_tried_again():
    one = Opener(fails=[NotAvailableError("gone")])
    served = Served(None, ModelPool([ServedModel("one", one)]))
    try:
        assert named(served, "one").status_code == 503
        assert named(served, "one").status_code == 200
    finally:
        served.close()


def test_a_model_is_closed_when_nobody_has_used_it_for_a_while():
    one = Opener()
    served = Served(None, ModelPool([ServedModel("one", one)], keep_alive=0.05))
    try:
        named(served, "one")
        until = time.monotonic() + 30
        while not one.opened[0].closed:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert named(served, "one").status_code == 200
        assert len(one.opened) == 2
    finally:
        served.close()
