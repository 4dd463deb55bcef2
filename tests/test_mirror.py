"""Mirrors: what `push` brings there, `sync --from` and TEA_MODELS_MIRROR take back; nothing wrong gets a final name."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tea_models.caller import Caller
from tea_models.errors import AccessDeniedError, ChecksumMismatchError, NotAvailableError, UsageError
from tea_models.lock.mirror import push
from tea_models.lock.pins import update_lock
from tea_models.lock.sync import sync
from tea_models.lockfile import read_lock
from tea_models.settings import Settings
from tea_models.store import Store
from tests.gguf_build import build_gguf, small_llama_metadata, small_llama_tensors

MODEL = build_gguf(small_llama_metadata(**{"general.name": "mirrored"}), small_llama_tensors())
SHA256 = hashlib.sha256(MODEL).hexdigest()
REGISTRY = shutil.which("docker-registry") or shutil.which("registry")


def settings_at(folder: Path, **environ: str) -> Settings:
    environ = {"HOME": str(folder), "TEA_MODELS_DIR": str(folder / "store")} | environ
    return Settings.resolve(environ, cwd=folder)


@pytest.fixture
def caller(tmp_path: Path) -> Caller:
    """A project whose locked model is in the store; its source is gone."""
    (tmp_path / "upstream").mkdir()
    (tmp_path / "upstream" / "model.gguf").write_bytes(MODEL)
    caller = Caller(settings_at(tmp_path))
    update_lock(tmp_path / "models.lock", [str(tmp_path / "upstream" / "model.gguf")], caller=caller)
    sync(tmp_path / "models.lock", caller, frozen=True)
    shutil.rmtree(tmp_path / "upstream")
    return caller


def pushed(caller: Caller, target: str, tmp_path: Path) -> list[str]:
    return [file.status for file in push(read_lock(tmp_path / "models.lock"), target, caller)]


def taken(target: str, tmp_path: Path, **environ: str) -> bytes:
    """What a new machine gets, with the lock that it finds there."""
    new = tmp_path / "new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    report = sync(new / "models.lock", Caller(settings_at(new, **environ)), frozen=True, origin=target)
    assert [file.status for file in report.files] == ["downloaded"]
    return report.files[0].path.read_bytes()


def test_a_folder_gives_back_what_was_pushed(caller: Caller, tmp_path: Path) -> None:
    target = str(tmp_path / "mirror")
    assert pushed(caller, target, tmp_path) == ["uploaded"]
    assert pushed(caller, target, tmp_path) == ["present"]
    assert taken(target, tmp_path) == MODEL


def test_a_filesystem_of_fsspec_gives_back_what_was_pushed(caller: Caller, tmp_path: Path) -> None:
    target = "memory://models/mirror"
    assert pushed(caller, target, tmp_path) == ["uploaded"]
    assert pushed(caller, target, tmp_path) == ["present"]
    assert taken(target, tmp_path) == MODEL


def test_a_mirror_is_asked_first_and_the_sources_after_it(caller: Caller, tmp_path: Path) -> None:
    target = str(tmp_path / "mirror")
    pushed(caller, target, tmp_path)
    new = tmp_path / "new"
    new.mkdir()
    settings = settings_at(new, TEA_MODELS_MIRROR=target)
    (file,) = sync(tmp_path / "models.lock", Caller(settings), frozen=True).files
    assert file.path.read_bytes() == MODEL
    assert str(tmp_path / "mirror") in file.source
    notes: list[str] = []
    nothing_there = Caller(settings_at(tmp_path / "other", TEA_MODELS_MIRROR=str(tmp_path / "none")), note=notes.append)
    with pytest.raises(NotAvailableError):
        sync(tmp_path / "models.lock", nothing_there, frozen=True)
    assert any("trying the next source" in note for note in notes)


def test_what_a_mirror_has_under_a_hash_is_not_believed(caller: Caller, tmp_path: Path) -> None:
    target = tmp_path / "mirror"
    pushed(caller, str(target), tmp_path)
    blob = target / "blobs" / "sha256" / SHA256
    blob.write_bytes(MODEL[:-1] + b"?")
    with pytest.raises(ChecksumMismatchError, match=re.escape(f"from file:{blob}: sha256 is")):
        taken(str(target), tmp_path)
    assert not list((tmp_path / "new" / "store").glob("*.gguf"))
    assert pushed(caller, str(target), tmp_path) == ["uploaded"], "one that rotted is written again"
    blob.write_bytes(MODEL[:-1])
    assert pushed(caller, str(target), tmp_path) == ["uploaded"], "half a file is written again"
    assert taken(str(target), tmp_path) == MODEL


def test_a_store_that_rotted_is_not_pushed(caller: Caller, tmp_path: Path) -> None:
    (path,) = (tmp_path / "store").glob("*.gguf")
    record = Store.of(caller.settings).records()
    stat = path.stat()
    path.chmod(0o644)
    path.write_bytes(MODEL[:-1] + b"?")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert record
    with pytest.raises((ChecksumMismatchError, NotAvailableError)):
        pushed(caller, str(tmp_path / "mirror"), tmp_path)
    assert not (tmp_path / "mirror" / "models.lock").exists()
    assert not list((tmp_path / "mirror").rglob(SHA256))


@pytest.mark.parametrize("target", ["", "oci://", "oci://host", "oci://user:secret@host/repo", "oci://host/UPPER"])
def test_a_target_that_is_none_is_refused_without_showing_secrets(caller: Caller, tmp_path: Path, target: str) -> None:
    with pytest.raises(UsageError) as refused:
        pushed(caller, target, tmp_path)
    assert "secret" not in str(refused.value)


def test_the_command_answers_as_json(caller: Caller, tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "tea_models.cli", "push", str(tmp_path / "mirror"), *arguments]
        environ = {**os.environ, **caller.settings.environ}
        return subprocess.run(line, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)

    (file,) = json.loads(command("--json").stdout)
    assert (file["sha256"], file["status"]) == (SHA256, "uploaded")
    assert Path(file["target"].removeprefix("file:")).read_bytes() == MODEL
    assert command("--lock", "none").returncode == 4


# A real registry: `docker-registry` of Debian


@contextmanager
def oci_registry(folder: Path, **more: object) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "log": {"level": "error"},
        **more,
    }
    (folder / "registry.json").write_text(json.dumps(config))
    assert REGISTRY is not None
    process = subprocess.Popen(
        [REGISTRY, "serve", str(folder / "registry.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.1)
            else:
                break
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


needs_registry = pytest.mark.skipif(REGISTRY is None, reason="no docker-registry is installed")


@needs_registry
def test_an_oci_registry_gives_back_what_was_pushed(caller: Caller, tmp_path: Path) -> None:
    with oci_registry(tmp_path) as host:
        target = f"oci://{host}/team/models:v1"
        assert pushed(caller, target, tmp_path) == ["uploaded"]
        assert pushed(caller, target, tmp_path) == ["present"]
        assert taken(target, tmp_path) == MODEL
        with pytest.raises(NotAvailableError, match="no manifests/none"):
            taken(f"oci://{host}/team/models:none", tmp_path)
        # The lock decides, wherever a tag has moved to.
        moved = replace(read_lock(tmp_path / "models.lock"), models={})
        push(moved, target, caller)
        new = tmp_path / "again"
        new.mkdir()
        (file,) = sync(tmp_path / "models.lock", Caller(settings_at(new)), frozen=True, origin=target).files
        assert file.path.read_bytes() == MODEL
    with pytest.raises(NotAvailableError, match="can't be reached"):
        pushed(caller, target, tmp_path)


@needs_registry
def test_an_oci_registry_with_a_password_wants_the_right_one(caller: Caller, tmp_path: Path) -> None:
    # `user:secret`, hashed with bcrypt (cost 4).
    (tmp_path / "htpasswd").write_text("user:$2b$04$paGrpv85jTnNWY7dFMjJmO8OAWbiPa/oXLUHJsn0Uu/n6JzNCI0l.\n")
    auth = {"auth": {"htpasswd": {"realm": "models", "path": str(tmp_path / "htpasswd")}}}
    with oci_registry(tmp_path, **auth) as host:
        target = f"oci://{host}/team/models"
        with pytest.raises(AccessDeniedError, match="wants a password"):
            pushed(caller, target, tmp_path)
        name = "TEA_MODELS_AUTH_127_0_0_1"
        wrong = Caller(replace(caller.settings, environ=caller.settings.environ | {name: "user:wrong"}))
        with pytest.raises(AccessDeniedError, match="answers 401"):
            pushed(wrong, target, tmp_path)
        right = Caller(replace(caller.settings, environ=caller.settings.environ | {name: "user:secret"}))
        assert pushed(right, target, tmp_path) == ["uploaded"]
        assert taken(target, tmp_path, **{name: "user:secret"}) == MODEL
        with pytest.raises(AccessDeniedError):
            taken(target, tmp_path)


# A real S3 server: moto's


def test_a_bucket_gives_back_what_was_pushed(caller: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto.server", reason="checked where moto[s3,server] and s3fs are installed")
    s3fs = pytest.importorskip("s3fs", reason="checked where moto[s3,server] and s3fs are installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem().mkdir("models")
        target = "s3://models/team"
        assert pushed(caller, target, tmp_path) == ["uploaded"]
        assert pushed(caller, target, tmp_path) == ["present"]
        assert taken(target, tmp_path) == MODEL
        with pytest.raises(NotAvailableError):
            pushed(caller, "s3://no-such-bucket/team", tmp_path)
    finally:
        server.stop()
