from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tea_models.caller import Caller
from tea_models.cli import group
from tea_models.cli.frame import run
from tea_models.errors import IntegrityError, LockError, MissingFileError, NotAvailableError, OfflineError
from tea_models.lock.document import read_lock
from tea_models.lock.pins import update_lock
from tea_models.lock.sync import sync
from tea_models.settings import Settings
from tea_models.store import Store
from tests.gguf_build import build_gguf
from tests.hub_server import OTHER_COMMIT, Repo, Server, serve

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
        assert "verify --repair" in caught.value.hint
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
    before = {path: path.stat().st_mtime_ns for path in (project / "models").rglob("*")}
    assert [file.status for file in sync(project / "models.lock", caller=Caller(offline)).files] == ["present"]
    assert server.requests == []
    assert {path: path.stat().st_mtime_ns for path in (project / "models").rglob("*")} == before
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
    report = sync(project / "models.lock", caller=Caller(mine), prune=True)
    assert (report.extra, report.removed) == ((), (str(extra.path),))
    assert not extra.path.exists()
    assert (project / "models" / "a-Q4_0.gguf").exists()


def test_a_hub_that_is_away_is_an_error_with_the_file_s_name(project: Path, server: Server) -> None:
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
    from tea_models.lock.bundle import bundle

    mine = settings(project, server)
    sync(project / "models.lock", caller=Caller(mine))
    bundle(project / "models.tar", lock_path=project / "models.lock", caller=Caller(mine))
    away = tmp_path / "away"
    away.mkdir()
    offline = Settings.resolve({"HOME": str(away), "TEA_OFFLINE": "1"}, cwd=away, store_dir=away / "models")
    report = sync(away / "models.lock", caller=Caller(offline), bundle=project / "models.tar", frozen=True)
    assert (away / "models" / "a-Q4_0.gguf").read_bytes() == MODEL
    assert report.updated
    report = sync(away / "models.lock", caller=Caller(offline), frozen=True)
    assert [(file.name, file.status) for file in report.files] == [("hf:o/a", "present")]


def test_of_a_bundle_only_what_the_lock_has_is_taken(project: Path, server: Server, tmp_path: Path) -> None:
    from tea_models.lock.bundle import bundle

    mine = settings(project, server)
    other = tmp_path / "other"
    other.mkdir()
    both = Settings.resolve({"HOME": str(other), "HF_ENDPOINT": server.url}, cwd=other, store_dir=other / "models")
    update_lock(other / "models.lock", ["hf:o/a", "hf:o/b"], caller=Caller(both))
    sync(other / "models.lock", caller=Caller(both))
    bundle(other / "models.tar", lock_path=other / "models.lock", caller=Caller(both))
    server.requests.clear()
    sync(project / "models.lock", caller=Caller(mine), bundle=other / "models.tar", frozen=True)
    assert server.requests == []
    assert [item.record.file for item in Store(mine.store_dir).installed()] == ["a-Q4_0.gguf"]
