"""Several tokens a step for one caller: answers that copy, and answers in a form; with and without guesses, in one run.

    python benchmarks/guesses.py [--model MODEL] [--threads 2] [--rounds 5]

Only figures of an idle machine mean something.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from engine import backend_of

from tea_runtime import LlmCallParams
from tea_runtime.engine import drafts

PERSON = (
    "Anna Keller is 34 years old. She lives in Lisbon, Portugal, where she works as an architect. Her address is "
    "anna.keller@example.org. She is married, 172 cm tall, likes sailing and speaks German."
)
REVIEW = (
    "The product is good. Service was excellent, delivery average, the packaging poor. It is easy to use and reliable; "
    "the manual is good, the website poor. I recommend it."
)
TEXT = {"type": "string", "maxLength": 30}
FIELDS: dict[str, Any] = {
    **dict.fromkeys(("name", "city", "country", "occupation", "email", "hobby", "language"), TEXT),
    "age": {"type": "integer"},
    "height_cm": {"type": "integer"},
    "married": {"type": "boolean"},
}
GRADED = "overall_quality customer_service delivery_speed packaging_quality value_for_money ease_of_use reliability"
GRADES = {
    key: {"enum": ["excellent", "good", "average", "poor", "unacceptable"]}
    for key in f"{GRADED} documentation website_design recommendation".split()
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="path or reference of an installed model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with backend_of(options) as backend:
        for name, params in cases().items():
            found: dict[bool, list[float]] = {True: [], False: []}
            texts = set()
            backend.call(params)  # later ones begin with its prompt, which was evaluated as a whole
            for _ in range(options.rounds):
                for guessing in (True, False):
                    drafts.FIRST_CREDIT = 2.0 if guessing else -1e9
                    result = backend.call(params)
                    texts.add(result.content)
                    found[guessing].append(result.timings["predicted_per_second"])
            with_it, without = (statistics.median(found[guessing]) for guessing in (True, False))
            same = "" if params.temperature else "the same text" if len(texts) == 1 else "texts differ"
            print(f"{name:<37}{with_it:>6.0f} tokens/s, {without:.0f} without, {with_it / without:.2f}x, {same}")


def cases() -> dict[str, LlmCallParams]:
    text = (Path(__file__).parent.parent / "SECURITY.md").read_text("utf-8")[:1500]
    found = {
        "copying": LlmCallParams(f"{text}\n\nThe same text again:\n\n{text[:80]}", 300, 0),
        "prose": LlmCallParams("It was a dark night, and the ship had left the harbour. The captain", 120, 0),
    }
    for name, facts, fields in (("ten fields", PERSON, FIELDS), ("ten choices", REVIEW, GRADES)):
        for told, keys in (("", ""), (", keys in the prompt", f" with {', '.join(fields)}")):
            for temperature in (0, 0.7):
                schema = {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}
                wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
                prompt = f"{facts}\n\nThe same as JSON{keys}:\n\n"
                found[f"{name}{told}, {temperature}"] = LlmCallParams(
                    prompt, 250, temperature, seed=None if temperature else 7, response_format=wanted
                )
    return found


if __name__ == "__main__":
    main()
