"""A file at an address, asked for as a whole or in parts: what downloads and the reading of headers share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tea_models.net.answers import Answer, read_answer
from tea_models.net.retry import RetryPolicy
from tea_models.redact import redact

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx2

    from tea_models.net.client import Client
    from tea_models.net.partial import Beginning

    SizeByHeader = Callable[[Beginning], int | None]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for, and how.

    Attributes:
        client: Sends it.
        url: The address.
        headers: For the origin of `url` only.
        sha256: The pin, if there is one.
        size: The expected size, if it is known.
        name: How people call the file.
        connections: How many a download may use.
        size_by_header: Finds in the beginning of a GGUF file how big it must be; None where another format is wanted.
        policy: How often and how long it is tried again.
    """

    client: Client
    url: str = field(repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    sha256: str | None = None
    size: int | None = None
    name: str = ""
    connections: int = 1
    size_by_header: SizeByHeader | None = None
    policy: RetryPolicy = field(default_factory=RetryPolicy)

    @property
    def shown(self) -> str:
        """The address, fit for messages."""
        return redact(self.url)

    def send(self, start: int, end: int | None, *, ranged: bool, if_range: str = "") -> tuple[httpx2.Response, Answer]:
        """Ask for bytes `start` to `end` (None: to the end of the file).

        Args:
            start: Offset of the first byte.
            end: Offset after the last one.
            ranged: Ask by `Range`; without it the whole file is asked for, and both offsets are only compared.
            if_range: A validator: another version of the file is answered as a whole.

        Returns:
            The answer, whose body the caller reads and closes, and what its head says.

        Raises:
            TransientError: Try again.
            StaleError: The range was not answered as asked.
            NotAvailableError, UsageError: Give up.
        """
        headers = dict(self.headers)
        if ranged:
            headers["range"] = f"bytes={start}-" + ("" if end is None else str(end - 1))
            if if_range:
                headers["if-range"] = if_range
        response = self.client.stream(self.url, headers, pinned=self.sha256 is not None)
        try:
            return response, read_answer(response, self.shown, start=start, asked_range=ranged)
        except BaseException:
            response.close()
            raise
