from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tea_models.caller import Caller
from tea_models.errors import (
    LockError,
    MissingFileError,
    OfflineError,
    SourceUnavailableError,
    UnknownModelError,
    UsageError,
)
from tea_models.files import Source, shard_names, upstream_folder
from tea_models.lock.pins import update_lock
from tea_models.lock.sync import sync
from tea_models.profile.inspection import inspect_model
from tea_models.settings import Settings
from tea_models.sources.locate import locate
from tea_models.verbs.pull import pull
from tests.gguf_build import build_gguf
from tests.hub_server import OTHER_COMMIT, Repo, serve

MODEL = build_gguf()
OTHER = build_gguf({"general.architecture": "llama", "general.name": "other"})


def settings(tmp_path: Path, **environ: str) -> Settings:
    return Settings.resolve({"HOME": str(tmp_path)} | environ, cwd=tmp_path, store_dir=tmp_path / "models")


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(MODEL)
    found = locate(str(path), Caller(settings(tmp_path)))
    assert found.paths == (path,)
    source = found.open_source()
    assert source.read(0, 4) == b"GGUF"
    source.close()


def test_all_shards_of_a_path_are_found_from_any_of_them(tmp_path: Path) -> None:
    paths = tuple(tmp_path / f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3))
    for path in paths:
        path.write_bytes(MODEL)
    assert locate(str(paths[1]), Caller(settings(tmp_path))).paths == paths
    paths[2].unlink()
    with pytest.raises(MissingFileError, match="m-00003-of-00003"):
        locate(str(paths[1]), Caller(settings(tmp_path)))


def test_a_bare_file_name_may_be_one_of_the_store(tmp_path: Path) -> None:
    with serve(files={"/m.gguf": MODEL}) as server:
        (result,) = pull(f"{server.url}/m.gguf", settings=settings(tmp_path), adopt=False)
    assert locate("m.gguf", Caller(settings(tmp_path))).paths == (result.path,)


def test_a_name_is_found_in_the_store_or_stays_where_it_is(tmp_path: Path) -> None:
    with serve(files={"/m.gguf": MODEL}) as server:
        entry = {"filename": "m.gguf", "sha256": hashlib.sha256(MODEL).hexdigest(), "sources": [f"{server.url}/m.gguf"]}
        document = {"schema": "tea.registry/1", "models": {"tiny": {"variants": {"F32": {"files": [entry]}}}}}
        (tmp_path / "registry.yaml").write_text(json.dumps(document))
        mine = settings(tmp_path)
        assert locate("tiny", Caller(mine)).paths == ()
        with pytest.raises(MissingFileError, match="not in the store") as caught:
            locate("tiny", Caller(mine), remote=False)
        assert caught.value.hint == "tea-models pull tiny"
        (result,) = pull("tiny", settings=mine, adopt=False)
        assert locate("tiny:f32", Caller(mine), remote=False).paths == (result.path,)
        with pytest.raises(OfflineError):
            locate("smollm2-135m", Caller(settings(tmp_path, TEA_OFFLINE="1")))
        with pytest.raises(UnknownModelError):
            locate("tinny", Caller(mine))


@pytest.fixture
def two_versions(tmp_path: Path) -> Iterator[tuple[Path, Settings, Settings]]:
    """A project whose lock and registry mean different bytes by one name; settings in its folder, and without it."""
    with serve(files={"/old.gguf": MODEL, "/new.gguf": OTHER}) as server:

        def registry(path: str, data: bytes) -> None:
            sha256 = hashlib.sha256(data).hexdigest()
            entry = {"filename": "m.gguf", "sha256": sha256, "size": len(data), "sources": [server.url + path]}
            document = {"schema": "tea.registry/1", "models": {"tiny": {"variants": {"F32": {"files": [entry]}}}}}
            (tmp_path / "layer.yaml").write_text(json.dumps(document))

        def at(folder: Path, **environ: str) -> Settings:
            environ = {"HOME": str(tmp_path), "TEA_REGISTRY": str(tmp_path / "layer.yaml")} | environ
            return Settings.resolve(environ, cwd=folder, store_dir=tmp_path / "models")

        project = tmp_path / "project"
        (project / "deep" / "down").mkdir(parents=True)
        registry("/old.gguf", MODEL)
        update_lock(project / "models.lock", ["tiny"], caller=Caller(at(project)))
        registry("/new.gguf", OTHER)
        yield project, at(project / "deep" / "down"), at(tmp_path)


def test_a_name_means_what_the_nearest_lock_says(two_versions: tuple[Path, Settings, Settings]) -> None:
    project, inside, outside = two_versions
    (locked,) = pull("tiny", settings=inside, adopt=False)
    assert locked.path.read_bytes() == MODEL
    said: list[str] = []
    found = locate("tiny", Caller(inside, note=said.append), remote=False)
    assert (found.paths, found.lock) == ((locked.path,), project / "models.lock")
    assert said == [f"tiny: as locked in {project / 'models.lock'}"]
    assert locate("tiny:F32", Caller(inside), remote=False).paths == (locked.path,)
    with pytest.raises(MissingFileError):
        locate("tiny", Caller(outside), remote=False)
    (newer,) = pull("tiny", settings=outside, adopt=False)
    assert newer.path.read_bytes() == OTHER
    assert inspect_model("tiny", settings=inside).path == str(locked.path)
    assert inspect_model("tiny", settings=outside).path == str(newer.path)


def test_a_lock_is_enough_where_no_registry_has_the_name(two_versions: tuple[Path, Settings, Settings]) -> None:
    project, inside, _ = two_versions
    alone = replace(inside, registry_files=())
    (result,) = pull("tiny", settings=alone, adopt=False)
    assert result.path.read_bytes() == MODEL
    assert locate("tiny", Caller(alone), remote=False).paths == (result.path,)
    assert sync(project / "models.lock", Caller(alone), frozen=True).files[0].path == result.path


def test_only_what_is_locked_is_used_where_that_is_asked_for(
    two_versions: tuple[Path, Settings, Settings], tmp_path: Path
) -> None:
    _, inside, outside = two_versions
    only = Caller(replace(inside, locked=True))
    (result,) = pull("tiny", settings=only.settings, adopt=False)
    assert locate("tiny", only, remote=False).paths == (result.path,)
    assert locate(str(result.path), only).paths == (result.path,)
    (other,) = pull("tiny", settings=outside, adopt=False)
    stray = tmp_path / "stray.gguf"
    stray.write_bytes(MODEL)
    for text in ("smollm2-135m", "hf:o/r", str(other.path), str(stray)):
        with pytest.raises(LockError, match="only locked models"):
            locate(text, only)
    with pytest.raises(LockError, match="only locked models"):
        pull("smollm2-135m", settings=only.settings)
    with pytest.raises(LockError, match=r"no models\.lock"):
        locate("tiny", Caller(replace(outside, locked=True)))


def test_a_lock_above_a_repository_or_the_home_is_not_the_project_s(tmp_path: Path) -> None:
    inner = tmp_path / "home" / "repository" / "inner"
    inner.mkdir(parents=True)
    lock = tmp_path / "models.lock"
    lock.touch()

    def nearest() -> Path | None:
        return Settings.resolve({"HOME": str(tmp_path / "home")}, cwd=inner).lock_file

    assert nearest() is None
    (tmp_path / "home" / "models.lock").touch()
    assert nearest() == tmp_path / "home" / "models.lock"
    (inner.parent / ".git").mkdir()
    assert nearest() is None
    (inner.parent / "models.lock").touch()
    assert nearest() == inner.parent / "models.lock"


def test_a_model_that_is_not_here_is_read_in_parts(tmp_path: Path) -> None:
    with serve(repos={"o/r": Repo({"x-F32.gguf": MODEL})}) as server:
        found = locate("hf:o/r", Caller(settings(tmp_path, HF_ENDPOINT=server.url)))
        assert found.paths == ()
        source = found.open_source()
        assert source.read(0, 24) == MODEL[:24]
        source.close()


def test_a_wheel_can_not_be_read_in_parts(tmp_path: Path) -> None:
    found = locate("pypi:x==1/y.gguf", Caller(settings(tmp_path)))
    with pytest.raises(SourceUnavailableError) as caught:
        found.open_source()
    assert "pull" in caught.value.hint


def test_offline_the_store_answers_for_the_hub(tmp_path: Path) -> None:
    files = {"x-F32.gguf": MODEL, "x-Q8_0.gguf": OTHER}
    with serve(repos={"o/r": Repo(files, older={OTHER_COMMIT: files})}) as server:
        mine = settings(tmp_path, HF_ENDPOINT=server.url)
        offline = settings(tmp_path, HF_ENDPOINT=server.url, TEA_OFFLINE="1")
        with pytest.raises(OfflineError):
            locate("hf:o/r:F32", Caller(offline))
        (first,) = pull("hf:o/r:F32", settings=mine, adopt=False)
        for text in ("hf:o/r", "hf:o/r:F32", "hf:o/r/x-F32.gguf", f"hf:o/r/x-F32.gguf@{first.revision}"):
            assert locate(text, Caller(offline)).paths == (first.path,)
        for text in ("hf:o/r:Q8_0", f"hf:o/r/x-F32.gguf@{OTHER_COMMIT}"):
            with pytest.raises(OfflineError):
                locate(text, Caller(offline))
        pull("hf:o/r:Q8_0", settings=mine, adopt=False)
        with pytest.raises(UsageError, match="several files"):
            locate("hf:o/r", Caller(offline))
        server.requests.clear()
        assert locate(f"hf:o/r/x-F32.gguf@{first.revision}", Caller(mine)).paths == (first.path,)
        assert server.requests == []


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("hf:owner/repo/x.gguf", "owner/repo"),
        ("pypi:Pack==1/x.gguf", "pypi/pack"),
        ("https://Host:8080/a/x.gguf", "host"),
        ("ollama:ns/name", "ollama/ns"),
        ("file:/x/y.gguf", "local"),
        ("s3://bucket/x.gguf", "bucket"),
    ],
)
def test_files_of_one_name_are_told_apart_by_where_they_come_from(text: str, folder: str) -> None:
    assert upstream_folder(Source.parse(text)) == folder


@pytest.mark.parametrize("name", ["m.gguf", "m-00000-of-00002.gguf", "m-00003-of-00002.gguf", "m-00001-of-99999.gguf"])
def test_what_does_not_count_as_a_shard_is_a_file_of_its_own(name: str) -> None:
    assert shard_names(name) == (name,)
