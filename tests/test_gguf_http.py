"""Remote headers, against a real loopback server that behaves and misbehaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tea_models.errors import AccessDeniedError, MissingFileError, SourceUnavailableError
from tea_models.gguf.header import read_header
from tea_models.net import http_source, make_client
from tea_models.net.http_source import HttpSource
from tests.gguf_build import Tensor, array, build_gguf

SMALL = build_gguf()
# A header of 3 MB before 8 MB of weights: more than one window, less than the file.
BIG = build_gguf(
    {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": array("string", [f"token-{i:050d}" for i in range(45_000)]),
    },
    [Tensor("a", (1 << 21,), 0)],
)


@dataclass
class Behaviour:
    """What the server does; `seen` are the requests it got."""

    data: bytes = SMALL
    ranges: bool = True
    status: int = 0
    fail_first: int = 0
    total: str = ""
    shift: int = 0
    cut: int = 0
    encoding: str = ""
    redirect: str = ""
    retry_after: str = ""
    etags: list[str] = field(default_factory=lambda: ['"one"'])
    seen: list[dict[str, str]] = field(default_factory=list)
    sent: int = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client broke off, as it should
            super().handle()

    def do_GET(self) -> None:
        b: Behaviour = self.server.behaviour  # type: ignore[attr-defined]
        b.seen.append({name.lower(): value for name, value in self.headers.items()})
        if b.redirect:
            self.answer(302, b"", {"Location": b.redirect})
        elif b.status or len(b.seen) <= b.fail_first:
            self.answer(b.status or 503, b"no", {"Retry-After": b.retry_after} if b.retry_after else {})
        elif not b.ranges or "range" not in b.seen[-1]:
            self.answer(200, b.data, {"Content-Encoding": b.encoding} if b.encoding else {})
        else:
            start, stop = (int(part) for part in b.seen[-1]["range"].removeprefix("bytes=").split("-"))
            if start >= len(b.data):
                self.answer(416, b"", {"Content-Range": f"bytes */{len(b.data)}"})
                return
            part = b.data[start : stop + 1]
            stated = f"bytes {start + b.shift}-{start + b.shift + len(part) - 1}/{b.total or len(b.data)}"
            etag = b.etags.pop(0) if len(b.etags) > 1 else b.etags[0]
            self.answer(206, part, {"Content-Range": stated, "ETag": etag})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        b: Behaviour = self.server.behaviour  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut, b.cut = b.cut, 0
        try:
            for at in range(0, len(body) - cut, 1 << 16):
                self.wfile.write(body[at : min(at + (1 << 16), len(body) - cut)])
                b.sent += min(1 << 16, len(body) - cut - at)
        except OSError:
            self.close_connection = True
        if cut:
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve(behaviour: Behaviour) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.behaviour = behaviour  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/model.gguf"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_source, "_LONGEST_WAIT", 0.01)


def source(url: str, **headers: str) -> HttpSource:
    return HttpSource(url, client=make_client(), headers=headers)


def test_a_small_file_takes_one_request() -> None:
    behaviour = Behaviour()
    with serve(behaviour) as url:
        remote = source(url)
        header = read_header(remote)
        remote.close()
    assert header.tensor_count == 21
    assert (remote.size, remote.requests, remote.ranges) == (len(SMALL), 1, True)
    assert behaviour.seen[0]["accept-encoding"] == "identity"


def test_the_window_grows_only_as_far_as_the_header_needs() -> None:
    with serve(Behaviour(BIG)) as url:
        remote = source(url)
        header = read_header(remote)
        tokens = header.metadata["tokenizer.ggml.tokens"]
        assert tokens.text(44_999) == f"token-{44_999:050d}"  # type: ignore[union-attr]
        remote.close()
    assert header.data_offset < remote.bytes_read < header.data_offset + (4 << 20) < len(BIG)
    assert remote.requests <= 3


def test_a_server_without_ranges_is_told_apart_and_stopped_early() -> None:
    behaviour = Behaviour(BIG + bytes(64 << 20), ranges=False)
    with serve(behaviour) as url:
        remote = source(url)
        header = read_header(remote)
        remote.close()
    assert remote.ranges is False
    assert remote.bytes_read < header.data_offset + (1 << 20)
    assert behaviour.sent < 32 << 20


def test_a_dropped_connection_is_taken_up_where_it_broke() -> None:
    behaviour = Behaviour(BIG, cut=100_000)
    with serve(behaviour) as url:
        remote = source(url)
        header = read_header(remote)
        remote.close()
    assert header.tensor_count == 1
    assert behaviour.seen[1]["range"].startswith(f"bytes={(1 << 20) - 100_000}-")


def test_a_dropped_stream_without_ranges_starts_again() -> None:
    behaviour = Behaviour(ranges=False, cut=len(SMALL) - 1000)
    with serve(behaviour) as url:
        remote = source(url)
        assert read_header(remote).tensor_count == 21
        remote.close()


def test_an_overloaded_server_is_asked_again() -> None:
    with serve(Behaviour(fail_first=2, retry_after="1")) as url:
        remote = source(url)
        assert remote.requests == 3
        remote.close()


def test_a_server_that_stays_overloaded_is_given_up() -> None:
    with serve(Behaviour(status=503)) as url, pytest.raises(SourceUnavailableError, match="503"):
        source(url)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_not_repeated_and_says_what_is_missing(status: int) -> None:
    behaviour = Behaviour(status=status)
    with serve(behaviour) as url, pytest.raises(AccessDeniedError) as caught:
        source(url)
    assert "token" in caught.value.hint
    assert len(behaviour.seen) == 1


def test_a_missing_file_is_not_asked_for_again() -> None:
    behaviour = Behaviour(status=404)
    with serve(behaviour) as url, pytest.raises(MissingFileError, match="404"):
        source(url)
    assert len(behaviour.seen) == 1


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (Behaviour(shift=7), "asked for bytes from 0"),
        (Behaviour(ranges=False, encoding="gzip"), "gzip compression"),
        (Behaviour(BIG, etags=['"one"', '"two"']), "changed while it was read"),
        (Behaviour(total="nonsense"), "asked for bytes from 0"),
    ],
)
def test_answers_that_break_http_are_refused(behaviour: Behaviour, message: str) -> None:
    with serve(behaviour) as url, pytest.raises(SourceUnavailableError, match=message), closing(source(url)) as remote:
        read_header(remote)


def test_credentials_do_not_follow_to_another_host() -> None:
    origin, cdn = Behaviour(), Behaviour()
    with serve(cdn) as there, serve(origin) as url:
        origin.redirect = there
        remote = source(url, authorization="Bearer secret", cookie="a=b")
        read_header(remote)
        remote.close()
    assert origin.seen[0]["authorization"] == "Bearer secret"
    assert "authorization" not in cdn.seen[0]
    assert "cookie" not in cdn.seen[0]
    assert cdn.seen[0]["range"].startswith("bytes=0-")


def test_an_unknown_total_is_read_to_its_end() -> None:
    with serve(Behaviour(total="*")) as url:
        remote = source(url)
        assert remote.size is None
        assert read_header(remote).tensor_count == 21
        assert remote.read(len(SMALL) - 4, 100) == SMALL[-4:]
        assert remote.size == len(SMALL)
        remote.close()


def test_an_empty_file_is_told_apart() -> None:
    with serve(Behaviour(b"")) as url:
        remote = source(url)
        assert remote.size == 0
        with pytest.raises(Exception, match="the file is empty"):
            read_header(remote)
        remote.close()


def test_a_header_that_claims_to_be_huge_does_not_fetch_the_weights() -> None:
    hostile = build_gguf({"a": array("uint8", [])}, with_data=False, kv_count=2)
    hostile = hostile[:-8] + (200 << 20).to_bytes(8, "little") + bytes(1 << 20)
    with serve(Behaviour(hostile, total=str(1 << 40))) as url:
        remote = source(url)
        with pytest.raises(SourceUnavailableError, match="longer than 128 MiB"):
            read_header(remote)
        remote.close()
    assert remote.bytes_read <= 1 << 20


def test_an_address_nobody_answers_at_is_an_error_without_a_traceback() -> None:
    with serve(Behaviour()) as url:
        pass
    with pytest.raises(SourceUnavailableError, match="127"):
        source(url)
