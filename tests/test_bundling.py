"""Bundles: what goes in comes out, and nothing else does."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tea_models.caller import Caller
from tea_models.engine.archives import carried
from tea_models.errors import ChecksumMismatchError, IntegrityError, LockError, MissingFileError, UsageError
from tea_models.lock.bundle import bundle
from tea_models.lock.pins import update_lock
from tea_models.lock.unbundle import unpack_bundle
from tea_models.lockfile import parse_lock, read_lock, write_lock
from tea_models.settings import Settings
from tea_models.store import Store
from tea_models.verbs.pull import pull
from tea_models.verbs.verify import verify
from tests.engine_parts import binding_of, catalog_of, library_wheel, prebuilt_of, source_distribution
from tests.faulty_server import FaultyServer
from tests.gguf_build import build_gguf, small_llama_metadata, small_llama_tensors


def model(name):
    return build_gguf(small_llama_metadata(**{"general.name": name}), small_llama_tensors())


ONE, TWO = model("one"), model("two")


def sha(data):
    return hashlib.sha256(data).hexdigest()


def settings_at(folder, registry):
    environ = {"HOME": str(folder), "TEA_MODELS_DIR": str(folder / "store"), "TEA_REGISTRY": str(registry)}
    return Settings.resolve(environ, cwd=folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A project with two locked models in the store, and their bundle; the server is gone afterwards."""
    folder = tmp_path_factory.mktemp("world")
    with FaultyServer(b"", lambda e: e.serve(data=ONE if "one" in e.path else TWO)) as server:
        entry = """
  {name}:
    license: mit
    variants:
      F32:
        files:
        - {{filename: {name}.gguf, size: {size}, sha256: "{sha}", sources: ["http://127.0.0.1:{port}/{name}.gguf"]}}"""
        models = (("one", ONE), ("two", TWO))
        entries = [entry.format(name=n, size=len(d), sha=sha(d), port=server.port) for n, d in models]
        registry = folder / "layer.yaml"
        registry.write_text("schema: tea.registry/1\nmodels:" + "".join(entries) + "\n")
        settings = settings_at(folder, registry)
        pull(["one", "two"], settings=settings)
        update_lock(folder / "models.lock", ["one", "two"], caller=Caller(settings))
    bundle(folder / "models.tar", lock_path=folder / "models.lock", caller=Caller(settings))
    return folder


@pytest.fixture
def here(world, tmp_path):
    """A copy of the project."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    settings = settings_at(tmp_path, tmp_path / "layer.yaml")
    store = Store.of(settings)
    assert all(store.intact(record) for record in store.records())  # which notes the new inodes
    return settings


@pytest.fixture
def there(tmp_path, world):
    """Another machine."""
    folder = tmp_path / "there"
    folder.mkdir()
    return settings_at(folder, world / "layer.yaml")


@pytest.fixture
def packed(tmp_path, world):
    return Path(shutil.copy(world / "models.tar", tmp_path))


def files(settings):
    return sorted(path.name for path in settings.store_dir.rglob("*.gguf"))


def rewritten(packed, change):
    """The bundle with its members changed: `change(name, data)` gives `(name, data)` pairs."""
    members = []
    with tarfile.open(packed) as tar:
        for info in tar:
            members += change(info.name, tar.extractfile(info).read())
    with tarfile.open(packed, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_what_was_bundled_is_there_afterwards(packed, there):
    unpacked = unpack_bundle(packed, caller=Caller(there))
    assert [(file.record.model, file.status) for file in unpacked.files] == [("one", "unpacked"), ("two", "unpacked")]
    assert [result.status for result in verify(None, Caller(there))] == ["ok", "ok"]
    (first, _) = Store(there.store_dir).records()
    assert (first.model, first.license, first.pinned) == ("one", "mit", True)
    assert first.source.startswith("http://127.0.0.1")


def test_a_second_time_everything_is_present(packed, there):
    unpack_bundle(packed, caller=Caller(there))
    assert {file.status for file in unpack_bundle(packed, caller=Caller(there)).files} == {"present"}


def test_the_lock_in_it_is_for_exactly_its_models_and_needs_no_other_file(tmp_path, here):
    lock_path = tmp_path / "models.lock"
    bundle(tmp_path / "one.tar", lock_path=lock_path, names=["one"], caller=Caller(here))
    with tarfile.open(tmp_path / "one.tar") as tar:
        lock = parse_lock(tar.extractfile("models.lock").read().decode(), "models.lock")
    assert (list(lock.models), lock.inputs, lock.names) == (["one"], (), ("one",))


def test_every_tar_can_read_it_and_it_is_the_same_every_time(packed, tmp_path, here):
    with tarfile.open(packed) as tar:
        names = tar.getnames()
        licenses = tar.extractfile("LICENSES.txt").read().decode()
    assert names[:2] == ["models.lock", "LICENSES.txt"]
    assert set(names[2:]) == {f"models/{sha(ONE)}", f"models/{sha(TWO)}"}
    assert "mit" in licenses
    before = packed.read_bytes()
    bundle(packed, lock_path=tmp_path / "models.lock", caller=Caller(here))
    assert packed.read_bytes() == before


def test_only_what_is_wanted_is_taken(packed, there):
    unpack_bundle(packed, caller=Caller(there), only=frozenset({sha(TWO)}))
    assert files(there) == ["two.gguf"]


def test_a_model_that_rotted_in_the_store_is_not_bundled(tmp_path, here):
    path = here.store_dir / "one.gguf"
    before = path.stat()
    path.write_bytes(ONE[:-1] + b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ChecksumMismatchError):
        bundle(tmp_path / "x.tar", lock_path=tmp_path / "models.lock", caller=Caller(here))
    assert not list(tmp_path.glob("*x.tar*"))


def test_a_model_that_is_not_in_the_store_is_named(tmp_path, here):
    (here.store_dir / "two.gguf").unlink()
    with pytest.raises(MissingFileError, match=r"two\.gguf"):
        bundle(tmp_path / "x.tar", lock_path=tmp_path / "models.lock", caller=Caller(here))


def test_a_name_that_is_not_locked_and_a_lock_that_is_not_there_are_errors(tmp_path, here):
    with pytest.raises(UsageError, match="three"):
        bundle(tmp_path / "x.tar", lock_path=tmp_path / "models.lock", names=["three"], caller=Caller(here))
    with pytest.raises(MissingFileError):
        bundle(tmp_path / "x.tar", lock_path=tmp_path / "none.lock", caller=Caller(here))


@pytest.mark.parametrize("share", [0, 0.0001, 0.3, 0.6, 0.9, 0.999])
def test_a_bundle_that_is_cut_is_refused_and_leaves_no_half_file(packed, there, share):
    data = packed.read_bytes()
    end = data.rindex(TWO) + len(TWO)
    packed.write_bytes(data[: int(end * share)])
    with pytest.raises(IntegrityError):
        unpack_bundle(packed, caller=Caller(there))
    assert all(result.status == "ok" for result in verify(None, Caller(there)))


def test_a_changed_bit_is_found(packed, there):
    data = bytearray(packed.read_bytes())
    data[data.index(TWO) + 1000] ^= 1
    packed.write_bytes(data)
    with pytest.raises(ChecksumMismatchError):
        unpack_bundle(packed, caller=Caller(there))
    assert files(there) == ["one.gguf"]
    assert not any(Store(there.store_dir).partials_dir.iterdir())


def lock_with(edit):
    """The lock of the bundle changed: `edit` gets its models."""

    def change(name, data):
        if name == "models.lock":
            document = yaml.safe_load(data)
            edit(document["models"])
            data = yaml.safe_dump(document).encode()
        return [(name, data)]

    return change


def evil_file(**changes):
    return lock_with(lambda models: models["one"]["files"][0].update(changes))


@pytest.mark.parametrize(
    "change",
    [
        evil_file(filename="../../evil.gguf"),
        evil_file(filename="/etc/evil.gguf"),
        evil_file(filename="a\nb.gguf"),
        evil_file(filename="C:evil.gguf"),
        evil_file(size=5),
        evil_file(size=-1),
        evil_file(size=1 << 60),
        evil_file(sha256="0" * 64),
        evil_file(sha256="A" * 64),
        evil_file(sha256=5),
        evil_file(sha256=None),
        evil_file(extra=1),
        evil_file(sources=["no reference at all!"]),
        evil_file(sources=["one"]),
        evil_file(sources=["hf:o/r/x.gguf\n"]),
        lock_with(lambda models: models.update({"one\ntwo": models.pop("one")})),
        lambda name, data: [(name, b"[" * 100_000 if name == "models.lock" else data)],
        lambda name, data: [(name, b"\xff\xfe" if name == "models.lock" else data)],
        lambda name, data: [] if name == "models.lock" else [(name, data)],
        lambda name, data: [(name, data), (name, data)],
        lambda name, data: [(name, data), ("models/more", b"x")] if name == "LICENSES.txt" else [(name, data)],
        lambda name, data: [("../" + name, data)],
        lambda name, data: [("/tmp/" + name, data)],
        lambda name, data: [(name, data), ("a/b/c", b"x")],
    ],
)
def test_a_bundle_made_to_do_harm_is_refused(packed, there, tmp_path, change):
    rewritten(packed, change)
    before = sorted(path for path in tmp_path.rglob("*") if there.store_dir not in path.parents)
    with pytest.raises(IntegrityError):
        unpack_bundle(packed, caller=Caller(there))
    after = sorted(path for path in tmp_path.rglob("*") if there.store_dir not in path.parents)
    assert set(after) - set(before) <= {there.store_dir}


def test_a_bundle_of_an_earlier_release_is_read(packed, there):
    def change(name, data):
        return (
            [("tea-bundle.json", b"{}"), (name, data), ("profiles/x.json", b"{}")]
            if name == "models.lock"
            else [(name, data)]
        )

    rewritten(packed, change)
    assert [file.status for file in unpack_bundle(packed, caller=Caller(there)).files] == ["unpacked", "unpacked"]


def test_a_bundle_of_a_later_release_is_told_as_such(packed, there):
    def change(name, data):
        return [(name, data.replace(b"tea.models-lock/1", b"tea.models-lock/2") if name == "models.lock" else data)]

    rewritten(packed, change)
    with pytest.raises(IntegrityError, match="written by a newer tea-models"):
        unpack_bundle(packed, caller=Caller(there))


def test_shards_of_a_bundle_lie_in_one_folder_though_the_name_of_one_is_taken(packed, there):
    """`llama.cpp` finds the parts of a model beside the first only."""

    def edit(models):
        parts = (models.pop("one")["files"][0], models["two"]["files"][0])
        for number, part in enumerate(parts, start=1):
            part["filename"] = f"m-{number:05d}-of-00002.gguf"
        models["m"] = models.pop("two") | {"files": list(parts)}

    rewritten(packed, lock_with(edit))
    other = there.store_dir.parent / "m-00002-of-00002.gguf"
    other.write_bytes(model("other"))
    pull(str(other.rename(other.with_name("x.gguf"))), settings=there)
    (there.store_dir / "x.gguf").rename(there.store_dir / "m-00002-of-00002.gguf")
    store = Store.of(there)
    (record,) = store.records()
    store.write_record(replace(record, file="m-00002-of-00002.gguf"))
    unpacked = unpack_bundle(packed, caller=Caller(there))
    assert {file.path.parent for file in unpacked.files} == {there.store_dir / "bundle"}
    assert [file.status for file in unpack_bundle(packed, caller=Caller(there)).files] == ["present", "present"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE]
)
def test_what_is_no_plain_file_is_refused(packed, there, kind):
    info = tarfile.TarInfo("models")
    info.type, info.linkname = kind, "/etc/passwd"
    packed.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + packed.read_bytes())
    with pytest.raises(IntegrityError, match="plain file"):
        unpack_bundle(packed, caller=Caller(there))


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 10240, b"x" * 5000, b"PK\x03\x04" + bytes(2000), b"\x1f\x8b\x08" + bytes(2000)]
)
def test_what_is_no_bundle_is_refused(tmp_path, there, data):
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        unpack_bundle(path, caller=Caller(there))


def test_a_bundle_that_is_not_there_is_missing(tmp_path, there):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "none.tar", tmp_path, tmp_path / "fifo"):
        with pytest.raises(MissingFileError):
            unpack_bundle(path, caller=Caller(there))


def test_the_commands_carry_models_to_a_machine_without_network(tmp_path, here, there):
    def command(folder, settings, *arguments):
        line = [sys.executable, "-m", "tea_models.cli", *arguments]
        environ = dict(os.environ) | settings.environ
        return subprocess.run(line, env=environ, cwd=folder, capture_output=True, text=True, check=False, timeout=600)

    made = command(tmp_path, here, "bundle", "-o", "m.tar", "--json")
    assert [file["name"] for file in json.loads(made.stdout)["files"]] == ["one", "two"]
    other = there.store_dir.parent
    done = command(other, there, "sync", "--frozen", "--offline", "--from", str(tmp_path / "m.tar"))
    assert done.returncode == 0, done.stderr
    assert files(there) == ["one.gguf", "two.gguf"]
    assert (other / "models.lock").is_file()
    assert command(other, there, "sync", "--frozen").returncode == 0


def test_what_is_no_bundle_is_not_overwritten(here, tmp_path):
    lock_path = tmp_path / "models.lock"
    before = lock_path.read_text()
    with pytest.raises(UsageError, match="no bundle"):
        bundle(lock_path, Caller(here), lock_path=lock_path)
    assert lock_path.read_text() == before


def test_a_bundle_carries_what_the_locked_engine_is_made_of(here, tmp_path):
    caller, lock_path = Caller(here), tmp_path / "models.lock"
    with pytest.raises(LockError, match="names no engine"):
        bundle(tmp_path / "m.tar", caller, lock_path=lock_path, with_engine=True)
    parts = tmp_path / "parts"
    parts.mkdir()
    binding, library = source_distribution(parts), library_wheel(parts)
    catalog = catalog_of(binding_of(binding), prebuilt_of(library))
    write_lock(lock_path, replace(read_lock(lock_path), engine=catalog))
    for archive, path in ((catalog.binding, binding), (catalog.engines[0], library)):
        carried(archive, caller).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, carried(archive, caller))
    made = bundle(tmp_path / "m.tar", caller, lock_path=lock_path, with_engine=True).path
    away = Caller(settings_at(tmp_path / "away", tmp_path / "layer.yaml"))
    unpack_bundle(made, away)
    for archive in (catalog.binding, catalog.engines[0]):
        assert hashlib.sha256(carried(archive, away).read_bytes()).hexdigest() == archive.sha256
    content = made.read_bytes()
    place = content.index(binding.read_bytes()) + 100
    made.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    other = Caller(settings_at(tmp_path / "other", tmp_path / "layer.yaml"))
    with pytest.raises(ChecksumMismatchError):
        unpack_bundle(made, other)
    assert not carried(catalog.binding, other).exists()
