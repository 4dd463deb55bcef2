"""Guesses for the next tokens of an answer: what a grammar forces, and what stood after its last tokens before.

A token of a guess costs a part of a step, a right one saves a whole one: a request guesses as much as it has saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tea_runtime.llama.generation import Generation

#: Logits of tokens that are evaluated together differ by about that much from those of one alone.
CLOSE = 0.5
#: Tokens of a guess at most.
LONGEST = 15
# So many forced tokens at least: two in a step cost as much as two steps.
_SHORTEST = 3
# As many tokens must be the same before a guess is made.
_SAME = 6
#: Steps that a request may lose at first.
FIRST_CREDIT = 2.0
# Steps that may be lost for each token that is chosen.
_ALLOWED = 0.02


class StepCost:
    """What a token of a guess costs, as a share of a step of one token: measured, for processors differ."""

    def __init__(self) -> None:
        self.share = 0.5
        self._alone = 0.0

    def measured(self, drafted: int, seconds: float) -> None:
        """Take note of a step with one token of an answer and `drafted` further ones."""
        if drafted and self._alone:
            share = (seconds / self._alone - 1) / drafted
            self.share += 0.1 * (min(max(share, 0.05), 1.0) - self.share)
        elif not drafted:
            self._alone += (0.1 if self._alone else 1.0) * (seconds - self._alone)


class Drafter:
    """The guesses of one request."""

    def __init__(self, cost: StepCost) -> None:
        self._cost = cost
        self._places: dict[tuple[int, ...], int] = {}  # some tokens → where what followed them begins
        self._read = _SAME
        self._credit = FIRST_CREDIT
        # The last forced text was cut into the tokens that were expected. After a miss the next one is only watched:
        # what is expected from a place on is compared with what comes.
        self._trusted = True
        self._expected: list[int] = []
        self._start = 0
        self._forced = False  # the last guess was of a forced text
        #: The next token is to be chosen without a guess.
        self.paused = False

    def draft(self, generation: Generation, most: int) -> list[int]:
        """The tokens that may follow, at most `most`; empty where nothing is known or guesses did not pay."""
        tokens = generation.tokens
        for end in range(self._read, len(tokens) if generation.greedy else 0):
            self._places[tuple(tokens[end - _SAME : end])] = end
        self._read = max(self._read, len(tokens))
        self._credit += _ALLOWED
        most = min(most, LONGEST, int(self._credit / self._cost.share))
        if self.paused or most <= 0:
            self.paused = False
            return []
        said = tokens[self._start : self._start + len(self._expected)]
        waiting = len(said) < len(self._expected)
        if self._expected and not waiting:
            self._trusted, self._expected = said == self._expected, []
        forced = generation.forced() if not waiting and most >= _SHORTEST else []
        self._forced = self._trusted and min(len(forced), most) >= _SHORTEST
        if self._forced:
            return forced[:most]
        if len(forced) >= _SHORTEST:
            self._start, self._expected = len(tokens), forced
        place = self._places.get(tuple(tokens[-_SAME:]), len(tokens))
        return generation.possible(tokens[place : place + most])

    def judge(self, drafted: int, right: int) -> None:
        """Take note of how many tokens of a guess were right."""
        self._trusted = self._trusted and (right == drafted or not self._forced)
        self._credit = min(self._credit + right - drafted * self._cost.share, LONGEST / 2)
