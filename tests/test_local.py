"""`LocalLlmBackend` on scripted models: what is said is known, so every rule can be checked to the letter."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tea_models import Settings, pull, resolve_plan, resolve_profile
from tea_models.errors import (
    IntegrityError,
    MalformedGGUFError,
    MissingFileError,
    TeaModelsError,
    TemplateError,
    UsageError,
)
from tea_models.store import Store
from tea_runtime import LlmCallParams, LocalLlmBackend
from tea_runtime.errors import ContextOverflowError, GenerationError, LlmError, UnsupportedError
from tea_runtime.llama.generation import StopMatcher
from tests.encoder_model import build_encoder
from tests.gguf_build import CHATML, build_gguf, small_llama_metadata
from tests.scripted_model import CONTROL, Vocabulary, build_scripted, loaded

pytest.importorskip("llama_cpp")

USER = [{"role": "user", "content": "go"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"n": {"type": "integer"}},
            "required": ["n"],
            "additionalProperties": False,
        },
    },
}
TOOL_TEMPLATE = "{% if tools %}Tools: {{ tools | tojson }} <tool_call></tool_call>{% endif %}" + CHATML


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """Says `Hello world😀 end`; the emoji is four byte tokens."""
    path = tmp_path_factory.mktemp("models") / "speaker.gguf"
    texts = Vocabulary()
    build_scripted(path, [["Hello", " wor", "ld", *map(texts.byte, "😀".encode()), " en", "d"]], vocabulary=texts)
    with opened(path) as backend:
        yield backend


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """Says the same 60 words for ever: the last is followed by the first."""
    path = tmp_path_factory.mktemp("models") / "endless.gguf"
    build_scripted(path, [[f" w{index}" for index in range(60)]], loop=True)
    with opened(path, n_ctx=256) as backend:
        yield backend


def opened(path, *args, **options):
    """One thread: two of them wait for each other on a busy machine, and these models need none."""
    return LocalLlmBackend(path, *args, n_threads=1, **options)


def greedy(prompt="\n", **options):
    return LlmCallParams(prompt, temperature=0, **options)


# Text -----------------------------------------------------------------------------------------------------------------


def test_a_call_ends_at_the_end_token(speaker):
    result = speaker.call(greedy())
    assert (result.content, result.finish_reason, result.backend) == ("Hello world😀 end", "stop", "local")


def test_usage_counts_prompt_and_answer(speaker):
    result = speaker.call(greedy("ab\n"))
    assert result.usage["prompt_tokens"] == 4  # BOS, a, b, newline
    assert result.usage["completion_tokens"] == 9
    assert result.tokens_used == result.usage["total_tokens"] == 13


def test_max_tokens_cuts_the_answer_and_says_so(speaker):
    result = speaker.call(greedy(max_tokens=3))
    assert (result.content, result.finish_reason) == ("Hello world", "length")


def test_no_tokens_are_no_answer(speaker):
    result = speaker.call(greedy(max_tokens=0))
    assert (result.content, result.finish_reason) == ("", "length")


def test_half_a_character_at_the_cut_is_left_out(speaker):
    assert speaker.call(greedy(max_tokens=5)).content == "Hello world"


def test_streamed_pieces_are_whole_characters_and_make_the_text(speaker):
    pieces = []
    result = speaker.stream(greedy(), pieces.append)
    assert pieces == ["Hello", " wor", "ld", "😀", " en", "d"]
    assert result.content == "".join(pieces)


def test_a_stop_text_is_never_shown_even_across_pieces(speaker):
    pieces = []
    result = speaker.stream(greedy(stop=["o world"]), pieces.append)
    assert (result.content, result.finish_reason) == ("Hell", "stop")
    assert "".join(pieces) == "Hell"


def test_what_only_looked_like_a_stop_text_is_shown(speaker):
    pieces = []
    assert speaker.stream(greedy(stop="world!"), pieces.append).content == "Hello world😀 end"
    assert pieces[:3] == ["Hello", " ", "world😀"]


def test_the_end_of_the_text_is_shown_when_a_stop_text_stays_incomplete(speaker):
    assert speaker.call(greedy(stop="ending")).content == "Hello world😀 end"


def test_chat_and_call_say_the_same_after_the_same_tokens(speaker):
    assert speaker.chat(USER, temperature=0).content == "Hello world😀 end"
    pieces = []
    assert speaker.stream_chat(USER, pieces.append, temperature=0).content == "".join(pieces)


def test_the_mark_of_the_turn_ends_a_chat_even_where_the_header_does_not_name_it(tmp_path):
    path = tmp_path / "m.gguf"
    texts = Vocabulary()
    end = texts.add("<|turn_end|>", CONTROL)
    template = CHATML.replace("<|im_end|>", "<|turn_end|>")
    build_scripted(path, [["Yes", end, "No"]], vocabulary=texts, template=template)
    with opened(path) as backend:
        assert backend.chat(USER, temperature=0).content == "Yes"


def test_logprobs_are_in_openais_form(speaker):
    result = speaker.call(greedy(max_tokens=2, logprobs=3))
    first = result.logprobs["content"][0]
    assert (first["token"], first["bytes"]) == ("Hello", list(b"Hello"))
    assert first["logprob"] == first["top_logprobs"][0]["logprob"] <= 0
    assert [entry["logprob"] for entry in first["top_logprobs"]] == sorted(
        (entry["logprob"] for entry in first["top_logprobs"]), reverse=True
    )
    assert len(first["top_logprobs"]) == 3
    assert speaker.call(greedy(max_tokens=1, logprobs=True)).logprobs["content"][0]["top_logprobs"] == []


def test_an_empty_prompt_begins_with_bos(speaker):
    assert speaker.call(LlmCallParams("", max_tokens=1)).usage["prompt_tokens"] == 1


def test_nul_in_a_prompt_is_a_character(speaker):
    assert speaker.call(greedy("a\0b\n")).usage["prompt_tokens"] == 5


def test_half_a_character_in_a_prompt_is_refused(speaker):
    with pytest.raises(UsageError, match="half a character"):
        speaker.call(greedy("a\ud800"))


def test_the_same_seed_gives_the_same_answer(speaker):
    params = LlmCallParams("x", max_tokens=20, temperature=5.0, top_k=0, top_p=1.0, min_p=0.0, seed=7)
    first = speaker.call(params).content
    assert speaker.call(params).content == first
    assert speaker.call(LlmCallParams("x", 20, 5.0, top_k=0, top_p=1.0, min_p=0.0, seed=8)).content != first


def test_a_penalty_makes_the_model_say_something_else(endless):
    plain = endless.call(greedy(max_tokens=70)).content
    assert plain.endswith(" w59 w0 w1 w2 w3 w4 w5 w6 w7 w8 w9")
    penalised = endless.call(greedy(max_tokens=70, presence_penalty=100.0)).content
    assert penalised.startswith(" w0 w1 w2 w3")
    assert penalised.count(" w5 ") < plain.count(" w5 ")


# Context --------------------------------------------------------------------------------------------------------------


def test_a_prompt_that_does_not_fit_says_by_how_many_tokens(endless):
    with pytest.raises(ContextOverflowError) as caught:
        endless.call(greedy("a" * 300))
    assert (caught.value.prompt_tokens, caught.value.n_ctx, caught.value.over) == (301, 256, 46)


def test_a_prompt_that_fills_the_context_gets_one_token(endless):
    result = endless.call(greedy("a" * 254, max_tokens=50))
    assert (result.usage["completion_tokens"], result.finish_reason) == (2, "length")


def test_max_tokens_beyond_the_context_end_at_its_edge(endless):
    result = endless.call(greedy("a" * 200, max_tokens=10_000))
    assert result.finish_reason == "length"
    assert result.usage["total_tokens"] == 257  # the last one is said, but needs no room


def test_what_two_prompts_have_in_common_is_evaluated_once(speaker):
    speaker.call(greedy("a long beginning, and one\n"))
    result = speaker.call(greedy("a long beginning, and two\n"))
    assert result.usage["cached_tokens"] == 1 + len("a long beginning, and ")
    assert result.content == "Hello world😀 end"


def test_the_context_starts_small_and_grows(tmp_path, caplog):
    path = tmp_path / "m.gguf"
    build_scripted(path, [["Hello"]], metadata={"llama.context_length": 32768})
    caplog.set_level(logging.INFO, logger="tea_runtime")
    with opened(path) as backend:
        assert backend.call(greedy("a\n")).content == "Hello"
        assert backend.context_size == 1024
        assert backend.call(greedy("a" * 5000 + "\n")).content == "Hello"
        assert backend.context_size == 8192
    assert any("1,024 → 8,192 tokens" in record.message for record in caplog.records)


def test_a_growing_context_takes_along_what_it_holds(tmp_path, caplog):
    path = tmp_path / "m.gguf"
    build_scripted(path, [["Hello"]], metadata={"llama.context_length": 32768})
    caplog.set_level(logging.INFO, logger="tea_runtime")
    with opened(path) as backend:
        backend.call(greedy("a" * 3500 + "\n"))
        result = backend.call(greedy("a" * 3500 + "b" * 500 + "\n", max_tokens=600))
        assert result.content == "Hello"
        assert result.usage["cached_tokens"] == 3501
    assert any("carried over" in record.message for record in caplog.records)


def test_an_answer_may_outgrow_the_context_it_began_in(tmp_path):
    path = tmp_path / "m.gguf"
    build_scripted(path, [[f" w{index}" for index in range(60)]], loop=True, metadata={"llama.context_length": 32768})
    with opened(path) as backend:
        result = backend.call(greedy("a" * 3000 + "\n", max_tokens=2000))
        assert backend.context_size == 8192
        assert result.usage["completion_tokens"] == 2000
        assert result.content.split() == [f"w{index % 60}" for index in range(2000)]


def test_a_seed_is_answered_from_scratch(speaker):
    speaker.call(greedy("a long beginning, and one\n"))
    assert speaker.call(greedy("a long beginning, and two\n", seed=1)).usage["cached_tokens"] == 0


def test_what_a_load_took_is_recorded_and_found_by_the_plan(tmp_path, own_world):
    path = tmp_path / "m.gguf"
    build_scripted(path, [["Hello"]], metadata={"llama.context_length": 1024})
    with opened(path) as backend:
        backend.call(greedy())
        first = backend.plan
    with opened(path) as backend:
        observed = backend.plan.observed
    assert first.observed is None
    assert observed["actual"]["kv_cache"] == observed["predicted"]["kv_cache"]
    assert observed["warnings"] == []


def test_the_contexts_of_chat_and_embedding_share_the_room_of_the_plan(endless):
    endless.call(greedy())
    assert (endless.context_size, endless._model.vectors.size) == (256, 0)
    endless.embed("x")
    assert (endless.context_size, endless._model.vectors.size) == (0, 256)
    endless.call(greedy())
    assert (endless.context_size, endless._model.vectors.size) == (256, 0)


def test_a_context_that_was_asked_for_is_opened_at_once(tmp_path):
    path = tmp_path / "m.gguf"
    build_scripted(path, [["Hello"]], metadata={"llama.context_length": 32768})
    with opened(path, n_ctx=6000) as backend:
        backend.call(greedy())
        assert backend.context_size == 6000
        with pytest.raises(ContextOverflowError):
            backend.call(greedy("a" * 6000))


# Several at once ------------------------------------------------------------------------------------------------------


def test_a_batch_keeps_its_order_and_says_what_single_calls_say(speaker):
    prompts = [greedy(f"{index}\n", max_tokens=index + 1) for index in range(20)]
    together = speaker.call_many(prompts)
    assert [result.content for result in together] == [speaker.call(params).content for params in prompts]


def test_a_batch_of_chats_is_answered_together(speaker):
    results = speaker.chat_many([USER, [{"role": "user", "content": "other"}]], temperature=0)
    assert [result.content for result in results] == ["Hello world😀 end"] * 2


def test_a_batch_that_is_larger_than_the_context_runs_in_turns(endless):
    results = endless.call_many([greedy("a" * 100, max_tokens=100) for _ in range(5)])
    assert {result.usage["completion_tokens"] for result in results} == {100}


def test_an_empty_batch_is_an_empty_list(speaker):
    assert speaker.call_many([]) == []


def test_one_prompt_too_long_refuses_the_whole_batch(endless):
    with pytest.raises(ContextOverflowError):
        endless.call_many([greedy("a"), greedy("a" * 300)])


def test_threads_wait_for_each_other(speaker):
    results = []

    def work(number):
        results.extend(
            (number, speaker.call(greedy(f"{number}\n", max_tokens=2 + number % 3)).content) for _ in range(5)
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = {0: "Hello wor", 1: "Hello world", 2: "Hello world"}
    assert len(results) == 40
    assert all(content == wanted[number % 3] for number, content in results)


INSTRUCTION = "Answer in one word, and be as precise as you can about it: "


def test_what_all_prompts_of_a_batch_begin_with_is_evaluated_once(speaker):
    prompts = [greedy(f"{INSTRUCTION}{index}\n") for index in range(5)]
    together = speaker.call_many(prompts)
    assert [result.usage["cached_tokens"] for result in together[1:]] == [1 + len(INSTRUCTION)] * 4
    assert {result.content for result in together} == {"Hello world😀 end"}


def test_prompts_that_are_all_the_same_still_have_a_token_to_evaluate(speaker):
    results = speaker.call_many([greedy(f"{INSTRUCTION}\n")] * 3)
    assert {result.content for result in results} == {"Hello world😀 end"}


def test_the_shared_beginning_counts_once_against_the_context(endless):
    results = endless.call_many([greedy("a" * 150 + f"{index}\n", max_tokens=40) for index in range(4)])
    assert {result.usage["completion_tokens"] for result in results} == {40}


def test_answers_without_a_limit_run_one_after_the_other_to_the_edge_of_the_context(endless):
    results = endless.call_many([greedy(f"{index}\n", max_tokens=None) for index in range(3)])
    assert {(result.finish_reason, result.usage["total_tokens"]) for result in results} == {("length", 257)}


def test_a_stuck_member_of_a_batch_leaves_a_sound_state(speaker):
    with pytest.raises(UsageError, match="left recursion"):
        speaker.call_many([greedy(), greedy(grammar="root ::= root")])
    assert speaker.call(greedy()).content == "Hello world😀 end"


# Things that go wrong -------------------------------------------------------------------------------------------------


def test_a_callback_that_raises_ends_the_stream_and_nothing_else(speaker):
    def callback(piece):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        speaker.stream(greedy(), callback)
    assert speaker.call(greedy()).content == "Hello world😀 end"


def test_a_keyboard_interrupt_in_the_middle_leaves_a_sound_state(speaker):
    pieces = []

    def callback(piece):
        pieces.append(piece)
        if len(pieces) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        speaker.stream_chat(USER, callback, temperature=0)
    assert speaker.chat(USER, temperature=0).content == "Hello world😀 end"


def test_a_callback_may_call_the_model_itself(speaker):
    inner = []
    result = speaker.stream(greedy(), lambda piece: inner.append(speaker.call(greedy(max_tokens=1)).content))
    assert result.content == "Hello world😀 end"
    assert set(inner) == {"Hello"}


def test_a_closed_backend_says_so_and_holds_nothing(tmp_path):
    path = tmp_path / "m.gguf"
    build_scripted(path, [["Hello"]])
    backend = opened(path)
    backend.call(greedy())
    assert backend.is_available()
    backend.close()
    backend.close()
    assert not backend.is_available()
    assert path not in [file for file, _ in loaded()]
    with pytest.raises(LlmError, match="closed"):
        backend.call(greedy())
    with pytest.raises(LlmError, match="closed"):
        backend.embed("x")


def test_two_backends_share_the_weights_and_one_may_close(tmp_path):
    path = tmp_path / "m.gguf"
    build_scripted(path, [["Hello"]])
    first, second = opened(path), opened(path)
    assert (path, 2) in loaded()
    first.close()
    assert second.call(greedy()).content == "Hello"
    second.close()


def test_a_dropped_backend_is_freed(tmp_path):
    path = tmp_path / "m.gguf"
    build_scripted(path, [["Hello"]])
    opened(path).call(greedy())
    assert path not in [file for file, _ in loaded()]


def run(program, *arguments):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False
    )


def test_a_backend_that_was_never_closed_lets_the_process_end_quietly(tmp_path):
    path = tmp_path / "m.gguf"
    build_scripted(path, [["Hello"]])
    program = (
        "import sys; from tea_runtime import *\n"
        "backend = LocalLlmBackend(sys.argv[1], n_threads=1); backend.embed('x')\n"
        "print(backend.call(LlmCallParams('\\n', temperature=0)).content)\n"
    )
    done = run(program, path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello\n", "")


def test_a_process_may_end_while_a_thread_is_still_generating(tmp_path):
    path = tmp_path / "m.gguf"
    build_scripted(path, [[f" w{index}" for index in range(60)]], loop=True)
    program = (
        "import sys, threading; from tea_runtime import *\n"
        "backend = LocalLlmBackend(sys.argv[1], n_threads=1); going = threading.Event()\n"
        "params = LlmCallParams('\\n', 2000, temperature=0)\n"
        "work = lambda: backend.stream(params, lambda piece: going.set())\n"
        "threading.Thread(target=work, daemon=True).start(); going.wait(60)\n"
    )
    done = run(program, path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fork_is_told_to_load_its_own_model(tmp_path):
    path = tmp_path / "m.gguf"
    build_scripted(path, [["Hello"]])
    program = (
        "import os, sys; from tea_runtime import *\n"
        "backend = LocalLlmBackend(sys.argv[1], n_threads=1)\n"
        "params = LlmCallParams('\\n', temperature=0); backend.call(params)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    try: backend.call(params)\n"
        "    except Exception as error: print(error, flush=True)\n"
        "    sys.exit(0)\n"
        "os.waitpid(child, 0); print(backend.call(params).content)\n"
    )
    done = run(program, path)
    assert "forked after it was loaded" in done.stdout
    assert done.stdout.endswith("Hello\n")


def test_a_folder_is_no_model(tmp_path):
    with pytest.raises(TeaModelsError, match=str(tmp_path)):
        opened(tmp_path)


def test_messages_that_hold_themselves_are_refused(speaker):
    message = {"role": "user", "content": "x"}
    message["more"] = message
    with pytest.raises(TemplateError, match=r"Circular reference|nested too deeply"):
        speaker.chat([message])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"nothing\.gguf"):
        opened(tmp_path / "nothing.gguf")


@pytest.mark.parametrize("size", [0, 3, 24, 500])
def test_a_broken_header_never_reaches_the_engine(tmp_path, size):
    path = tmp_path / "broken.gguf"
    path.write_bytes(build_gguf()[:size])
    with pytest.raises(MalformedGGUFError):
        opened(path)


def test_a_file_that_would_crash_the_engine_is_refused(tmp_path):
    path = tmp_path / "crash.gguf"
    path.write_bytes(build_gguf(small_llama_metadata(general__architecture=None)))
    with pytest.raises(IntegrityError):
        opened(path)


def test_a_load_that_fails_does_not_spoil_the_next(tmp_path):
    broken, good = tmp_path / "broken.gguf", tmp_path / "good.gguf"
    build_scripted(good, [["Hello"]])
    data = build_gguf(small_llama_metadata(llama__block_count=3), [])
    broken.write_bytes(data)
    with pytest.raises(Exception, match="broken"):
        opened(broken)
    with opened(good) as backend:
        assert backend.call(greedy()).content == "Hello"


def test_a_load_is_told_in_one_line(tmp_path, caplog):
    path = tmp_path / "m.gguf"
    build_scripted(path, [["Hello"]])
    caplog.set_level(logging.INFO, logger="tea_runtime")
    opened(path).close()
    (line,) = [record.message for record in caplog.records if record.name == "tea_runtime"]
    assert line.startswith("loaded m.gguf: n_ctx 2,048 (gguf)")


def test_the_result_carries_the_plan(speaker):
    assert speaker.call(greedy()).plan is speaker.plan


def test_a_profile_of_another_file_is_refused(tmp_path):
    one, other = tmp_path / "one.gguf", tmp_path / "other.gguf"
    build_scripted(one, [["Hello"]])
    build_scripted(other, [["Hello"]], metadata={"llama.context_length": 512})
    with pytest.raises(UsageError, match="their headers differ"):
        opened(one, profile=resolve_profile(other))
    with opened(one, profile=resolve_profile(one)) as backend:
        assert backend.call(greedy()).content == "Hello"


def test_a_pulled_model_starts_from_the_profile_that_was_written_with_it(tmp_path, own_world):
    source = tmp_path / "m.gguf"
    build_scripted(source, [["Hello"]])
    settings = Settings.resolve({"HOME": str(own_world), "TEA_MODELS_DIR": str(own_world / "models")}, cwd=tmp_path)
    (pulled,) = pull([f"file:{source}"], settings=settings)
    written = Store.of(settings).profile_path(Path(pulled.path))
    document = json.loads(written.read_text())
    document["name"]["value"] = "As written"
    written.write_text(json.dumps(document))
    with opened(pulled.path, settings=settings) as backend:
        assert backend.profile.name.value == "As written"
    written.write_text("damaged")
    with opened(pulled.path, settings=settings) as backend:
        assert backend.profile.name.value == "Small Llama"


# Templates ------------------------------------------------------------------------------------------------------------


def test_a_model_without_a_template_does_not_chat_but_calls(tmp_path):
    path = tmp_path / "base.gguf"
    build_scripted(path, [["Hello"]], template=None)
    with opened(path) as backend:
        with pytest.raises(UnsupportedError, match="no chat template"):
            backend.chat(USER)
        assert backend.call(greedy()).content == "Hello"


@pytest.mark.parametrize("chat_format", ["chatml", CHATML])
def test_a_chat_format_stands_in_for_a_template(tmp_path, chat_format):
    path = tmp_path / "base.gguf"
    build_scripted(path, [["Hello"]], template=None)
    with opened(path, chat_format=chat_format) as backend:
        assert backend.chat(USER, temperature=0).content == "Hello"
        rendered = b"".join(backend._model.vocabulary.piece(token, special=True) for token in backend.render(USER))
        assert rendered == b"<s><|im_start|>user\ngo<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_may_be_a_file(tmp_path):
    path, template = tmp_path / "base.gguf", tmp_path / "mine.jinja"
    build_scripted(path, [["Hello"]], template=None)
    template.write_text(CHATML)
    with opened(path, chat_format=str(template)) as backend:
        assert backend.chat(USER, temperature=0).content == "Hello"


def test_an_unknown_chat_format_names_the_nearest_and_frees_the_weights(tmp_path):
    path = tmp_path / "m.gguf"
    build_scripted(path, [["Hello"]])
    with pytest.raises(UsageError, match="did you mean 'chatml'"):
        opened(path, chat_format="chatmll")
    assert path not in [file for file, _ in loaded()]


# Constraints ----------------------------------------------------------------------------------------------------------


def test_a_grammar_binds_the_answer(speaker):
    result = speaker.chat(USER, temperature=0, grammar='root ::= "yes" | "no"')
    assert result.content in ("yes", "no")
    assert result.finish_reason == "stop"


def test_a_json_schema_binds_the_answer(speaker):
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
        "required": ["ok", "kind"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    result = speaker.chat(USER, max_tokens=200, temperature=0, response_format=wanted)
    data = json.loads(result.content)
    assert isinstance(data["ok"], bool)
    assert data["kind"] in ("a", "b")


def test_raw_control_characters_never_get_into_json_strings(endless):
    wanted = {"type": "json_schema", "json_schema": {"schema": {"type": "string", "maxLength": 3}}}
    kept = 0
    for seed in range(20):
        params = LlmCallParams("x", 100, 3.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed, response_format=wanted)
        try:
            result = endless.call(params)
        except GenerationError as error:
            assert "no text" in error.hint  # noqa: PT017 - bytes that are no UTF-8 count differently in text
            continue
        if result.finish_reason == "stop":
            kept += 1
            assert len(json.loads(result.content)) <= 3
    assert kept


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"type": "yaml"}, "expected text, json_object or json_schema"),
        ({}, "expected text, json_object or json_schema"),
        ({"type": "json_schema"}, "json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": 3}}, "expected a mapping"),
    ],
)
def test_a_response_format_that_is_none_is_refused(speaker, wanted, problem):
    with pytest.raises(UsageError, match=problem):
        speaker.chat(USER, response_format=wanted)


def test_a_schema_that_cant_be_enforced_is_an_error_and_no_free_text(speaker):
    wanted = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "if": {}, "then": {}}}}
    with pytest.raises(UnsupportedError, match="can't be enforced"):
        speaker.chat(USER, response_format=wanted)


def test_grammar_and_response_format_exclude_each_other(speaker):
    with pytest.raises(UsageError, match="exclude"):
        speaker.call(greedy(grammar='root ::= "a"', response_format={"type": "json_object"}))


# Tools ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def caller(tmp_path_factory):
    """Thinks aloud and calls `add`."""
    path = tmp_path_factory.mktemp("models") / "caller.gguf"
    script = ["Let me see. ", "<tool_call>", '{"name": "add", ', '"arguments": {"n": 3}}', "</tool_call>"]
    build_scripted(path, [script], template=TOOL_TEMPLATE)
    with opened(path) as backend:
        yield backend


def test_a_tool_call_is_parsed(caller):
    result = caller.chat(USER, temperature=0, tools=[TOOL])
    assert result.finish_reason == "tool_calls"
    assert result.content == "Let me see."
    (call,) = result.tool_calls
    assert call["function"] == {"name": "add", "arguments": '{"n": 3}'}


def test_a_streamed_tool_call_is_not_shown_as_text(caller):
    pieces = []
    result = caller.stream_chat(USER, pieces.append, temperature=0, tools=[TOOL])
    assert "".join(pieces) == result.content == "Let me see."
    assert result.tool_calls


def test_a_tool_choice_of_none_keeps_the_tools_from_the_model(caller):
    result = caller.chat(USER, temperature=0, tools=[TOOL], tool_choice="none")
    assert result.tool_calls is None
    assert result.usage["prompt_tokens"] == caller.chat(USER, max_tokens=0).usage["prompt_tokens"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_demanded_tool_is_called_whatever_the_model_would_say(tmp_path, choice):
    path = tmp_path / "m.gguf"
    build_scripted(path, [["No, thank you"]], template=TOOL_TEMPLATE)
    with opened(path) as backend:
        result = backend.chat(USER, 200, 0, tools=[TOOL], tool_choice=choice)
        (call,) = result.tool_calls
        assert call["function"]["name"] == "add"
        assert isinstance(json.loads(call["function"]["arguments"])["n"], int)


def test_tools_need_a_template_that_presents_them(speaker):
    with pytest.raises(UnsupportedError, match="can't present tools"):
        speaker.chat(USER, tools=[TOOL])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tool_choice": "required"}, "no tools to choose from"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "expected auto, none, required or a function"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}}, "no tool 'sub'"),
        ({"tools": [{"type": "function"}]}, r"tools\[0\]"),
        ({"tools": [{"type": "function", "function": {}}]}, "expected a name"),
        ({"tool": []}, "did you mean 'tools'"),
    ],
)
def test_tools_of_the_wrong_form_are_refused(caller, options, problem):
    with pytest.raises(UsageError, match=problem):
        caller.chat(USER, **options)


def test_tools_mean_nothing_to_a_raw_prompt(caller):
    with pytest.raises(UsageError, match="for chats"):
        caller.call(greedy(tools=[TOOL]))


# Embeddings -----------------------------------------------------------------------------------------------------------


def test_a_text_becomes_a_unit_vector_and_a_list_a_list(speaker):
    one = speaker.embed("hello")
    assert len(one) == 64
    assert sum(value * value for value in one) == pytest.approx(1.0)
    several = speaker.embed(["hello", "other", "hello"])
    assert several[0] == pytest.approx(one, abs=1e-6)
    assert several[0] == pytest.approx(several[2], abs=1e-6)
    assert several[0] != pytest.approx(several[1], abs=1e-3)
    assert speaker.embed([]) == []


def test_a_text_longer_than_a_step_is_averaged_over_all_of_it(speaker):
    whole = speaker.embed("a" * 300 + "b" * 300)
    assert whole != pytest.approx(speaker.embed("b" * 300), abs=1e-3)


def test_many_texts_are_embedded_in_groups(speaker):
    texts = [f"text {index} " * 20 for index in range(25)]
    together = speaker.embed(texts)
    assert together[17] == pytest.approx(speaker.embed(texts[17]), abs=1e-5)


@pytest.mark.parametrize(("text", "problem"), [("", "empty"), (["a", ""], "empty"), ([1], "expected a text")])
def test_what_is_no_text_has_no_embedding(speaker, text, problem):
    with pytest.raises(UsageError, match=problem):
        speaker.embed(text)


def test_a_text_longer_than_the_context_is_an_error_with_the_numbers(endless):
    with pytest.raises(ContextOverflowError) as caught:
        endless.embed("a" * 300)
    assert caught.value.over == 45


def test_embedding_and_chat_share_one_copy_of_the_weights(speaker):
    speaker.embed("x")
    speaker.chat(USER)
    assert (speaker.model_path, 1) in loaded()


@pytest.mark.parametrize("pooling", [1, 2, 3])
def test_an_encoder_embeds_and_does_not_write(tmp_path, pooling):
    path = tmp_path / "encoder.gguf"
    build_encoder(path, pooling=pooling)
    with opened(path) as backend:
        one = backend.embed("hello world")
        assert len(one) == 32
        assert backend.embed(["a b c", "hello world"])[1] == pytest.approx(one, abs=1e-5)
        with pytest.raises(UnsupportedError, match="embedding model"):
            backend.chat(USER)
        with pytest.raises(UnsupportedError, match="embedding model"):
            backend.call(greedy())
        with pytest.raises(ContextOverflowError, match="the text has 202 tokens"):
            backend.embed("x y " * 100)


def test_a_reranker_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "reranker.gguf"
    build_encoder(path, pooling=4)
    with pytest.raises(UnsupportedError, match="reranker"):
        opened(path)


def test_how_fast_the_first_answer_came_is_what_plans_say_of_the_model(tmp_path):
    path = tmp_path / "endless.gguf"
    build_scripted(path, [[f" w{index}" for index in range(60)]], loop=True)
    settings = Settings(tmp_path / "store")
    with opened(path, settings=settings) as backend:
        backend.call(greedy(max_tokens=40))
        backend.call(greedy(max_tokens=40))
    assert len(json.loads((tmp_path / "store" / ".tea" / "speeds.json").read_text())) == 1
    speed = resolve_plan(path, settings=settings, n_threads=1).speed
    assert (speed.method, speed.tokens_per_s > 0) == ("measured", True)


# Stop texts, by themselves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stops", "pieces", "shown"),
    [
        ((), ["a", "b"], "ab"),
        (("b",), ["a", "b", "c"], "a"),
        (("bc",), ["ab", "ca"], "a"),
        (("aab",), ["a", "a", "a", "b"], "a"),
        (("xyz", "b"), ["axb", "z"], "ax"),
        (("###",), ["#", "#", "x", "##"], "##x##"),
        (("abab",), ["ab", "aab", "ab", "c"], "aba"),
    ],
)
def test_a_matcher_shows_exactly_what_is_before_the_first_stop(stops, pieces, shown):
    matcher = StopMatcher(stops)
    assert "".join(map(matcher.feed, pieces)) + matcher.flush() == shown


# Prompts on disk ------------------------------------------------------------------------------------------------------


def test_a_long_prompt_is_read_from_disk_by_the_next_load_and_a_damaged_file_is_not(tmp_path):
    path, folder = tmp_path / "m.gguf", tmp_path / "prompts"
    build_scripted(path, [["Hello"]])
    prompt = "a" * 600

    def cached(more):
        with opened(path, prompt_cache=folder) as backend:
            result = backend.call(greedy(f"{prompt}{more}\n"))
        assert result.content == "Hello"
        return result.usage["cached_tokens"]

    assert cached("one") == 0
    (file,) = folder.glob("*/*")
    assert cached("two") == 601
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert cached("three") == 0
    assert not file.exists()
