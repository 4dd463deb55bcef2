from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tea_models.disk.hashing import holds
from tea_models.disk.operations import writing
from tea_models.disk.space import check_space
from tea_models.errors import DiskFullError, IntegrityError, StoreError
from tea_models.files import ModelFile, Source
from tea_models.refs import UrlRef
from tea_models.store import NameTakenError, Record, Store, check_name, key_of, stamp_of
from tea_models.store.locks import hold, try_hold


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def record(data: bytes, name: str = "a.gguf", **values: object) -> Record:
    known = {"file": name, "size": len(data), "sha256": sha(data)}
    return Record(**(known | {"model": "m", "source": f"https://h/{name}"} | values))  # type: ignore[arg-type]


def put(store: Store, data: bytes, name: str = "a.gguf", folder: str = "") -> Path:
    with store.partial(sha(data)) as partial:
        partial.write_bytes(data)
        return store.publish(partial, store.root / folder / name, record(data, name))


def wanted(data: bytes, name: str = "a.gguf") -> ModelFile:
    return ModelFile(name, len(data), sha(data), (Source((UrlRef(f"https://h/{name}"),)),))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def everybody_s() -> Iterator[Path]:
    """A folder that other users reach too; pytest's own are this user's alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_published_bytes_lie_under_their_name_with_a_record_and_no_partial(store: Store) -> None:
    path = put(store, b"bytes")
    assert path == store.root / "a.gguf"
    assert path.read_bytes() == b"bytes"
    assert [item.state for item in store.installed()] == ["ok"]
    assert not any(store.partials_dir.iterdir())
    assert store.path_of(wanted(b"bytes")) == path


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def opened_files() -> int:
    """How often this process has asked the system for bytes of a file: what it opens, it reads."""
    return int(Path("/proc/self/io").read_text().split()[5])


def test_an_unchanged_file_is_known_without_being_read(store: Store) -> None:
    data = b"x" * (8 << 20)
    path = put(store, data)
    before = bytes_read()
    assert store.path_of(wanted(data)) == path
    assert bytes_read() - before < len(data)


def test_a_file_with_a_new_time_stamp_is_hashed_again_and_the_record_refreshed(store: Store) -> None:
    path = put(store, b"bytes")
    os.utime(path, ns=(1, 1))
    assert [item.state for item in store.installed()] == ["changed"]
    assert store.path_of(wanted(b"bytes")) == path
    assert [item.state for item in store.installed()] == ["ok"]


def test_changed_bytes_are_not_found(store: Store) -> None:
    path = put(store, b"bytes")
    path.write_bytes(b"BYTES")
    assert store.path_of(wanted(b"bytes")) is None


def test_a_replaced_file_with_the_same_size_and_time_is_noticed_by_its_inode(store: Store) -> None:
    path = put(store, b"bytes")
    stamp = path.stat().st_mtime_ns
    other = path.with_name("other")
    other.write_bytes(b"BYTES")
    os.utime(other, ns=(stamp, stamp))
    other.replace(path)
    assert store.path_of(wanted(b"bytes")) is None


def test_a_flipped_byte_is_noticed_though_size_time_and_inode_are_those_of_before(store: Store) -> None:
    """As in a restored cache, where a file system has given the old inode to the new file."""
    path = put(store, b"bytes")
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"B")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert store.path_of(wanted(b"bytes")) is None


def test_a_record_of_an_earlier_release_is_read_and_its_file_hashed_once(store: Store) -> None:
    path = put(store, b"bytes")
    file = store.hidden / "records" / "a.gguf.json"
    document = json.loads(file.read_text())
    for key in ("ctime_ns", "device", "registry"):
        del document[key]
    file.write_text(json.dumps(document))
    assert [item.state for item in Store(store.root).installed()] == ["changed"]
    assert Store(store.root).path_of(wanted(b"bytes")) == path
    assert [item.state for item in Store(store.root).installed()] == ["ok"]


def test_a_file_that_is_written_while_it_is_hashed_is_not_trusted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(store, b"bytes")
    os.utime(path, ns=(1, 1))

    def hashed_and_then_written(path: Path, sha256: str) -> bool:
        same = holds(path, sha256)
        path.write_bytes(b"BYTES")
        return same

    monkeypatch.setattr("tea_models.store.store.holds", hashed_and_then_written)
    store.path_of(wanted(b"bytes"))
    monkeypatch.undo()
    assert [item.state for item in store.installed()] == ["changed"]
    assert store.path_of(wanted(b"bytes")) is None


def test_what_changes_between_its_check_and_its_link_is_not_taken_in(store: Store, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.gguf"
    elsewhere.write_bytes(b"bytes")
    seen = stamp_of(elsewhere.stat())
    elsewhere.write_bytes(b"BYTES")
    with pytest.raises(IntegrityError, match="changed"):
        store.link_in(elsewhere, store.root / "a.gguf", record(b"bytes"), seen)
    assert store.records() == []


def test_records_are_read_once_however_many_files_are_asked_for(store: Store) -> None:
    for number in range(30):
        put(store, b"%d" % number, f"{number}.gguf")
    for folder in (store.hidden / "records", store.hidden):
        os.utime(folder, ns=(1, 1))
    fresh, before = Store(store.root), opened_files()
    for number in range(30):
        assert fresh.path_of(wanted(b"%d" % number, f"{number}.gguf")) is not None
    assert opened_files() - before <= 3 * 30


def test_a_record_that_another_process_wrote_is_seen(store: Store) -> None:
    put(store, b"first")
    assert len(store.records()) == 1
    put(Store(store.root), b"second", folder="owner/repo")
    assert len(store.records()) == 2
    put(Store(store.root), b"third", "b.gguf", folder="owner/repo")
    assert len(store.records()) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_a_store_that_can_not_be_written_is_hashed_once_and_not_by_every_command(everybody_s: Path) -> None:
    store = Store(everybody_s / "models")
    path = put(store, b"bytes")
    os.utime(path, ns=(1, 1))  # as new as after it was unpacked somewhere
    (everybody_s / "cache").mkdir()
    (everybody_s / "cache").chmod(0o777)
    code = (
        "import os, sys; from pathlib import Path; from tea_models.store import store\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "hashed, holds = [], store.holds\n"
        "store.holds = lambda *file: hashed.append(file) or holds(*file)\n"
        "found = store.Store(Path(sys.argv[1]), Path(sys.argv[2])).path_with(sys.argv[3])\n"
        "print(found is not None, len(hashed))"
    )
    line = [sys.executable, "-c", code, str(store.root), str(everybody_s / "cache"), sha(b"bytes")]
    answers = [subprocess.run(line, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert answers == ["True 1\n", "True 0\n"]


def test_a_folder_of_the_store_that_is_a_link_is_not_the_store_s(store: Store, tmp_path: Path) -> None:
    """As somebody's cache can bring it along: a link, and a record of a file behind it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.gguf").write_bytes(b"precious")
    put(store, b"precious", folder="owner")
    shutil.rmtree(store.root / "owner")
    (store.root / "owner").symlink_to(outside)
    assert [item.state for item in store.installed()] == ["missing"]
    with pytest.raises(StoreError, match="is a link to another folder"):
        store.remove(store.root / "owner" / "a.gguf")
    with pytest.raises(StoreError, match="is a link to another folder"):
        put(store, b"other", "b.gguf", folder="owner")
    assert [path.name for path in outside.iterdir()] == ["a.gguf"]


def test_bookkeeping_is_not_written_or_removed_behind_a_link(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    path = put(store, b"bytes", "package")
    shutil.rmtree(store.hidden / "records")
    (outside / "package.json").write_text("{}")
    (store.hidden / "records").symlink_to(outside)
    with pytest.raises(StoreError, match="is a link to another folder"):
        store.remove(path)
    assert path.exists()
    assert (outside / "package.json").read_text() == "{}"


def test_what_can_not_be_removed_stays_recorded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(store, b"bytes")
    unlink = Path.unlink

    def refused(this: Path, missing_ok: bool = False) -> None:
        if this == path:
            raise PermissionError(1, "Operation not permitted", str(this))
        unlink(this, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(StoreError):
        store.remove(path)
    assert [item.state for item in store.installed()] == ["ok"]


def test_folders_of_a_store_that_a_group_shares_can_be_written_by_the_group(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    root.chmod(0o2770)
    before = os.umask(0o022)
    try:
        put(Store(root), b"bytes", folder="owner/repo")
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o7777 for path in root.rglob("*") if path.is_dir()}
    assert set(modes.values()) == {0o2770}, modes


def test_a_second_file_of_one_name_goes_to_its_repository_folder(store: Store) -> None:
    put(store, b"first")
    folder = store.folder_for([wanted(b"second", "a.gguf")], ["owner/repo"])
    assert folder == store.root / "owner" / "repo"
    put(store, b"second", folder="owner/repo")
    assert store.path_of(wanted(b"first")) == store.root / "a.gguf"
    assert store.path_of(wanted(b"second")) == store.root / "owner" / "repo" / "a.gguf"


def test_names_that_differ_only_in_case_count_as_one(store: Store) -> None:
    put(store, b"first", "Model.gguf")
    assert store.folder_for([wanted(b"second", "model.gguf")], ["owner/repo"]) == store.root / "owner" / "repo"


def test_shards_go_together_when_one_of_their_names_is_taken(store: Store) -> None:
    put(store, b"first", "m-00002-of-00002.gguf")
    files = [wanted(b"x", "m-00001-of-00002.gguf"), wanted(b"y", "m-00002-of-00002.gguf")]
    assert store.folder_for(files, ["owner/repo"]) == store.root / "owner" / "repo"


def test_a_foreign_file_in_the_way_is_refused_and_left_alone(store: Store) -> None:
    store.root.mkdir()
    foreign = store.root / "a.gguf"
    foreign.write_bytes(b"mine")
    with pytest.raises(IntegrityError, match="is there already"):
        store.folder_for([wanted(b"other", "a.gguf")], ["owner/repo"])
    assert foreign.read_bytes() == b"mine"


def test_the_right_bytes_put_there_by_hand_do_not_take_the_name(store: Store) -> None:
    store.root.mkdir()
    (store.root / "a.gguf").write_bytes(b"right")
    assert store.folder_for([wanted(b"right", "a.gguf")], []) == store.root


def test_publishing_never_overwrites(store: Store) -> None:
    put(store, b"first")
    with store.partial("key") as partial:
        partial.write_bytes(b"second")
        with pytest.raises(NameTakenError):
            store.publish(partial, store.root / "a.gguf", record(b"second"))
    assert (store.root / "a.gguf").read_bytes() == b"first"


def test_publishing_the_same_bytes_twice_is_no_collision(store: Store) -> None:
    put(store, b"first")
    assert put(store, b"first").read_bytes() == b"first"


def test_a_link_planted_at_the_final_name_is_not_written_through(store: Store, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    store.root.mkdir()
    (store.root / "a.gguf").symlink_to(victim)
    with store.partial("key") as partial:
        partial.write_bytes(b"new")
        with pytest.raises(NameTakenError):
            store.publish(partial, store.root / "a.gguf", record(b"new"))
    assert victim.read_bytes() == b"precious"


def test_a_link_planted_at_the_partial_is_removed(store: Store, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    with store.partial("key") as partial:
        place = partial
    place.symlink_to(victim)
    with store.partial("key") as partial:
        partial.write_bytes(b"new")
    assert victim.read_bytes() == b"precious"


def test_where_links_do_not_work_the_bytes_are_renamed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_args: object, **_options: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "link", no_link)
    assert put(store, b"bytes").read_bytes() == b"bytes"
    assert not any(store.partials_dir.iterdir())


def test_identical_bytes_under_two_names_are_stored_once(store: Store) -> None:
    path = put(store, b"bytes")
    second = store.link_in(path, store.root / "b.gguf", record(b"bytes", "b.gguf"))
    assert second.stat().st_ino == path.stat().st_ino
    assert {item.record.file for item in store.installed()} == {"a.gguf", "b.gguf"}


def test_linking_in_from_elsewhere_copies_where_links_do_not_work(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere.gguf"
    elsewhere.write_bytes(b"bytes")
    link = os.link

    def other_device(source: Path, target: Path, **options: object) -> None:
        if Path(source) == elsewhere:
            raise OSError(18, "cross-device link")
        link(source, target)

    monkeypatch.setattr(os, "link", other_device)
    path = store.link_in(elsewhere, store.root / "a.gguf", record(b"bytes"))
    assert path.read_bytes() == b"bytes"
    assert path.stat().st_ino != elsewhere.stat().st_ino


def test_the_same_partial_is_given_again_so_that_a_download_goes_on(store: Store) -> None:
    with store.partial("key") as first:
        first.write_bytes(b"half")
    with store.partial("key") as second:
        assert second.read_bytes() == b"half"


def test_where_locks_do_nothing_each_process_has_its_own_partial(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    with store.partial("key") as first, store.partial("key") as second:
        assert first != second
        first.write_bytes(b"x")
    assert not first.exists()


def test_a_lock_keeps_another_process_out(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tea_models.store.locks import try_hold; "
        "print(try_hold(Path(sys.argv[1])))"
    )
    with hold(tmp_path / "lock") as exclusive:
        assert exclusive
        asked = subprocess.run([sys.executable, "-c", script, tmp_path / "lock"], capture_output=True, check=True)
    assert asked.stdout == b"False\n"
    assert try_hold(tmp_path / "lock")


def test_a_forked_child_does_not_keep_the_locks_of_its_parent(tmp_path: Path) -> None:
    script = (
        "import os, sys, time; from pathlib import Path; from tea_models.store.locks import hold, try_hold\n"
        "ended, end = os.pipe()\n"
        "with hold(Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os.close(end); os.read(ended, 1); os._exit(0)\n"
        "print(try_hold(Path(sys.argv[1])))\n"
        "os.close(end); os.waitpid(child, 0)"
    )
    line = [sys.executable, "-c", script, str(tmp_path / "lock")]
    done = subprocess.run(line, capture_output=True, check=True, timeout=60)
    assert done.stdout == b"True\n"


def test_whoever_waits_for_a_lock_is_told_so(tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    script = (
        "import sys; from pathlib import Path; from tea_models.store.locks import hold\n"
        "with hold(Path(sys.argv[1]), waiting=lambda: print('waiting', flush=True)) as got: print(got)"
    )
    with hold(tmp_path / "lock"):
        process = start([sys.executable, "-c", script, str(tmp_path / "lock")], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
    assert process.communicate()[0] == b"True\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_in_a_shared_store_what_another_user_left_does_not_stand_in_the_way(everybody_s: Path, tmp_path: Path) -> None:
    store = Store(everybody_s / "models")
    with store.partial("key") as partial:
        partial.write_bytes(b"theirs")
    for path in (store.root, store.hidden, store.partials_dir, store.lock_path("key").parent):
        path.chmod(0o777)
    code = (
        "import os, sys; from pathlib import Path; from tea_models.store import Store\n"
        # Once as the user who may read this environment, so that every module is loaded.
        "with Store(Path(sys.argv[2])).partial('key'): pass\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "with Store(Path(sys.argv[1])).partial('key') as partial: partial.write_bytes(b'mine'); print(partial.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, store.root, tmp_path / "else"], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().endswith(".part"), done.stderr
    assert done.stdout.strip() != partial.name
    assert [path.read_bytes() for path in store.partials_dir.iterdir()] == [b"theirs"]


def test_removing_takes_record_profile_and_empty_folders_along(store: Store) -> None:
    path = put(store, b"bytes", folder="owner/repo")
    store.write_hidden(store.profile_path(path), "{}")
    assert store.remove(path) == 5
    assert store.installed() == []
    assert not store.profile_path(path).exists()
    assert not (store.root / "owner").exists()


def test_a_broken_record_counts_as_none(store: Store) -> None:
    path = put(store, b"bytes")
    file = store.hidden / "records" / "a.gguf.json"
    for text in ("", "[]", '{"schema": "other"}', json.dumps({**json.loads(file.read_text()), "file": "../../etc/x"})):
        file.write_text(text)
        assert store.installed() == []
        assert store.record_of(path) is None


def test_a_store_that_can_not_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path / "file" / "models")
    with pytest.raises(StoreError, match="in the way"), store.partial("key"):
        pass


@pytest.mark.parametrize(
    ("number", "error"), [(28, DiskFullError), (122, DiskFullError), (27, DiskFullError), (30, StoreError)]
)
def test_what_the_file_system_answers_becomes_one_of_our_errors(number: int, error: type[Exception]) -> None:
    with pytest.raises(error), writing(Path("/store")):
        raise OSError(number, os.strerror(number), "/store/x")


def test_space_is_checked_before_a_download(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="are free"):
        check_space(tmp_path / "not" / "there", 1 << 60, "a.gguf")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "a\\b",
        "C:x",
        "a\0b",
        "a\nb",
        "-rf",
        ".hidden",
        "con",
        "NUL.gguf",
        "x" * 300,
        "a.",
        "a ",
        "a\u202eb",
    ],
)
def test_hostile_names_are_refused(name: str) -> None:
    with pytest.raises(StoreError, match="can't be used as a file name"):
        check_name(name)


@pytest.mark.parametrize("name", ["a.gguf", "Modell für Ärzte (1).gguf", "模型.gguf", "a-b_c.Q4_K_M.gguf", "x" * 200])
def test_ordinary_names_are_taken(name: str) -> None:
    check_name(name)


def test_a_hash_of_something_that_is_no_file_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "nothing"):
        assert not holds(path, "0" * 64)


def test_the_key_of_a_download_is_its_hash_or_where_it_comes_from() -> None:
    assert key_of("ab" * 32, "x") == "ab" * 32
    assert key_of(None, "x") == key_of(None, "x") != key_of(None, "y")
