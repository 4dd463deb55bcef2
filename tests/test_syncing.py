from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tea_models.caller import Caller
from tea_models.cli import group
from tea_models.cli.frame import run
from tea_models.errors import IntegrityError, LockError, MissingFileError, NotAvailableError, OfflineError
from tea_models.lock.bundle import bundle
from tea_models.lock.pins import update_lock
from tea_models.lock.sync import sync
from tea_models.lockfile import read_lock
from tea_models.net.retry import RetryPolicy
from tea_models.settings import Settings
from tea_models.store import Store, stamp_of
from tests.gguf_build import build_gguf
from tests.hub_server import COMMIT, OTHER_COMMIT, Repo, Server, serve

MODEL = build_gguf()
OTHER = build_gguf({"general.architecture": "llama", "general.name": "other"})


@pytest.fixture
def server() -> Iterator[Server]:
    with serve(repos={"o/a": Repo({"a-Q4_0.gguf": MODEL}), "o/b": Repo({"b-Q4_0.gguf": OTHER})}) as server:
        yield server


@pytest.fixture
def project(tmp_path: Path, server: Server) -> Path:
    (tmp_path / "models.yaml").write_text("models:\n- hf:o/a\n")
    update_lock(tmp_path / "models.lock", caller=Caller(settings(tmp_path, server)))
    server.requests.clear()
    return tmp_path


def settings(tmp_path: Path, server: Server, **environ: str) -> Settings:
    environ = {"HOME": str(tmp_path), "HF_ENDPOINT": server.url} | environ
    return Settings.resolve(environ, cwd=tmp_path, store_dir=tmp_path / "models")


def test_sync_brings_what_is_locked_and_then_has_nothing_to_do(project: Path, server: Server) -> None:
    mine = settings(project, server)
    report = sync(project / "models.lock", caller=Caller(mine), frozen=True)
    assert [(file.name, file.status) for file in report.files] == [("hf:o/a", "downloaded")]
    assert (project / "models" / "a-Q4_0.gguf").read_bytes() == MODEL
    assert server.asked("/api/") == []
    server.requests.clear()
    report = sync(project / "models.lock", caller=Caller(mine), frozen=True)
    assert ([file.status for file in report.files], report.updated) == (["present"], False)
    assert server.requests == []


def test_sync_takes_the_locked_commit_though_the_branch_moved(project: Path, server: Server) -> None:
    repo = server.repos["o/a"]
    repo.older[repo.commit], repo.commit, repo.files = dict(repo.files), OTHER_COMMIT, {"a-Q4_0.gguf": OTHER}
    sync(project / "models.lock", caller=Caller(settings(project, server)))
    assert (project / "models" / "a-Q4_0.gguf").read_bytes() == MODEL


def test_sync_brings_an_outdated_lock_up_to_date_and_frozen_refuses_it(project: Path, server: Server) -> None:
    (project / "models.yaml").write_text("models:\n- hf:o/a\n- hf:o/b\n")
    mine = settings(project, server)
    with pytest.raises(LockError, match="hf:o/b is asked for and not locked"):
        sync(project / "models.lock", caller=Caller(mine), frozen=True)
    assert server.requests == []
    assert not (project / "models").exists()
    report = sync(project / "models.lock", caller=Caller(mine))
    assert report.updated
    assert list(read_lock(project / "models.lock").models) == ["hf:o/a", "hf:o/b"]
    assert len(report.files) == 2


def test_sync_makes_the_lock_when_there_is_none(project: Path, server: Server) -> None:
    (project / "models.lock").unlink()
    with pytest.raises(MissingFileError):
        sync(project / "models.lock", caller=Caller(settings(project, server)), frozen=True)
    assert sync(project / "models.lock", caller=Caller(settings(project, server))).updated
    (project / "models.yaml").unlink()
    (project / "models.lock").unlink()
    with pytest.raises(MissingFileError, match=r"models\.yaml"):
        sync(project / "models.lock", caller=Caller(settings(project, server)))


def test_other_bytes_than_the_locked_ones_are_refused(project: Path, server: Server) -> None:
    server.repos["o/a"].files["a-Q4_0.gguf"] = OTHER
    with pytest.raises(IntegrityError):
        sync(project / "models.lock", caller=Caller(settings(project, server)), frozen=True)
    assert not (project / "models" / "a-Q4_0.gguf").exists()


@pytest.mark.parametrize("damaged", [MODEL[:-1] + b"!", MODEL[:100]])
def test_a_damaged_file_stops_frozen_and_offline_and_is_mended_by_sync(
    project: Path, server: Server, damaged: bytes
) -> None:
    path = project / "models" / "a-Q4_0.gguf"
    sync(project / "models.lock", caller=Caller(settings(project, server)))
    path.write_bytes(damaged)
    for mine, frozen in ((settings(project, server), True), (settings(project, server, TEA_OFFLINE="1"), False)):
        with pytest.raises(IntegrityError) as caught:
            sync(project / "models.lock", caller=Caller(mine), frozen=frozen)
        assert "--repair" in caught.value.hint
        assert path.read_bytes() == damaged
    sync(project / "models.lock", caller=Caller(settings(project, server)))
    assert path.read_bytes() == MODEL


def test_a_store_restored_from_a_cache_is_hashed_once_and_then_trusted(project: Path, server: Server) -> None:
    mine = settings(project, server)
    sync(project / "models.lock", caller=Caller(mine))
    shutil.copytree(project / "models", project / "restored", copy_function=shutil.copyfile)
    shutil.rmtree(project / "models")
    (project / "restored").rename(project / "models")
    server.requests.clear()
    report = sync(project / "models.lock", caller=Caller(mine), frozen=True)
    assert [file.status for file in report.files] == ["present"]
    assert server.requests == []
    assert [item.state for item in Store(mine.store_dir).installed()] == ["ok"]


def test_offline_only_checks(project: Path, server: Server) -> None:
    offline = settings(project, server, TEA_OFFLINE="1")
    with pytest.raises(OfflineError, match=r"a-Q4_0\.gguf is not in the store"):
        sync(project / "models.lock", caller=Caller(offline))
    assert not (project / "models").exists()
    sync(project / "models.lock", caller=Caller(settings(project, server)))
    server.requests.clear()
    # What was read of the built-in registry may be kept there; the models and what is known of them stay as they are.
    kept = {project / "models" / ".tea", project / "models" / ".tea" / "registry.json"}
    before = {path: path.stat().st_mtime_ns for path in (project / "models").rglob("*") if path not in kept}
    assert [file.status for file in sync(project / "models.lock", caller=Caller(offline)).files] == ["present"]
    assert server.requests == []
    assert {path: path.stat().st_mtime_ns for path in (project / "models").rglob("*") if path not in kept} == before
    (project / "models.yaml").write_text("- hf:o/b\n")
    with pytest.raises(LockError):
        sync(project / "models.lock", caller=Caller(offline))


def test_models_that_are_not_locked_are_reported_and_only_removed_when_asked(project: Path, server: Server) -> None:
    from tea_models.verbs.pull import pull

    mine = settings(project, server)
    (extra,) = pull("hf:o/b", settings=mine, adopt=False)
    report = sync(project / "models.lock", caller=Caller(mine))
    assert (report.extra, report.removed) == ((str(extra.path),), ())
    assert extra.path.exists()
    report = sync(project / "models.lock", caller=Caller(mine), prune="unlocked")
    assert (report.extra, report.removed) == ((), (str(extra.path),))
    assert not extra.path.exists()
    assert (project / "models" / "a-Q4_0.gguf").exists()


def test_a_hub_that_is_away_is_an_error_with_the_file_s_name(
    project: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RetryPolicy, "wait", lambda *_: 0.0)
    away = settings(project, server, HF_ENDPOINT="http://127.0.0.1:9")
    with pytest.raises(NotAvailableError, match="a-Q4_0"):
        sync(project / "models.lock", caller=Caller(away), frozen=True)


def tea_models(*arguments: str) -> int:
    return run(group(), arguments)


def test_the_commands_lock_sync_and_rm(
    project: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    store = Path(os.environ["TEA_MODELS_DIR"])
    assert tea_models("lock", "--check", "--json") == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["sha256"] == [hashlib.sha256(MODEL).hexdigest()]
    assert tea_models("sync", "--frozen", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"][0]["path"] == str(store / "a-Q4_0.gguf")
    assert (report["extra"], report["removed"], report["updated"]) == ([], [], False)
    assert tea_models("sync") == 0
    assert "1 file, " in capsys.readouterr().out
    assert tea_models("sync", "--offline") == 0
    (project / "models.yaml").write_text("- hf:o/a\n- hf:o/b\n")
    assert tea_models("lock", "--check") == 1
    assert tea_models("sync", "--frozen") == 1
    assert tea_models("lock") == 0
    assert "written" in capsys.readouterr().out
    monkeypatch.chdir(store)
    assert tea_models("rm", "./b-Q4_0.gguf") == 4
    assert tea_models("rm", "./a-Q4_0.gguf") == 0
    assert Store(store).installed() == []
    monkeypatch.chdir(project)
    assert tea_models("sync") == 0
    assert tea_models("rm", "hf:o/a") == 0
    assert "removed" in capsys.readouterr().out
    assert not (store / "a-Q4_0.gguf").exists()
    assert tea_models("rm", "hf:o/a") == 4
    assert tea_models("rm", str(project / "models.yaml")) == 4
    assert (project / "models.yaml").exists()


def test_a_machine_without_network_is_served_from_a_bundle(project: Path, server: Server, tmp_path: Path) -> None:
    mine = settings(project, server)
    sync(project / "models.lock", caller=Caller(mine))
    bundle(project / "models.tar", lock_path=project / "models.lock", caller=Caller(mine))
    away = tmp_path / "away"
    away.mkdir()
    offline = Settings.resolve({"HOME": str(away), "TEA_OFFLINE": "1"}, cwd=away, store_dir=away / "models")
    report = sync(away / "models.lock", caller=Caller(offline), origin=str(project / "models.tar"), frozen=True)
    assert (away / "models" / "a-Q4_0.gguf").read_bytes() == MODEL
    assert report.updated
    report = sync(away / "models.lock", caller=Caller(offline), frozen=True)
    assert [(file.name, file.status) for file in report.files] == [("hf:o/a", "present")]


def test_of_a_bundle_only_what_the_lock_has_is_taken(project: Path, server: Server, tmp_path: Path) -> None:
    mine = settings(project, server)
    other = tmp_path / "other"
    other.mkdir()
    both = Settings.resolve({"HOME": str(other), "HF_ENDPOINT": server.url}, cwd=other, store_dir=other / "models")
    update_lock(other / "models.lock", ["hf:o/a", "hf:o/b"], caller=Caller(both))
    sync(other / "models.lock", caller=Caller(both))
    bundle(other / "models.tar", lock_path=other / "models.lock", caller=Caller(both))
    server.requests.clear()
    sync(project / "models.lock", caller=Caller(mine), origin=str(other / "models.tar"), frozen=True)
    assert server.requests == []
    assert [item.record.file for item in Store(mine.store_dir).installed()] == ["a-Q4_0.gguf"]


def test_a_restored_cache_with_one_flipped_byte_is_refused(project: Path, server: Server) -> None:
    """Its size, time and even its inode may be those that were recorded."""
    mine = settings(project, server)
    sync(project / "models.lock", caller=Caller(mine))
    path = project / "models" / "a-Q4_0.gguf"
    before = path.stat()
    data = bytearray(MODEL)
    data[-1] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(IntegrityError):
        sync(project / "models.lock", caller=Caller(mine), frozen=True)


def forged(store: Store, name: str) -> None:
    """Write a record that says of a file as it is now that it holds the bytes that were verified."""
    record = store.record_of(store.root / name)
    assert record is not None
    store.write_record(record.stamped((0, *stamp_of((store.root / name).stat())[1:])))


def test_in_ci_and_with_verify_every_byte_is_read_again(
    project: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("TEA_MODELS_DIR", str(project / "models"))
    assert tea_models("sync") == 0
    path = project / "models" / "a-Q4_0.gguf"
    path.write_bytes(MODEL[:-1] + b"!")
    forged(Store(project / "models"), path.name)
    monkeypatch.delenv("CI", raising=False)
    assert tea_models("sync", "--frozen") == 0
    assert tea_models("sync", "--frozen", "--verify") == 3
    monkeypatch.setenv("CI", "true")
    assert tea_models("sync", "--frozen") == 3
    monkeypatch.setenv("CI", "false")
    assert tea_models("sync", "--frozen") == 0


@pytest.mark.parametrize("damaged", [MODEL[:-1] + b"!", MODEL[:100], b""])
def test_frozen_heals_when_it_is_told_to(
    project: Path, server: Server, damaged: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("TEA_MODELS_DIR", str(project / "models"))
    assert tea_models("sync") == 0
    path = project / "models" / "a-Q4_0.gguf"
    path.write_bytes(damaged)
    assert tea_models("sync", "--frozen") == 3
    capsys.readouterr()
    assert tea_models("sync", "--frozen", "--repair", "--json") == 0
    assert [file["status"] for file in json.loads(capsys.readouterr().out)["files"]] == ["repaired"]
    assert path.read_bytes() == MODEL
    assert tea_models("sync", "--frozen") == 0


def test_a_bundle_in_the_hand_heals_what_is_broken(project: Path, server: Server) -> None:
    mine = settings(project, server)
    sync(project / "models.lock", caller=Caller(mine))
    bundle(project / "models.tar", lock_path=project / "models.lock", caller=Caller(mine))
    path = project / "models" / "a-Q4_0.gguf"
    path.write_bytes(MODEL[:100])
    server.requests.clear()
    offline = settings(project, server, TEA_OFFLINE="1")
    report = sync(project / "models.lock", caller=Caller(offline), frozen=True, origin=str(project / "models.tar"))
    assert [file.status for file in report.files] == ["repaired"]
    assert path.read_bytes() == MODEL
    assert server.requests == []


def test_pruning_spares_what_the_lock_of_another_project_names(project: Path, server: Server, tmp_path: Path) -> None:
    mine = settings(project, server)
    other = tmp_path / "other"
    other.mkdir()
    update_lock(other / "models.lock", ["hf:o/b"], caller=Caller(mine))
    sync(other / "models.lock", caller=Caller(mine))
    said: list[str] = []
    report = sync(project / "models.lock", caller=Caller(mine, note=said.append), prune="unlocked")
    assert (len(report.extra), report.removed) == (1, ())
    assert any(str(other / "models.lock") in text for text in said)
    report = sync(project / "models.lock", caller=Caller(mine), prune="all")
    assert report.removed == (str(project / "models" / "b-Q4_0.gguf"),)
    sync(other / "models.lock", caller=Caller(mine))
    (other / "models.lock").unlink()
    report = sync(project / "models.lock", caller=Caller(mine), prune="unlocked")
    assert report.removed == (str(project / "models" / "b-Q4_0.gguf"),)


def test_pruning_removes_nothing_behind_a_link_in_the_store(project: Path, server: Server, tmp_path: Path) -> None:
    """A cache can bring a link to a folder of the user's along, and a record of a file in it."""
    mine = settings(project, server)
    sync(project / "models.lock", caller=Caller(mine))
    precious = tmp_path / "photos" / "holiday.gguf"
    precious.parent.mkdir()
    precious.write_bytes(OTHER)
    (mine.store_dir / "photos").symlink_to(precious.parent)
    record = Store(mine.store_dir).records()[0]
    planted = replace(record, file="photos/holiday.gguf", sha256=hashlib.sha256(OTHER).hexdigest(), size=len(OTHER))
    Store(mine.store_dir).write_record(planted.stamped(stamp_of(precious.stat())))
    for prune in ("unlocked", "all"):
        report = sync(project / "models.lock", caller=Caller(mine), prune=prune)
        assert (report.extra, report.removed) == ((), ())
    assert precious.read_bytes() == OTHER


def test_a_lock_that_was_altered_against_the_project_s_registry_is_an_integrity_error(
    project: Path, server: Server
) -> None:
    sha256 = hashlib.sha256(MODEL).hexdigest()
    entry = {"filename": "a-Q4_0.gguf", "sha256": sha256, "sources": [f"hf:o/a/a-Q4_0.gguf@{COMMIT}"]}
    registry = {"schema": "tea.registry/1", "models": {"tiny": {"variants": {"Q4_0": {"files": [entry]}}}}}
    (project / "registry.yaml").write_text(json.dumps(registry))
    (project / "models.yaml").write_text("- tiny\n")
    mine = settings(project, server)
    update_lock(project / "models.lock", caller=Caller(mine))
    path = project / "models.lock"
    text = path.read_text()
    path.write_text(text.replace(sha256, "f" * 64))
    with pytest.raises(IntegrityError, match="from the same place at the same revision"):
        sync(path, caller=Caller(mine), frozen=True)
    path.write_text(text)
    registry["models"]["tiny"]["variants"]["Q4_0"]["files"][0]["sources"] = [f"hf:o/a/a-Q4_0.gguf@{OTHER_COMMIT}"]
    registry["models"]["tiny"]["variants"]["Q4_0"]["files"][0]["sha256"] = "f" * 64
    (project / "registry.yaml").write_text(json.dumps(registry))
    with pytest.raises(LockError, match="other hashes in the registry"):
        sync(path, caller=Caller(mine), frozen=True)


@pytest.mark.parametrize("key", ["license", "resolved"])
def test_what_the_lock_says_of_a_name_of_the_project_s_registry_is_compared(
    project: Path, server: Server, key: str
) -> None:
    entry = {"filename": "a-Q4_0.gguf", "sources": [f"hf:o/a/a-Q4_0.gguf@{COMMIT}"]}
    variants = {"Q4_0": {"files": [entry | {"sha256": hashlib.sha256(MODEL).hexdigest()}]}}
    registry = {"schema": "tea.registry/1", "models": {"tiny": {"license": "mit", "variants": variants}}}
    (project / "registry.yaml").write_text(json.dumps(registry))
    (project / "models.yaml").write_text("- tiny\n")
    mine = settings(project, server)
    update_lock(project / "models.lock", caller=Caller(mine))
    path = project / "models.lock"
    old, new = {"license": ("license: mit", "license: gpl"), "resolved": ("tiny:Q4_0", "other:Q4_0")}[key]
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(LockError, match="another variant or licence"):
        sync(path, caller=Caller(mine), frozen=True)


def test_a_lock_with_another_chat_template_than_the_file_s_is_refused(project: Path, server: Server) -> None:
    path = project / "models.lock"
    path.write_text(re.sub(r"template_sha256: \w+", f"template_sha256: {'f' * 64}", path.read_text()))
    assert "f" * 64 in path.read_text()
    mine = settings(project, server)
    for verify in (False, True):
        with pytest.raises(IntegrityError, match="template_sha256"):
            sync(path, caller=Caller(mine), frozen=True, verify=verify)


def test_a_second_sync_opens_no_more_files_than_there_are_models(project: Path, server: Server) -> None:
    """Two hundred files made 81,461 opens once: every record for every file."""
    count = 40
    files = {f"m{number}-Q4_0.gguf": build_gguf({"general.name": str(number)}) for number in range(count)}
    server.repos["o/many"] = Repo(files)
    mine = settings(project, server)
    (project / "models.yaml").write_text("".join(f"- hf:o/many/{name}\n" for name in files))
    sync(project / "models.lock", caller=Caller(mine))
    code = (
        "import os, sys; from pathlib import Path\n"
        "from tea_models.caller import Caller; from tea_models.lock.sync import sync\n"
        "from tea_models.settings import Settings\n"
        "folder = Path(sys.argv[1])\n"
        "mine = Settings.resolve({'HOME': sys.argv[1]}, cwd=folder, store_dir=folder / 'models')\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(args[0]) if event == 'open' else None)\n"
        "sync(folder / 'models.lock', caller=Caller(mine), frozen=True)\n"
        "print(sum('/records/' in str(path) for path in opened))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(project)], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 2 * count
