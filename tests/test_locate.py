from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tea_models.caller import Caller
from tea_models.errors import MissingFileError, OfflineError, SourceUnavailableError, UnknownModelError, UsageError
from tea_models.files import Source, shard_names, upstream_folder
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
