"""What only a real model can show: the same text as the reference, sound growth, memory within the plan."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from tea_models.errors import UsageError
from tea_models.machine.detect import detect_machine
from tea_models.plan.speed import speed_of
from tea_models.settings import Settings
from tea_runtime import LlmCallParams, LocalLlmBackend
from tea_runtime.engine.thread import engine

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.real

PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "Water boils at"]
QUESTION = [{"role": "user", "content": "What is gravity?"}]


@pytest.fixture(scope="module")
def backend(real_model):
    # One thread, as the reference has by default on a small machine, and because two wait for each other on a busy one.
    with LocalLlmBackend(real_model, n_threads=1) as backend:
        yield backend


@pytest.fixture(scope="module")
def gemma(gemma_model):
    with LocalLlmBackend(gemma_model, n_threads=1) as backend:
        yield backend


@pytest.fixture(scope="module")
def reference(real_model):
    model = llama_cpp.Llama(str(real_model), n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False, flash_attn=True)
    yield model
    model.close()


def fresh_context(backend, start=4096, **plan):
    """Forget everything, and begin with a context of a certain size."""
    memory = backend._model.texts.memory
    memory.spec = replace(memory.spec, start=start, **plan)
    engine().call(lambda _request: memory.close())


def greedy(prompt, max_tokens=24, **options):
    return LlmCallParams(prompt, max_tokens, 0, **options)


def test_greedy_completions_are_those_of_llama_cpp_python(backend, reference):
    for prompt in PROMPTS:
        wanted = reference.create_completion(prompt, max_tokens=24, temperature=0)
        result = backend.call(greedy(prompt))
        assert result.content == wanted["choices"][0]["text"]
        assert result.usage["prompt_tokens"] == wanted["usage"]["prompt_tokens"]
        assert result.finish_reason == wanted["choices"][0]["finish_reason"]


def test_a_chat_is_that_of_llama_cpp_python(backend, reference):
    wanted = reference.create_chat_completion(QUESTION, max_tokens=24, temperature=0)
    result = backend.chat(QUESTION, 24, 0)
    assert result.content == wanted["choices"][0]["message"]["content"]
    assert result.usage["prompt_tokens"] == wanted["usage"]["prompt_tokens"]


def test_streamed_text_is_the_text(backend):
    pieces = []
    result = backend.stream_chat(QUESTION, pieces.append, 24, 0)
    assert len(pieces) > 5
    assert "".join(pieces) == result.content == backend.chat(QUESTION, 24, 0).content


def test_a_grammar_gives_the_text_of_llama_cpp_python(backend, reference):
    grammar = 'root ::= [A-Z] [a-z]+ (" " [a-z]+)* "."'
    wanted = reference.create_completion(
        "My favourite animal is the",
        max_tokens=24,
        temperature=0,
        grammar=llama_cpp.LlamaGrammar.from_string(grammar, verbose=False),
    )
    result = backend.call(greedy("My favourite animal is the", grammar=grammar))
    assert result.content == wanted["choices"][0]["text"]


def test_a_schema_gives_json_that_keeps_to_it(backend):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "legs": {"type": "integer"}},
        "required": ["name", "legs"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema}}
    result = backend.chat([{"role": "user", "content": "Describe a cat as JSON."}], 80, 0, response_format=wanted)
    data = json.loads(result.content)
    assert isinstance(data["name"], str)
    assert isinstance(data["legs"], int)


def test_growing_does_not_change_the_answer(backend):
    text = " ".join(f"Item {index} costs {index * 7 % 13} coins." for index in range(40)) + " In short,"
    fresh_context(backend)
    fresh_context(backend, start=256)
    try:
        backend.call(greedy(text[:500], 1))
        assert backend.context_size == 256
        grown = backend.call(greedy(text, 24))
        assert backend.context_size == 512
        assert grown.usage["cached_tokens"] > 100
    finally:
        fresh_context(backend)
    fresh_context(backend)
    kept = backend.call(greedy(text[:500], 1))
    assert backend.context_size == 4096
    assert backend.call(greedy(text, 24)).content == grown.content
    assert kept.finish_reason == "length"


def test_a_grown_sliding_window_answers_the_same(gemma):
    text = " ".join(f"Item {index} costs {index * 7 % 13} coins." for index in range(50))
    fresh_context(gemma)
    fresh_context(gemma, start=256)
    try:
        first = gemma.call(greedy(text[:300], 1))
        size = gemma.context_size
        grown = gemma.call(greedy(text, 16))
        assert gemma.context_size > size
    finally:
        fresh_context(gemma)
    fresh_context(gemma)
    gemma.call(greedy(text[:300], 1))
    assert gemma.context_size == 4096
    assert gemma.call(greedy(text, 16)).content == grown.content
    assert first.finish_reason == "length"


def test_a_window_that_has_moved_on_is_evaluated_again(gemma):
    """After a long answer, the beginning of the prompt is out of the window: a cut back to there must not be trusted."""
    text = " ".join(f"Item {index} costs {index * 7 % 13} coins." for index in range(95))
    fresh_context(gemma, budget=1)  # memory for one sequence, and so for one window
    fresh = gemma.call(greedy(text[:150], 12)).content
    assert gemma.call(greedy(text, 1)).usage["prompt_tokens"] > 512 + 256
    back = gemma.call(greedy(text[:150], 12))
    assert back.content == fresh
    assert back.usage["cached_tokens"] == 0
    fresh_context(gemma, budget=gemma.plan.memory.use.total)


def test_a_window_that_is_still_there_gives_the_probabilities_of_a_fresh_start(gemma):
    text = " ".join(f"Item {index} costs {index * 7 % 13} coins." for index in range(95))
    fresh_context(gemma)
    fresh = gemma.call(greedy(text[:150], 1, logprobs=3)).logprobs["content"][0]["top_logprobs"]
    fresh_context(gemma)
    gemma.call(greedy(text, 1))
    back = gemma.call(greedy(text[:150], 1, logprobs=3))
    assert back.usage["cached_tokens"] > 40
    again = {entry["token"]: entry["logprob"] for entry in back.logprobs["content"][0]["top_logprobs"]}
    assert all(again[entry["token"]] == pytest.approx(entry["logprob"], abs=0.2) for entry in fresh)


def test_threads_get_the_answers_that_they_would_get_alone(backend):
    alone = [backend.call(greedy(prompt, 8, seed=1)).content for prompt in PROMPTS]
    found = []
    threads = [
        threading.Thread(target=lambda i=i: found.append((i, backend.call(greedy(PROMPTS[i], 8, seed=1)).content)))
        for i in (0, 1, 2, 0, 1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted((i, alone[i]) for i in (0, 0, 1, 1, 2, 2))


def test_a_batch_says_what_single_calls_say(backend):
    together = backend.call_many([greedy(prompt, 12) for prompt in PROMPTS])
    assert [result.content for result in together] == [backend.call(greedy(prompt, 12)).content for prompt in PROMPTS]


def test_an_embedding_is_that_of_llama_cpp_python(backend, real_model):
    mean = llama_cpp.LLAMA_POOLING_TYPE_MEAN
    model = llama_cpp.Llama(
        str(real_model), embedding=True, pooling_type=mean, n_ctx=256, n_threads=1, flash_attn=True, verbose=False
    )
    text = "The quick brown fox jumps over the lazy dog."
    wanted = model.embed(text, normalize=True)
    model.close()
    assert backend.embed(text) == pytest.approx(wanted, abs=1e-5)


def test_similar_texts_are_nearer_than_others(backend):
    cat, kitten, tax = backend.embed(["A cat sleeps.", "A kitten is sleeping.", "Income tax law of 1990, section 4"])

    def nearness(one, other):
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert nearness(cat, kitten) > nearness(cat, tax)


_MEASURE = """
import json, re, sys
from tea_runtime import LlmCallParams, LocalLlmBackend
backend = LocalLlmBackend(sys.argv[1], n_ctx=int(sys.argv[2]) or None)
text = "The quick brown fox jumps over the lazy dog. " * 56
backend.call(LlmCallParams(text, max_tokens=2, temperature=0))
backend.embed("some text")
# Not ru_maxrss: a child begins with that of the process that started it.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
print(json.dumps({"peak": peak, "planned": backend.plan.memory.use.total, "n_ctx": backend.plan.settings.n_ctx}))
"""


def measured(path, n_ctx):
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path), str(n_ctx)], capture_output=True, text=True, timeout=600, check=True
    )
    return json.loads(done.stdout)


def test_memory_stays_within_the_plan(real_model):
    found = measured(real_model, 0)
    assert found["peak"] <= 1.1 * found["planned"]


def test_memory_stays_within_the_plan_at_the_full_context_of_gemma(gemma_model):
    found = measured(gemma_model, 32768)
    assert found["n_ctx"] == 32768
    assert found["peak"] <= 1.1 * found["planned"]


def test_how_fast_it_was_is_what_a_plan_says(real_model, tmp_path):
    settings = Settings.resolve({"TEA_MODELS_DIR": str(tmp_path)}, cwd=tmp_path)
    with LocalLlmBackend(real_model, n_threads=1, settings=settings) as backend:
        backend.call(greedy(PROMPTS[2], 4))
        assert speed_of(backend.profile, backend.plan.settings, detect_machine(), tmp_path).method == "estimated"
        answer = backend.call(LlmCallParams("One, two, three. " * 12, 24, 0.7, seed=3))
        speed = speed_of(backend.profile, backend.plan.settings, detect_machine(), tmp_path)
    assert speed.method == "measured"
    assert speed.tokens_per_s == pytest.approx(answer.timings["predicted_per_second"], abs=0.1)
    assert speed.prompt_tokens_per_s == pytest.approx(answer.timings["prompt_per_second"], abs=0.1)


CACHING = """
import json, sys
from tea_runtime import create_llm_backend

settings = {"backend": "local", "model_path": sys.argv[1], "prompt_cache": sys.argv[2], "n_threads": 1}
with create_llm_backend(settings) as llm:
    facts = "Berlin has a zoo and a river. " * 60
    answer = llm.chat([{"role": "user", "content": facts + sys.argv[3]}], max_tokens=4, temperature=0)
print(json.dumps(answer.usage["cached_tokens"]))
"""


def test_a_prompt_cache_that_is_a_file_is_refused(real_model, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file, expected a folder"):
        LocalLlmBackend(real_model, prompt_cache=tmp_path / "file")


def test_a_long_prompt_is_kept_on_disk_for_the_next_process(real_model, tmp_path):
    def cached(question):
        command = [sys.executable, "-c", CACHING, str(real_model), str(tmp_path), question]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)

    assert cached("Is there a river?") == 0
    assert cached("Is there a zoo?") > 400
    (kept,) = (path for path in tmp_path.rglob("*") if path.is_file())
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    assert cached("Is there a zoo?") == 0, "a damaged file is not used"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == bytes(content)]
