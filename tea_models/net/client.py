"""The HTTP client of all transfers, and the rules for where a request may go and what it may carry."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit, urlunsplit

from tea_models.errors import SourceUnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx2

CONNECT_SECONDS: Final = 10.0
READ_SECONDS: Final = 15.0
MAX_REDIRECTS: Final = 10
_SMALL_BODY: Final = 16 << 10
# What may follow a redirect to another origin. Everything else (Authorization, Cookie, whatever a caller added) stays.
_HARMLESS: Final = frozenset({"range", "if-range", "accept", "accept-encoding", "user-agent", "host"})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


def make_client(*, connections: int = 4, read_seconds: float = READ_SECONDS) -> httpx2.Client:
    """Make the client that `download` uses; proxies and certificates come from the environment as usual.

    Args:
        connections: Parallel connections that one download may open.
        read_seconds: How long a connection may be silent before it counts as stalled.
    """
    from importlib.metadata import version

    import httpx2

    return httpx2.Client(
        # Redirects are followed by `open_stream`, which decides about each of them.
        follow_redirects=False,
        timeout=httpx2.Timeout(read_seconds, connect=CONNECT_SECONDS, pool=None),
        limits=httpx2.Limits(max_connections=connections + 4, max_keepalive_connections=connections + 4),
        headers={"User-Agent": f"tea-models/{version('tea-models')}", "Accept": "*/*", "Accept-Encoding": "identity"},
    )


def open_stream(
    client: httpx2.Client, url: str, headers: Mapping[str, str], *, pinned: bool = False, hops: int = MAX_REDIRECTS
) -> httpx2.Response:
    """Send a GET and follow redirects, without reading the body; the caller closes the response.

    Credentials in `headers` go to the origin of `url` only. A redirect may not leave HTTP, nor go from https to http.

    Args:
        client: Made by `make_client` (or any client that does not follow redirects itself).
        url: Where to start.
        headers: Sent with the request.
        pinned: A SHA-256 is known, so that plain http can do no harm to the bytes.
        hops: Redirects that may be followed.

    Raises:
        UsageError: Plain http without a pin.
        SourceUnavailableError: A redirect that must not be followed.
    """
    check_scheme(url, pinned=pinned, credentials=has_credentials(headers))
    carried = dict(headers)
    here = url
    for _ in range(hops + 1):
        request = client.build_request("GET", here, headers=carried)
        response = client.send(request, stream=True, follow_redirects=False)
        if response.status_code not in _REDIRECTS or "location" not in response.headers:
            return response
        location = response.headers["location"]
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length[:9]) <= _SMALL_BODY:
            response.read()  # so that the connection can be used again
        response.close()
        there = next_address(here, location, pinned=pinned)
        if origin(there) != origin(url):
            carried = {name: value for name, value in carried.items() if name.lower() in _HARMLESS}
        here = there
    raise SourceUnavailableError(
        f"{display_url(url)}: more than {hops} redirects", hint="the server redirects in a circle; try another source"
    )


def next_address(here: str, location: str, *, pinned: bool) -> str:
    try:
        there = urljoin(here, location)
        parts = urlsplit(there)
        host = parts.hostname
    except ValueError:
        parts, host, there = urlsplit(""), None, ""
    if parts.scheme not in ("http", "https") or not host:
        raise SourceUnavailableError(
            f"{display_url(here)}: redirects to {display_url(location)!r}, which is no web address",
            hint="the source is misconfigured or hostile; try another one",
        )
    if parts.scheme == "http" and urlsplit(here).scheme == "https":
        raise SourceUnavailableError(
            f"{display_url(here)}: redirects from https to plain http ({display_url(there)})",
            hint="this is refused because anybody on the way could read or change the answer; try another source",
        )
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
    """Refuse plain http where it could harm.

    To this machine itself it is always allowed. To other hosts only with a pinned SHA-256, which protects the
    bytes, and never with credentials, which it would not protect.

    Raises:
        UsageError: The address may not be used.
    """
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        return
    if parts.scheme != "http":
        raise UsageError(f"{display_url(url)}: expected an address that starts with https://")
    if credentials or parts.username or parts.password:
        raise UsageError(f"{display_url(url)}: credentials are not sent over plain http", hint="use https://")
    if not pinned:
        raise UsageError(
            f"{display_url(url)}: plain http needs a pinned sha256",
            hint="use https://, or add #sha256=… to the address",
        )


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an address."""
    parts = urlsplit(url)
    default = 443 if parts.scheme == "https" else 80
    return parts.scheme, (parts.hostname or "").lower(), parts.port or default


def display_url(url: str) -> str:
    """An address fit for messages, state files and locks: without credentials, query and fragment."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if ":" in host:
            host = f"[{host}]"
        if parts.port is not None:
            host += f":{parts.port}"
    except ValueError:
        return url.split("?", 1)[0].split("#", 1)[0].rsplit("@", 1)[-1]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def has_credentials(headers: Mapping[str, str]) -> bool:
    """Whether headers carry what must not be read by others."""
    return any(name.lower() in ("authorization", "cookie", "proxy-authorization") for name in headers)
