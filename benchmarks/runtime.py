"""Tokens a second of the runtime beside `llama_cpp.Llama`, and of batches; all in one run, so that ratios hold.

    python benchmarks/runtime.py [MODEL] [--threads 2] [--tokens 96] [--rounds 5]

The two are measured in turns, and the medians compared: a machine that gets slower in between slows both down.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING

import llama_cpp

from tea_runtime import LlmCallParams, LocalLlmBackend

if TYPE_CHECKING:
    from pathlib import Path

PROMPT = "The history of the city begins with"
LONG = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. " * 26


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="path or reference of an installed model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with LocalLlmBackend(options.model, n_ctx=4096, n_threads=options.threads) as backend:
        print(f"{backend.model_path.name}, {options.threads} threads, median of {options.rounds} rounds\n")
        reference = llama_cpp.Llama(
            str(backend.model_path),
            n_ctx=4096,
            n_batch=backend.plan.settings.n_batch,
            n_ubatch=backend.plan.settings.n_ubatch,
            n_threads=options.threads,
            n_threads_batch=options.threads,
            flash_attn=backend.plan.settings.flash_attn,
            swa_full=backend.plan.settings.swa_full,
            verbose=False,
        )
        compare(backend, reference, options.tokens, options.rounds)
        reference.close()
        batches(backend, options.tokens)
        instruction(backend)
        load(backend.model_path)


def compare(backend: LocalLlmBackend, reference: llama_cpp.Llama, tokens: int, rounds: int) -> None:
    print(f"{'one sequence, tokens/s':<28}{'tea_runtime':>12}{'llama_cpp.Llama':>17}{'ratio':>7}")
    for name, prompt, count in (("generation", PROMPT, tokens), ("prompt evaluation", LONG, 1)):
        ours, theirs = [], []
        for number in range(rounds + 1):
            text = f"{number} {prompt}"  # nothing in common with the one before
            started = time.perf_counter()
            usage = backend.call(LlmCallParams(text, count, 0, seed=1)).usage
            ours.append((usage["prompt_tokens"] + usage["completion_tokens"] - 1) / (time.perf_counter() - started))
            started = time.perf_counter()
            usage = reference.create_completion(text, max_tokens=count, temperature=0)["usage"]
            theirs.append((usage["prompt_tokens"] + usage["completion_tokens"] - 1) / (time.perf_counter() - started))
        mine, other = statistics.median(ours[1:]), statistics.median(theirs[1:])
        print(f"{name:<28}{mine:>12.1f}{other:>17.1f}{mine / other:>7.2f}")
    print()


def batches(backend: LocalLlmBackend, tokens: int) -> None:
    print(f"{'sequences together':<28}{'tokens/s':>12}{'ratio':>7}")
    first = 0.0
    for count in (1, 2, 4, 8, 16):
        requests = [LlmCallParams(f"{number} {PROMPT}", tokens, 0, seed=1) for number in range(count)]
        backend.call_many(requests[:2])
        started = time.perf_counter()
        results = backend.call_many(requests)
        speed = sum(result.usage["completion_tokens"] for result in results) / (time.perf_counter() - started)
        first = first or speed
        print(f"{count:<28}{speed:>12.1f}{speed / first:>7.2f}")
    print()


def instruction(backend: LocalLlmBackend) -> None:
    """Many short texts under one long instruction: what is common is evaluated once."""
    requests = [LlmCallParams(f"{LONG}\nText {number}:", 8, 0) for number in range(12)]
    started = time.perf_counter()
    for request in requests:
        backend.call(LlmCallParams(request.prompt, 8, 0, seed=1))
    alone = time.perf_counter() - started
    started = time.perf_counter()
    backend.call_many(requests)
    together = time.perf_counter() - started
    print(
        f"12 texts under one instruction: alone {alone:.1f} s, together {together:.1f} s, {alone / together:.1f} times"
    )


def load(path: Path) -> None:
    started = time.perf_counter()
    LocalLlmBackend(path).close()
    ours = time.perf_counter() - started
    started = time.perf_counter()
    llama_cpp.Llama(str(path), verbose=False).close()
    theirs = time.perf_counter() - started
    print(f"load again: tea_runtime {ours:.2f} s (header, plan, weights), llama_cpp.Llama {theirs:.2f} s")


if __name__ == "__main__":
    main()
