"""The one HTTP client: questions, proxies, and what it refuses."""

from __future__ import annotations

import sys

import pytest

from tea_models.errors import SourceUnavailableError, UsageError
from tea_models.net.client import Client
from tea_models.net.retry import RetryPolicy
from tests.faulty_server import FaultyServer

QUICK = RetryPolicy(tries=3, first_tries=2, base_seconds=0.01)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tea_models.net.client.QUESTION", QUICK)


def ask(server: FaultyServer, **options: object) -> tuple[int, bytes]:
    with Client(read_seconds=30) as client:
        response, body = client.ask(server.url, **{"most": 1000} | options)
        return response.status_code, body


def test_an_answer_of_any_lasting_status_is_given_to_who_asked() -> None:
    with FaultyServer(b"", lambda e: e.reply(404, b"no such model")) as server:
        assert ask(server) == (404, b"no such model")


def test_a_busy_host_is_asked_again_and_given_up_in_the_end() -> None:
    with FaultyServer(b"yes", lambda e: e.reply(503) if e.number < 2 else e.serve()) as server:
        assert ask(server) == (200, b"yes")
    with FaultyServer(b"", lambda e: e.reply(503)) as server:
        with pytest.raises(SourceUnavailableError, match="503"):
            ask(server)
        assert len(server.seen) == QUICK.tries


def test_an_answer_that_is_too_long_is_not_read_to_its_end() -> None:
    with (
        FaultyServer(bytes(50 << 20)) as server,
        pytest.raises(SourceUnavailableError, match="longer than 1,000 bytes"),
    ):
        ask(server)


def test_a_question_follows_redirects_on_its_own_host_only() -> None:
    with FaultyServer(b"foreign") as other:

        def handler(exchange):
            exchange.reply(302, headers={"Location": "/here" if exchange.path == "/model.gguf" else other.url})

        with FaultyServer(b"", handler) as server:
            assert ask(server)[0] == 302
            assert [exchange.path for exchange in server.seen] == ["/model.gguf", "/here"]
        assert other.seen == []


# -- proxies -----------------------------------------------------------------------------------------------------------


def refused(url: str) -> str:
    with Client() as client, pytest.raises(SourceUnavailableError) as caught:
        client.ask(url)
    return caught.value.message


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", "http://user:hunter2@127.0.0.1:9")
    message = refused(f"{scheme}://127.0.0.1:8/x")
    assert "to the proxy http://127.0.0.1:9" in message
    assert "hunter2" not in message


def test_a_proxy_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyServer(b"", lambda e: e.reply(403)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        assert f"the proxy http://127.0.0.1:{proxy.port} refuses (403" in refused("https://127.0.0.1:8/x")


def test_a_host_that_needs_no_proxy_is_not_said_to_be_behind_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert "proxy" not in refused("http://127.0.0.1:8/x")


def test_a_socks_proxy_without_its_package_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://user:hunter2@127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(SourceUnavailableError, match=r"socks5://127\.0\.0\.1:9.*not installed") as caught:
        Client()
    assert "socksio" in caught.value.hint


@pytest.mark.parametrize("address", ["gopher://127.0.0.1:9", "http://127.0.0.1:port"])
def test_a_proxy_that_is_none_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("https_proxy", address)
    with pytest.raises(UsageError, match="HTTPS_PROXY="):
        Client()
