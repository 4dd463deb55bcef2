"""Downloads against a server that behaves, and one that does not."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tea_models.errors import (
    AccessDeniedError,
    ChecksumMismatchError,
    DiskFullError,
    IntegrityError,
    MalformedGGUFError,
    MissingFileError,
    SizeMismatchError,
    SourceUnavailableError,
    UsageError,
)
from tea_models.gguf.header import size_by_header
from tea_models.net.client import Client, Request
from tea_models.net.download import download
from tea_models.net.retry import RetryPolicy
from tests.faulty_server import Exchange, FaultyServer
from tests.gguf_build import build_gguf, small_llama_metadata, small_llama_tensors

MIB = 1 << 20
SMALL = b"GGUF" + random.Random(1).randbytes(300_000)
BIG = b"GGUF" + random.Random(2).randbytes(40 * MIB)
# Waits are short; an honest server has all the time that a busy machine may need.
QUICK = RetryPolicy(base_seconds=0.01, longest_seconds=0.05, stall_seconds=60, silent_seconds=60, longest_retry_after=1)


def sha(data):
    return hashlib.sha256(data).hexdigest()


class Recorder:
    def __init__(self):
        self.started, self.done, self.finished = [], 0, 0

    def start(self, name, total, initial=0):
        self.started.append((name, total, initial))
        self.done = initial

    def advance(self, n):
        self.done += n

    def finish(self):
        self.finished += 1


@pytest.fixture
def partial(tmp_path):
    return tmp_path / "key.part"


def state_path(partial: Path) -> Path:
    """The file beside a partial that remembers how far it is."""
    return partial.with_name(f"{partial.name}.state")


def fetch(server, partial, *, url=None, read_seconds=60, progress=None, **options):
    options = {"policy": QUICK, "connections": 4, "name": "model.gguf"} | options
    with Client(read_seconds=read_seconds) as client:
        return download(Request(client, url or server.url, **options), partial, progress)


def leave_half(server, partial, data, cut, **options):
    """An earlier run that broke off."""
    honest, server.handler = server.handler, lambda e: e.serve(data=data, stop_after=cut)
    before = len(server.seen)
    with pytest.raises(SourceUnavailableError):
        fetch(server, partial, policy=RetryPolicy(tries=1, first_tries=1), **options)
    del server.seen[before:]
    server.handler = honest


# -- what should happen ------------------------------------------------------------------------------------------------


def test_a_file_arrives_with_its_hash(partial):
    progress = Recorder()
    with FaultyServer(SMALL) as server:
        result = fetch(server, partial, progress=progress)
    assert (result.sha256, result.size, result.resumed_from) == (sha(SMALL), len(SMALL), None)
    assert partial.read_bytes() == SMALL
    assert progress.started == [("model.gguf", len(SMALL), 0)]
    assert (progress.done, progress.finished) == (len(SMALL), 1)


def test_an_empty_file_is_a_file(partial):
    with FaultyServer(b"") as server:
        assert fetch(server, partial).sha256 == sha(b"")


@pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
def test_a_big_file_comes_over_several_connections(partial, known):
    progress = Recorder()
    with FaultyServer(BIG, lambda e: e.serve(rate=60 * MIB)) as server:
        result = fetch(server, partial, size=len(BIG) if known else None, progress=progress)
        connections = {id(exchange.connection) for exchange in server.seen}
        covered = sorted(item for item in server.ranges if item)
    assert result.sha256 == sha(BIG)
    assert partial.read_bytes() == BIG
    assert len(covered) >= 3
    assert len(connections) >= 3
    assert progress.done == len(BIG)


def test_one_connection_is_enough_when_no_more_are_wanted(partial):
    with FaultyServer(BIG) as server:
        fetch(server, partial, connections=1, size=len(BIG))
        assert server.ranges == [None]


def test_a_server_without_ranges_gets_one_stream(partial):
    with FaultyServer(BIG, lambda e: e.serve(ranges=False)) as server:
        assert fetch(server, partial, size=len(BIG)).sha256 == sha(BIG)
        assert len(server.seen) == 1


def test_a_finished_partial_needs_no_server(partial):
    with FaultyServer(SMALL) as server:
        fetch(server, partial, sha256=sha(SMALL))
        seen = len(server.seen)
        result = fetch(server, partial, sha256=sha(SMALL))
        assert len(server.seen) == seen
    assert result.resumed_from == len(SMALL)


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 4, 65_537, 200_000, len(SMALL) - 1])
def test_a_connection_that_breaks_is_continued_in_the_same_run(partial, cut):
    def handler(exchange):
        exchange.serve(stop_after=cut if exchange.number == 0 else None)

    with FaultyServer(SMALL, handler) as server:
        assert fetch(server, partial).sha256 == sha(SMALL)
        assert server.ranges[1] == (cut, None)


def test_a_connection_that_breaks_again_and_again_still_gets_there(partial):
    with FaultyServer(SMALL, lambda e: e.serve(stop_after=20_000)) as server:
        assert fetch(server, partial).sha256 == sha(SMALL)
        assert len(server.seen) > 10


@pytest.mark.parametrize("pinned", [True, False])
def test_a_later_run_goes_on_where_an_earlier_one_stopped(partial, pinned):
    options = {"sha256": sha(SMALL) if pinned else None}
    with FaultyServer(SMALL) as server:
        leave_half(server, partial, SMALL, 123_456, **options)
        result = fetch(server, partial, **options)
        assert server.ranges == [(123_456, None)]
    assert (result.sha256, result.resumed_from) == (sha(SMALL), 123_456)


def test_a_pinned_file_is_continued_from_another_mirror(partial, tmp_path):
    with FaultyServer(SMALL) as first, FaultyServer(SMALL, lambda e: e.serve(etag='"other"')) as second:
        leave_half(first, partial, SMALL, 100_000, sha256=sha(SMALL))
        assert fetch(second, partial, sha256=sha(SMALL)).resumed_from == 100_000


def test_an_unpinned_file_is_not_continued_from_another_address(partial):
    with FaultyServer(SMALL) as first, FaultyServer(SMALL) as second:
        leave_half(first, partial, SMALL, 100_000)
        assert fetch(second, partial).resumed_from is None


def test_an_unpinned_file_without_a_version_is_not_continued(partial):
    with FaultyServer(SMALL, lambda e: e.serve(etag=None, stop_after=100_000)) as server:
        with pytest.raises(SourceUnavailableError):
            fetch(server, partial, policy=RetryPolicy(tries=1))
        server.handler = lambda e: e.serve(etag=None)
        assert fetch(server, partial).resumed_from is None


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_stopped_leaves_what_the_next_one_continues(partial, ending, start):
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from tea_models.net.client import Client, Request
        from tea_models.net.download import download
        print("ready", flush=True)
        with Client() as client:
            request = Request(client, sys.argv[1], size=int(sys.argv[3]), sha256=sys.argv[4], connections=4)
            download(request, Path(sys.argv[2]))
    """)
    with FaultyServer(BIG, lambda e: e.serve(rate=4 * MIB)) as server:
        command = [sys.executable, "-c", script, server.url, str(partial), str(len(BIG)), sha(BIG)]
        process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        while not state_path(partial).exists() or partial.stat().st_blocks * 512 < 6 * MIB:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(ending)
        process.communicate()
        assert process.returncode != 0
        server.handler = Exchange.serve
        result = fetch(server, partial, size=len(BIG), sha256=sha(BIG))
    assert result.resumed_from > 2 * MIB
    assert partial.read_bytes() == BIG


# -- leftovers that lie ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pinned", [True, False])
def test_a_damaged_leftover_is_thrown_away(partial, pinned):
    options = {"sha256": sha(SMALL) if pinned else None}
    with FaultyServer(SMALL) as server:
        leave_half(server, partial, SMALL, 200_000, **options)
        with partial.open("r+b") as file:
            file.seek(1000)
            file.write(b"damage")
        assert fetch(server, partial, **options).sha256 == sha(SMALL)
    assert partial.read_bytes() == SMALL


def test_a_leftover_of_another_file_is_thrown_away(partial):
    """The state says that the bytes belong to this pin, but they don't."""
    other = b"GGUF" + random.Random(3).randbytes(300_000)
    with FaultyServer(SMALL) as server:
        leave_half(server, partial, other, 200_000, sha256=sha(SMALL))
        assert fetch(server, partial, sha256=sha(SMALL)).sha256 == sha(SMALL)
        assert server.ranges == [(200_000, None), None]


def test_a_leftover_that_is_shorter_than_its_state_says_is_used_as_far_as_it_goes(partial):
    with FaultyServer(SMALL) as server:
        leave_half(server, partial, SMALL, 200_000, sha256=sha(SMALL))
        os.truncate(partial, 150_000)
        assert fetch(server, partial, sha256=sha(SMALL)).resumed_from == 150_000


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"schema": "tea.partial/1", "ranges": [[5, 1]]}', "\x00" * 100, "[" * 100_000]
)
def test_a_state_that_makes_no_sense_is_ignored(partial, text):
    partial.write_bytes(b"x" * 1000)
    state_path(partial).write_text(text)
    with FaultyServer(SMALL) as server:
        result = fetch(server, partial)
    assert (result.sha256, result.resumed_from) == (sha(SMALL), None)


def test_a_leftover_that_is_longer_than_the_file_is_cut(partial):
    partial.write_bytes(b"x" * 2_000_000)
    with FaultyServer(SMALL) as server:
        fetch(server, partial)
    assert partial.stat().st_size == len(SMALL)


@pytest.mark.parametrize("kind", ["symlink", "hard link", "FIFO", "symlinked state"])
def test_what_somebody_planted_at_the_name_is_not_written_to(partial, tmp_path, kind):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    match kind:
        case "symlink":
            partial.symlink_to(victim)
        case "hard link":
            os.link(victim, partial)
        case "FIFO":
            os.mkfifo(partial)
        case _:
            state_path(partial).symlink_to(victim)
    with FaultyServer(SMALL) as server:
        fetch(server, partial)
    assert victim.read_bytes() == b"precious"
    assert partial.read_bytes() == SMALL


# -- servers that change or lie ----------------------------------------------------------------------------------------


def test_a_file_that_changed_between_two_runs_is_fetched_anew(partial):
    new = b"GGUF" + random.Random(4).randbytes(300_000)
    with FaultyServer(new, lambda e: e.serve(etag='"v2"')) as server:
        leave_half(server, partial, SMALL, 200_000)
        assert fetch(server, partial).sha256 == sha(new)
        assert server.seen[0].headers["if-range"] == '"v1"'


def test_a_file_that_changed_is_noticed_without_if_range(partial):
    new = b"GGUF" + random.Random(4).randbytes(300_000)

    def handler(exchange):
        exchange.headers.pop("if-range", None)
        exchange.serve(etag='"v2"')

    with FaultyServer(new, handler) as server:
        leave_half(server, partial, SMALL, 200_000)
        assert fetch(server, partial).sha256 == sha(new)


def test_a_file_that_changes_with_every_request_is_given_up(partial):
    def handler(exchange):
        exchange.serve(etag=f'"{exchange.number}"', stop_after=100_000)

    with FaultyServer(SMALL, handler) as server, pytest.raises(SourceUnavailableError, match="again and again"):
        fetch(server, partial)


def answers_range(head, body=lambda start: SMALL[start:]):
    """A first answer that breaks off, so that a range is asked for, which is answered as the test says."""

    def handler(exchange):
        if exchange.number == 0:
            exchange.serve(stop_after=100_000)
        elif exchange.range is None:
            exchange.serve(ranges=False)
        else:
            start = exchange.range[0]
            text = body(start)
            exchange.head(206, {"Content-Length": len(text), "ETag": '"v1"', **head(start)})
            exchange.send(text)

    return handler


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (lambda s: {"Content-Range": f"bytes 0-{len(SMALL) - 1}/{len(SMALL)}"}, lambda s: SMALL),
        (lambda s: {"Content-Range": f"bytes {s + 1}-{len(SMALL) - 1}/{len(SMALL)}"}, lambda s: SMALL[s + 1 :]),
        (lambda s: {"Content-Range": f"bytes {s}-{len(SMALL)}/{len(SMALL) + 1}"}, lambda s: SMALL[s:] + b"x"),
        (lambda s: {}, lambda s: SMALL[s:]),
        (lambda s: {"Content-Range": "nonsense"}, lambda s: SMALL[s:]),
        (lambda s: {"Content-Range": f"bytes {s}-{s - 1}/{len(SMALL)}"}, lambda s: b""),
        (lambda s: {"Content-Range": f"bytes {s}-{10**30}/{10**30}"}, lambda s: SMALL[s:]),
    ],
    ids=["from zero", "other start", "other total", "no range", "nonsense", "backwards", "absurd"],
)
def test_a_range_that_is_answered_wrongly_is_not_believed(partial, head, body):
    with FaultyServer(SMALL, answers_range(head, body)) as server:
        assert fetch(server, partial, sha256=sha(SMALL)).sha256 == sha(SMALL)
    assert partial.read_bytes() == SMALL


def test_a_range_that_is_answered_with_the_whole_file_begins_anew(partial):
    def handler(exchange):
        exchange.serve(ranges=False, stop_after=100_000 if exchange.number == 0 else None)

    with FaultyServer(SMALL, handler) as server:
        assert fetch(server, partial).sha256 == sha(SMALL)
        assert len(server.seen) == 3


def test_a_range_that_is_refused_with_416_begins_anew(partial):
    def handler(exchange):
        if exchange.range:
            exchange.reply(416, headers={"Content-Range": "bytes */5"})
        else:
            exchange.serve(stop_after=100_000 if exchange.number == 0 else None)

    with FaultyServer(SMALL, handler) as server:
        assert fetch(server, partial).sha256 == sha(SMALL)


def test_a_server_that_gives_less_than_was_asked_for_is_asked_for_the_rest(partial):
    def handler(exchange):
        start = exchange.range[0] if exchange.range else 0
        if exchange.number == 0:
            exchange.serve(stop_after=1000)
        else:
            exchange.range = (start, start + 100_000)
            exchange.serve()

    with FaultyServer(SMALL, handler) as server:
        assert fetch(server, partial, policy=RetryPolicy(base_seconds=0.01, tries=2)).sha256 == sha(SMALL)
        assert len(server.seen) == 4


@pytest.mark.parametrize("length", [len(SMALL) - 1, len(SMALL) + 1, 5])
def test_a_size_that_differs_from_the_pin_is_refused_at_once(partial, length):
    def handler(exchange):
        exchange.head(200, {"Content-Length": length})
        exchange.hang()

    with FaultyServer(SMALL, handler) as server, pytest.raises(SizeMismatchError) as caught:
        fetch(server, partial, size=len(SMALL))
    assert (caught.value.expected, caught.value.actual) == (len(SMALL), length)
    assert not partial.exists()


def test_a_length_larger_than_the_file_is_given_up(partial):
    def handler(exchange):
        if exchange.range:
            exchange.serve()
        else:
            exchange.head(200, {"Content-Length": len(SMALL) + 10})
            exchange.send(SMALL)
            exchange.end()

    with FaultyServer(SMALL, handler) as server, pytest.raises((SourceUnavailableError, IntegrityError)):
        fetch(server, partial)


@pytest.mark.parametrize("length", ["nonsense", "-5", "1e9", "9" * 40, ""])
def test_a_length_that_is_nonsense_is_one_clear_error(partial, length):
    def handler(exchange):
        exchange.head(200, {"Content-Length": length})
        exchange.send(SMALL)
        exchange.end()

    with FaultyServer(SMALL, handler) as server, pytest.raises((SourceUnavailableError, DiskFullError)):
        fetch(server, partial)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_file_without_a_length_ends_where_its_body_ends(partial, chunked):
    def handler(exchange):
        if chunked:
            exchange.head(200, {"Transfer-Encoding": "chunked"})
            exchange.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMALL), SMALL))
        else:
            exchange.head(200)
            exchange.send(SMALL)
            exchange.end()

    with FaultyServer(SMALL, handler) as server:
        assert fetch(server, partial).sha256 == sha(SMALL)


def endless(exchange):
    exchange.head(200, {"Transfer-Encoding": "chunked"})
    block = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    while not exchange.server.closing.is_set():
        exchange.send(block)


def test_a_body_without_end_is_stopped_at_the_expected_size(partial):
    with FaultyServer(SMALL, endless) as server, pytest.raises(SizeMismatchError):
        fetch(server, partial, size=5 * MIB)
    assert not partial.exists() or partial.stat().st_size <= 5 * MIB


def test_a_body_without_end_and_without_expected_size_does_not_fill_the_disk(partial, monkeypatch):
    monkeypatch.setattr("tea_models.net.partial.free_bytes", lambda _partial: (256 + 3) * MIB)
    with FaultyServer(SMALL, endless) as server, pytest.raises(DiskFullError):
        fetch(server, partial)
    assert partial.stat().st_size <= 4 * MIB


def test_a_model_whose_size_nobody_says_ends_where_its_header_says(partial):
    model = build_gguf(small_llama_metadata(), small_llama_tensors())

    def handler(exchange):
        exchange.head(200, {"Transfer-Encoding": "chunked"})
        exchange.send(b"%x\r\n%b\r\n" % (len(model), model))
        block = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        while not exchange.server.closing.is_set():
            exchange.send(block)
            time.sleep(0.002)

    with FaultyServer(model, handler) as server, pytest.raises(SizeMismatchError, match="expected"):
        fetch(server, partial, size_by_header=size_by_header)
    assert partial.stat().st_size < 100 * MIB


def test_a_model_that_was_cut_short_is_told_by_its_header(partial):
    model = build_gguf(small_llama_metadata(), small_llama_tensors())

    def handler(exchange):
        exchange.head(200)
        exchange.send(model[:-1000])
        exchange.end()

    with FaultyServer(model, handler) as server, pytest.raises(SizeMismatchError):
        fetch(server, partial, size_by_header=size_by_header)
    assert not partial.exists()


def test_other_bytes_than_the_pinned_ones_are_refused_and_removed(partial):
    with FaultyServer(SMALL) as server, pytest.raises(ChecksumMismatchError) as caught:
        fetch(server, partial, sha256="0" * 64)
    assert caught.value.actual == sha(SMALL)
    assert not partial.exists()
    assert not state_path(partial).exists()
    assert len(server.seen) == 1


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "GZIP"])
def test_a_compressed_answer_is_refused(partial, encoding):
    with FaultyServer(SMALL, lambda e: e.serve(headers={"Content-Encoding": encoding})) as server:
        with pytest.raises(SourceUnavailableError, match="compressed"):
            fetch(server, partial)
        assert server.seen[0].headers["accept-encoding"] == "identity"
        assert len(server.seen) == 1


def test_a_login_page_is_not_a_model(partial):
    page = b"<!DOCTYPE html><html><title>Please log in</title></html>"
    handler = lambda e: e.serve(headers={"Content-Type": "text/html"})  # noqa: E731
    with FaultyServer(page, handler) as server, pytest.raises(MalformedGGUFError, match="web page") as caught:
        fetch(server, partial, size_by_header=size_by_header)
    assert "login" in caught.value.hint
    assert not partial.exists()


def test_a_login_page_does_not_cost_what_an_earlier_run_brought(partial):
    page = b"<!DOCTYPE html>"
    with FaultyServer(SMALL) as server:
        leave_half(server, partial, SMALL, 200_000, sha256=sha(SMALL))
        server.handler = lambda e: e.reply(200, page, {"Content-Type": "text/html"})
        with pytest.raises(SourceUnavailableError, match="web page"):
            fetch(server, partial, sha256=sha(SMALL))
        server.handler = Exchange.serve
        assert fetch(server, partial, sha256=sha(SMALL)).resumed_from == 200_000


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, AccessDeniedError),
        (403, AccessDeniedError),
        (404, MissingFileError),
        (410, MissingFileError),
        (400, SourceUnavailableError),
        (451, SourceUnavailableError),
        (204, SourceUnavailableError),
        (304, SourceUnavailableError),
    ],
)
def test_a_refusal_is_not_tried_again_and_says_what_to_do(partial, status, error):
    with FaultyServer(SMALL, lambda e: e.reply(status) if status not in (204, 304) else e.head(status)) as server:
        with pytest.raises(error, match=str(status)) as caught:
            fetch(server, partial)
        assert len(server.seen) == 1
    assert caught.value.hint
    assert not partial.exists()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
def test_a_busy_server_is_tried_again(partial, status):
    with FaultyServer(SMALL, lambda e: e.reply(status) if e.number < 2 else e.serve()) as server:
        assert fetch(server, partial).sha256 == sha(SMALL)


def test_a_server_that_stays_busy_is_given_up(partial):
    with FaultyServer(SMALL, lambda e: e.reply(503)) as server:
        with pytest.raises(SourceUnavailableError, match="503"):
            fetch(server, partial)
        assert len(server.seen) == QUICK.tries


@pytest.mark.parametrize(
    "value",
    ["0", "1", "0.2", "-1", "nan", "inf", "soon", "9" * 5000, "1e400", "Fri, 31 Feb 9999 99:99:99 GMT", "999999"],
)
def test_any_retry_after_is_survived(partial, value):
    def handler(exchange):
        if exchange.number == 0:
            exchange.reply(429, headers={"Retry-After": value})
        else:
            exchange.serve()

    with FaultyServer(SMALL, handler) as server:
        assert fetch(server, partial).sha256 == sha(SMALL)


def test_parallel_connections_that_are_refused_leave_one_stream(partial):
    """A server, or a box on the way, that allows one connection only."""

    def handler(exchange):
        if exchange.range and exchange.range[0] > 0 and len(busy) > 0:
            exchange.reply(429)
            return
        busy.append(exchange)
        try:
            exchange.serve(rate=80 * MIB)
        finally:
            busy.remove(exchange)

    busy: list[Exchange] = []
    with FaultyServer(BIG, handler) as server:
        assert fetch(server, partial, size=len(BIG)).sha256 == sha(BIG)


def test_parallel_connections_that_break_leave_one_stream(partial):
    """A box on the way that looks into everything (ollama#941)."""
    busy: list[Exchange] = []

    def handler(exchange):
        if busy:
            exchange.drop()
            return
        busy.append(exchange)
        try:
            exchange.serve(rate=80 * MIB)
        finally:
            busy.remove(exchange)

    with FaultyServer(BIG, handler) as server:
        assert fetch(server, partial, size=len(BIG)).sha256 == sha(BIG)


def test_a_server_that_never_answers_is_given_up(partial):
    with FaultyServer(SMALL, Exchange.hang) as server:
        with pytest.raises(SourceUnavailableError, match="no bytes"):
            fetch(server, partial, read_seconds=0.1)
        assert len(server.seen) == QUICK.first_tries // 2


def test_a_server_that_falls_silent_is_left_and_asked_again(partial):
    def handler(exchange):
        if exchange.number == 0:
            exchange.head(200, {"Content-Length": len(SMALL), "Accept-Ranges": "bytes", "ETag": '"v1"'})
            exchange.send(SMALL[:100_000])
            exchange.hang()
        else:
            exchange.serve()

    with FaultyServer(SMALL, handler) as server:
        assert fetch(server, partial, read_seconds=1).sha256 == sha(SMALL)
        assert server.ranges == [None, (100_000, None)]


def trickle(exchange):
    exchange.head(200, {"Content-Length": len(SMALL)})
    for position in range(len(SMALL)):
        exchange.send(SMALL[position : position + 1])
        time.sleep(0.05)


def test_a_server_that_sends_one_byte_now_and_then_is_given_up(partial):
    policy = RetryPolicy(base_seconds=0.01, stall_seconds=0.2, tries=2)
    with FaultyServer(SMALL, trickle) as server, pytest.raises(SourceUnavailableError):
        fetch(server, partial, policy=policy)


def test_one_slow_connection_does_not_hold_up_the_end(partial):
    """The last part crawls; the others take it over (else this would take 160 s)."""

    def handler(exchange):
        if exchange.range and exchange.range[0] == 0:
            exchange.serve(rate=50_000)
        else:
            exchange.serve()

    with FaultyServer(BIG, handler) as server:
        began = time.monotonic()
        assert fetch(server, partial, size=len(BIG)).sha256 == sha(BIG)
        assert time.monotonic() - began < 120


def test_nobody_listening_is_one_clear_error(partial):
    with FaultyServer(SMALL) as server:
        url = server.url
    with pytest.raises(SourceUnavailableError, match="can't connect"):
        fetch(None, partial, url=url)


@pytest.mark.parametrize(
    "text", [b"SSH-2.0-OpenSSH\r\n\r\n", b"\x00" * 100, b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nA" * 9000]
)
def test_something_that_is_no_http_is_one_clear_error(partial, text):
    def handler(exchange):
        exchange.send(text)
        exchange.end()

    with FaultyServer(SMALL, handler) as server, pytest.raises(SourceUnavailableError):
        fetch(server, partial)


def test_a_full_disk_is_noticed_before_anything_is_fetched(partial, monkeypatch):
    monkeypatch.setattr("tea_models.disk.space.free_bytes", lambda _folder: 100_000)
    with FaultyServer(SMALL) as server:
        with pytest.raises(DiskFullError, match="300,004"):
            fetch(server, partial, size=len(SMALL))
        assert not server.seen


def test_a_disk_that_fills_up_keeps_what_has_arrived(tmp_path):
    """A file size limit stands in for the disk: the kernel answers with the same kind of error in the same place."""
    script = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        from tea_models.errors import DiskFullError
        from tea_models.net.client import Client, Request
        from tea_models.net.download import download
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
        with Client() as client:
            try:
                download(Request(client, sys.argv[1], connections=4), Path(sys.argv[2]))
            except DiskFullError:
                sys.exit(5)
    """)
    with FaultyServer(BIG) as server:
        done = subprocess.run([sys.executable, "-c", script, server.url, str(tmp_path / "p")], check=False, timeout=600)
        assert done.returncode == 5
        assert fetch(server, tmp_path / "p").resumed_from >= MIB


# -- addresses and secrets ---------------------------------------------------------------------------------------------


def test_a_redirect_is_followed_and_credentials_stay_behind(partial):
    with FaultyServer(SMALL) as other:

        def handler(exchange):
            if exchange.path == "/model.gguf":
                exchange.reply(302, headers={"Location": "/same"})
            else:
                exchange.reply(307, headers={"Location": f"http://127.0.0.1:{other.port}/elsewhere?signature=1"})

        with FaultyServer(SMALL, handler) as server:
            headers = {"Authorization": "Bearer secret", "Cookie": "secret", "X-Key": "secret"}
            assert fetch(server, partial, headers=headers).sha256 == sha(SMALL)
            assert [e.headers.get("authorization") for e in server.seen] == ["Bearer secret"] * 2
        assert "secret" not in str(other.seen[0].headers)


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://example.org/x", "javascript:alert(1)", "http://[bad", "data:,GGUF"],
)
def test_a_redirect_out_of_the_web_is_refused(partial, location):
    with FaultyServer(SMALL, lambda e: e.reply(302, headers={"Location": location})) as server:
        with pytest.raises(SourceUnavailableError, match="redirects"):
            fetch(server, partial)
        assert len(server.seen) == 1


def test_redirects_in_a_circle_are_left(partial):
    with FaultyServer(SMALL, lambda e: e.reply(302, headers={"Location": "/model.gguf"})) as server:
        with pytest.raises(SourceUnavailableError, match="redirects"):
            fetch(server, partial)
        assert len(server.seen) < 15


def test_a_redirect_to_plain_http_elsewhere_is_refused(partial):
    handler = lambda e: e.reply(302, headers={"Location": "http://example.org/x"})  # noqa: E731
    with FaultyServer(SMALL, handler) as server, pytest.raises(UsageError, match="plain http"):
        fetch(server, partial)


def test_a_redirect_from_https_to_http_is_refused():
    from tea_models.net.client import next_address

    with pytest.raises(SourceUnavailableError, match="from https to plain http"):
        next_address("https://example.org/a", "http://127.0.0.1/b", pinned=True)
    assert next_address("https://example.org/a/b", "../c?x=1", pinned=False) == "https://example.org/c?x=1"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("http://example.org/x.gguf", {}),
        ("http://example.org/x.gguf", {"sha256": "0" * 64, "headers": {"Authorization": "Bearer x"}}),
        ("http://user:word@example.org/x.gguf", {"sha256": "0" * 64}),
        ("ftp://example.org/x.gguf", {}),
        ("file:///etc/passwd", {}),
    ],
)
def test_an_unsafe_address_is_refused(partial, url, options):
    with pytest.raises(UsageError):
        fetch(None, partial, url=url, **options)


def test_secrets_appear_in_no_error_and_in_no_state(partial):
    secret = "s3cr3t"
    with FaultyServer(SMALL, lambda e: e.serve(stop_after=100_000)) as server:
        url = f"http://user:{secret}@127.0.0.1:{server.port}/m.gguf?token={secret}#{secret}"
        with pytest.raises(SourceUnavailableError) as caught:
            fetch(server, partial, url=url, headers={"X-Token": secret}, policy=RetryPolicy(tries=1))
        assert secret not in caught.value.message + caught.value.hint
        assert secret not in state_path(partial).read_text()
        server.handler = lambda e: e.reply(404, secret.encode())
        with pytest.raises(MissingFileError) as missing:
            fetch(server, partial, url=url)
        assert secret not in missing.value.message + missing.value.hint


def test_a_token_with_a_line_break_is_not_sent_and_not_shown(partial):
    with FaultyServer(SMALL) as server, pytest.raises(UsageError) as caught:
        fetch(server, partial, headers={"Authorization": "Bearer s3cr3t\r\nX-Evil: 1"})
    assert "s3cr3t" not in caught.value.message
    assert not server.seen


def test_memory_stays_flat(partial, tmp_path):
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from tea_models.net.client import Client, Request
        from tea_models.net.download import download
        with Client() as client:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            download(Request(client, sys.argv[1], connections=4), Path(sys.argv[2]))
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """)
    with FaultyServer(BIG) as server:
        command = [sys.executable, "-c", script, server.url, str(partial)]
        done = subprocess.run(command, check=True, timeout=600, capture_output=True, text=True)
    assert int(done.stdout) < 40_000


def test_the_state_says_what_is_there(partial):
    with FaultyServer(SMALL) as server:
        leave_half(server, partial, SMALL, 100_000)
    state = json.loads(state_path(partial).read_text())
    assert state["ranges"] == [[0, 100_000]]
    assert state["checked"] == [100_000, sha(SMALL[:100_000])]
    assert Path(partial).stat().st_size == 100_000
