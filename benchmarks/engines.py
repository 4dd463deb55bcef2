"""Tokens a CPU second of several engines, in one run: python benchmarks/engines.py compiled=SITE xllamacpp=SITE …

SITE is a folder in which `llama_cpp` lies (`site-packages`, or an unpacked wheel). One thread, and its CPU time instead
of the clock, so that other programs on the machine change little. The first is what the others are compared with.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROUNDS = 3
PROMPT, TOKENS = 400, 32
PROGRAM = """
import sys, time
import llama_cpp
model = llama_cpp.Llama(sys.argv[1], n_ctx=1024, n_threads=1, n_threads_batch=1, flash_attn=True, verbose=False)
prompt = model.tokenize(b"Once upon a time " * 200)[:int(sys.argv[2])]
model.eval(prompt[:8])
best = [0.0, 0.0]
for _ in range(3):
    model.reset()
    began = time.process_time()
    model.eval(prompt)
    middle = time.process_time()
    for token in range(int(sys.argv[3])):
        model.eval([500 + token])
    ended = time.process_time()
    best = [max(best[0], len(prompt) / (middle - began)), max(best[1], int(sys.argv[3]) / (ended - middle))]
print(*best)
"""


def main(engines: list[str]) -> None:
    from tea_models import Settings, pull

    settings = Settings.resolve(os.environ, cwd=Path.cwd())
    model = pull(["smollm2-135m"], settings=settings)[0].path
    best: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for engine in engines:
            name, _, site = engine.partition("=")
            environ = os.environ | {"PYTHONPATH": site}
            command = [sys.executable, "-c", PROGRAM, str(model), str(PROMPT), str(TOKENS)]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
            found = [float(value) for value in done.stdout.split()]
            best[name] = [max(pair) for pair in zip(best.get(name, found), found, strict=True)]
    first = next(iter(best.values()))
    print(f"{'per CPU second':<24}{'prompt':>8}{'':>7}{'tokens':>8}{'':>7}")
    for name, (prompt, tokens) in best.items():
        print(f"{name:<24}{prompt:8.0f}{prompt / first[0]:7.0%}{tokens:8.1f}{tokens / first[1]:7.0%}")


if __name__ == "__main__":
    main(sys.argv[1:])
