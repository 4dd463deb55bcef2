"""A real OpenAI-like server on 127.0.0.1 that answers, or misbehaves in one of the ways servers do."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


@dataclass
class ApiServer:
    """What the server does (`mode`), and what it was asked.

    Modes: `ok`; `status:NNN`; `html` (a login page with status 200); `empty`; `no-choices`; `null-content`;
    `wrong-types`; `error-200`; `close` (closes without an answer); `reset`; `half` (breaks off in the middle);
    `silent` (never answers); `bad-event` (a stream with an event that is not JSON); `cut-stream` (no end of the stream);
    `chat-only` (no raw completions); `free-text` (ignores response_format); `new-names` (wants max_completion_tokens);
    `tool-call`; `redirect:URL`; `slow` (one byte now and then).
    """

    base: str
    mode: str = "ok"
    content: str = "Paris."
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    failures_left: int = 0
    retry_after: str = "0"
    release: threading.Event = field(default_factory=threading.Event)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [request["body"] for request in self.requests]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: ApiServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._json(200, {"object": "list", "data": [{"id": "served", "object": "model"}]})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.loads(raw)
        self.api.requests.append({"path": self.path, "body": body})
        self.api.headers.append({name.lower(): value for name, value in self.headers.items()})
        self.path = self.path.partition("?")[0]
        mode, _, detail = self.api.mode.partition(":")
        if self.api.failures_left:
            self.api.failures_left -= 1
            self._json(503, {"error": {"message": "busy"}}, {"Retry-After": self.api.retry_after})
            return
        act = getattr(self, "_" + mode.replace("-", "_"), None)
        if act is None or act(body, detail):
            self._answer(body)

    # --- ways to misbehave: they answer, or return True to go on with the normal answer

    def _status(self, _body: Any, detail: str) -> None:
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self._json(
            int(detail),
            {"error": {"message": f"no, says the server to {key}", "type": "x"}},
            {"Retry-After": self.api.retry_after},
        )

    def _html(self, _body: Any, _detail: str) -> None:
        self._bytes(200, b"<!doctype html><title>Log in</title>", "text/html")

    def _empty(self, _body: Any, _detail: str) -> None:
        self._bytes(200, b"", "application/json")

    def _no_choices(self, body: Any, _detail: str) -> None:
        if body.get("stream"):
            self._events([{"object": "chat.completion.chunk"}])
        else:
            self._json(200, {"object": "chat.completion", "choices": []})

    def _null_content(self, _body: Any, _detail: str) -> None:
        self._json(200, {"choices": [{"message": {"role": "assistant", "content": None}, "finish_reason": "stop"}]})

    def _wrong_types(self, _body: Any, _detail: str) -> None:
        self._json(200, {"choices": [{"message": {"content": 7}}], "data": [{"embedding": ["a"]}]})

    def _error_200(self, _body: Any, _detail: str) -> None:
        self._json(200, {"error": {"message": "model is loading"}})

    def _close(self, _body: Any, _detail: str) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _reset(self, _body: Any, _detail: str) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _half(self, _body: Any, _detail: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [')
        self.close_connection = True

    def _silent(self, _body: Any, _detail: str) -> None:
        self.api.release.wait()
        self.close_connection = True

    def _slow(self, _body: Any, _detail: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.api.release.wait(0.1):
                self.wfile.write(b"1\r\n \r\n")
                self.wfile.flush()
        self.close_connection = True

    def _bad_event(self, _body: Any, _detail: str) -> None:
        self._bytes(200, b"data: {not json\n\n", "text/event-stream")

    def _cut_stream(self, body: Any, _detail: str) -> None:
        self._events([self._chunk(body, "Par", None)], done=False)

    def _chat_only(self, _body: Any, _detail: str) -> bool:
        if self.path.endswith("/chat/completions") or self.path.endswith("/embeddings"):
            return True
        self._json(404, {"error": {"message": "This is a chat model and not supported in the v1/completions endpoint"}})
        return False

    def _free_text(self, _body: Any, _detail: str) -> bool:
        self.api.content = "Sure! Here is some JSON."
        return True

    def _new_names(self, body: Any, _detail: str) -> bool:
        if "max_tokens" not in body:
            return True
        self._json(
            400, {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}}
        )
        return False

    def _tool_call(self, body: Any, _detail: str) -> None:
        function = {"name": "weather", "arguments": '{"city": "Rome"}'}
        if body.get("stream"):
            parts = [{**function, "arguments": '{"city": '}, {"arguments": '"Rome"}'}]
            deltas = [
                {"tool_calls": [{"index": 0, "id": "c1" if i == 0 else None, "function": p}]}
                for i, p in enumerate(parts)
            ]
            chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
            self._events([*chunks, {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}])
            return
        message = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        }
        self._json(
            200, {"model": "served", "choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE}
        )

    def _redirect(self, _body: Any, detail: str) -> None:
        self.send_response(307)
        self.send_header("Location", detail + self.path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    # --- the normal answer

    def _answer(self, body: dict[str, Any]) -> None:
        if self.path.endswith("/embeddings"):
            texts = body["input"]
            data = [{"index": i, "embedding": [float(len(text)), 0.5]} for i, text in enumerate(texts)]
            self._json(200, {"model": "served", "data": data[::-1], "usage": USAGE})
        elif body.get("stream"):
            content = self.api.content
            pieces = [content[i : i + 3] for i in range(0, len(content), 3)]
            chunks = [self._chunk(body, piece, None) for piece in pieces] + [self._chunk(body, "", "stop")]
            self._events([*chunks, {"model": "served", "choices": [], "usage": USAGE}])
        else:
            message = {"message": {"role": "assistant", "content": self.api.content}}
            choice = message if "chat" in self.path else {"text": self.api.content}
            self._json(200, {"model": "served", "choices": [{**choice, "finish_reason": "stop"}], "usage": USAGE})

    def _chunk(self, _body: Any, text: str, reason: str | None) -> dict[str, Any]:
        part = {"delta": {"content": text}} if "chat" in self.path else {"text": text}
        return {"model": "served", "choices": [{"index": 0, **part, "finish_reason": reason}]}

    def _events(self, events: list[Any], *, done: bool = True) -> None:
        lines = [f"data: {json.dumps(event)}\n\n" for event in events] + (["data: [DONE]\n\n"] if done else [])
        self._bytes(200, "".join(lines).encode(), "text/event-stream")

    def _json(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        self._bytes(status, json.dumps(data).encode(), "application/json", headers)

    def _bytes(self, status: int, data: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:  # a client that goes away is no news
        pass


@contextlib.contextmanager
def serve_api(mode: str = "ok") -> Iterator[ApiServer]:
    """Start a server on a free port; it is gone after the `with`."""
    handler = type("Handler", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    handler.api = ApiServer(f"http://127.0.0.1:{server.server_address[1]}/v1", mode)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield handler.api
    finally:
        handler.api.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
