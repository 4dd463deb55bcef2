"""`gc`: leftovers go, models and what is being written stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from tea_models.store import Record, Store
from tea_models.store.leftovers import QUIET_SECONDS, collect, leftovers
from tea_models.store.locks import hold

KEY = "a" * 64


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "models")
    with made.partial("b" * 64) as partial:
        partial.write_bytes(b"model")
        values = {"file": "m.gguf", "size": 5, "sha256": "b" * 64, "mtime_ns": 0, "inode": 0}
        made.publish(partial, made.root / "m.gguf", Record(**values, model="m", source="https://h/m.gguf"))
    return made


def leave_partial(store, key=KEY, data=b"half"):
    with store.partial(key) as path:
        path.write_bytes(data)
        path.with_name(path.name + ".state").write_text("{}")
    return path


def later(seconds=QUIET_SECONDS + 5):
    return time.time() + seconds


def test_a_clean_store_has_nothing_to_remove(store):
    assert leftovers(store) == []


def test_what_a_broken_off_download_left_can_go_and_the_model_stays(store):
    partial = leave_partial(store)
    found = leftovers(store)
    assert {(item.kind, item.path.name) for item in found} == {
        ("partial", partial.name),
        ("partial", partial.name + ".state"),
    }
    assert partial.exists()
    assert len(collect(store, found)) == 2
    assert not partial.exists()
    assert (store.root / "m.gguf").read_bytes() == b"model"
    assert leftovers(store) == []


def test_what_is_being_written_is_not_touched(store, start):
    partial = leave_partial(store)
    found = leftovers(store)
    script = (
        "import sys; from pathlib import Path; from tea_models.store.locks import hold\n"
        "with hold(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(store.lock_path(KEY))]
    writer = start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"held\n"
    assert leftovers(store) == []
    assert collect(store, found) == []
    assert partial.exists()
    writer.stdin.close()
    writer.wait()
    assert len(leftovers(store)) == 2


def test_a_partial_of_another_host_is_left_until_it_is_quiet(store):
    store.partials_dir.mkdir(parents=True, exist_ok=True)
    foreign = store.partials_dir / f"{KEY}.0badcafe.part"
    foreign.write_bytes(b"half")
    assert leftovers(store) == []
    assert [item.path for item in leftovers(store, now=later())] == [foreign]


def test_a_partial_made_where_locks_do_nothing_is_left_until_it_is_quiet(store):
    name = leave_partial(store).name.removesuffix(".part")
    unique = store.partials_dir / f"{name}.4711-0123abcd.part"
    unique.write_bytes(b"half")
    assert unique not in [item.path for item in leftovers(store)]
    assert unique in [item.path for item in leftovers(store, now=later())]


def test_what_was_moved_aside_can_go(store):
    aside = store.set_aside(store.root / "m.gguf")
    assert [(item.path, item.kind, item.size) for item in leftovers(store)] == [(aside, "broken", 5)]


def test_records_and_profiles_of_files_that_are_gone_can_go(store):
    store.write_hidden(store.profile_path(store.root / "m.gguf"), "{}")
    (store.root / "m.gguf").unlink()
    found = leftovers(store)
    assert [item.kind for item in found] == ["orphan", "orphan"]
    collect(store, found)
    assert store.records() == []


def test_a_draft_of_a_write_that_did_not_end_can_go_when_it_is_quiet(store):
    draft = store.hidden / "records" / ".123-abc.tmp"
    draft.write_text("{")
    assert leftovers(store) == []
    assert [(item.path, item.kind) for item in leftovers(store, now=later())] == [(draft, "draft")]


def test_the_bytes_of_a_second_name_are_not_counted_as_freed(store):
    aside = store.hidden / "broken" / "x"
    aside.parent.mkdir()
    os.link(store.root / "m.gguf", aside)
    assert [item.size for item in leftovers(store)] == [0]


def test_the_lock_that_guards_a_removal_is_free_afterwards(store):
    leave_partial(store)
    collect(store, leftovers(store))
    with hold(store.lock_path(KEY)) as exclusive:
        assert exclusive


def test_the_command_shows_first_and_removes_when_told(store, monkeypatch):
    partial = leave_partial(store)
    monkeypatch.setenv("TEA_MODELS_DIR", str(store.root))

    def command(*arguments):
        line = [sys.executable, "-m", "tea_models.cli", "gc", *arguments]
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=600).stdout

    shown = json.loads(command("--json"))
    assert (shown["removed"], shown["bytes"], len(shown["items"])) == (False, 6, 2)
    assert "--yes" in command()
    assert partial.exists()
    assert json.loads(command("--yes", "--json"))["removed"] is True
    assert not partial.exists()
    assert command() == "nothing to remove\n"
