"""How often, how long and why a transfer tries again."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from tea_models.errors import SourceUnavailableError


class TransientError(Exception):
    """A failure that may pass.

    Args:
        reason: For people.
        retry_after: Seconds that the server asks to wait.
        busy: The server says that it is asked too much.
        silent: It took long to find out.
        answered: It is what the server says, not that it says nothing.
    """

    def __init__(
        self,
        reason: str,
        *,
        retry_after: float | None = None,
        busy: bool = False,
        silent: bool = False,
        answered: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
        self.busy = busy
        self.silent = silent
        self.answered = answered


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Limits of one download.

    Attributes:
        tries: Failures in a row, without progress between them, after which it gives up. Silence counts twice, because
            each time costs many seconds.
        first_tries: The same while the server has never answered at all.
        patient_tries: The same when this run has brought `patient_bytes` already: then a network that is gone for a
            minute or two is waited for.
        patient_bytes: What is worth waiting for.
        base_seconds: Wait after the first failure; doubled after each further one.
        longest_seconds: Longest wait of our own.
        longest_retry_after: Longest wait that a server may ask for; a longer one is not believed.
        stall_seconds: Time over which a connection must deliver `min_rate`.
        min_rate: Bytes a second below which a connection counts as stalled.
        silent_seconds: An idle connection takes over the part of one that has been silent for so long.
    """

    tries: int = 6
    first_tries: int = 4
    patient_tries: int = 10
    patient_bytes: int = 1 << 20
    base_seconds: float = 0.5
    longest_seconds: float = 20.0
    longest_retry_after: float = 30.0
    stall_seconds: float = 10.0
    min_rate: float = 1024.0
    silent_seconds: float = 3.0

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
    """Counts the failures in a row of one thing that is asked for.

    Args:
        policy: How many are too many, and how long to wait after each.
        shown: What is asked for, fit for messages.

    Attributes:
        failures: How many since there was progress.
        answered: The server has answered once.
    """

    def __init__(self, policy: RetryPolicy, shown: str) -> None:
        self.failures = 0
        self.answered = False
        self._policy, self._shown = policy, shown

    def count(self, trouble: TransientError, *, progress: bool = False) -> None:
        """One failure more; silence counts twice.

        Args:
            trouble: What happened.
            progress: Something came before it.
        """
        self.answered = self.answered or trouble.answered or progress
        self.failures = (0 if progress else self.failures) + (2 if trouble.silent else 1)

    def wait(self, trouble: TransientError, *, patient: bool = False, hint: str = "") -> float:
        """How many seconds to wait before the next try.

        Args:
            trouble: What happened, counted before.
            patient: Much has come already in this run.
            hint: What to do if it is given up.

        Raises:
            SourceUnavailableError: It is given up.
        """
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
    """Seconds that a `Retry-After` header asks to wait; None for nonsense (RFC 9110, 10.2.3: a number or a date).

    Args:
        value: The header.
        now: Seconds since the epoch; the present by default.
    """
    text = (value or "").strip()
    if not text:
        return None
    if text.isascii() and text.isdecimal():
        return float(text[:12])
    try:
        seconds = float(text) if text.isascii() else math.nan
    except ValueError:
        pass
    else:
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, date.timestamp() - (time.time() if now is None else now))
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
