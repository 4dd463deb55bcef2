"""Servers that answer what hypothesis makes up: bytes are right or there is one clear error, and an honest server heals."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random

import httpx2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tea_models.errors import TeaModelsError
from tea_models.gguf.header import size_by_header
from tea_models.net import attempt as attempt_module
from tea_models.net import ranges as ranges_module
from tea_models.net.answers import StaleError, read_answer
from tea_models.net.client import Client, Request
from tea_models.net.download import download
from tea_models.net.http_source import HttpSource
from tea_models.net.retry import RetryPolicy, TransientError
from tests.faulty_server import FaultyServer

MANY = settings(max_examples=12 * settings.default.max_examples)
# Several parts for several connections.
DATA = b"GGUF" + random.Random(11).randbytes(1_000_000)
OTHER = b"GGUF" + random.Random(12).randbytes(1_000_000)
HASHES = {hashlib.sha256(data).hexdigest(): data for data in (DATA, OTHER)}
IMPATIENT = RetryPolicy(
    base_seconds=0.002, longest_seconds=0.01, stall_seconds=0.3, silent_seconds=0.2, longest_retry_after=0
)
BEHAVIOURS = ["serve", "serve", "cut", "cut", "drop", "reset", "503", "429", "404", "416", "whole", "shifted", "other",
              "short", "garbage", "page", "new tag", "silent", "no range stated", "empty", "compressed"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _small_parts():
    with pytest.MonkeyPatch.context() as patch:
        for module in (attempt_module, ranges_module):
            patch.setattr(module, "SMALLEST_PART", 64 << 10)
        yield


# -- heads of answers ------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.integers(-2, 1 << 70).map(str), st.sampled_from(["", "1e9", "\u0665", "0x10", " 7", "nan", "*"]))
CONTENT_RANGES = st.one_of(
    st.builds("bytes {}-{}/{}".format, NUMBERS, NUMBERS, NUMBERS),
    st.builds("bytes {}-{}/{}".format, st.integers(0, 20), st.integers(0, 20), st.integers(0, 20) | st.just("*")),
    st.text(st.characters(max_codepoint=255), max_size=20),
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "content-length": NUMBERS,
        "content-range": CONTENT_RANGES,
        "content-encoding": st.sampled_from(["", "identity", "gzip", "br", "x" * 99]),
        "content-type": st.sampled_from(["text/html", "application/octet-stream", ""]),
        "etag": st.sampled_from(['"a"', 'W/"a"', ""]),
        "retry-after": NUMBERS,
        "location": st.text(st.characters(max_codepoint=255), max_size=20),
    },
)


@MANY
@given(st.sampled_from([200, 206, 416]) | st.integers(100, 999), HEADERS, st.integers(0, 20), st.booleans())
def test_the_head_of_an_answer_is_understood_or_refused(
    status: int, headers: dict[str, str], start: int, asked: bool
) -> None:
    raw = [(name.encode(), value.encode("utf-8")) for name, value in headers.items()]
    try:
        answer = read_answer(httpx2.Response(status, headers=raw), "shown", start=start, asked_range=asked)
    except (TransientError, StaleError, TeaModelsError):
        return
    assert status == (206 if answer.partial else 200)
    assert answer.start == (start if answer.partial else 0)
    assert answer.end is None or answer.end >= answer.start
    assert answer.total is None or answer.end is None or answer.end <= answer.total


# -- whole conversations ---------------------------------------------------------------------------------------------


def misbehave(script: list[str], chance: random.Random):
    """Answer by the script, and honestly when it is over."""
    behaviours = itertools.chain(script, itertools.repeat("serve"))

    def handler(exchange):
        start = exchange.range[0] if exchange.range else 0
        match next(behaviours):
            case "serve":
                exchange.serve()
            case "cut":
                exchange.serve(stop_after=chance.randrange(200_000))
            case "drop":
                exchange.drop()
            case "reset":
                exchange.head(206 if exchange.range else 200, {"Content-Length": 100})
                exchange.send(DATA[start : start + 50])
                exchange.drop()
            case "503" | "404" as status:
                exchange.reply(int(status))
            case "429":
                exchange.reply(429, headers={"Retry-After": "99999"})
            case "416":
                exchange.reply(416, headers={"Content-Range": f"bytes */{chance.randrange(9)}"})
            case "whole":
                exchange.serve(ranges=False)
            case "shifted":
                body = DATA[start + 1 : start + 5000]
                exchange.reply(206, body, {"Content-Range": f"bytes {start + 1}-{start + 4999}/{len(DATA)}"})
            case "other":
                exchange.serve(data=OTHER, etag='"other"')
            case "short":
                body = DATA[start : start + 4000]
                exchange.reply(206, body, {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(DATA)}"})
            case "garbage":
                exchange.send(chance.randbytes(300))
                exchange.end()
            case "page":
                exchange.reply(200, b"<html>", {"Content-Type": "text/html"})
            case "new tag":
                exchange.serve(etag='"v2"')
            case "silent":
                exchange.hang()
            case "no range stated":
                exchange.reply(206, DATA[start:])
            case "empty":
                exchange.reply(206, b"", {"Content-Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"})
            case "compressed":
                exchange.serve(headers={"Content-Encoding": "gzip"})

    return handler


SCRIPTS = st.lists(st.sampled_from(BEHAVIOURS), max_size=10)


@given(SCRIPTS, st.booleans(), st.booleans(), st.integers(0, 1 << 30))
def test_bytes_are_right_or_there_is_an_error_and_an_honest_server_heals(
    tmp_path_factory: pytest.TempPathFactory, script: list[str], pinned: bool, sized: bool, seed: int
) -> None:
    partial = tmp_path_factory.mktemp("fuzz") / "x.part"
    options = {"sha256": next(iter(HASHES)) if pinned else None, "size": len(DATA) if sized else None}
    options["size_by_header"] = size_by_header

    def run(server: FaultyServer, policy: RetryPolicy, read_seconds: float) -> None:
        with Client(read_seconds=read_seconds) as client:
            found = download(Request(client, server.url, connections=3, policy=policy, **options), partial)
        assert partial.read_bytes() == HASHES[found.sha256]
        assert found.sha256 == options["sha256"] or not pinned

    with FaultyServer(DATA, misbehave(script, random.Random(seed))) as server:
        for _ in range(2):
            message = ""
            try:
                run(server, IMPATIENT, 0.3)
            except TeaModelsError as error:
                message = error.message
            assert "\n" not in message
            assert len(message) < 500
    with FaultyServer(DATA) as honest:
        run(honest, RetryPolicy(), 60)
    assert partial.read_bytes() == DATA


@given(SCRIPTS, st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 1 << 18)), max_size=4), st.integers(0, 9))
@example(["short", "other"], [(0, 4001)], 0)  # the first answer has no tag, the second one that of another file
def test_what_is_read_of_a_remote_file_is_in_it(script: list[str], reads: list[tuple[int, int]], seed: int) -> None:
    with (
        FaultyServer(DATA, misbehave(script, random.Random(seed))) as server,
        Client(read_seconds=0.3) as client,
        contextlib.suppress(TeaModelsError),
    ):
        source = HttpSource(Request(client, server.url, policy=IMPATIENT))
        for offset, length in reads:
            assert source.read(offset, length) in [data[offset : offset + length] for data in (DATA, OTHER, b"<html>")]
