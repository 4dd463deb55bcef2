"""`https:`, `ollama:`, `file:`, fsspec addresses, and several sources of one file."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path

import pytest

from tea_models.caller import Caller
from tea_models.errors import (
    ChecksumMismatchError,
    MissingFileError,
    OfflineError,
    SourceUnavailableError,
    UsageError,
)
from tea_models.files import ModelFile, Source, public
from tea_models.refs import FileRef, FsspecRef, UrlRef, parse_reference, quantization_of
from tea_models.settings import Settings
from tea_models.sources import fetch, open_source, resolve
from tests.gguf_build import build_gguf
from tests.hub_server import serve

MODEL = build_gguf()
DIGEST = hashlib.sha256(MODEL).hexdigest()


def settings(tmp_path: Path, **environ: str) -> Settings:
    return Settings.resolve({"HOME": str(tmp_path)} | environ, cwd=tmp_path)


def test_an_address_with_a_pin_is_checked(tmp_path: Path) -> None:
    with serve(files={"/m.gguf": MODEL}) as server:
        (file,) = resolve(f"{server.url}/m.gguf#sha256={DIGEST}", Caller(settings(tmp_path))).files
        assert (file.filename, file.sha256) == ("m.gguf", DIGEST)
        assert fetch(file, tmp_path / "m.part", Caller(settings(tmp_path))).sha256 == DIGEST
        (wrong,) = resolve(f"{server.url}/m.gguf#sha256={'0' * 64}", Caller(settings(tmp_path))).files
        with pytest.raises(ChecksumMismatchError):
            fetch(wrong, tmp_path / "n.part", Caller(settings(tmp_path)))


def test_an_address_of_a_shard_means_all_of_them(tmp_path: Path) -> None:
    files = resolve("https://host/a%20b/m%C3%A4x-00002-of-00003.gguf?x=1", Caller(settings(tmp_path))).files
    assert [file.filename for file in files] == [f"mäx-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert str(files[0].sources[0]) == "https://host/a%20b/m%C3%A4x-00001-of-00003.gguf?x=1"


def test_an_address_without_a_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file name"):
        resolve("https://host/", Caller(settings(tmp_path)))


def test_the_mirror_is_asked_before_the_address_itself(tmp_path: Path) -> None:
    with serve(files={"/m.gguf": MODEL}) as origin, serve() as mirror:
        mine = settings(tmp_path, TEA_MODELS_MIRROR=mirror.url)
        file = ModelFile("m.gguf", len(MODEL), DIGEST, (Source((UrlRef(f"{origin.url}/m.gguf"),)),))
        fetch(file, tmp_path / "a.part", Caller(mine))
        assert len(mirror.asked("/m.gguf")) == 1
        assert origin.asked("/m.gguf")
        origin.requests.clear()
        mirror.files[f"/{origin.url}/m.gguf"] = MODEL
        fetch(file, tmp_path / "b.part", Caller(mine))
        assert origin.requests == []


def test_sources_are_tried_in_order_and_failures_noted(tmp_path: Path) -> None:
    with serve(files={"/wrong.gguf": MODEL + b"x", "/right.gguf": MODEL}) as server:
        names = ("none.gguf", "wrong.gguf", "right.gguf")
        sources = tuple(Source((UrlRef(f"{server.url}/{name}"),)) for name in names)
        notes: list[str] = []
        file = ModelFile("m.gguf", None, DIGEST, sources)
        arrived = fetch(file, tmp_path / "m.part", Caller(settings(tmp_path), note=notes.append))
        assert arrived.source == f"{server.url}/right.gguf"
        assert len(notes) == 2
        assert "none.gguf" in notes[0]
        assert "wrong.gguf" in notes[1]


def test_when_all_sources_fail_each_is_named(tmp_path: Path) -> None:
    sources = (Source((FileRef(tmp_path / "a"),)), Source((FileRef(tmp_path / "b"),)))
    with pytest.raises(SourceUnavailableError, match=r"/a: no such file; .*/b: no such file"):
        fetch(ModelFile("m.gguf", None, None, sources), tmp_path / "m.part", Caller(settings(tmp_path)))


def test_offline_only_files_of_this_machine_are_taken(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(MODEL)
    offline = settings(tmp_path, TEA_OFFLINE="1")
    away = Source((UrlRef("https://127.0.0.1:9/m.gguf"),))
    file = ModelFile("m.gguf", None, DIGEST, (away, Source((FileRef(tmp_path / "m.gguf"),))))
    assert fetch(file, tmp_path / "m.part", Caller(offline)).size == len(MODEL)
    with pytest.raises(OfflineError):
        fetch(ModelFile("m.gguf", None, DIGEST, (away,)), tmp_path / "m.part", Caller(offline))


def ollama(server_files: dict[str, bytes], **layers: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    manifest = {
        "schemaVersion": 2,
        "config": {
            "digest": "sha256:" + "0" * 64,
            "size": 2,
            "mediaType": "application/vnd.docker.container.image.v1+json",
        },
        "layers": [
            {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{DIGEST}", "size": len(MODEL)},
            {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "1" * 64, "size": 2},
        ],
    }
    return {"/v2/library/tiny/manifests/1b": json.dumps(manifest | layers).encode()}, {
        f"/v2/library/tiny/blobs/sha256:{DIGEST}": MODEL
    } | server_files


def test_an_ollama_model_is_the_blob_that_its_manifest_names(tmp_path: Path) -> None:
    manifests, files = ollama({})
    with serve(manifests=manifests, files=files) as server:
        mine = settings(tmp_path, TEA_OLLAMA_REGISTRY=server.url)
        artifact = resolve("ollama:tiny:1b", Caller(mine))
        (file,) = artifact.files
        assert (file.filename, file.size, file.sha256) == ("tiny-1b.gguf", len(MODEL), DIGEST)
        revision = "sha256:" + hashlib.sha256(manifests["/v2/library/tiny/manifests/1b"]).hexdigest()
        assert file.sources[0].revision == revision
        assert fetch(file, tmp_path / "m.part", Caller(mine)).sha256 == DIGEST
        with pytest.raises(MissingFileError, match="no such model or tag"):
            resolve("ollama:tiny:7b", Caller(mine))


def test_an_ollama_manifest_counts_only_from_the_registry_itself(tmp_path: Path) -> None:
    manifests, files = ollama({})
    there = f"/v2/library/tiny/blobs/sha256:{DIGEST}"
    with serve(manifests=manifests, files=files) as foreign:
        with serve(redirects={"/v2/library/tiny/manifests/1b": foreign.url}) as registry:
            mine = settings(tmp_path, TEA_OLLAMA_REGISTRY=registry.url)
            with pytest.raises(SourceUnavailableError, match="another host"):
                resolve("ollama:tiny:1b", Caller(mine))
            assert foreign.requests == []
            registry.manifests, registry.redirects = manifests, {there: foreign.url}
            (file,) = resolve("ollama:tiny:1b", Caller(mine)).files
            assert fetch(file, tmp_path / "m.part", Caller(mine)).sha256 == DIGEST  # the bytes may be anywhere
        assert foreign.asked(there)


def test_an_ollama_manifest_that_is_none_is_an_error(tmp_path: Path) -> None:
    with serve(
        manifests={"/v2/library/tiny/manifests/1b": b"<html>", "/v2/library/tiny/manifests/2b": b'{"layers": []}'}
    ) as s:
        mine = settings(tmp_path, TEA_OLLAMA_REGISTRY=s.url)
        with pytest.raises(SourceUnavailableError, match="not a manifest"):
            resolve("ollama:tiny:1b", Caller(mine))
        with pytest.raises(MissingFileError, match="0 GGUF layers"):
            resolve("ollama:tiny:2b", Caller(mine))
    with pytest.raises(SourceUnavailableError, match="can't connect"):
        resolve("ollama:tiny:1b", Caller(settings(tmp_path, TEA_OLLAMA_REGISTRY="http://127.0.0.1:9")))


def test_a_path_brings_all_shards_and_names_a_missing_one(tmp_path: Path) -> None:
    first, second = tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"
    first.write_bytes(MODEL)
    with pytest.raises(MissingFileError, match="m-00002-of-00002"):
        resolve(str(first), Caller(settings(tmp_path)))
    second.write_bytes(MODEL)
    assert [file.filename for file in resolve(str(second), Caller(settings(tmp_path))).files] == [
        first.name,
        second.name,
    ]


@pytest.mark.parametrize("kind", ["fifo", "folder", "nothing", "dangling", "loop"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.gguf"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "dangling":
            path.symlink_to(tmp_path / "nowhere")
        case "loop":
            path.symlink_to(path)
    with pytest.raises(MissingFileError):
        resolve(str(path), Caller(settings(tmp_path)))


def test_any_fsspec_address_can_be_fetched_read_in_parts_and_resumed(tmp_path: Path) -> None:
    import fsspec

    url = f"memory://bucket-{uuid.uuid4().hex}/m.gguf"
    with fsspec.open(url, "wb") as writer:
        writer.write(MODEL)
    (file,) = resolve(url, Caller(settings(tmp_path))).files
    assert (file.filename, file.size) == ("m.gguf", len(MODEL))
    assert fetch(file, tmp_path / "m.part", Caller(settings(tmp_path))).sha256 == DIGEST
    source = open_source(file, Caller(settings(tmp_path)))
    assert (source.size, source.read(4, 4)) == (len(MODEL), MODEL[4:8])
    source.close()
    (tmp_path / "n.part").write_bytes(MODEL[:1000])
    pinned = ModelFile("m.gguf", len(MODEL), DIGEST, file.sources)
    assert fetch(pinned, tmp_path / "n.part", Caller(settings(tmp_path))).resumed_from == 1000


def test_a_leftover_of_another_file_is_thrown_away_and_fetched_anew(tmp_path: Path) -> None:
    import fsspec

    url = f"memory://bucket-{uuid.uuid4().hex}/m.gguf"
    with fsspec.open(url, "wb") as writer:
        writer.write(MODEL)
    (tmp_path / "m.part").write_bytes(b"garbage" * 100)
    file = ModelFile("m.gguf", len(MODEL), DIGEST, (Source((FsspecRef(url),)),))
    arrived = fetch(file, tmp_path / "m.part", Caller(settings(tmp_path)))
    assert (arrived.sha256, arrived.resumed_from) == (DIGEST, None)


def test_a_filesystem_whose_package_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailableError) as caught:
        resolve("s3://bucket/m.gguf", Caller(settings(tmp_path)))
    assert "s3fs" in caught.value.hint
    with pytest.raises(UsageError, match="no filesystem"):
        resolve("gopher://host/m.gguf", Caller(settings(tmp_path)))


def test_what_is_shown_of_an_address_has_no_secrets() -> None:
    url = "https://user:hunter2@host:8443/m.gguf?download=true&X-Amz-Signature=abc&token=t#sha256=" + "0" * 64
    assert public(parse_reference(url)) == f"https://host:8443/m.gguf?download=true#sha256={'0' * 64}"
    assert public("hf:owner/repo@main") == "hf:owner/repo@main"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("gemma-3-270m-q4_k_m.gguf", "Q4_K_M"),
        ("microsoft_Phi-4-mini-instruct-Q3_K_S.gguf", "Q3_K_S"),
        ("model-IQ2_XXS.gguf", "IQ2_XXS"),
        ("model-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("model-fp16.gguf", "F16"),
        ("model-BF16-00001-of-00002.gguf", "BF16"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("Q8_0/model.gguf", "Q8_0"),
        ("model.gguf", None),
        ("Qwen3-0.6B.gguf", None),
    ],
)
def test_the_quantisation_in_a_name_is_found(name: str, expected: str | None) -> None:
    assert quantization_of(name) == expected
