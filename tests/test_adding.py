from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tea_models.caller import Caller
from tea_models.cli import group
from tea_models.cli.frame import run
from tea_models.errors import ConfigError, MissingFileError, UsageError
from tea_models.registry.entries import Registry
from tea_models.settings import Settings
from tea_models.verbs.add import add_entry
from tea_models.verbs.check_registry import check_entries
from tea_models.verbs.pull import pull
from tests.gguf_build import build_gguf
from tests.hub_server import COMMIT, Repo, Server, serve

MODEL = build_gguf()
OTHER = build_gguf({"general.architecture": "llama", "general.name": "other"})
DIGEST = hashlib.sha256(MODEL).hexdigest()
SHARDS = {"s-F16-00001-of-00002.gguf": MODEL, "s-F16-00002-of-00002.gguf": OTHER}


@pytest.fixture
def server() -> Iterator[Server]:
    repo = Repo({"tiny-Q4_K_M.gguf": MODEL, "tiny-Q8_0.gguf": OTHER, **SHARDS}, license="mit")
    with serve(repos={"o/r": repo}, files={"/m.gguf": MODEL}) as server:
        yield server


def settings(tmp_path: Path, server: Server, **environ: str) -> Settings:
    environ = {"HOME": str(tmp_path), "HF_ENDPOINT": server.url} | environ
    return Settings.resolve(environ, cwd=tmp_path, store_dir=tmp_path / "models")


def add(
    tmp_path: Path, server: Server, name: str, reference: str, notes: list[str] | None = None, **options: Any
) -> str:
    file = tmp_path / "registry.yaml"
    caller = Caller.of(settings(tmp_path, server), note=None if notes is None else notes.append)
    add_entry(name, reference, file=file, caller=caller, **options)
    return file.read_text()


def test_an_entry_has_commit_size_hash_licence_and_quantisation(tmp_path: Path, server: Server) -> None:
    text = add(tmp_path, server, "mine", "hf:o/r:Q4_K_M")
    mine = settings(tmp_path, server)
    entry = Registry.load(mine).entries["mine"]
    (variant,) = entry.variants.values()
    (file,) = variant.files
    assert (entry.license, entry.kind, variant.name) == ("mit", "chat", "Q4_K_M")
    assert (file.filename, file.size, file.sha256) == ("tiny-Q4_K_M.gguf", len(MODEL), DIGEST)
    assert list(map(str, file.sources)) == [f"hf:o/r/tiny-Q4_K_M.gguf@{COMMIT}"]
    assert text.startswith("schema: tea.registry/1\nmodels:\n  mine:\n")
    (result,) = pull("mine", settings=mine, adopt=False)
    assert result.path.read_bytes() == MODEL


def test_the_licence_is_found_for_a_file_too_and_can_be_given(tmp_path: Path, server: Server) -> None:
    add(tmp_path, server, "mine", "hf:o/r/tiny-Q4_K_M.gguf")
    add(tmp_path, server, "yours", "hf:o/r/tiny-Q4_K_M.gguf", license_="custom")
    entries = Registry.load(settings(tmp_path, server)).entries
    assert (entries["mine"].license, entries["yours"].license) == ("mit", "custom")


def test_shards_are_pinned_each(tmp_path: Path, server: Server) -> None:
    add(tmp_path, server, "big", "hf:o/r:F16")
    (variant,) = Registry.load(settings(tmp_path, server)).entries["big"].variants.values()
    assert [file.filename for file in variant.files] == list(SHARDS)


def test_what_has_no_hash_anywhere_is_pulled_and_pinned(tmp_path: Path, server: Server) -> None:
    notes: list[str] = []
    add(tmp_path, server, "mine", f"{server.url}/m.gguf", notes)
    (variant,) = Registry.load(settings(tmp_path, server)).entries["mine"].variants.values()
    assert variant.files[0].sha256 == DIGEST
    assert any("nobody states its hash" in note for note in notes)


def test_a_file_of_the_project_is_named_relative_to_it(tmp_path: Path, server: Server) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "m.gguf").write_bytes(MODEL)
    text = add(tmp_path, server, "mine", str(tmp_path / "weights" / "m.gguf"))
    assert "- ./weights/m.gguf\n" in text


ENTRY = """\
  {name}:   # a comment
    variants: {{Q4_0: {{files: [{{filename: a.gguf, sources: ["hf:x/y/a.gguf"]}}]}}}}
"""
FILES = {
    "comments and blank lines": "# head\nschema: tea.registry/1\n\nmodels:\n\n  # first\n"
    + ENTRY.format(name="a")
    + "\n# tail\n",
    "keys after the models": "models:\n" + ENTRY.format(name="a") + "\nschema: tea.registry/1  # last\n",
    "four columns": "schema: tea.registry/1\nmodels:\n" + ENTRY.format(name="a").replace("  ", "    "),
    "no newline at the end": ("schema: tea.registry/1\nmodels:\n" + ENTRY.format(name="a")).rstrip("\n"),
    "windows lines": ("schema: tea.registry/1\nmodels:\n" + ENTRY.format(name="a")).replace("\n", "\r\n"),
    "no models": "schema: tea.registry/1\n# nothing yet\n",
    "empty models": "schema: tea.registry/1\nmodels: {}\n# tail\n",
    "null models": "schema: tea.registry/1\n# before\n",
    "block text at the end": "schema: tea.registry/1\nmodels:\n"
    + ENTRY.format(name="a")
    + "    description: |\n      one\n\n      two\n\n\n# tail\n",
    "marks": "---\nschema: tea.registry/1\nmodels:\n" + ENTRY.format(name="a") + "...\n",
}


@pytest.mark.parametrize("before", FILES.values(), ids=FILES.keys())
def test_the_rest_of_the_file_stays_byte_for_byte(tmp_path: Path, server: Server, before: str) -> None:
    file = tmp_path / "registry.yaml"
    file.write_bytes(before.encode())
    _, written, _ = add_entry("mine", "hf:o/r:Q8_0", file=file, caller=Caller(settings(tmp_path, server)))
    after = file.read_bytes().decode()
    old, new = before.splitlines(), after.splitlines()
    kept = [line for line in new if line in old or line == "models:"]
    assert kept == [line.replace("models: {}", "models:") for line in old] or kept == [*old, "models:"]
    assert all(line.strip() in after for line in written.splitlines())
    assert ("\r\n" in before) == ("\r\n" in after)
    assert after.count("\n") == after.count("\r\n") or "\r\n" not in after
    assert "mine" in Registry.load(settings(tmp_path, server)).entries


def test_a_name_that_is_there_is_only_replaced_when_asked(tmp_path: Path, server: Server) -> None:
    file = tmp_path / "registry.yaml"
    head = "# head\nschema: tea.registry/1\nmodels:\n  a: # one\n    variants: {X: {files: [{filename: a, sources: ['./a']}]}}\n"
    tail = "\n  # about b\n  b:\n    variants: {X: {files: [{filename: b, sources: ['./b']}]}}\n# tail\n"
    file.write_text(head + tail)
    with pytest.raises(UsageError, match="already"):
        add(tmp_path, server, "a", "hf:o/r:Q8_0")
    text = add(tmp_path, server, "a", "hf:o/r:Q8_0", replace_existing=True)
    assert text.endswith(tail)
    assert text.startswith("# head\nschema: tea.registry/1\nmodels:\n  a:\n    kind:")


@pytest.mark.parametrize("name", ["", "Upper", "a b", "../x", "a:b", "-x"])
def test_a_name_that_can_be_none_is_refused(tmp_path: Path, server: Server, name: str) -> None:
    with pytest.raises(UsageError, match="can't be a name"):
        add(tmp_path, server, name, "hf:o/r:Q8_0")
    assert server.requests == []


def test_a_file_that_is_no_registry_is_left_alone(tmp_path: Path, server: Server) -> None:
    file = tmp_path / "registry.yaml"
    for text in ("modls: {}\n", "schema: tea.registry/1\nmodels: {a: {variants: {X: {files: []}}}}\n", "[1, 2]\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"registry\.yaml"):
            add(tmp_path, server, "mine", "hf:o/r:Q8_0")
        assert file.read_text() == text
    file.write_text(
        "schema: tea.registry/1\nmodels: {a: {variants: {X: {files: [{filename: a, sources: ['./a']}]}}}}\n"
    )
    with pytest.raises(ConfigError, match="one entry a line"):
        add(tmp_path, server, "mine", "hf:o/r:Q8_0")


def test_what_does_not_resolve_leaves_no_file(tmp_path: Path, server: Server) -> None:
    with pytest.raises(MissingFileError):
        add_entry("mine", "hf:o/none:Q8_0", file=tmp_path / "registry.yaml", caller=Caller(settings(tmp_path, server)))
    assert not (tmp_path / "registry.yaml").exists()


def test_a_registry_is_checked_against_its_hosts(tmp_path: Path, server: Server) -> None:
    add(tmp_path, server, "good", "hf:o/r:Q4_K_M")
    add(tmp_path, server, "bad", "hf:o/r:Q8_0")
    add(tmp_path, server, "plain", f"{server.url}/m.gguf")
    mine = settings(tmp_path, server)
    server.repos["o/r"].files["tiny-Q8_0.gguf"] = OTHER[:-1] + b"!"
    entries = [Registry.load(mine).entries[name] for name in ("good", "bad", "plain")]
    found = check_entries(entries, Caller(mine), online=True)
    assert [item.status for item in found] == ["ok", "mismatch", "ok"]
    assert "sha256 is" in found[1].detail
    server.files["/m.gguf"] = MODEL + b"x"
    del server.repos["o/r"]
    assert [item.status for item in check_entries(entries, Caller(mine), online=True)] == [
        "unreachable",
        "unreachable",
        "mismatch",
    ]
    assert [item.status for item in check_entries(entries, Caller(mine))] == ["ok", "ok", "ok"]
    with pytest.raises(UsageError):
        check_entries(entries, Caller(settings(tmp_path, server, TEA_OFFLINE="1")), online=True)


def test_the_commands_add_and_registry_check(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", server.url)

    def tea_models(*arguments: str) -> int:
        return run(group(), arguments)

    assert tea_models("add", "mine", "hf:o/r:Q4_K_M", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["files"] == [{"filename": "tiny-Q4_K_M.gguf", "size": len(MODEL), "sha256": DIGEST}]
    assert tea_models("add", "mine", "hf:o/r:Q4_K_M") == 2
    assert tea_models("add", "mine", "hf:o/r:Q8_0", "--replace") == 0
    assert "next: tea-models pull mine" in capsys.readouterr().out
    assert tea_models("registry", "check") == 0
    assert tea_models("registry", "check", "--online", "--json") == 0
    capsys.readouterr()
    server.repos["o/r"].files["tiny-Q8_0.gguf"] = MODEL
    assert tea_models("registry", "check", "--online", "--json") == 3
    assert json.loads(capsys.readouterr().out)["sources"][0]["status"] == "mismatch"
    (tmp_path / "registry.yaml").write_text("schema: tea.registry/1\nmodels:\n  a: 1\n")
    assert tea_models("registry", "check", "--json") == 2
    assert "registry.yaml:3" in json.loads(capsys.readouterr().out)["error"]["message"]
