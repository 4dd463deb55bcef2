"""Who may talk to the endpoint, and a line in the log for everyone who did.

A web page of any site can make a browser send requests to this machine, also under a name of its own that it lets
resolve to a loopback address. So names and origins count, not only addresses.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Collection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from tea_runtime.server.wire import failure

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_access = logging.getLogger("tea_runtime.access")


class Gate:
    """Refuses requests under foreign names and from foreign pages, and logs all of them. An ASGI middleware."""

    def __init__(self, app: ASGIApp, *, listen: str, allowed_hosts: Collection[str], origins: Collection[str]) -> None:
        self._app = app
        self._names = {"localhost", listen.lower(), *(name.lower() for name in allowed_hosts)}
        # Who listens on all addresses is known by all of them. An address is no name that somebody could redirect.
        address = _address(listen)
        self._every_address = address is not None and address.is_unspecified
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            problem = self._problem(Headers(scope=scope))
            refused = JSONResponse(failure(problem, "invalid_request_error", "forbidden"), 403)
            await (refused if problem else self._app)(scope, receive, watch)
        finally:
            client = (scope.get("client") or ("-",))[0]
            took = time.perf_counter() - started
            path = scope["path"].encode("unicode_escape", "replace").decode()
            _access.info("%s %s %s %s %.2f s", client, scope["method"], path[:200], status or "gone", took)

    def _problem(self, headers: Headers) -> str:
        host = headers.get("host", "")
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            name = ""
        address = _address(name)
        known = address is not None and (address.is_loopback or self._every_address)
        if not known and name not in self._names:
            return f"this server is not known as {name!r:.100}; tea-runtime serve --allowed-host names others"
        origin = headers.get("origin")
        if origin is None or "*" in self._origins or origin in self._origins:
            return ""
        if urlsplit(origin).netloc.lower() == host.lower():
            return ""  # a page of this server's own
        return f"pages of {origin!r:.100} may not ask here; tea-runtime serve --allow-origin names those that may"


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
