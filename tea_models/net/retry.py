"""How often, how long and why a transfer tries again."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from tea_models.errors import SourceUnavailableError


@dataclass(eq=False)
class TransientError(Exception):
    """A failure that may pass."""

    reason: str
    retry_after: float | None = None  # seconds that the server asks to wait
    busy: bool = False  # the server says that it is asked too much
    silent: bool = False  # it took long to find out
    answered: bool = False  # it is what the server says, not that it says nothing


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Limits of one download; `…tries` are failures in a row without progress, of which silence counts twice."""

    tries: int = 6
    first_tries: int = 4  # while the server has never answered at all
    patient_tries: int = 10  # when this run has brought `patient_bytes`: a network that is gone is waited for
    patient_bytes: int = 1 << 20
    base_seconds: float = 0.5  # wait after the first failure; doubled after each further one
    longest_seconds: float = 20.0
    longest_retry_after: float = 30.0  # a server that asks to wait longer is not believed
    stall_seconds: float = 10.0  # time over which a connection must deliver `min_rate` bytes a second
    min_rate: float = 1024.0
    silent_seconds: float = 3.0  # an idle connection takes over the part of one that was silent for so long

    def wait(self, failures: int, retry_after: float | None = None) -> float:
        """Seconds to wait after so many failures in a row: exponential, with jitter, or what the server asks for."""
        own = min(self.longest_seconds, self.base_seconds * 2.0 ** min(failures - 1, 16))
        own *= random.uniform(0.75, 1.25)  # noqa: S311 - only to keep clients apart
        if retry_after is None or retry_after > self.longest_retry_after:
            return own
        return max(own, retry_after)


#: For a question, whose answer somebody waits for: a host that can't be reached is given up soon.
QUESTION = RetryPolicy(tries=4, first_tries=2, patient_tries=4, longest_seconds=5.0)


class Retries:
    """Counts the failures in a row (since there was progress) of one thing that is asked for."""

    def __init__(self, policy: RetryPolicy, shown: str) -> None:
        self.failures = 0
        self.answered = False
        self._policy, self._shown = policy, shown

    def count(self, trouble: TransientError, *, progress: bool = False) -> None:
        """One failure more; silence counts twice. `progress`: something came before it."""
        self.answered = self.answered or trouble.answered or progress
        self.failures = (0 if progress else self.failures) + (2 if trouble.silent else 1)

    def wait(self, trouble: TransientError, *, patient: bool = False, hint: str = "") -> float:
        """How many seconds to wait before the next try; `SourceUnavailableError` where it is given up."""
        policy = self._policy
        tries = policy.patient_tries if patient else policy.tries if self.answered else policy.first_tries
        if self.failures < tries:
            return policy.wait(self.failures, trouble.retry_after)
        asked = ""
        if trouble.retry_after is not None and trouble.retry_after > policy.longest_retry_after:
            asked = f"; it asks to wait {trouble.retry_after:,.0f} s"
        raise SourceUnavailableError(
            f"{self._shown}: {trouble.reason} (tried again and again{asked})",
            hint=hint or "check the network and the address, or try again later",
        )


def parse_retry_after(value: str | None, *, now: float | None = None) -> float | None:
    """Seconds that a `Retry-After` header asks to wait; None for nonsense (RFC 9110, 10.2.3: a number or a date)."""
    text = value.strip() if value and value.isascii() else ""
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        return min(seconds, 999_999_999_999.0) if math.isfinite(seconds) and seconds >= 0 else None
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now))
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
