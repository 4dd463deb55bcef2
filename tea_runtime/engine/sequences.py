"""What the sequences of a context hold, and which of them a request can begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tea_runtime.llama.context import Context


#: Sequences shorter than this, in tokens, are kept beside many running ones only if they are among the last few.
SHORT, KEPT_SHORT = 256, 4


class HeldSequence:
    __slots__ = ("_inherited", "_own", "id", "in_use", "tokens")

    def __init__(self, number: int, begins_with: HeldSequence | None = None, common: int = 0) -> None:
        self.id = number
        self.in_use = True  # a request works on it; otherwise it is kept for requests that begin alike
        #: What is in memory.
        self.tokens: list[int] = begins_with.tokens[:common] if begins_with is not None else []
        # Stretches of memory that other sequences hold too: what identifies each, and how long it is here.
        self._inherited: list[tuple[object, int]] = []
        self._own = object()
        left = common
        for stretch, length in begins_with.stretches() if begins_with is not None else ():
            if left > 0:
                self._inherited.append((stretch, min(length, left)))
                left -= length

    def stretches(self) -> list[tuple[object, int]]:
        """The stretches of memory that it consists of, with their lengths."""
        own = len(self.tokens) - sum(length for _, length in self._inherited)
        return [*self._inherited, (self._own, own)]


class SequencePool:
    def __init__(self, context: Context) -> None:
        self.context = context
        # The longest unused first.
        self._held: dict[int, HeldSequence] = {}

    def __iter__(self) -> Iterator[HeldSequence]:
        return iter(tuple(self._held.values()))

    @property
    def idle(self) -> list[HeldSequence]:
        """The sequences that no request works on, the longest unused first."""
        return [held for held in self._held.values() if not held.in_use]

    def _use(self, held: HeldSequence) -> None:
        self._held[held.id] = self._held.pop(held.id)

    @property
    def cells(self) -> int:
        """Tokens in memory; what sequences share counts once."""
        return _cells(self._held.values())

    @property
    def cells_in_use(self) -> int:
        """Tokens in memory without those of sequences that no request works on."""
        return _cells(held for held in self._held.values() if held.in_use)

    def new(self) -> HeldSequence | None:
        """An empty sequence; None if all are in use."""
        number = self._free_number()
        if number is None:
            return None
        held = self._held[number] = HeldSequence(number)
        return held

    def _free_number(self) -> int | None:
        number = next((number for number in range(self.context.settings.n_seq_max) if number not in self._held), None)
        if number is None:
            idle = self.idle
            if not idle:
                return None
            number = idle[0].id
            self.drop(idle[0])
        return number

    def best(self, tokens: list[int]) -> tuple[HeldSequence | None, int]:
        """What a request can best begin with, and how many tokens that saves; the last is always left."""
        found, most = None, 0
        for held in self._held.values():
            common = self._usable(held, common_prefix(held.tokens, tokens[:-1]))
            if common > most or (common == most and common and found is not None and found.in_use and not held.in_use):
                found, most = held, common
        return found, most

    def _usable(self, held: HeldSequence, common: int) -> int:
        if self.context.weights.recurrent:  # its state is that after the last token, and can't be shared
            return common if common == len(held.tokens) and not held.in_use else 0
        if common < len(held.tokens) and not self.context.reaches_back(held.id, common):
            return 0
        return common

    def begin_with(self, source: HeldSequence, common: int) -> HeldSequence | None:
        """A sequence that begins with the first tokens of another one; None if all are in use.

        What nobody works on is taken over if it is a beginning as a whole, or if no other sequence is free for a copy.
        """
        if not source.in_use and common == len(source.tokens):
            source.in_use = True
            self._use(source)
            return source
        was, source.in_use = source.in_use, True  # so that it isn't dropped for the copy
        number = self._free_number()
        source.in_use = was
        if number is not None:
            self.context.copy(source.id, number, common)
        elif was:
            return None
        elif self.context.cut(source.id, common):
            number = source.id
        else:
            self.drop(source)
            return self.new()
        self._use(source)
        target = self._held[number] = HeldSequence(number, source, common)
        return target

    def release(self, held: HeldSequence) -> None:
        """Keep a sequence that its request is done with."""
        held.in_use = False
        self._use(held)
        covered = [
            other
            for other in self._held.values()
            if other is not held and not other.in_use and common_prefix(other.tokens, held.tokens) == len(other.tokens)
        ]
        for other in covered:  # nobody needs it any more
            self.drop(other)

    def drop(self, held: HeldSequence) -> None:
        """Empty a sequence; what others share with it stays in memory."""
        self.context.drop(held.id)
        self._held.pop(held.id, None)

    def shrink(self, cells: int) -> None:
        """Drop sequences that nobody works on, the longest unused first, until that many cells are in use at most."""
        for held in self.idle:
            if self.cells <= cells:
                return
            self.drop(held)

    def forget_short(self) -> bool:
        """Drop short sequences that nobody works on, but the last few; whether there were any.

        They are evaluated again soon, and what is in memory slows every step: each token looks at all cells.
        """
        short = [held for held in self.idle if len(held.tokens) < SHORT][:-KEPT_SHORT]
        for held in short:
            self.drop(held)
        return bool(short)

    def clear(self) -> None:
        self.context.clear()
        self._held.clear()


def _cells(sequences: Iterable[HeldSequence]) -> int:
    longest: dict[object, int] = {}
    for held in sequences:
        for stretch, length in held.stretches():
            longest[stretch] = max(length, longest.get(stretch, 0))
    return sum(longest.values())


def common_prefix(one: list[int], other: list[int]) -> int:
    """How many tokens two lists have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # the first `low` tokens are the same, the first `high` are not
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
