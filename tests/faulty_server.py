"""A real HTTP server on the loopback that can misbehave in every way a test wants.

A test passes a function that gets each `Exchange` and answers as it likes; `Exchange.serve` is the honest answer (ranges,
ETag, If-Range, keep-alive). Threads are daemons and end with the `with` block.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

Handler = Callable[["Exchange"], None]
_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")


@dataclass(slots=True)
class Exchange:
    """One request, and the means to answer it.

    Attributes:
        number: How many requests came before it.
        headers: Of the request, names in lower case.
        range: Start and end (exclusive; None for open) that it asks for.
    """

    server: FaultyServer
    connection: socket.socket
    number: int
    path: str
    headers: dict[str, str]
    range: tuple[int, int | None] | None
    keep: bool = True

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def head(self, status: int = 200, headers: Mapping[str, object] | None = None) -> None:
        """Send a status line and headers, exactly these."""
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in (headers or {}).items())]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def reply(self, status: int, body: bytes = b"", headers: Mapping[str, object] | None = None) -> None:
        """A complete small answer."""
        self.head(status, {"Content-Length": len(body), **(headers or {})})
        self.send(body)

    def serve(
        self,
        *,
        data: bytes | None = None,
        ranges: bool = True,
        etag: str | None = '"v1"',
        stop_after: int | None = None,
        rate: float | None = None,
        headers: Mapping[str, object] | None = None,
    ) -> None:
        """The honest answer; or, with `stop_after`, one whose connection breaks after so many bytes of the body."""
        body = self.server.data if data is None else data
        start, end, status = 0, len(body), 200
        extra: dict[str, object] = {"ETag": etag} if etag else {}
        if ranges:
            extra["Accept-Ranges"] = "bytes"
        if ranges and self.range and self.headers.get("if-range", etag) == etag:
            start = self.range[0]
            end = min(len(body), self.range[1] or len(body))
            if start >= len(body):
                self.reply(416, headers={"Content-Range": f"bytes */{len(body)}"})
                return
            status = 206
            extra["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
        self.head(status, {"Content-Length": end - start, **extra, **(headers or {})})
        stop = end if stop_after is None else min(end, start + stop_after)
        view = memoryview(body)
        began = time.monotonic()
        for position in range(start, stop, 65536):
            chunk = view[position : min(stop, position + 65536)]
            self.send(chunk)
            if rate:
                time.sleep(max(0.0, (position + len(chunk) - start) / rate - (time.monotonic() - began)))
        if stop < end:
            self.end()

    def drop(self) -> None:
        """Break the connection the hard way (RST)."""
        self.keep = False
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def end(self) -> None:
        """Close the connection the polite way."""
        self.keep = False
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def hang(self) -> None:
        """Say nothing until the server is closed or the client has left."""
        self.keep = False
        self.connection.settimeout(0.05)
        while not self.server.closing.is_set():
            try:
                if not self.connection.recv(1):
                    return
            except TimeoutError:
                continue
            except OSError:
                return


@dataclass(slots=True)
class FaultyServer:
    """A server of one file.

    Attributes:
        data: The file.
        handler: Answers each request; the honest answer by default.
        seen: All requests, in the order in which they came.
    """

    data: bytes
    handler: Handler = Exchange.serve
    seen: list[Exchange] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    most_connections: int = 0
    _port: int = 0
    _listener: socket.socket = field(default_factory=socket.socket)
    _connections: list[socket.socket] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/model.gguf"

    @property
    def ranges(self) -> list[tuple[int, int | None] | None]:
        return [exchange.range for exchange in self.seen]

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._connections.append(connection)
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection:
            pending = b""
            while not self.closing.is_set():
                while b"\r\n\r\n" not in pending:
                    more = connection.recv(65536)
                    if not more:
                        return
                    pending += more
                request, _, pending = pending.partition(b"\r\n\r\n")
                exchange = self._parse(connection, request.decode("latin-1"))
                self.handler(exchange)
                if not exchange.keep:
                    return

    def _parse(self, connection: socket.socket, text: str) -> Exchange:
        first, *lines = text.split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        match = _RANGE.match(headers.get("range", ""))
        asked = (int(match[1]), int(match[2]) + 1 if match[2] else None) if match else None
        with self._lock:
            exchange = Exchange(self, connection, len(self.seen), first.split(" ")[1], headers, asked)
            self.seen.append(exchange)
        return exchange
