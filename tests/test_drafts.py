"""Prompt lookup: an answer that copies gets several tokens a step, and the same text."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from tea_runtime.engine import drafts
from tea_runtime.engine.drafts import PromptLookup
from tests.scripted_model import build_scripted

pytest.importorskip("llama_cpp")
from tea_runtime import LlmCallParams, LocalLlmBackend

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


def test_what_followed_the_last_tokens_before_is_guessed() -> None:
    text = list(range(20))
    assert PromptLookup().draft([*text, 90, *text[:8]], 3) == [8, 9, 10]
    assert PromptLookup().draft([*text, 90, *text[:8]], 0) == []
    assert PromptLookup().draft([*text, 90, 91, 92], 8) == []


def test_right_guesses_get_longer_and_wrong_ones_stop() -> None:
    text = [*range(20), 90, *range(8)]
    good, bad = PromptLookup(), PromptLookup()
    lengths = []
    for _ in range(6):
        lengths.append(len(good.draft(text, 99)))
        good.judge(lengths[-1], lengths[-1])
        bad.judge(len(bad.draft(text, 99)), 0)
    assert lengths == sorted(lengths)
    assert lengths[-1] > lengths[0] > 0
    assert bad.draft(text, 99) == []


def test_guesses_that_are_never_right_cost_a_bounded_share_of_the_steps() -> None:
    rng = random.Random(0)
    lookup, tokens, guessed = PromptLookup(), list(range(30)), 0
    for _ in range(2000):  # always the same few tokens, so that there always is something to guess
        tokens.append(rng.randrange(2))
        drafted = lookup.draft(tokens, 99)
        lookup.judge(len(drafted), 0)
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


@pytest.mark.real
def test_a_text_that_is_copied_is_the_same_with_and_without_guesses(
    real_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    for first in (drafts.FIRST_CREDIT, -1e9):
        monkeypatch.setattr(drafts, "FIRST_CREDIT", first)
        with LocalLlmBackend(real_model) as backend:
            answers.append(backend.call(LlmCallParams(f"{NOTICE}\n\n{NOTICE[:60]}", 40, 0)))
    guessed, plain = answers
    assert guessed.content == plain.content
    assert guessed.content in NOTICE + "\n\n"
    assert guessed.timings is not None
    assert guessed.timings["draft_n_accepted"] > 10
    assert plain.timings is not None
    assert "draft_n" not in plain.timings
