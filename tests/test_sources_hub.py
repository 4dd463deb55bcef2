from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tea_models.caller import Caller
from tea_models.errors import (
    AccessDeniedError,
    ChecksumMismatchError,
    MissingFileError,
    OfflineError,
    SourceUnavailableError,
    UnknownModelError,
    UsageError,
)
from tea_models.refs import HubRef
from tea_models.settings import Settings
from tea_models.sources import fetch, hub, resolve
from tests.gguf_build import build_gguf
from tests.hub_server import COMMIT, OTHER_COMMIT, Repo, Server, serve

MODEL = build_gguf()
OTHER = build_gguf({"general.architecture": "llama", "general.name": "other"})
TOKEN = "hf_secret_token"


def settings(server: Server, tmp_path: Path, **environ: str) -> Settings:
    return Settings.resolve({"HOME": str(tmp_path), "HF_ENDPOINT": server.url} | environ, cwd=tmp_path)


@pytest.fixture
def server() -> Iterator[Server]:
    files = {
        "tiny-Q4_K_M.gguf": MODEL,
        "tiny-Q8_0.gguf": OTHER,
        "mmproj-tiny-F16.gguf": OTHER,
        "README.md": b"# tiny",
        "big/tiny-BF16-00001-of-00002.gguf": MODEL,
        "big/tiny-BF16-00002-of-00002.gguf": OTHER,
    }
    with serve(repos={"owner/tiny-GGUF": Repo(files, older={OTHER_COMMIT: {"tiny-Q4_K_M.gguf": OTHER}})}) as server:
        yield server


def test_a_file_is_resolved_to_its_commit_size_and_hash(server: Server, tmp_path: Path) -> None:
    artifact = resolve("hf:owner/tiny-GGUF/tiny-Q4_K_M.gguf", Caller(settings(server, tmp_path)))
    (file,) = artifact.files
    assert (file.filename, file.size, file.sha256) == (
        "tiny-Q4_K_M.gguf",
        len(MODEL),
        hashlib.sha256(MODEL).hexdigest(),
    )
    assert file.sources[0].revision == COMMIT
    assert str(file.sources[0]) == f"hf:owner/tiny-GGUF/tiny-Q4_K_M.gguf@{COMMIT}"


def test_a_quantisation_chooses_the_file_whatever_its_case(server: Server, tmp_path: Path) -> None:
    artifact = resolve("hf:owner/tiny-GGUF:q8_0", Caller(settings(server, tmp_path)))
    assert [file.filename for file in artifact.files] == ["tiny-Q8_0.gguf"]
    assert artifact.license == "apache-2.0"


def test_a_quantisation_may_be_the_name_of_a_folder(tmp_path: Path) -> None:
    with serve(repos={"o/r": Repo({"Q4_0/model.gguf": MODEL, "Q8_0/model.gguf": OTHER})}) as server:
        (file,) = resolve("hf:o/r:Q8_0", Caller(settings(server, tmp_path))).files
    assert (file.filename, file.sha256) == ("model.gguf", hashlib.sha256(OTHER).hexdigest())


def test_shards_are_one_model_each_with_its_hash(server: Server, tmp_path: Path) -> None:
    for text in ("hf:owner/tiny-GGUF:BF16", "hf:owner/tiny-GGUF/big/tiny-BF16-00002-of-00002.gguf"):
        files = resolve(text, Caller(settings(server, tmp_path))).files
        assert [file.filename for file in files] == ["tiny-BF16-00001-of-00002.gguf", "tiny-BF16-00002-of-00002.gguf"]
        assert [file.sha256 for file in files] == [hashlib.sha256(data).hexdigest() for data in (MODEL, OTHER)]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    repo = Repo({"x-Q4_0-00001-of-00002.gguf": MODEL})
    with serve(repos={"o/r": repo}) as server, pytest.raises(MissingFileError, match="x-Q4_0-00002-of-00002"):
        resolve("hf:o/r:Q4_0", Caller(settings(server, tmp_path)))


def test_a_revision_is_honoured(server: Server, tmp_path: Path) -> None:
    artifact = resolve(f"hf:owner/tiny-GGUF/tiny-Q4_K_M.gguf@{OTHER_COMMIT}", Caller(settings(server, tmp_path)))
    assert artifact.files[0].sha256 == hashlib.sha256(OTHER).hexdigest()
    with pytest.raises(MissingFileError, match="no revision 'v9'"):
        resolve("hf:owner/tiny-GGUF/tiny-Q4_K_M.gguf@v9", Caller(settings(server, tmp_path)))


def test_an_ambiguous_repository_lists_what_there_is(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Q4_K_M.*Q8_0"):
        resolve("hf:owner/tiny-GGUF", Caller(settings(server, tmp_path)))


def test_an_absent_quantisation_lists_what_there_is(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="has no Q5_K_M") as caught:
        resolve("hf:owner/tiny-GGUF:Q5_K_M", Caller(settings(server, tmp_path)))
    assert "Q4_K_M" in caught.value.hint
    assert "mmproj" not in caught.value.hint


def test_a_repository_with_one_model_needs_no_quantisation(tmp_path: Path) -> None:
    with serve(repos={"o/r": Repo({"only-Q4_0.gguf": MODEL, "mmproj-F16.gguf": OTHER})}) as server:
        assert resolve("hf:o/r", Caller(settings(server, tmp_path))).files[0].filename == "only-Q4_0.gguf"


def test_a_repository_without_gguf_files_says_so(tmp_path: Path) -> None:
    with (
        serve(repos={"o/r": Repo({"model.safetensors": b"x"})}) as server,
        pytest.raises(UnknownModelError, match="GGUF"),
    ):
        resolve("hf:o/r", Caller(settings(server, tmp_path)))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("hf:owner/no-such", MissingFileError),
        ("hf:owner/no-such/x.gguf", MissingFileError),
        ("hf:owner/tiny-GGUF/none.gguf", MissingFileError),
    ],
)
def test_what_is_not_there_is_told_apart(server: Server, tmp_path: Path, text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        resolve(text, Caller(settings(server, tmp_path)))


def test_a_gated_model_says_how_to_get_access(tmp_path: Path) -> None:
    repo = Repo({"x-Q4_0.gguf": MODEL}, gated=True, private_token=TOKEN)
    with serve(repos={"meta/gated": repo}) as server:
        for text in ("hf:meta/gated", "hf:meta/gated/x-Q4_0.gguf"):
            with pytest.raises(AccessDeniedError) as caught:
                resolve(text, Caller(settings(server, tmp_path)))
            assert "licence" in caught.value.hint
            assert "HF_TOKEN" in caught.value.hint


def test_a_model_that_is_listed_and_not_given_away_says_how_to_get_access(tmp_path: Path) -> None:
    repo = Repo({"x-Q4_0.gguf": MODEL}, gated=True, private_token=TOKEN, listed=True)
    with serve(repos={"meta/gated": repo}) as server:
        mine = settings(server, tmp_path, HF_TOKEN="hf_wrong")
        (file,) = resolve("hf:meta/gated", Caller(mine)).files
        with pytest.raises(AccessDeniedError) as caught:
            fetch(file, tmp_path / "x.part", Caller(mine))
        assert "accept its licence" in caught.value.hint
        assert "hf_wrong" not in caught.value.message + caught.value.hint


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(tmp_path: Path) -> None:
    with serve(files={"/cdn/x-Q4_0.gguf": MODEL}) as cdn:
        repo = Repo({"x-Q4_0.gguf": MODEL}, gated=True, private_token=TOKEN)
        with serve(repos={"meta/gated": repo}, redirect_to=cdn.url) as server:
            mine = settings(server, tmp_path, HF_TOKEN=TOKEN)
            artifact = resolve("hf:meta/gated:Q4_0", Caller(mine))
            arrived = fetch(artifact.files[0], tmp_path / "x.part", Caller(mine))
            assert arrived.sha256 == hashlib.sha256(MODEL).hexdigest()
            assert {headers.get("authorization") for headers in server.asked("")} == {f"Bearer {TOKEN}"}
            assert cdn.asked("/cdn/") != []
            assert not any("authorization" in headers for headers in cdn.asked(""))
            assert TOKEN not in str(artifact) + str(arrived) + repr(mine)


def test_what_another_host_states_about_a_repository_does_not_count(server: Server, tmp_path: Path) -> None:
    path = "/api/models/owner/tiny-GGUF"
    with serve(redirects={path: server.url}) as asked:
        with pytest.raises(SourceUnavailableError, match="another host"):
            resolve("hf:owner/tiny-GGUF:Q8_0", Caller(settings(asked, tmp_path)))
        asked.redirects = {path: f"{asked.url}/moved"}  # a repository that was renamed
        with pytest.raises(MissingFileError, match="no such repository"):
            resolve("hf:owner/tiny-GGUF:Q8_0", Caller(settings(asked, tmp_path)))
        assert asked.asked("/moved/")
    assert server.requests == []


def test_the_token_of_the_hubs_own_store_goes_to_no_other_endpoint(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    resolve("hf:owner/tiny-GGUF:Q8_0", Caller(settings(server, tmp_path)))
    assert not any("authorization" in headers for headers in server.asked(""))
    assert hub.token_for(Settings.resolve({"HOME": str(tmp_path)}, cwd=tmp_path)) == TOKEN


def test_bytes_come_from_the_commit_even_if_the_branch_moves(server: Server, tmp_path: Path) -> None:
    mine = settings(server, tmp_path)
    artifact = resolve("hf:owner/tiny-GGUF/tiny-Q4_K_M.gguf", Caller(mine))
    repo = server.repos["owner/tiny-GGUF"]
    repo.older[COMMIT], repo.commit, repo.files = dict(repo.files), "f" * 40, {"tiny-Q4_K_M.gguf": OTHER}
    arrived = fetch(artifact.files[0], tmp_path / "x.part", Caller(mine))
    assert (arrived.revision, arrived.sha256) == (COMMIT, hashlib.sha256(MODEL).hexdigest())


def test_a_registry_source_without_a_commit_gets_one(server: Server, tmp_path: Path) -> None:
    from tea_models.files import ModelFile, Source

    reference = HubRef("owner/tiny-GGUF", "tiny-Q4_K_M.gguf")
    file = ModelFile("tiny-Q4_K_M.gguf", None, None, (Source((reference,)),))
    assert fetch(file, tmp_path / "x.part", Caller(settings(server, tmp_path))).revision == COMMIT


def test_other_bytes_than_the_hub_announced_are_refused(server: Server, tmp_path: Path) -> None:
    mine = settings(server, tmp_path)
    artifact = resolve("hf:owner/tiny-GGUF/tiny-Q4_K_M.gguf", Caller(mine))
    server.repos["owner/tiny-GGUF"].files["tiny-Q4_K_M.gguf"] = MODEL[:-1] + b"!"
    with pytest.raises(ChecksumMismatchError):
        fetch(artifact.files[0], tmp_path / "x.part", Caller(mine))
    assert not (tmp_path / "x.part").exists()


def test_a_busy_hub_is_asked_again(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tea_models.net.client.time.sleep", lambda _: None)
    server.fail_next = [503, 429]
    assert resolve("hf:owner/tiny-GGUF:Q8_0", Caller(settings(server, tmp_path))).files
    server.fail_next = [500] * 4
    with pytest.raises(SourceUnavailableError, match="answers 500"):
        resolve("hf:owner/tiny-GGUF:Q8_0", Caller(settings(server, tmp_path)))


def test_a_hub_that_is_not_there_and_offline_are_different_errors(tmp_path: Path) -> None:
    away = Settings.resolve({"HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}, cwd=tmp_path)
    with pytest.raises(SourceUnavailableError, match="can't be asked"):
        resolve("hf:o/r", Caller(away))
    offline = Settings.resolve({"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}, cwd=tmp_path)
    with pytest.raises(OfflineError):
        resolve("hf:o/r", Caller(offline))


def test_what_only_xet_delivers_comes_through_the_hubs_own_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The library's own plain download stands in for the protocol that no test server speaks.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with serve(repos={"o/r": Repo({"x-Q4_0.gguf": MODEL})}, xet_only=True) as server:
        mine = settings(server, tmp_path)
        (file,) = resolve("hf:o/r:Q4_0", Caller(mine)).files
        arrived = fetch(file, tmp_path / "x.part", Caller(mine))
    assert (arrived.sha256, arrived.revision) == (hashlib.sha256(MODEL).hexdigest(), COMMIT)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("x.part")] == ["x.part"]


def test_a_listing_without_hashes_is_completed_by_the_files_themselves(server: Server, tmp_path: Path) -> None:
    server.repos["owner/tiny-GGUF"].lfs = False
    (file,) = resolve("hf:owner/tiny-GGUF:Q8_0", Caller(settings(server, tmp_path))).files
    assert (file.size, file.sha256) == (len(OTHER), None)
