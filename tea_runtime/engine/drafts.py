"""Prompt lookup: guesses for the next tokens of an answer that copies, from where its last tokens stood before.

A token of a guess costs a part of a step, a right one saves a whole one: a request guesses as much as it has saved.
"""

from __future__ import annotations

#: Logits of tokens that are evaluated together differ by about that much from those of one alone.
CLOSE = 0.5
#: Tokens of a guess at most.
LONGEST = 15
# As many tokens must be the same before a guess is made.
_SAME = 6
#: Steps that a request may lose at first.
FIRST_CREDIT = 2.0
# Steps: what a token of a guess costs, and what may be lost for each token that is chosen.
_COST, _ALLOWED = 0.5, 0.02


class PromptLookup:
    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}  # some tokens → where what followed them begins
        self._read = _SAME
        self._credit = FIRST_CREDIT
        #: The next token is to be chosen without a guess.
        self.paused = False

    def draft(self, tokens: list[int], most: int) -> list[int]:
        """The tokens that may follow, at most `most`; empty where nothing is known or guesses did not pay."""
        for end in range(self._read, len(tokens)):
            self._places[tuple(tokens[end - _SAME : end])] = end
        self._read = max(self._read, len(tokens))
        self._credit += _ALLOWED
        count = min(most, LONGEST, int(self._credit / _COST))
        place = None if self.paused else self._places.get(tuple(tokens[-_SAME:]))
        self.paused = False
        return tokens[place : place + count] if place is not None and count > 0 else []

    def judge(self, drafted: int, right: int) -> None:
        """Take note of how many tokens of a guess were right."""
        self._credit = min(self._credit + right - drafted * _COST, _COST * LONGEST)
