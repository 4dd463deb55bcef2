"""The engine under many callers, beside a bare loop over llama.cpp's C API and `llama_cpp.Llama`: ratios of one run.

    python benchmarks/engine.py [PART]… [--model MODEL] [--tokens 64] [--threads 2]

Parts: together, latency, turns, embeddings, load, cached, policies; without one all. Each takes about a minute. Only
figures of an idle machine mean something; `policies` makes it busy itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import llama_cpp

from tea_runtime import LlmCallParams, LocalLlmBackend
from tea_runtime.llama.engine import llama

PROMPT = "The history of the city begins with"
LONG = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. "
POLICIES: tuple[dict[str, str], ...] = (
    {"OMP_WAIT_POLICY": "passive"},
    {"GOMP_SPINCOUNT": "100"},
    {"GOMP_SPINCOUNT": "300"},
    {"GOMP_SPINCOUNT": "1000"},
    {"GOMP_SPINCOUNT": "3000"},
    {"GOMP_SPINCOUNT": "10000"},
    {"OMP_WAIT_POLICY": "active"},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*PARTS], default=list(PARTS))
    parser.add_argument("--model", default="smollm2-135m", help="path or reference of an installed model")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for part in options.parts:
        print(f"--- {part}")
        PARTS[part](options)


def backend_of(options: argparse.Namespace, **more: Any) -> LocalLlmBackend:
    return LocalLlmBackend(options.model, n_threads=options.threads, **more)


def prompts(count: int, tokens: int) -> list[LlmCallParams]:
    # A run must not begin with what the one before it has left in memory.
    mark = time.perf_counter_ns() % 10**6
    return [LlmCallParams(f"{mark} {number} {PROMPT}", tokens, 0) for number in range(count)]


def speed(work: Any) -> float:
    started = time.perf_counter()
    tokens = work()
    return float(tokens) / (time.perf_counter() - started)


def together(options: argparse.Namespace) -> None:
    """Eight at once, in every way there is."""
    with backend_of(options) as backend:
        path, settings = str(backend.model_path), backend.plan.settings
        reference = llama_cpp.Llama(
            path, n_ctx=4096, n_threads=options.threads, n_threads_batch=options.threads, flash_attn=True, verbose=False
        )

        def one_by_one() -> int:
            return sum(backend.call(one).usage["completion_tokens"] for one in prompts(8, options.tokens))

        def many() -> int:
            return sum(result.usage["completion_tokens"] for result in backend.call_many(prompts(8, options.tokens)))

        def in_threads() -> int:
            made: list[int] = []
            threads = [
                threading.Thread(target=lambda one=one: made.append(backend.call(one).usage["completion_tokens"]))
                for one in prompts(8, options.tokens)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return sum(made)

        def theirs() -> int:
            made = reference.create_completion(prompts(1, 1)[0].prompt, max_tokens=2 * options.tokens, temperature=0)
            return int(made["usage"]["completion_tokens"])

        def ours() -> int:
            return int(backend.call(prompts(1, 2 * options.tokens)[0]).usage["completion_tokens"])

        ways = {
            "bare loop, 1": lambda: bare_loop(backend, 1, options.tokens, settings.flash_attn),
            "llama_cpp.Llama, 1": theirs,
            "tea_runtime, 1": ours,
            "tea_runtime, 8 one after another": one_by_one,
            "bare loop, 8 (kv_unified)": lambda: bare_loop(backend, 8, options.tokens, settings.flash_attn),
            "bare loop, 8 (a stream each)": lambda: bare_loop(backend, 8, options.tokens, settings.flash_attn, False),
            "call_many(8)": many,
            "8 threads": in_threads,
        } | xllamacpp_way(path, options)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(3):
            for name, work in ways.items():
                found[name].append(speed(work))
        base = statistics.median(found["tea_runtime, 8 one after another"])
        for name, speeds in found.items():
            middle = statistics.median(speeds)
            print(f"{name:<36}{middle:>9.1f} tokens/s{middle / base:>8.2f}x")
        reference.close()


def bare_loop(backend: LocalLlmBackend, count: int, tokens: int, flash: Any, unified: bool = True) -> int:
    """What C would do: one batch a step, the most likely token of each sequence."""
    engine, settings = llama(), backend.plan.settings
    model = backend._model  # noqa: SLF001 - the loop goes round the engine
    weights, vocabulary = model.weights, model.vocabulary
    model = weights.model
    params = engine.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 4096, 512, settings.n_ubatch, count
    params.n_threads = params.n_threads_batch = settings.n_threads
    params.flash_attn_type = {None: -1, False: 0, True: 1}[flash]
    params.kv_unified, params.no_perf = unified, True
    context = engine.llama_init_from_model(model, params)
    batch = engine.llama_batch_init(512, 0, 1)
    greedy = engine.llama_sampler_init_greedy()
    place, following, index = [0] * count, [0] * count, 0

    def put(sequence: int, token: int, output: bool) -> None:
        nonlocal index
        batch.token[index], batch.pos[index], batch.n_seq_id[index] = token, place[sequence], 1
        batch.seq_id[index][0], batch.logits[index] = sequence, output
        place[sequence] += 1
        index += 1

    def run() -> None:
        nonlocal index
        batch.n_tokens, index = index, 0
        assert engine.llama_decode(context, batch) == 0

    for sequence, one in enumerate(prompts(count, tokens)):
        prompt = vocabulary.prompt(one.prompt)
        for token in prompt:
            put(sequence, token, token is prompt[-1])
        last = index - 1
        run()
        following[sequence] = engine.llama_sampler_sample(greedy, context, last)
    for _ in range(tokens - 1):
        for sequence in range(count):
            put(sequence, following[sequence], True)
        run()
        for sequence in range(count):
            following[sequence] = engine.llama_sampler_sample(greedy, context, sequence)
    engine.llama_sampler_free(greedy)
    engine.llama_batch_free(batch)
    engine.llama_free(context)
    return count * tokens


def xllamacpp_way(path: str, options: argparse.Namespace) -> dict[str, Any]:
    """llama-server in this process, where xllamacpp is installed."""
    try:
        import xllamacpp
    except ImportError:
        print("(xllamacpp is not installed)")
        return {}
    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel, params.n_ctx = path, 8, 8192
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    server = xllamacpp.Server(params)

    def eight() -> int:
        made: list[int] = []

        def ask(prompt: str) -> None:
            answer = server.handle_completions(
                {"prompt": prompt, "max_tokens": options.tokens, "temperature": 0, "ignore_eos": True}
            )
            made.append(answer["usage"]["completion_tokens"])

        threads = [threading.Thread(target=ask, args=(one.prompt,)) for one in prompts(8, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(made)

    return {"xllamacpp, 8": eight}


def latency(options: argparse.Namespace) -> None:
    """The first token of a short request, alone, beside a long answer, beside a long prompt, beside seven others."""
    with backend_of(options, n_ctx=8192) as backend:

        def first_token() -> float:
            started = time.perf_counter()
            with backend.stream(prompts(1, 4)[0]) as stream:
                next(stream)
                return time.perf_counter() - started

        backend.call(prompts(1, 4)[0])
        alone = statistics.median(first_token() for _ in range(9))
        print(f"alone                     {alone * 1000:8.1f} ms")
        with backend.stream(LlmCallParams(PROMPT, 1000, 0)) as answer:
            next(answer)
            beside = statistics.median(first_token() for _ in range(9))
        print(f"beside a long answer      {beside * 1000:8.1f} ms{beside / alone:8.2f}x   (goal: 3)")
        stream = backend.stream(LlmCallParams(f"{time.time()} {LONG * 120}", 1, 0))
        time.sleep(0.05)
        beside = first_token()
        stream.close()
        print(f"beside a long prompt      {beside * 1000:8.1f} ms{beside / alone:8.2f}x")
        streams = [backend.stream(one) for one in prompts(7, 500)]
        for one in streams:
            next(one)
        beside = statistics.median(first_token() for _ in range(9))
        for one in streams:
            one.close()
        print(f"beside seven answers      {beside * 1000:8.1f} ms{beside / alone:8.2f}x")


def turns(options: argparse.Namespace) -> None:
    """The second turn of a conversation of some 1,500 tokens, and eight of them in turn."""
    with backend_of(options, n_ctx=32768) as backend:
        system = LONG * 78

        def first_token(messages: list[dict[str, str]]) -> tuple[float, dict[str, int], str]:
            started = time.perf_counter()
            result = backend.chat(messages, 1, 0)
            return time.perf_counter() - started, dict(result.usage or {}), result.content

        backend.chat([{"role": "user", "content": "x"}], 1, 0)
        for name, text in (("one conversation", system), ("another one", f"Other. {system}")):
            messages = [{"role": "system", "content": text}, {"role": "user", "content": "What does the fox do?"}]
            cold, usage, answer = first_token(messages)
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And the dog?"}]
            warm, _, _ = first_token(messages)
            print(
                f"{name}: {usage['prompt_tokens']} tokens cold {cold:.3f} s, next turn {warm:.3f} s, {warm / cold:.2f}x"
            )


def embeddings(options: argparse.Namespace) -> None:
    """64 short texts together and one by one."""
    texts = [
        f"Text number {number} speaks of {word}." for number, word in zip(range(64), (LONG * 8).split(), strict=False)
    ]
    with backend_of(options, embedding=True) as backend:
        backend.embed(texts[0])
        single = speed(lambda: len([backend.embed(text) for text in texts]))
        many = speed(lambda: len(backend.embed(texts)))
        print(f"one by one {single:.0f}/s, together {many:.0f}/s, {many / single:.2f}x   (goal: 2)")


def load(options: argparse.Namespace) -> None:
    """From nothing to the first token, ours beside `llama_cpp.Llama`."""
    with backend_of(options) as backend:
        path = str(backend.model_path)
    ours, theirs = [], []
    for _ in range(5):
        started = time.perf_counter()
        with backend_of(options) as backend:
            backend.call(LlmCallParams(PROMPT, 1, 0))
            ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        reference = llama_cpp.Llama(path, n_ctx=4096, n_threads=options.threads, verbose=False)
        reference.create_completion(PROMPT, max_tokens=1, temperature=0)
        theirs.append(time.perf_counter() - started)
        reference.close()
    mine, other = statistics.median(ours), statistics.median(theirs)
    print(f"tea_runtime {mine:.3f} s, llama_cpp.Llama {other:.3f} s, {mine / other:.2f}x   (goal: 1)")


_COLD = """
import sys, time
from tea_runtime import *
with LocalLlmBackend(sys.argv[1], n_threads=int(sys.argv[2]), prompt_cache=sys.argv[3] or False) as backend:
    backend.call(LlmCallParams("x", 1, 0))
    started = time.perf_counter()
    usage = backend.call(LlmCallParams(sys.argv[4], 1, 0)).usage
    print(time.perf_counter() - started, usage["prompt_tokens"], usage["cached_tokens"])
"""


def cached(options: argparse.Namespace) -> None:
    """The first token of a new process that finds a prefix of 1,500 tokens on disk."""
    with tempfile.TemporaryDirectory() as folder:

        def run(cache: str, question: str) -> list[float]:
            command = [sys.executable, "-c", _COLD, options.model, str(options.threads), cache, LONG * 78 + question]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return [float(word) for word in done.stdout.split()]

        plain = run("", "What does it do?")
        run(folder, "What does it do?")
        warm = run(folder, "And why?")
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        print(
            f"{plain[1]:.0f} tokens: cold {plain[0]:.3f} s, from disk {warm[0]:.3f} s ({warm[2]:.0f} tokens cached), "
            f"{warm[0] / plain[0]:.2f}x   (goal: 0.25); {size / 2**20:.0f} MiB"
        )


_POLICY = """
import sys, time
from tea_runtime import *
with LocalLlmBackend(sys.argv[1], n_threads=int(sys.argv[2])) as backend:
    backend.call(LlmCallParams("x", 2, 0))
    for count in (1, 8):
        started = time.perf_counter()
        results = backend.call_many([LlmCallParams(f"{n} The city", 24, 0) for n in range(count)])
        print(sum(r.usage["completion_tokens"] for r in results) / (time.perf_counter() - started))
"""


def policies(options: argparse.Namespace) -> None:
    """How OpenMP's threads should wait: tokens/s of one and of eight, alone and beside a busy process."""
    print(f"{'':<26}{'1, as it is':>12}{'8':>8}{'1, busy':>12}{'8':>8}")
    for policy in POLICIES:
        environ = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
        row = []
        for busy in (False, True):
            neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
            try:
                command = [sys.executable, "-c", _POLICY, options.model, str(options.threads)]
                done = subprocess.run(command, capture_output=True, text=True, check=True, env={**environ, **policy})
                row += [float(line) for line in done.stdout.split()]
            finally:
                if neighbour is not None:
                    neighbour.kill()
                    neighbour.wait()
        name = " ".join(f"{key}={value}" for key, value in policy.items())
        print(f"{name:<26}{row[0]:>12.1f}{row[1]:>8.1f}{row[2]:>12.1f}{row[3]:>8.1f}", flush=True)


PARTS = {
    "together": together,
    "latency": latency,
    "turns": turns,
    "embeddings": embeddings,
    "load": load,
    "cached": cached,
    "policies": policies,
}


if __name__ == "__main__":
    main()
