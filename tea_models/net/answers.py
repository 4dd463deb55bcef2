"""What a server's answer means for a transfer: go on, try again, begin anew, or give up with a reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tea_models.errors import AccessDeniedError, MissingFileError, NotAvailableError, SourceUnavailableError, UsageError
from tea_models.net.retry import TransientError, parse_retry_after
from tea_models.redact import redact

if TYPE_CHECKING:
    import httpx2

_CONTENT_RANGE: Final = re.compile(r"bytes\s+(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\Z", re.IGNORECASE)
_TRANSIENT: Final = frozenset({408, 420, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 529})


@dataclass(eq=False)
class StaleError(Exception):
    """What is in the partial does not fit what the server has now: begin anew."""

    reason: str
    plain: bool  # ranges can't be relied on at this server; ask for the whole file
    beyond_end: bool = False  # the server says that the file ends before the range (416)


@dataclass(frozen=True, slots=True)
class Answer:
    """A 200 or 206 that can be used."""

    start: int
    end: int | None  # offset after the last byte, if it is said
    total: int | None
    partial: bool  # it is a 206
    ranges: bool  # the server understands ranges, as far as this answer tells
    etag: str
    last_modified: str
    html: bool  # it is declared to be a web page


@dataclass(slots=True)
class Version:
    """What tells one version of a file from another."""

    etag: str = ""
    last_modified: str = ""

    @property
    def validator(self) -> str:
        """What `If-Range` may carry (RFC 9110, 13.1.5): a strong entity tag, else the date, else nothing."""
        if self.etag:
            return "" if self.etag.startswith("W/") else self.etag
        return self.last_modified

    def accept(self, answer: Answer) -> bool:
        """Whether an answer is of the same version, as far as can be told; takes over what it says."""
        tags, dates = (self.etag, answer.etag), (self.last_modified, answer.last_modified)
        changed = tags[0] != tags[1] if all(tags) else all(dates) and dates[0] != dates[1]
        self.etag, self.last_modified = answer.etag or self.etag, answer.last_modified or self.last_modified
        return not changed


def read_answer(response: httpx2.Response, shown: str, *, start: int, asked_range: bool) -> Answer:
    """Judge the head of an answer to a request for what is at `start`; raises as `Request.send` does."""
    status = response.status_code
    if status == 416:
        raise StaleError(f"{shown}: the server has no bytes at {start:,}", plain=True, beyond_end=True)
    if status not in (200, 206):
        raise refusal(response, shown)
    headers = response.headers
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise SourceUnavailableError(
            f"{shown}: the server sends the file compressed ({encoding[:40]}), though it was asked not to",
            hint="a proxy may do that; another source or network may not",
        )
    etag, modified = headers.get("etag", "").strip(), headers.get("last-modified", "").strip()
    html = headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml"))
    if status == 200:
        total = byte_count(headers.get("content-length"))
        ranges = headers.get("accept-ranges", "").strip().lower() == "bytes" and not asked_range
        return Answer(0, total, total, False, ranges, etag, modified, html)
    if not asked_range:
        raise StaleError(f"{shown}: the server sends a part of the file though the whole was asked for", plain=True)
    match = _CONTENT_RANGE.match(headers.get("content-range", "").strip())
    if match is None:
        raise StaleError(f"{shown}: the server does not say which part of the file it sends", plain=True)
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    if first != start or last < first or (total is not None and last >= total):
        raise StaleError(f"{shown}: the server sends another part of the file than was asked for", plain=True)
    return Answer(first, last + 1, total, True, True, etag, modified, html)


def byte_count(text: str | None) -> int | None:
    """The number of bytes that a header states; None for nothing and for nonsense."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) <= 18 else None


def is_transient(status: int) -> bool:
    """Whether the same request may be answered otherwise a little later."""
    return status in _TRANSIENT or status >= 500


def refusal(response: httpx2.Response, shown: str) -> TransientError | NotAvailableError:
    """What an answer that is not the wanted one means."""
    status = response.status_code
    told = f"the server answers {status}" + (f" {reason}" if (reason := response.reason_phrase[:60]) else "")
    if is_transient(status):
        after = parse_retry_after(response.headers.get("retry-after"))
        return TransientError(told, retry_after=after, busy=status in (429, 503, 509, 529), answered=True)
    told = f"{shown}: {told}"
    match status:
        case 401:
            hint = (
                "for the Hub set HF_TOKEN (or run: hf auth login), for another host TEA_MODELS_AUTH_<HOST> or ~/.netrc"
            )
            return AccessDeniedError(told, hint=f"it wants credentials: {hint}")
        case 403:
            hint = "this account or network may not have it; a licence may have to be accepted there first"
            return AccessDeniedError(told, hint=hint)
        case 404 | 410:
            return MissingFileError(told, hint="check the name, the folder and the revision")
        case 407:
            return NotAvailableError(f"{told} (the proxy wants credentials)", hint="check HTTPS_PROXY")
    if "location" in response.headers:
        return SourceUnavailableError(
            f"{told}: it sends to another host, {redact(response.headers['location'][:200])}",
            hint="what another host says of a model does not count; ask it directly if you trust it",
        )
    return SourceUnavailableError(told, hint="try another source")


def explain_failure(
    error: Exception, shown: str, *, proxy: str = ""
) -> TransientError | NotAvailableError | UsageError:
    """Turn an exception of the HTTP client into one of ours; its text is not passed on where it could hold a secret."""
    import httpx2

    told = " ".join(str(error).split())[:120]
    if "CERTIFICATE_VERIFY_FAILED" in told:
        hint = "behind a company's proxy, SSL_CERT_FILE names the file with its certificate"
        return SourceUnavailableError(f"{shown}: the server's certificate is not trusted", hint=hint)
    to = f" to the proxy {proxy}" if proxy else ""
    match error:
        case httpx2.ConnectTimeout() | httpx2.PoolTimeout():
            return TransientError(f"no connection{to} within the time allowed", silent=True)
        case httpx2.TimeoutException():
            through = f" through the proxy {proxy}" if proxy else ""
            return TransientError(f"no bytes for too long{through}", silent=True)
        case httpx2.ConnectError():
            return TransientError(f"can't connect{to} ({told})")
        case httpx2.RemoteProtocolError():
            return TransientError(f"the answer broke off or is no HTTP ({told})")
        case httpx2.ProxyError():
            return TransientError(f"the proxy {proxy} refuses ({told})")
        case httpx2.ReadError() | httpx2.WriteError() | httpx2.CloseError():
            return TransientError(f"the connection{to} broke ({told or type(error).__name__})")
        case httpx2.UnsupportedProtocol() | httpx2.InvalidURL() | httpx2.LocalProtocolError():
            hint = "check the address and the token for stray characters"
            return UsageError(f"{shown}: this request can't be sent", hint=hint)
    return SourceUnavailableError(f"{shown}: {type(error).__name__}")
