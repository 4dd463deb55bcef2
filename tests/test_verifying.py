"""`verify`: every byte is read again, and what is wrong is named."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tea_models.caller import Caller
from tea_models.errors import MissingFileError, NotAvailableError, UnknownModelError
from tea_models.gguf.bytes_source import FileSource
from tea_models.gguf.header import read_header
from tea_models.redact import redact_data
from tea_models.settings import Settings
from tea_models.verbs.pull import pull
from tea_models.verbs.verify import verify
from tests.faulty_server import FaultyServer
from tests.gguf_build import build_gguf, small_llama_metadata, small_llama_tensors

MODEL = build_gguf(small_llama_metadata(), small_llama_tensors())
OTHER = build_gguf(small_llama_metadata(**{"general.name": "another"}), small_llama_tensors())


def sha(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def server():
    with FaultyServer(MODEL) as running:
        yield running


@pytest.fixture
def settings(tmp_path, server):
    """A registry with one model, which the server has."""
    registry = tmp_path / "registry.yaml"
    registry.write_text(f"""
schema: tea.registry/1
models:
  small:
    variants:
      F32:
        files:
        - filename: small.gguf
          size: {len(MODEL)}
          sha256: {sha(MODEL)}
          sources: ["{server.url}"]
""")
    environ = {"HOME": str(tmp_path / "home"), "TEA_MODELS_DIR": str(tmp_path / "store"), "TEA_REGISTRY": str(registry)}
    return Settings.resolve(environ, cwd=tmp_path)


def damage(path: Path, at: int = -1):
    """Change one byte, and leave size and time stamp as they were."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_was_pulled_is_ok(settings):
    (pulled,) = pull("small", settings=settings)
    (result,) = verify(None, Caller(settings))
    assert (result.status, result.path, result.loadable, result.problems) == ("ok", pulled.path, True, ())
    assert result.expected_sha256 == result.actual_sha256 == sha(MODEL)
    assert verify(["small"], Caller(settings))[0].status == "ok"
    assert verify([str(pulled.path)], Caller(settings))[0].status == "ok"


def test_the_document_has_the_keys_of_the_contract(settings):
    pull("small", settings=settings)
    document = redact_data(verify(None, Caller(settings))[0])
    assert {"name", "path", "status", "expected_sha256", "actual_sha256"} <= set(document)
    assert json.loads(json.dumps(document)) == document


def test_one_changed_bit_is_found_though_the_time_stamp_is_the_old_one(settings):
    (pulled,) = pull("small", settings=settings)
    damage(pulled.path)
    (result,) = verify(["small"], Caller(settings))
    assert (result.status, result.expected_sha256) == ("corrupt", sha(MODEL))
    assert result.actual_sha256 == sha(pulled.path.read_bytes()) != sha(MODEL)


def test_a_file_that_is_gone_is_missing(settings):
    (pulled,) = pull("small", settings=settings)
    pulled.path.unlink()
    for names in (None, ["small"]):
        (result,) = verify(names, Caller(settings))
        assert (result.status, result.expected_sha256, result.actual_sha256) == ("missing", sha(MODEL), None)


def test_a_model_that_was_never_pulled_is_missing(settings):
    (result,) = verify(["small"], Caller(settings))
    assert (result.status, result.path) == ("missing", settings.store_dir / "small.gguf")


def test_an_unknown_name_is_an_error(settings):
    with pytest.raises(UnknownModelError):
        verify(["smal"], Caller(settings))


def test_a_file_without_a_pin_is_unpinned_and_its_later_change_is_corrupt(settings):
    with FaultyServer(OTHER) as other:
        (pulled,) = pull(other.url, settings=settings)
    (result,) = verify([str(pulled.path)], Caller(settings))
    assert (result.status, result.actual_sha256) == ("unpinned", sha(OTHER))
    damage(pulled.path)
    assert verify(None, Caller(settings))[0].status == "corrupt"


def test_a_file_in_the_store_that_nobody_recorded_is_unpinned(settings):
    settings.store_dir.mkdir()
    (settings.store_dir / "stray.gguf").write_bytes(OTHER)
    (result,) = verify(None, Caller(settings))
    assert (result.status, result.expected_sha256) == ("unpinned", None)


def test_a_path_outside_the_store_is_known_by_its_hash(settings, tmp_path):
    copy = tmp_path / "renamed.gguf"
    copy.write_bytes(MODEL)
    assert verify([str(copy)], Caller(settings))[0].status == "ok"


def test_a_file_that_is_no_gguf_is_corrupt_and_says_where(settings, tmp_path):
    path = tmp_path / "page.gguf"
    path.write_bytes(b"<html>" + bytes(100))
    (result,) = verify([str(path)], Caller(settings))
    assert (result.status, result.loadable) == ("corrupt", False)
    assert "byte 0" in result.problems[0]


def test_a_legal_file_that_the_engine_can_not_load_says_why(settings, tmp_path):
    path = tmp_path / "no-architecture.gguf"
    path.write_bytes(build_gguf({"general.name": "x"}, []))
    (result,) = verify([str(path)], Caller(settings))
    assert (result.status, result.loadable) == ("unpinned", False)
    assert result.problems
    assert result.broken


def test_a_missing_shard_is_named(settings, tmp_path):
    path = tmp_path / "m-00001-of-00002.gguf"
    path.write_bytes(MODEL)
    first, second = verify([str(path)], Caller(settings))
    assert (first.path.name, second.path.name) == ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    assert second.status == "missing"


@pytest.mark.parametrize("kind", ["directory", "FIFO"])
def test_what_is_no_file_is_refused_and_not_read(settings, tmp_path, kind):
    path = tmp_path / "x.gguf"
    os.mkfifo(path) if kind == "FIFO" else path.mkdir()
    with pytest.raises(MissingFileError):
        verify([str(path)], Caller(settings))


def test_repair_fetches_only_what_is_broken(settings, server, tmp_path):
    (pulled,) = pull("small", settings=settings)
    source = tmp_path / "other.gguf"
    source.write_bytes(OTHER)
    (good,) = pull(str(source), settings=settings)
    inode = good.path.stat().st_ino
    damage(pulled.path)
    server.seen.clear()
    results = {result.path.name: result for result in verify(None, Caller(settings), repair=True)}
    assert (results["small.gguf"].status, results["small.gguf"].repaired) == ("ok", True)
    assert not results["other.gguf"].repaired
    assert pulled.path.read_bytes() == MODEL
    assert good.path.stat().st_ino == inode
    assert len(server.seen) == 1


def test_repair_brings_back_what_is_missing(settings):
    (pulled,) = pull("small", settings=settings)
    pulled.path.unlink()
    (result,) = verify(["small"], Caller(settings), repair=True)
    assert (result.status, result.repaired, pulled.path.read_bytes()) == ("ok", True, MODEL)


def test_a_repair_that_fails_can_be_tried_again(settings, server):
    (pulled,) = pull("small", settings=settings)
    damage(pulled.path)
    honest, server.handler = server.handler, lambda e: e.reply(404)
    with pytest.raises(NotAvailableError):
        verify(None, Caller(settings), repair=True)
    assert [result.status for result in verify(None, Caller(settings))] == ["missing"]
    server.handler = honest
    assert [result.status for result in verify(None, Caller(settings), repair=True)] == ["ok"]
    assert pulled.path.read_bytes() == MODEL


def test_a_repair_leaves_no_second_copy(settings):
    (pulled,) = pull("small", settings=settings)
    damage(pulled.path)
    verify(None, Caller(settings), repair=True)
    assert not list((settings.store_dir / ".tea" / "broken").iterdir())


def command(settings, *arguments):
    environ = dict(os.environ) | settings.environ
    line = [sys.executable, "-m", "tea_models.cli", "verify", *arguments]
    return subprocess.run(line, env=environ, capture_output=True, text=True, check=False, timeout=600)


def test_the_command_ends_with_0_3_and_4(settings):
    assert command(settings).returncode == 0
    assert command(settings, "small").returncode == 4
    (pulled,) = pull("small", settings=settings)
    assert command(settings, "small").returncode == 0
    damage(pulled.path)
    broken = command(settings, "--json")
    assert broken.returncode == 3
    assert [item["status"] for item in json.loads(broken.stdout)] == ["corrupt"]
    assert sha(MODEL) in command(settings).stdout
    assert command(settings, "--repair").returncode == 0
    assert "ok" in command(settings).stdout


@pytest.mark.real
def test_the_real_model_is_ok(real_model, tmp_path):
    (result,) = verify([str(real_model)], Caller(Settings.resolve({"HOME": str(tmp_path)}, cwd=tmp_path)))
    assert result.loadable
    assert result.actual_sha256 == sha(real_model.read_bytes())


@pytest.mark.real
def test_weights_that_are_no_numbers_are_found_by_loading_them(tmp_path, real_model):
    broken = tmp_path / "nan.gguf"
    content = bytearray(real_model.read_bytes())
    with FileSource(real_model) as source:
        header = read_header(source)
    norm = next(info for info in header.tensors if info.name == "output_norm.weight")
    start = header.data_offset + norm.offset
    content[start : start + norm.size] = struct.pack("<f", float("nan")) * (norm.size // 4)
    broken.write_bytes(content)
    settings = Settings.resolve({"HOME": str(tmp_path), "TEA_MODELS_DIR": str(tmp_path / "store")}, cwd=tmp_path)
    (without,) = verify([str(broken)], Caller(settings))
    assert without.loadable
    (found,) = verify([str(broken)], Caller(settings), load=True)
    assert (found.loadable, found.broken) == (False, True)
    assert "no numbers (NaN" in found.problems[0]
    (sound,) = verify([str(real_model)], Caller(settings), load=True)
    assert (sound.loadable, sound.problems) == (True, ())
