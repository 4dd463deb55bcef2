"""What holds for every backend: parameters, results, messages."""

from __future__ import annotations

import math

import pytest

import tea_runtime
from tea_models.errors import UsageError
from tea_runtime.backend import LlmBackend, LlmCallParams, LlmCallResult, check_messages, check_texts
from tea_runtime.errors import ContextOverflowError, LlmError, MissingExtraError


def test_the_public_names_are_these():
    assert sorted(tea_runtime.__all__) == [
        "ApiLlmBackend",
        "AsyncLlmBackend",
        "CancelScope",
        "LlmBackend",
        "LlmCallParams",
        "LlmCallResult",
        "LocalLlmBackend",
        "create_llm_backend",
        "get_model_info",
        "register_actions",
        "resolve_model_path",
        "run_workflow",
    ]
    assert all(getattr(tea_runtime, name) for name in tea_runtime.__all__)


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tea_runtime.nonsense  # noqa: B018


def test_parameters_have_the_defaults_of_the_contract():
    params = LlmCallParams("hi")
    assert (params.max_tokens, params.temperature, params.stop, params.stops) == (100, 0.7, None, ())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("temperature", None),
        ("top_p", 1.1),
        ("min_p", math.inf),
        ("top_k", -3),
        ("seed", 1.0),
        ("repeat_penalty", 0.0),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", [1]),
        ("stop", 7),
        ("response_format", "json"),
        ("tools", {"type": "function"}),
        ("tools", ["f"]),
        ("tool_choice", 3),
        ("logprobs", 21),
        ("logprobs", -1),
        ("grammar", b"root"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_and_named(name, value):
    with pytest.raises(UsageError, match=name):
        LlmCallParams("hi", **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "bounds"),
    [
        ("max_tokens", -1, "from 0 to 2,147,483,647, found -1"),
        ("top_k", -5, "to 2,147,483,647, found -5"),
        ("seed", 2**70, "to 9,223,372,036,854,775,807"),
        ("top_p", 1.5, "from 0 to 1, found 1.5"),
    ],
)
def test_bounds_are_written_out(name, value, bounds):
    with pytest.raises(UsageError, match=bounds):
        LlmCallParams("hi", **{name: value})


@pytest.mark.parametrize("given", [None, 5, b"x", {"a": 1}, ["x", None], [["x"]]])
def test_only_a_text_or_a_list_of_texts_can_be_embedded(given):
    with pytest.raises(UsageError, match=r"text(\[\d\])?: expected a text"):
        check_texts(given)


def test_a_prompt_that_is_no_text_is_refused():
    with pytest.raises(UsageError, match="prompt: expected a text, found bytes"):
        LlmCallParams(b"hi")


def test_an_unknown_option_names_the_nearest_known_one():
    with pytest.raises(UsageError, match="did you mean 'top_p'"):
        LlmCallParams.of(max_tokens=1, topp=0.5)


def test_stop_may_be_one_text():
    assert LlmCallParams("hi", stop="\n").stops == ("\n",)


def test_a_result_shows_only_the_optional_keys_that_it_has():
    result = LlmCallResult("text", "model", 3, "stop", {"total_tokens": 3}, "local")
    assert result.to_dict() == {
        "content": "text",
        "model": "model",
        "backend": "local",
        "tokens_used": 3,
        "usage": {"total_tokens": 3},
        "finish_reason": "stop",
    }


def test_a_result_reports_tool_calls_and_a_fallback():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    data = LlmCallResult("", "m", tool_calls=[call], fallback_reason="no file").to_dict()
    assert data["tool_calls"] == [call]
    assert data["fallback_reason"] == "no file"


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "at least one"),
        ("hi", "expected a list"),
        ({"role": "user"}, "expected a list"),
        (["hi"], r"messages\[0\]: expected role and content"),
        ([{"content": "hi"}], "expected a role"),
        ([{"role": "user"}], "expected content"),
        ([{"role": "user", "content": 3}], "expected a text, found int"),
    ],
)
def test_messages_of_the_wrong_form_are_refused(messages, problem):
    with pytest.raises(UsageError, match=problem):
        check_messages(messages)


def test_a_message_with_tool_calls_needs_no_content():
    assert check_messages([{"role": "assistant", "tool_calls": [{"id": "1"}]}])


class Echo(LlmBackend):
    """The least that a backend must do: it repeats a text word by word, and refuses `bad`."""

    name = "echo"

    def generate(self, params, messages=None, callback=None):
        text = messages[-1]["content"] if messages else params.prompt
        if text == "bad":
            raise UsageError("bad")
        for word in text.split():
            if callback:
                callback(word)
        return LlmCallResult(text, "echo")

    embed = is_available = None

    def close(self):
        pass


def test_many_calls_fall_back_on_one_after_the_other():
    with Echo() as backend:
        assert [result.content for result in backend.call_many([LlmCallParams("a"), LlmCallParams("b")])] == ["a", "b"]
        assert [r.content for r in backend.chat_many([[{"role": "user", "content": "c"}]])] == ["c"]


def test_one_of_many_that_fails_ends_all_or_stands_in_the_list():
    asked = [LlmCallParams("a"), LlmCallParams("bad"), LlmCallParams("b")]
    with pytest.raises(UsageError, match="bad"):
        Echo().call_many(asked)
    first, error, last = Echo().call_many(asked, return_errors=True)
    assert (first.content, type(error), last.content) == ("a", UsageError, "b")


def test_a_stream_without_a_callback_is_an_iterator_with_the_result_at_its_end():
    stream = Echo().stream(LlmCallParams("one two"))
    assert list(stream) == ["one", "two"]
    assert stream.result.content == "one two"
    assert list(Echo().stream_chat([{"role": "user", "content": "three"}])) == ["three"]


def test_a_stream_raises_what_the_backend_raises():
    with pytest.raises(UsageError, match="bad"):
        next(Echo().stream(LlmCallParams("bad")))


def test_a_stream_that_was_closed_has_no_result():
    stream = Echo().stream(LlmCallParams("one two"))
    assert next(stream) == "one"
    stream.close()
    with pytest.raises(LlmError, match="closed before its end"):
        _ = stream.result


def test_a_missing_extra_is_an_import_error_that_names_the_extra():
    error = MissingExtraError("running a local model", package="llama-cpp-python", extra="llm-local")
    assert isinstance(error, ImportError)
    assert isinstance(error, LlmError)
    assert "pip install 'tea-models[llm-local]'" in str(error)


def test_an_overflow_says_by_how_many_tokens():
    error = ContextOverflowError(prompt_tokens=9000, n_ctx=8192)
    assert (error.over, error.exit_code) == (809, 5)
    assert "809 too many" in str(error)
