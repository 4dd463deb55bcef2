"""Downloads that resume, use several connections, hash while bytes arrive, and give up with a reason."""

from __future__ import annotations

from tea_models.net.client import display_url, make_client, open_stream
from tea_models.net.download import TransferResult, download
from tea_models.net.partial import discard, state_path
from tea_models.net.retry import RetryPolicy

__all__ = [
    "RetryPolicy",
    "TransferResult",
    "discard",
    "display_url",
    "download",
    "make_client",
    "open_stream",
    "state_path",
]
