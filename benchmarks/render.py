"""Time of one rendered prompt: our sandboxed worker against `transformers` in the caller's own process.

    python benchmarks/render.py [--json]

The worker costs two switches of process and the JSON of the messages; what that buys is that a hostile template can't
hurt the caller. `transformers` is measured as `apply_chat_template` of a tokenizer without a model.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tea_models.chat import probe_template, render_chat
from tea_models.chat.sandbox import SANDBOX

if TYPE_CHECKING:
    from collections.abc import Callable

TEMPLATES = Path(__file__).parent.parent / "tests" / "templates"
SHORT = [{"role": "user", "content": "What is the capital of France?"}]
LONG = [
    {"role": role, "content": "Lorem ipsum dolor sit amet. " * 40} for _ in range(20) for role in ("user", "assistant")
]
LONG = [*LONG, SHORT[0]]


def median(call: Callable[[], object], runs: int) -> float:
    """Median of a call's wall time, in microseconds."""
    call()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def cold(call: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        SANDBOX.close()
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times) * 1e6


def main() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>")
    rows = []
    for name in ("smollm2", "gemma", "llama-3.1", "qwen3"):
        template = (TEMPLATES / f"{name}.jinja").read_text("utf-8")
        for size, messages in (("1 turn", SHORT), ("41 turns, 44 kB", LONG)):

            def ours(template: str = template, messages: list[dict[str, str]] = messages) -> str:
                return render_chat(template, messages, bos_token="<s>", eos_token="</s>")

            def theirs(template: str = template, messages: list[dict[str, str]] = messages) -> str:
                return str(
                    tokenizer.apply_chat_template(
                        messages, chat_template=template, tokenize=False, add_generation_prompt=True
                    )
                )

            assert ours() == theirs()
            mine, other = median(ours, 500), median(theirs, 500)
            rows.append(
                {"template": name, "prompt": size, "ours_us": mine, "transformers_us": other, "ratio": mine / other}
            )
    template = (TEMPLATES / "llama-3.1.jinja").read_text("utf-8")
    single = {
        "first render, with the start of the worker": cold(lambda: render_chat(template, SHORT), 10),
        "probe_template, with the start of the worker": cold(lambda: probe_template(template), 10),
        "probe_template, worker running": median(lambda: probe_template(template), 20),
    }
    if "--json" in sys.argv:
        print(json.dumps({"renders": rows, "single_us": single}, indent=2))
        return
    print(f"{'template':<12}{'prompt':<18}{'ours':>10}{'transformers':>14}{'ratio':>8}")
    for row in rows:
        print(
            f"{row['template']:<12}{row['prompt']:<18}{row['ours_us']:>7.0f} µs{row['transformers_us']:>11.0f} µs"
            f"{row['ratio']:>7.1f}x"
        )
    print()
    for name, value in single.items():
        print(f"{name:<48}{value / 1000:>7.1f} ms")


if __name__ == "__main__":
    main()
