"""The HTTP client of all requests, and the rules for where one may go and what it may carry."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from tea_models.errors import SourceUnavailableError, UsageError
from tea_models.net.answers import Answer, explain_failure, is_transient, read_answer, refusal
from tea_models.net.partial import Beginning
from tea_models.net.retry import QUESTION, Retries, RetryPolicy, TransientError
from tea_models.redact import redact, redact_record

if TYPE_CHECKING:
    import httpx2

    SizeByHeader = Callable[[Beginning], int | None]

CONNECT_SECONDS: Final = 10.0
READ_SECONDS: Final = 15.0
MAX_REDIRECTS: Final = 10
# What may follow a redirect to another origin. Everything else (Authorization, Cookie, whatever a caller added) stays.
_HARMLESS: Final = frozenset({"range", "if-range", "accept", "accept-encoding", "user-agent", "host"})
_SECRET: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class Client(contextlib.AbstractContextManager["Client"]):
    """Sends requests; proxies and certificates come from the environment as usual, credentials from `environ`."""

    def __init__(
        self, *, connections: int = 4, read_seconds: float = READ_SECONDS, environ: Mapping[str, str] | None = None
    ) -> None:
        self._environ = environ or {}
        self._http = _http_client(connections, read_seconds)

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def ask(
        self, url: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", most: int = 0
    ) -> tuple[httpx2.Response, bytes]:
        """What a host states (a listing, a manifest): the answer and its body of at `most` so many bytes."""
        shown = redact(url)
        retries = Retries(QUESTION, shown)
        while True:
            try:
                # Redirects only on the same host: what another one says about hashes would not count.
                with contextlib.closing(self.send(method, url, headers or {}, leave=False)) as response:
                    if is_transient(response.status_code):
                        raise refusal(response, shown)
                    body = bytearray()
                    for piece in chunks(response, shown, decoded=True):
                        body += piece
                        if len(body) > most:
                            raise SourceUnavailableError(f"{shown}: the answer is longer than {most:,} bytes")
                    return response, bytes(body)
            except TransientError as trouble:
                retries.count(trouble)
                time.sleep(retries.wait(trouble))

    def send(
        self, method: str, url: str, headers: Mapping[str, str], *, pinned: bool = False, leave: bool = True
    ) -> httpx2.Response:
        """Send a request and follow redirects, to another host too if it may `leave`; the caller closes the response.

        `pinned`: a SHA-256 protects the bytes.
        """
        carried = {name.lower(): value for name, value in headers.items()}
        here, given = split_credentials(url)
        check_scheme(here, pinned=pinned, credentials=bool(given) or not _SECRET.isdisjoint(carried))
        if "authorization" not in carried and is_private(here):
            given = given or stored_authorization(here, self._environ)
            carried |= {"authorization": given} if given else {}
        first = origin(here)
        for _ in range(MAX_REDIRECTS + 1):
            try:
                request = self._http.build_request(method, here, headers=carried)
                response = self._http.send(request, stream=True, follow_redirects=False)
            except Exception as error:  # noqa: BLE001 - the client's exceptions are told apart in one place
                raise explain_failure(error, redact(url), proxy=proxy_before(here)) from None
            if response.status_code not in _REDIRECTS or "location" not in response.headers:
                return response
            try:
                there = next_address(here, response.headers["location"], pinned=pinned)
            except BaseException:
                response.close()
                raise
            if not leave and origin(there) != first:
                return response
            response.close()
            if origin(there) != first:
                carried = {name: value for name, value in carried.items() if name in _HARMLESS}
            here = there
        hint = "the server redirects in a circle; try another source"
        raise SourceUnavailableError(f"{redact(url)}: more than {MAX_REDIRECTS} redirects", hint=hint)


@dataclass(frozen=True, slots=True)
class Request:
    client: Client
    url: str = field(repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)  # for the origin of `url` only
    sha256: str | None = None
    size: int | None = None
    name: str = ""  # how people call the file
    connections: int = 1
    size_by_header: SizeByHeader | None = None  # how big a GGUF file must be by its beginning; None for other formats
    policy: RetryPolicy = field(default_factory=RetryPolicy)

    @property
    def shown(self) -> str:
        return redact(self.url)

    def send(self, start: int, end: int | None, *, ranged: bool, if_range: str = "") -> tuple[httpx2.Response, Answer]:
        """Ask for bytes `start` to `end` (None: the end), or all; a `StaleError` where it is not answered as asked."""
        headers = dict(self.headers)
        if ranged:
            headers["range"] = f"bytes={start}-" + ("" if end is None else str(end - 1))
            if if_range:
                headers["if-range"] = if_range
        response = self.client.send("GET", self.url, headers, pinned=self.sha256 is not None)
        try:
            return response, read_answer(response, self.shown, start=start, asked_range=ranged)
        except BaseException:
            response.close()
            raise


def split_credentials(url: str) -> tuple[str, str]:
    """An address without user and password, and the value of `Authorization` that they make ("" without them)."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, ""
    return urlunsplit(parts._replace(netloc=host)), _basic(unquote(user)) if user else ""


def stored_authorization(url: str, environ: Mapping[str, str]) -> str:
    """The value of `Authorization` that the user keeps for the host of an address, or "".

    `TEA_MODELS_AUTH_<HOST>` (upper case, `.`, `-` and `:` as `_`; with the port first, then without) is `user:password`
    or a bearer token. Else `NETRC` or `~/.netrc` is looked at; its `default` is not for us.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    for name in ([f"{host}:{parts.port}"] if parts.port else []) + [host]:
        value = environ.get("TEA_MODELS_AUTH_" + re.sub(r"[^A-Z0-9]", "_", name.upper()), "").strip()
        if value:
            return _basic(value) if ":" in value else f"Bearer {value}"
    return _from_netrc(host, environ)


def _from_netrc(host: str, environ: Mapping[str, str]) -> str:
    import netrc

    path = environ.get("NETRC") or (f"{environ['HOME']}/.netrc" if environ.get("HOME") else "")
    try:
        if not path or not host or host not in Path(path).read_text("utf-8", "surrogateescape"):
            return ""
        found = netrc.netrc(path).hosts.get(host)
    except OSError:
        return ""
    except netrc.NetrcParseError as error:
        raise UsageError(f"{path}:{error.lineno}: can't be parsed: {error.msg}") from None
    return _basic(f"{found[0]}:{found[2]}") if found else ""


def _basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode("ascii")


def _http_client(connections: int, read_seconds: float) -> httpx2.Client:
    from importlib.metadata import version

    import httpx2

    logging.getLogger("httpx2").addFilter(redact_record)
    try:
        return httpx2.Client(
            # Redirects are followed by `Client.send`, which decides about each of them.
            follow_redirects=False,
            timeout=httpx2.Timeout(read_seconds, connect=CONNECT_SECONDS, pool=None),
            limits=httpx2.Limits(max_connections=connections + 4, max_keepalive_connections=connections + 4),
            headers={
                "User-Agent": f"tea-models/{version('tea-models')}",
                "Accept": "*/*",
                "Accept-Encoding": "identity",
            },
        )
    except ImportError:
        raise SourceUnavailableError(
            f"{_proxies_shown()}: a SOCKS proxy needs a package that is not installed",
            hint="pip install socksio; or name an HTTP proxy in HTTPS_PROXY and unset ALL_PROXY",
        ) from None
    except (ValueError, httpx2.InvalidURL):
        raise UsageError(
            f"{_proxies_shown()}: expected the address of a proxy, http://host:port or socks5://host:port",
            hint="check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY",
        ) from None


def _proxies_shown() -> str:
    from urllib.request import getproxies

    return ", ".join(f"{scheme.upper()}_PROXY={redact(url)}" for scheme, url in getproxies().items() if scheme != "no")


def proxy_before(url: str) -> str:
    """The proxy that the environment sets before an address, as it may be shown; "" if there is none."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    proxies = getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all", "")
    if not found or proxy_bypass(parts.hostname or ""):
        return ""
    return redact(found if "://" in found else f"http://{found}")


def chunks(response: httpx2.Response, shown: str, *, decoded: bool = False) -> Iterator[bytes]:
    """The body as it comes, or `decoded`; what the HTTP client raises is explained."""
    try:
        yield from response.iter_bytes() if decoded else response.iter_raw()
    except Exception as error:  # noqa: BLE001 - told apart in one place
        raise explain_failure(error, shown) from None


def next_address(here: str, location: str, *, pinned: bool) -> str:
    """Where a redirect leads, without the credentials that it may name; refused out of the web, and to plain http."""
    try:
        there = split_credentials(urljoin(here, location))[0]
        parts = urlsplit(there)
        web = parts.scheme in ("http", "https") and parts.hostname
    except ValueError:
        web = None
    if not web:
        raise SourceUnavailableError(
            f"{redact(here)}: redirects to {redact(location)!r}, which is no web address",
            hint="the source is misconfigured or hostile; try another one",
        )
    if parts.scheme == "http" and urlsplit(here).scheme == "https":
        hint = "this is refused because anybody on the way could read or change the answer; try another source"
        raise SourceUnavailableError(f"{redact(here)}: redirects from https to plain http ({redact(there)})", hint=hint)
    check_scheme(there, pinned=pinned)
    return there


def cut(response: httpx2.Response) -> None:
    """Close a connection under a thread that reads from it, which wakes that thread."""
    stream = response.extensions.get("network_stream")
    connection = stream.get_extra_info("socket") if stream is not None else None
    if isinstance(connection, socket.socket):
        with contextlib.suppress(OSError):
            # Of the base class: an SSL socket would tear down its state under the reader.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)


def check_scheme(url: str, *, pinned: bool, credentials: bool = False) -> None:
    """Refuse plain http to others without a pinned SHA-256 (it protects the bytes), and with credentials always."""
    if is_private(url):
        return
    if urlsplit(url).scheme != "http":
        raise UsageError(f"{redact(url)}: expected an address that starts with https://")
    if credentials:
        raise UsageError(f"{redact(url)}: credentials are not sent over plain http", hint="use https://")
    if not pinned:
        hint = "use https://, or add #sha256=… to the address"
        raise UsageError(f"{redact(url)}: plain http needs a pinned sha256", hint=hint)


def is_private(url: str) -> bool:
    """Whether nobody on the way can read what is sent: https, or this machine itself."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    default = 443 if parts.scheme == "https" else 80
    return parts.scheme, (parts.hostname or "").lower(), parts.port or default
