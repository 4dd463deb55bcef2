"""The beginning of a remote file, read from a server that behaves and misbehaves."""

from __future__ import annotations

from contextlib import closing

import pytest

from tea_models.errors import AccessDeniedError, MalformedGGUFError, MissingFileError, SourceUnavailableError
from tea_models.gguf.header import read_header
from tea_models.net.client import Client, Request
from tea_models.net.http_source import HttpSource
from tea_models.net.retry import RetryPolicy
from tests.faulty_server import FaultyServer
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
QUICK = RetryPolicy(tries=4, first_tries=2, base_seconds=0.01, longest_retry_after=0.1)


def source(server, **headers):
    return closing(HttpSource(Request(Client(), server.url, headers, policy=QUICK)))


def header_of(server):
    with source(server) as remote:
        return read_header(remote)


def test_a_small_file_takes_one_request():
    with FaultyServer(SMALL) as server, source(server) as remote:
        assert len(read_header(remote).tensors) == 21
        assert (remote.size, remote.requests, server.ranges) == (len(SMALL), 1, [(0, 1 << 20)])
        assert server.seen[0].headers["accept-encoding"] == "identity"


def test_the_window_grows_only_as_far_as_the_header_needs():
    with FaultyServer(BIG) as server, source(server) as remote:
        header = read_header(remote)
        assert header.metadata["tokenizer.ggml.tokens"].text(44_999) == f"token-{44_999:050d}"
        assert header.data_offset < remote.bytes_read < header.data_offset + (4 << 20) < len(BIG)
        assert remote.requests <= 3


def test_a_server_without_ranges_is_one_stream_that_is_stopped_early():
    with FaultyServer(BIG + bytes(64 << 20), lambda e: e.serve(ranges=False)) as server, source(server) as remote:
        header = read_header(remote)
        assert remote.requests == 1
        assert remote.bytes_read < header.data_offset + (1 << 20)


def test_a_dropped_connection_is_taken_up_where_it_broke():
    with FaultyServer(BIG, lambda e: e.serve(stop_after=900_000 if e.number == 0 else None)) as server:
        assert len(header_of(server).tensors) == 1
        assert server.ranges[1][0] == 900_000


def test_a_dropped_stream_without_ranges_starts_again():
    with FaultyServer(SMALL, lambda e: e.serve(ranges=False, stop_after=1000 if e.number == 0 else None)) as server:
        assert len(header_of(server).tensors) == 21


def test_an_overloaded_server_is_asked_again():
    with FaultyServer(SMALL, lambda e: e.serve() if e.number == 2 else e.reply(503)) as server:
        assert len(header_of(server).tensors) == 21


def test_a_server_that_stays_overloaded_is_given_up():
    with FaultyServer(SMALL, lambda e: e.reply(503)) as server:
        with pytest.raises(SourceUnavailableError, match="503"):
            header_of(server)
        assert len(server.seen) == QUICK.tries


@pytest.mark.parametrize(
    ("status", "error"), [(401, AccessDeniedError), (403, AccessDeniedError), (404, MissingFileError)]
)
def test_a_refusal_is_not_repeated(status, error):
    with FaultyServer(SMALL, lambda e: e.reply(status)) as server:
        with pytest.raises(error, match=str(status)):
            header_of(server)
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (lambda e: e.serve(ranges=False, headers={"Content-Encoding": "gzip"}), r"compressed \(gzip\)"),
        (lambda e: e.serve(etag=f'"{e.number}"'), "changed while it was read"),
        (lambda e: e.serve(data=BIG + b"x" * e.number), "changed while it was read"),
        (lambda e: e.serve(ranges=e.number == 0), "stopped answering ranges"),
        (lambda e: e.reply(206, b"", {"Content-Range": f"bytes 0-9/{len(BIG)}"}), "ended too early"),
    ],
    ids=["compressed", "other tag", "other size", "no more ranges", "nothing"],
)
def test_answers_that_break_off_or_change_are_refused(behaviour, message):
    with FaultyServer(BIG, behaviour) as server, pytest.raises(SourceUnavailableError, match=message):
        header_of(server)


def test_a_range_that_is_answered_wrongly_is_not_asked_for_again():
    def handler(exchange):
        if exchange.range:
            exchange.reply(206, SMALL[7:], {"Content-Range": f"bytes 7-{len(SMALL) - 1}/{len(SMALL)}"})
        else:
            exchange.serve()

    with FaultyServer(SMALL, handler) as server:
        assert len(header_of(server).tensors) == 21
        assert len(server.seen) == 2


def test_credentials_do_not_follow_to_another_host():
    with FaultyServer(SMALL) as cdn:
        with FaultyServer(SMALL, lambda e: e.reply(302, headers={"Location": cdn.url})) as origin:
            with source(origin, authorization="Bearer secret", cookie="a=b") as remote:
                read_header(remote)
            assert origin.seen[0].headers["authorization"] == "Bearer secret"
        assert not {"authorization", "cookie"} & cdn.seen[0].headers.keys()
        assert cdn.ranges[0][0] == 0


def test_an_unknown_total_is_read_to_its_end():
    def handler(exchange):
        start, stop = exchange.range[0], min(exchange.range[1], len(SMALL))
        if start >= stop:
            exchange.reply(416, headers={"Content-Range": "bytes */*"})
        else:
            exchange.reply(206, SMALL[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/*"})

    with FaultyServer(SMALL, handler) as server, source(server) as remote:
        assert remote.size is None
        assert len(read_header(remote).tensors) == 21
        assert remote.read(len(SMALL) - 4, 100) == SMALL[-4:]
        assert remote.size == len(SMALL)


def test_an_empty_file_is_told_apart():
    with FaultyServer(b"") as server, source(server) as remote:
        assert remote.size == 0
        with pytest.raises(MalformedGGUFError, match="the file is empty"):
            read_header(remote)


def test_a_header_that_claims_to_be_huge_does_not_fetch_the_weights():
    hostile = build_gguf({"a": array("uint8", [])}, with_data=False, kv_count=2)
    hostile = hostile[:-8] + (200 << 20).to_bytes(8, "little") + bytes(1 << 20)

    def handler(exchange):
        start, stop = exchange.range[0], min(exchange.range[1], len(hostile))
        exchange.reply(206, hostile[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{1 << 40}"})

    with FaultyServer(hostile, handler) as server, source(server) as remote:
        with pytest.raises(SourceUnavailableError, match="longer than 128 MiB"):
            read_header(remote)
        assert remote.bytes_read <= 1 << 20


def test_an_address_nobody_answers_at_is_an_error_that_names_it():
    with FaultyServer(SMALL) as server:
        pass
    with pytest.raises(SourceUnavailableError, match=f"{server.url}.*can't connect"):
        HttpSource(Request(Client(), server.url, policy=QUICK))
