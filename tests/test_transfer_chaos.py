"""A server that does something else with every request: whatever it does, bytes are right or there is one clear error,
and what is left never keeps an honest server from finishing the job."""

from __future__ import annotations

import hashlib
import random

import pytest

from tea_models.errors import TeaModelsError
from tea_models.net import Client, Request, RetryPolicy, download
from tests.faulty_server import FaultyServer

MIB = 1 << 20
DATA = b"GGUF" + random.Random(11).randbytes(20 * MIB)
OTHER = b"GGUF" + random.Random(12).randbytes(20 * MIB)
SHA = hashlib.sha256(DATA).hexdigest()
POLICY = RetryPolicy(
    base_seconds=0.002, longest_seconds=0.01, stall_seconds=0.3, silent_seconds=0.2, longest_retry_after=0
)


def misbehave(generator):
    def handler(exchange):
        start = exchange.range[0] if exchange.range else 0
        match generator.choice(
            ["serve"] * 6 + ["cut"] * 6 + ["drop", "503", "429", "416", "200", "shift", "other", "short", "garbage",
                                           "html", "etag", "silent", "no range", "rst"]
        ):  # fmt: skip
            case "serve":
                exchange.serve()
            case "cut":
                exchange.serve(stop_after=generator.randrange(3 * MIB))
            case "drop":
                exchange.drop()
            case "rst":
                exchange.head(206 if exchange.range else 200, {"Content-Length": 100})
                exchange.send(DATA[start : start + 50])
                exchange.drop()
            case "503":
                exchange.reply(503)
            case "429":
                exchange.reply(429, headers={"Retry-After": "99999"})
            case "416":
                exchange.reply(416)
            case "200":
                exchange.serve(ranges=False)
            case "shift":
                body = DATA[start + 1 : start + 5000]
                exchange.reply(206, body, {"Content-Range": f"bytes {start + 1}-{start + 4999}/{len(DATA)}"})
            case "other":
                exchange.serve(data=OTHER)
            case "short":
                body = DATA[start : start + 4000]
                exchange.reply(206, body, {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(DATA)}"})
            case "garbage":
                exchange.send(generator.randbytes(300))
                exchange.end()
            case "html":
                exchange.reply(200, b"<html>", {"Content-Type": "text/html"})
            case "etag":
                exchange.serve(etag='"v2"')
            case "silent":
                exchange.hang()
            case "no range":
                exchange.reply(206, DATA[start:])

    return handler


@pytest.mark.parametrize("seed", range(14))
def test_bytes_are_right_or_there_is_an_error_and_the_next_run_recovers(tmp_path, seed):
    generator = random.Random(seed)
    partial = tmp_path / "x.part"
    known = generator.random() < 0.5

    def run(server):
        with Client(read_seconds=0.3) as client:
            size = len(DATA) if known else None
            request = Request(client, server.url, sha256=SHA, size=size, connections=4, policy=POLICY)
            return download(request, partial)

    messages = []
    with FaultyServer(DATA, misbehave(generator)) as server:
        for _ in range(3):
            try:
                result = run(server)
            except TeaModelsError as error:
                messages.append(error.message)
            else:
                assert result.sha256 == SHA
                assert partial.read_bytes() == DATA
    assert all("\n" not in message and len(message) < 500 for message in messages)
    with FaultyServer(DATA) as honest:
        assert run(honest).sha256 == SHA
    assert partial.read_bytes() == DATA
