"""An answer that copies, or that a grammar leaves no choice, gets several tokens a step, and the same text."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from tea_runtime.engine import drafts
from tea_runtime.engine.drafts import Drafter, StepCost
from tests.scripted_model import build_scripted

pytest.importorskip("llama_cpp")
from tea_runtime import LlmCallParams, LlmCallResult, LocalLlmBackend

if TYPE_CHECKING:
    from tea_runtime.llama.generation import Generation

WORDS = [f" w{index}" for index in range(60)]
NOTICE = (
    "The museum opens at nine in the morning and closes at six in the evening. On Mondays it is closed. Tickets cost "
    "eight euros for adults and four euros for children under twelve. The garden behind the main building can be "
    "visited without a ticket."
)


@pytest.fixture(scope="module")
def looping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says the same 60 words for ever."""
    path = tmp_path_factory.mktemp("models") / "looping.gguf"
    build_scripted(path, [WORDS], loop=True, metadata={"llama.context_length": 2048})
    return path


class Answer:
    """What a guess is made from: tokens so far, and what a grammar forces and allows."""

    greedy = True

    def __init__(self, tokens: list[int], forced: Sequence[int] = (), possible: int = 99) -> None:
        self.tokens, self._forced, self._possible = tokens, list(forced), possible

    def forced(self) -> list[int]:
        return self._forced

    def possible(self, tokens: list[int]) -> list[int]:
        return tokens[: self._possible]


def guess(drafter: Drafter, most: int, tokens: list[int], **more: Any) -> list[int]:
    return drafter.draft(cast("Generation", Answer(tokens, **more)), most)


def test_what_followed_the_last_tokens_before_is_guessed() -> None:
    text = list(range(20))
    assert guess(Drafter(StepCost()), 3, [*text, 90, *text[:8]]) == [8, 9, 10]
    assert guess(Drafter(StepCost()), 3, [*text, 90, *text[:8]], possible=2) == [8, 9]
    assert guess(Drafter(StepCost()), 0, [*text, 90, *text[:8]]) == []
    assert guess(Drafter(StepCost()), 8, [*text, 90, 91, 92]) == []


def test_what_is_forced_is_guessed_where_it_is_long_enough() -> None:
    assert guess(Drafter(StepCost()), 99, [1, 2], forced=[5, 6, 7]) == [5, 6, 7]
    assert guess(Drafter(StepCost()), 99, [1, 2], forced=[5, 6]) == []
    assert guess(Drafter(StepCost()), 2, [1, 2], forced=[5, 6, 7]) == []


def test_guesses_are_as_long_as_their_measured_cost_allows() -> None:
    cheap, dear = StepCost(), StepCost()
    for _ in range(60):
        for cost, seconds in ((cheap, 1.5), (dear, 10.0)):
            cost.measured(0, 1.0)
            cost.measured(10, seconds)
    assert cheap.share == pytest.approx(0.05, abs=0.01)
    assert dear.share == pytest.approx(0.9, abs=0.01)
    forced = list(range(40, 60))
    assert len(guess(Drafter(cheap), 99, [1, 2], forced=forced)) == 15
    assert guess(Drafter(dear), 99, [1, 2], forced=forced) == []


def test_after_a_wrong_guess_what_is_forced_is_only_watched_until_it_comes_as_expected() -> None:
    drafter, forced = Drafter(StepCost()), [5, 6, 7]
    drafter.judge(len(guess(drafter, 99, [1], forced=forced)), 1)
    assert guess(drafter, 99, [1, 5], forced=[60, 61, 62]) == []
    assert guess(drafter, 99, [1, 5, 60], forced=[61, 62, 63]) == []
    assert guess(drafter, 99, [1, 5, 60, 61, 99], forced=forced) == []  # as expected, except the last one
    assert guess(drafter, 99, [1, 5, 60, 61, 99, *forced], forced=[8, 9, 10]) == [8, 9, 10]


def test_right_guesses_get_longer_and_wrong_ones_stop() -> None:
    text = [*range(20), 90, *range(8)]
    good, bad = Drafter(StepCost()), Drafter(StepCost())
    lengths = []
    for _ in range(6):
        lengths.append(len(guess(good, 99, text)))
        good.judge(lengths[-1], lengths[-1])
        bad.judge(len(guess(bad, 99, text)), 0)
    assert lengths == sorted(lengths)
    assert lengths[-1] > lengths[0] > 0
    assert guess(bad, 99, text) == []


@pytest.mark.parametrize("forced", [(), (70, 71, 72, 73)])
def test_guesses_that_are_never_right_cost_a_bounded_share_of_the_steps(forced: Sequence[int]) -> None:
    rng = random.Random(0)
    drafter, tokens, guessed = Drafter(StepCost()), list(range(30)), 0
    for _ in range(2000):  # always the same few tokens, so that there always is something to guess
        tokens.append(rng.randrange(2))
        drafted = guess(drafter, 99, tokens, forced=forced)
        drafter.judge(len(drafted), 0)
        guessed += len(drafted)
    assert 0 < guessed * 0.5 <= 2.0 + 0.02 * 2000


@pytest.mark.parametrize("length", [61, 100, 173, 400])
def test_a_script_that_repeats_itself_is_said_exactly_with_fewer_steps(looping: Path, length: int) -> None:
    wanted = "".join(itertools.islice(itertools.cycle(WORDS), length))
    with LocalLlmBackend(looping, n_threads=1) as backend:
        result = backend.call(LlmCallParams("\n", length, 0))
        pieces: list[str] = []
        streamed = backend.stream(LlmCallParams("\n", length, 0), pieces.append)
    assert result.content == streamed.content == "".join(pieces) == wanted
    assert result.finish_reason == "length"
    assert result.usage is not None
    assert result.usage["completion_tokens"] == length
    if length >= 100:
        assert result.timings is not None
        assert result.timings["draft_n_accepted"] > (length - 70) / 2


def test_a_stop_text_within_a_guess_ends_the_answer_there(looping: Path) -> None:
    with LocalLlmBackend(looping, n_threads=1) as backend:
        whole = backend.call(LlmCallParams("\n", 300, 0)).content
        # The second round's w41 w42 stands in the middle of what is guessed by then.
        cut = backend.call(LlmCallParams("\n" + "".join(WORDS) * 2, 300, 0, stop=[" w41 w42"]))
        again = backend.call(LlmCallParams("\n", 300, 0))
    assert cut.content.endswith(" w40")
    assert cut.finish_reason == "stop"
    assert again.content == whole


def test_random_answers_and_answers_in_company_are_not_guessed(looping: Path) -> None:
    with LocalLlmBackend(looping, n_threads=1) as backend:
        warm = backend.call(LlmCallParams("\n", 200, 0.7, seed=1))
        company = backend.call_many([LlmCallParams("\n", 200, 0)] * 2)
    for result in (warm, *company):
        assert result.timings is not None
        assert "draft_n" not in result.timings


def test_a_seed_asks_for_the_same_guesses_whatever_their_cost_was_meanwhile(looping: Path) -> None:
    with LocalLlmBackend(looping, n_threads=1) as backend:
        found = []
        for seed in (None, 1):
            backend.call(LlmCallParams("\n", 200, 0, seed=seed))
            backend._model.texts._cost.share = 100.0
            found.append("draft_n" in (backend.call(LlmCallParams("\n", 200, 0, seed=seed)).timings or {}))
    assert found == [False, True]


PERSON = {
    "type": "object",
    "properties": {
        "family_name": {"type": "string", "maxLength": 20},
        "quality_of_service": {"enum": ["excellent", "good", "poor"]},
        "married_for_the_second_time": {"type": "boolean"},
    },
    "required": ["family_name", "quality_of_service", "married_for_the_second_time"],
    "additionalProperties": False,
}
LISTED = "Anna Keller found it good. As JSON with family_name, quality_of_service, married_for_the_second_time:\n"


def asked(temperature: float, seed: int | None = None) -> LlmCallParams:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    return LlmCallParams(LISTED, 80, temperature, seed=seed, response_format=wanted)


def with_and_without_guesses(
    model: Path, params: LlmCallParams, monkeypatch: pytest.MonkeyPatch
) -> tuple[LlmCallResult, LlmCallResult]:
    answers = []
    for first in (drafts.FIRST_CREDIT, -1e9):
        monkeypatch.setattr(drafts, "FIRST_CREDIT", first)
        with LocalLlmBackend(model) as backend:
            answers.append(backend.call(params))
    return answers[0], answers[1]


@pytest.mark.real
def test_keys_of_a_schema_cost_no_steps_of_their_own_and_the_answer_is_the_same(
    real_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guessed, plain = with_and_without_guesses(real_model, asked(0), monkeypatch)
    assert guessed.content == plain.content
    assert [*json.loads(guessed.content)] == PERSON["required"]
    assert guessed.timings is not None
    assert guessed.timings["draft_n_accepted"] > 8
    assert plain.timings is not None
    assert "draft_n" not in plain.timings


@pytest.mark.real
def test_random_answers_are_guessed_and_those_that_a_seed_repeats_are_not(real_model: Path) -> None:
    with LocalLlmBackend(real_model) as backend:
        guessed, seeded = backend.call(asked(0.7)), backend.call(asked(0.7, seed=3))
    for result in (guessed, seeded):
        assert [*json.loads(result.content)] == PERSON["required"]
    assert guessed.timings is not None
    assert guessed.timings["draft_n"] > 0
    assert seeded.timings is not None
    assert "draft_n" not in seeded.timings


@pytest.mark.real
def test_a_text_that_is_copied_is_the_same_with_and_without_guesses(
    real_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guessed, plain = with_and_without_guesses(
        real_model, LlmCallParams(f"{NOTICE}\n\n{NOTICE[:60]}", 40, 0), monkeypatch
    )
    assert guessed.content == plain.content
    assert guessed.content in NOTICE + "\n\n"
    assert guessed.timings is not None
    assert guessed.timings["draft_n_accepted"] > 10
    assert plain.timings is not None
    assert "draft_n" not in plain.timings
