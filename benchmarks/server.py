"""The server and `llm.batch` under many callers, beside one caller and a bare loop of eight: ratios of one run.

    python benchmarks/server.py [--model MODEL] [--tokens 64] [--threads 2]

Only figures of an idle machine mean something. Needs the extra `api`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from engine import backend_of, bare_loop, prompts, speed

from tea_runtime import run_workflow

BATCH = """
name: batch
nodes:
  - name: batch
    uses: llm.batch
    with: {prompts: "{{ state.prompts }}", max_tokens: %d, temperature: 0}
    output: answers
edges: [{from: __start__, to: batch}, {from: batch, to: __end__}]
settings: {llm: {backend: local, model: "%s", n_threads: %d}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="path or reference of an installed model")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    command = [
        str(Path(sys.executable).with_name("tea-runtime")),
        "serve",
        options.model,
        "--port",
        "0",
        "--json",
        "--quiet",
    ]
    with subprocess.Popen([*command, "--n-threads", str(options.threads)], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
            measure(client, options)
        finally:
            server.terminate()


def measure(client: openai.OpenAI, options: argparse.Namespace) -> None:
    def ask(prompt: str, took: list[float] | None = None) -> int:
        started = time.perf_counter()
        answer = client.completions.create(model=options.model, prompt=prompt, max_tokens=options.tokens, temperature=0)
        if took is not None:
            took.append(time.perf_counter() - started)
        assert answer.usage is not None
        return answer.usage.completion_tokens

    def one_by_one() -> int:
        return sum(ask(one.prompt) for one in prompts(8, 1))

    def clients(count: int, took: list[float] | None = None) -> int:
        with ThreadPoolExecutor(count) as pool:
            return sum(pool.map(lambda one: ask(one.prompt, took), prompts(count, 1)))

    def batch() -> int:
        text = BATCH % (options.tokens, options.model, options.threads)
        state = run_workflow(yaml.safe_load(text), {"prompts": [one.prompt for one in prompts(8, 1)]})
        return int(state["answers"]["usage"]["completion_tokens"])

    with backend_of(options) as backend:
        ways = {
            "server, 8 one after another": one_by_one,
            "bare loop, 8": lambda: bare_loop(backend, 8, options.tokens, backend.plan.settings.flash_attn),
            "server, 8 clients": lambda: clients(8),
            "llm.batch of 8": batch,
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(3):
            for name, work in ways.items():
                found[name].append(speed(work))
        base = statistics.median(found["server, 8 one after another"])
        for name, speeds in found.items():
            middle = statistics.median(speeds)
            print(f"{name:<36}{middle:>9.1f} tokens/s{middle / base:>8.2f}x")
    took: list[float] = []
    rate = speed(lambda: clients(32, took))
    spread = max(took) / min(took)
    print(f"{'server, 32 clients':<36}{rate:>9.1f} tokens/s{rate / base:>8.2f}x")
    print(f"the 32 waited {min(took):.2f} to {max(took):.2f} s: {spread:.2f}x   (goal: 2)")


if __name__ == "__main__":
    main()
