"""The engine's thread and its batch: many callers, cancelling, forks, errors of one, the end of a process."""

from __future__ import annotations

import gc
import math
import os
import struct
import subprocess
import sys
import threading
import time

import gguf
import pytest

from tea_models.errors import UsageError
from tea_runtime import LlmCallParams, LocalLlmBackend
from tea_runtime.call import CancelScope
from tea_runtime.engine.sequences import HeldSequence, common_prefix
from tea_runtime.errors import AnswerTimeoutError, CancelledCallError, GenerationError, LlmError
from tests.scripted_model import build_scripted

pytest.importorskip("llama_cpp")

WORDS = [f" w{index}" for index in range(60)]


@pytest.fixture(scope="module")
def endless_file(tmp_path_factory):
    """Says the same 60 words for ever."""
    path = tmp_path_factory.mktemp("models") / "endless.gguf"
    build_scripted(path, [WORDS], loop=True, metadata={"llama.context_length": 32768})
    return path


@pytest.fixture
def endless(endless_file):
    with LocalLlmBackend(endless_file, n_ctx=2048, n_threads=1) as backend:
        yield backend


@pytest.fixture
def wide(endless_file):
    """A context that takes minutes to fill."""
    with LocalLlmBackend(endless_file, n_ctx=32768, n_threads=1) as backend:
        yield backend


def greedy(prompt="\n", max_tokens=None, **options):
    return LlmCallParams(prompt, max_tokens, 0, **options)


def figures(backend):
    return backend.load_figures()


def until(condition, seconds=60):
    """Wait for something that happens in another thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def run(program, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


# Many callers ---------------------------------------------------------------------------------------------------------


def test_a_request_is_let_in_while_others_are_being_answered(endless):
    with endless.stream(greedy(max_tokens=1500)) as long:
        assert next(long) == " w0"
        assert endless.call(greedy("a\n", 3)).content == " w0 w1 w2"
        assert figures(endless)["running"] == 1  # the long one is still at it
        assert sum(1 for _ in long) == 1499


def test_callers_in_threads_are_decoded_together(endless):
    together, done = [], threading.Event()

    def watch():
        while not done.is_set():
            together.append(figures(endless)["running"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(endless.call(greedy(max_tokens=100)).content)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    assert set(results) == {"".join((WORDS * 2)[:100])}
    assert max(together) > 1


def test_more_requests_than_sequences_are_all_answered(endless):
    results = endless.call_many([greedy(f"{index}\n", 20) for index in range(50)])
    assert {result.content for result in results} == {"".join(WORDS[:20])}


def test_a_long_prompt_comes_in_pieces_while_an_answer_goes_on(endless):
    with endless.stream(greedy(max_tokens=None)) as answer:
        next(answer)
        pieces, got = 0, []
        thread = threading.Thread(target=lambda: got.append(endless.call(greedy("a" * 1200 + "\n", 1))))
        thread.start()
        while not got:
            next(answer)
            pieces += 1
        thread.join()
    assert pieces >= 1200 // endless.plan.settings.n_ubatch


def test_a_beginning_that_somebody_else_evaluates_is_waited_for_and_not_evaluated_twice(endless):
    beginning = "b" * 600
    results = endless.call_many([greedy(f"{beginning}{index}\n", 5) for index in range(6)])
    assert [result.usage["cached_tokens"] for result in results[1:]] == [601] * 5
    assert {result.content for result in results} == {"".join(WORDS[:5])}


def test_finished_conversations_are_kept_beside_each_other(endless):
    first, second = "a" * 300, "b" * 300
    endless.call(greedy(first + "\n", 5))
    endless.call(greedy(second + "\n", 5))
    assert endless.call(greedy(first + "\nmore\n", 5)).usage["cached_tokens"] > 300
    assert endless.call(greedy(second + "\nmore\n", 5)).usage["cached_tokens"] > 300


def test_answers_that_outgrow_the_context_together_wait_for_each_other(endless):
    results = endless.call_many([greedy(f"{index}" * 100 + "\n", max_tokens=None) for index in range(4)])
    assert {(result.finish_reason, result.usage["total_tokens"]) for result in results} == {("length", 2049)}
    for result in results:
        assert result.content.startswith("".join(WORDS))
        assert result.content.split() == [f"w{index % 60}" for index in range(len(result.content.split()))]


def test_a_context_that_grows_takes_all_running_answers_along(endless_file):
    with LocalLlmBackend(endless_file, n_threads=1) as backend:
        results = backend.call_many([greedy(f"{index}" * 500 + "\n", 1500) for index in range(4)])
        assert backend.context_size == 8192
    for result in results:
        assert result.content.split() == [f"w{index % 60}" for index in range(1500)]


def test_backends_for_one_file_and_plan_share_a_context(endless, endless_file):
    with LocalLlmBackend(endless_file, n_ctx=2048, n_threads=1) as other:
        assert other._model is endless._model
        endless.call(greedy("c" * 200 + "\n", 2))
        assert other.call(greedy("c" * 200 + "\n", 2)).usage["cached_tokens"] == 201


def test_a_backend_that_is_closed_ends_its_own_answers_only(endless, endless_file):
    other = LocalLlmBackend(endless_file, n_ctx=2048, n_threads=1)
    mine, theirs = endless.stream(greedy(max_tokens=1000)), other.stream(greedy("x\n", 2000))
    next(mine)
    next(theirs)
    other.close()
    with pytest.raises(LlmError, match="closed"):
        list(theirs)
    assert sum(1 for _ in mine) == 999


def test_embeddings_are_made_while_an_answer_goes_on(endless_file):
    with LocalLlmBackend(endless_file, n_threads=1) as backend, backend.stream(greedy(max_tokens=2000)) as answer:
        next(answer)
        assert len(backend.embed(["one", "two"])) == 2
        assert figures(backend)["running"] == 1


def test_embeddings_that_have_no_room_beside_an_answer_get_it_in_turn(endless_file):
    with LocalLlmBackend(endless_file, n_ctx=512, n_threads=1) as backend:
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(backend.call(greedy(max_tokens=200)).content)),
            threading.Thread(target=lambda: answers.append(len(backend.embed(["x" * 300, "y"])))),
            threading.Thread(target=lambda: answers.append(backend.call(greedy("a\n", 200)).content)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(answers) == 3


# One of many ----------------------------------------------------------------------------------------------------------


NOTHING = r"root ::= [^\x00-\UFFFFFFFF]"


def test_an_error_of_one_ends_only_that_one(endless):
    asked = [greedy(max_tokens=20), greedy(max_tokens=20, grammar=NOTHING), greedy("b\n", 20)]
    first, error, last = endless.call_many(asked, return_errors=True)
    assert isinstance(error, GenerationError)
    assert "the grammar allows no token" in str(error)
    assert first.content == last.content == "".join(WORDS[:20])
    with pytest.raises(GenerationError):
        endless.call_many(asked)


def test_one_that_cant_even_begin_has_its_error_in_its_place(endless):
    first, error = endless.call_many([greedy(max_tokens=1), greedy(grammar="root ::= root")], return_errors=True)
    assert first.content == " w0"
    assert isinstance(error, UsageError)


# Cancelling -----------------------------------------------------------------------------------------------------------


def test_a_stream_that_is_closed_leaves_the_batch(endless):
    stream = endless.stream(greedy(max_tokens=None))
    next(stream)
    assert figures(endless)["running"] == 1
    stream.close()
    until(lambda: figures(endless)["running"] == 0)


def test_a_stream_that_nobody_holds_any_more_leaves_the_batch(endless):
    stream = endless.stream(greedy(max_tokens=None))
    next(stream)
    del stream
    gc.collect()
    until(lambda: figures(endless)["running"] == 0)


def test_a_timeout_ends_an_answer_and_says_so(wide):
    with pytest.raises(AnswerTimeoutError, match=r"0\.3 seconds"):
        wide.call(greedy(max_tokens=None, timeout=0.3))
    until(lambda: figures(wide)["running"] == 0)


def test_a_scope_ends_what_another_thread_waits_for_and_what_it_asks_next(wide):
    scope, seen = CancelScope(), []

    def work():
        with scope.entered():
            for _ in range(3):
                try:
                    wide.call(greedy(max_tokens=None))
                except CancelledCallError as error:
                    seen.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: figures(wide)["running"] == 1)
    scope.cancel()
    thread.join(60)
    assert len(seen) == 3
    until(lambda: figures(wide)["running"] == 0)


def test_a_prompt_is_given_up_in_the_middle_of_a_step(tmp_path):
    path = tmp_path / "m.gguf"
    build_scripted(path, [["Hello"]], metadata={"llama.context_length": 32768})
    with LocalLlmBackend(path, n_ctx=32000, n_threads=1) as backend:
        stream = backend.stream(greedy("a" * 31_000 + "\n", 1))
        until(lambda: figures(backend)["running"] == 1)
        stream.close()
        until(lambda: figures(backend)["running"] == 0)
        assert backend.call(greedy("\n", 1)).content == "Hello"


_INTERRUPTED = """
import os, signal, sys, threading
from tea_runtime import *
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where the tests run
backend = LocalLlmBackend(sys.argv[1], n_threads=1)
params = LlmCallParams("\\n", None, 0)
def interrupt():
    while backend.load_figures()["running"] == 0: pass
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    backend.call(params)
except KeyboardInterrupt:
    while backend.load_figures()["running"]: pass
    print(backend.call(LlmCallParams("\\n", 2, 0)).content, flush=True)
"""


def test_ctrl_c_ends_a_call_and_the_backend_goes_on(endless_file):
    done = run(_INTERRUPTED, endless_file)
    assert (done.returncode, done.stdout, done.stderr) == (0, " w0 w1\n", "")


_LOADING = """
import os, signal, sys, threading, time
import tea_runtime.llama.weights as module
from tea_runtime import *
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where the tests run
loading = threading.Event()
make = module.llama
class Slow:
    def __getattr__(self, name):
        if name == "llama_progress_callback":
            def wrapped(function):
                def asked(progress, data):
                    loading.set(); time.sleep(0.05); return function(0.5, data)
                kept.append(make().llama_progress_callback(asked)); return kept[-1]
            return wrapped
        return getattr(make(), name)
kept = []
module.llama = Slow
threading.Thread(target=lambda: (loading.wait(), os.kill(os.getpid(), signal.SIGINT)), daemon=True).start()
try:
    LocalLlmBackend(sys.argv[1], n_threads=1)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_ends_a_load(endless_file):
    done = run(_LOADING, endless_file)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


# Processes ------------------------------------------------------------------------------------------------------------

_POOL = """
import multiprocessing, sys
from tea_runtime import *
def ask(_):
    try:
        return backend.call(LlmCallParams("\\n", 2, 0)).content
    except Exception as error:
        return str(error)
def load(path):
    with LocalLlmBackend(path, n_threads=1) as own:
        return own.call(LlmCallParams("\\n", 2, 0)).content
if __name__ == "__main__":
    backend = LocalLlmBackend(sys.argv[1], n_threads=1)
    backend.call(LlmCallParams("\\n", 2, 0))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map(ask, [1, 2])[0])
        print(pool.map(load, [sys.argv[1]] * 2)[0])
    print(backend.call(LlmCallParams("\\n", 2, 0)).content)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_children_of_multiprocessing_are_told_to_load_their_own_and_can(endless_file):
    done = run(_POOL, endless_file)
    lines = done.stdout.splitlines()
    assert "forked after it was loaded" in lines[0], done
    assert lines[1:] == [" w0 w1", " w0 w1"]


def test_a_process_ends_at_once_while_streams_are_open(endless_file):
    program = (
        "import sys; from tea_runtime import *\n"
        "backend = LocalLlmBackend(sys.argv[1], n_threads=1)\n"
        "streams = [backend.stream(LlmCallParams('\\n', None, 0)) for _ in range(3)]\n"
        "print([next(stream) for stream in streams])\n"
    )
    done = run(program, endless_file)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[' w0', ' w0', ' w0']\n", "")


def test_no_thread_and_no_request_is_left_behind_by_many_random_requests(endless):
    """A short soak: 16 threads, a third of the requests abandoned."""
    endless.call(greedy(max_tokens=1))
    before = threading.active_count()
    failed = []

    def work(number):
        try:
            for turn in range(8):
                prompt = f"{'s' * (number * 7 % 90)}{turn}\n"
                if (number + turn) % 3 == 0:
                    with endless.stream(greedy(prompt, max_tokens=None)) as stream:
                        next(stream)
                elif (number + turn) % 3 == 1:
                    assert endless.call(greedy(prompt, 10)).content == "".join(WORDS[:10])
                else:
                    assert len(endless.embed([prompt, "t"])) == 2
        except LlmError as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    until(lambda: figures(endless)["running"] + figures(endless)["waiting"] == 0)
    assert threading.active_count() == before


# Sequences ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [([], [1], 0), ([1, 2, 3], [1, 2, 3], 3), ([1, 2, 3], [1, 2], 2), ([1, 2, 3], [1, 9, 3], 1), ([5], [6], 0)],
)
def test_the_common_beginning_of_two_lists(one, other, length):
    assert common_prefix(one, other) == length
    assert common_prefix(one * 1, other * 1) == common_prefix(other, one)


def test_shared_stretches_of_memory_are_known_by_both():
    first = HeldSequence(0)
    first.tokens.extend(range(10))
    second = HeldSequence(1, first, 6)
    second.tokens.extend([90, 91])
    third = HeldSequence(2, second, 7)
    assert [length for _, length in second.stretches()] == [6, 2]
    assert [length for _, length in third.stretches()] == [6, 1, 0]
    assert first.stretches()[0][0] is third.stretches()[0][0]


# Damaged weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"grammar": 'root ::= "x"*'}, {"grammar": 'root ::= "x"*', "temperature": 1}])
def test_a_model_that_computes_no_numbers_is_told_so(tmp_path, endless_file, options):
    path = tmp_path / "damaged.gguf"
    path.write_bytes(endless_file.read_bytes())
    (output,) = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "output.weight"]
    with path.open("r+b") as file:
        file.seek(int(output.data_offset))
        file.write(struct.pack("<f", math.nan) * 64)
    with LocalLlmBackend(path, n_ctx=256, n_threads=1) as backend, pytest.raises(GenerationError, match="NaN"):
        backend.call(LlmCallParams("a", 5, **{"temperature": 0, **options}))
