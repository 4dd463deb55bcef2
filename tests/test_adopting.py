"""Adopting: other tools' files are found, checked, linked in, and left as they are."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tea_models.caller import Caller
from tea_models.errors import ChecksumMismatchError, MalformedGGUFError, MissingFileError, UsageError
from tea_models.settings import Settings
from tea_models.store import Store
from tea_models.verbs.adopt import adopt, candidates, find_by_sha256
from tea_models.verbs.pull import pull
from tests.gguf_build import build_gguf, small_llama_metadata, small_llama_tensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def model(name):
    return build_gguf(small_llama_metadata(**{"general.name": name}), small_llama_tensors())


MODEL, OTHER = model("one"), model("two")


def sha(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def home(tmp_path):
    path = tmp_path / "home"
    path.mkdir()
    return path


def settings_for(home, **environ):
    registry = home.parent / "registry.yaml"
    registry.write_text(f"""
schema: tea.registry/1
models:
  small:
    license: mit
    variants:
      F32:
        files:
        - {{filename: small.gguf, size: {len(MODEL)}, sha256: "{sha(MODEL)}", sources: ["https://127.0.0.1:9/small.gguf"]}}
""")
    values = {"HOME": str(home), "TEA_MODELS_DIR": str(home / "store"), "TEA_REGISTRY": str(registry), **environ}
    return Settings.resolve(values, cwd=home)


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def in_ollama(models: Path, data: bytes, name: str = "smol", tag: str = "135m", digest: str | None = None) -> Path:
    digest = digest or sha(data)
    blob = put(models / "blobs" / f"sha256-{digest}", data)
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "1" * 64, "size": 5},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(data)},
    ]
    manifest = models / "manifests" / "registry.ollama.ai" / "library" / name / tag
    put(manifest, json.dumps({"schemaVersion": 2, "layers": layers}).encode())
    return blob


def in_hub(cache: Path, data: bytes, repo: str = "owner/repo-GGUF", name: str = "model-F32.gguf") -> Path:
    folder = cache / f"models--{repo.replace('/', '--')}"
    blob = put(folder / "blobs" / sha(data), data)
    link = folder / "snapshots" / COMMIT / "sub" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return blob


def everywhere(home):
    """One model in each tool's folder, in that tool's way."""
    return {
        "Hugging Face": in_hub(home / ".cache/huggingface/hub", model("hub")),
        "Ollama": in_ollama(home / ".ollama/models", model("ollama")),
        "LM Studio": put(home / ".lmstudio/models/owner/repo/lm-F32.gguf", model("lm")),
        "llama.cpp": put(home / ".cache/llama.cpp/owner_repo_cpp-F32.gguf", model("cpp")),
    }


def test_the_files_of_each_tool_are_found_with_what_they_are(home):
    files = everywhere(home)
    found = candidates(settings_for(home))
    assert {item.found.tool: item.found.path for item in found} == {
        tool: path.resolve() for tool, path in files.items()
    }
    assert {item.found.name for item in found} == {
        f"hf:owner/repo-GGUF/sub/model-F32.gguf@{COMMIT}",
        "ollama:smol:135m",
        f"file:{files['LM Studio']}",
        f"file:{files['llama.cpp']}",
    }
    assert {(item.architecture, item.quantization) for item in found} == {("llama", "F32")}
    assert {item.title for item in found} == {"hub", "ollama", "lm", "cpp"}


@pytest.mark.parametrize(
    ("variable", "folder", "place"),
    [
        ("OLLAMA_MODELS", "o", in_ollama),
        ("HF_HUB_CACHE", "h", in_hub),
        ("HF_HOME", "f/hub", in_hub),
        ("XDG_CACHE_HOME", "c/huggingface/hub", in_hub),
    ],
)
def test_a_tool_that_was_told_to_keep_its_files_elsewhere_is_found(home, variable, folder, place):
    place(home / folder, MODEL)
    value = str(home / folder.split("/")[0])
    (found,) = candidates(settings_for(home, **{variable: value}))
    assert found.model == "small:F32"


def test_lm_studio_is_found_where_it_was_moved_to(home):
    put(home / "moved/models/a/b/x.gguf", MODEL)
    put(home / ".lmstudio-home-pointer", f"{home}/moved\n".encode())
    assert [item.found.tool for item in candidates(settings_for(home))] == ["LM Studio"]


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"{}",
        b'{"layers": 5}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../etc/passwd"}]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": 5}]}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_manifest_that_makes_no_sense_is_passed_over(home, manifest):
    put(home / ".ollama/models/manifests/registry.ollama.ai/library/bad/latest", manifest)
    in_ollama(home / ".ollama/models", MODEL)
    assert [item.found.name for item in candidates(settings_for(home))] == ["ollama:smol:135m"]


def test_dangling_links_loops_and_empty_files_are_passed_over(home):
    folder = home / ".cache/llama.cpp"
    put(folder / "empty.gguf", b"")
    (folder / "dangling.gguf").symlink_to(folder / "nowhere")
    (folder / "loop.gguf").symlink_to(folder / "loop.gguf")
    (folder / "deeper").symlink_to(folder)
    assert candidates(settings_for(home)) == []


def test_a_broken_file_is_shown_as_not_usable(home):
    put(home / ".cache/llama.cpp/broken.gguf", MODEL[:100])
    (item,) = candidates(settings_for(home))
    assert item.problem


@pytest.mark.parametrize("name", ["ollama:smol:135m", "small", sha(MODEL), "path"])
def test_a_file_is_linked_in_and_not_copied(home, name):
    blob = in_ollama(home / ".ollama/models", MODEL)
    before = blob.stat()
    settings = settings_for(home)
    (result,) = adopt([str(blob) if name == "path" else name], Caller(settings))
    assert (result.status, result.sha256, result.path.name) == ("adopted", sha(MODEL), "small.gguf")
    assert result.path.stat().st_ino == before.st_ino
    assert not result.path.is_symlink()
    assert (blob.stat().st_mtime_ns, blob.read_bytes()) == (before.st_mtime_ns, MODEL)
    (record,) = Store.of(settings).records()
    assert (record.sha256, record.pinned, record.model, record.license) == (sha(MODEL), True, "small:F32", "mit")
    assert [item.installed for item in candidates(settings)] == [True]


def test_what_the_store_has_is_present_the_second_time(home):
    in_hub(home / ".cache/huggingface/hub", OTHER)
    settings = settings_for(home)
    name = "hf:owner/repo-GGUF/sub/model-F32.gguf"
    assert [adopt([name], Caller(settings))[0].status for _ in range(2)] == ["adopted", "present"]
    (record,) = Store.of(settings).records()
    assert (record.source, record.revision) == (f"{name}@{COMMIT}", COMMIT)


def test_the_other_tool_may_remove_its_file_afterwards(home):
    blob = in_ollama(home / ".ollama/models", MODEL)
    (result,) = adopt(["small"], Caller(settings_for(home)))
    blob.unlink()
    assert result.path.read_bytes() == MODEL


def test_a_blob_that_is_not_what_its_name_says_is_refused(home):
    in_ollama(home / ".ollama/models", OTHER, digest=sha(MODEL))
    settings = settings_for(home)
    with pytest.raises(ChecksumMismatchError):
        adopt(["ollama:smol:135m"], Caller(settings))
    with pytest.raises(ChecksumMismatchError, match="the copy of every other tool is broken"):
        adopt(["small"], Caller(settings))
    assert not list(settings.store_dir.glob("*.gguf"))


def test_a_broken_copy_does_not_keep_the_good_ones_out(home):
    in_hub(home / ".cache/huggingface/hub", model("fine"))
    in_ollama(home / ".ollama/models", OTHER, digest=sha(MODEL))
    settings = settings_for(home)
    names = [item.found.name for item in candidates(settings)]
    said = []
    with pytest.raises(ChecksumMismatchError):
        adopt(
            ["ollama:smol:135m", *(name for name in names if name.startswith("hf:"))],
            Caller(settings, note=said.append),
        )
    assert [item.installed for item in candidates(settings) if item.found.name.startswith("hf:")] == [True]
    assert said == [f"{name}: adopted" for name in names if name.startswith("hf:")]


def test_what_is_no_gguf_is_not_adopted(home):
    path = put(home / "page.gguf", b"<html>" * 100)
    with pytest.raises(MalformedGGUFError):
        adopt([str(path)], Caller(settings_for(home)))


def test_all_shards_are_adopted_together_and_a_missing_one_is_named(home):
    first = put(home / "x/m-00001-of-00002.gguf", MODEL)
    settings = settings_for(home)
    with pytest.raises(MissingFileError, match="00002-of-00002"):
        adopt([str(first)], Caller(settings))
    put(home / "x/m-00002-of-00002.gguf", OTHER)
    results = adopt([str(first)], Caller(settings))
    assert [result.sha256 for result in results] == [sha(MODEL), sha(OTHER)]


def test_shards_are_adopted_into_one_folder_though_the_name_of_one_is_taken(home):
    settings = settings_for(home)
    other = put(home / "y/m-00002-of-00002.gguf", model("other"))
    path = Store.of(settings).root / other.name
    path.parent.mkdir(parents=True)
    shutil.copy(other, path)
    pull(str(other.rename(other.with_name("x.gguf"))), settings=settings, adopt=False)
    store = Store.of(settings)
    store.write_stamped(store.records()[0], path)
    first = put(home / "x/m-00001-of-00002.gguf", MODEL)
    put(home / "x/m-00002-of-00002.gguf", OTHER)
    results = adopt([str(first)], Caller(settings))
    assert {result.path.parent for result in results} == {settings.store_dir / "folder"}
    assert [result.status for result in adopt([str(first)], Caller(settings))] == ["present", "present"]


def test_what_is_no_plain_file_is_called_that(home):
    os.mkfifo(home / "pipe.gguf")
    with pytest.raises(MissingFileError, match="no plain file"):
        adopt([str(home / "pipe.gguf")], Caller(settings_for(home)))


def test_a_broken_file_of_the_store_is_replaced_by_the_good_copy(home):
    settings = settings_for(home)
    path = put(home / "good.gguf", MODEL)
    (first,) = adopt([str(path)], Caller(settings))
    first.path.unlink()
    first.path.write_bytes(MODEL[:100])
    (again,) = adopt([str(path)], Caller(settings))
    assert (again.path, again.path.read_bytes()) == (first.path, MODEL)


def test_a_shard_of_the_hub_cache_brings_the_others(home):
    cache = home / ".cache/huggingface/hub"
    in_hub(cache, MODEL, name="m-00001-of-00002.gguf")
    settings = settings_for(home)
    name = "hf:owner/repo-GGUF/sub/m-00001-of-00002.gguf"
    with pytest.raises(MissingFileError, match="00002-of-00002"):
        adopt([name], Caller(settings))
    in_hub(cache, OTHER, name="m-00002-of-00002.gguf")
    assert [result.sha256 for result in adopt([name], Caller(settings))] == [sha(MODEL), sha(OTHER)]


def test_an_adopted_model_has_a_profile(home):
    in_ollama(home / ".ollama/models", MODEL)
    settings = settings_for(home)
    (result,) = adopt(["small"], Caller(settings))
    assert Store.of(settings).profile_path(result.path).is_file()


def test_a_name_that_means_two_different_files_is_refused(home):
    put(home / ".lmstudio/models/a/r/same.gguf", model("a"))
    put(home / ".lmstudio/models/b/r/same.gguf", model("b"))
    with pytest.raises(UsageError, match="several"):
        adopt(["same.gguf"], Caller(settings_for(home)))


def test_nothing_by_that_name_says_where_to_look(home):
    with pytest.raises(MissingFileError, match="nope") as caught:
        adopt(["nope"], Caller(settings_for(home)))
    assert "tea-models adopt" in caught.value.hint


def test_bytes_are_found_by_hash_and_never_believed(home):
    settings = settings_for(home)
    assert find_by_sha256(sha(MODEL), size=len(MODEL), environ=settings.environ) is None
    in_ollama(home / ".ollama/models", OTHER, digest=sha(MODEL))
    assert find_by_sha256(sha(MODEL), environ=settings.environ) is None
    assert find_by_sha256(sha(MODEL), size=len(MODEL), environ=settings.environ) is None
    path = put(home / ".lmstudio/models/o/r/any-name.gguf", MODEL)
    assert find_by_sha256(sha(MODEL), size=len(MODEL), environ=settings.environ)[0] == path
    assert find_by_sha256("0" * 64, size=len(MODEL), environ=settings.environ) is None


def test_pull_takes_what_another_tool_has(home):
    in_ollama(home / ".ollama/models", MODEL)
    (result,) = pull("small", settings=settings_for(home))
    assert result.status == "adopted"


def test_the_command_lists_and_adopts(home):
    in_ollama(home / ".ollama/models", MODEL)
    settings = settings_for(home)

    def command(*arguments):
        line = [sys.executable, "-m", "tea_models.cli", "adopt", *arguments]
        environ = dict(os.environ) | settings.environ
        return subprocess.run(line, env=environ, capture_output=True, text=True, check=False, timeout=600)

    listed = json.loads(command("--json").stdout)
    assert [(item["name"], item["model"], item["installed"]) for item in listed] == [
        ("ollama:smol:135m", "small:F32", False)
    ]
    assert "ollama:smol:135m" in command().stdout
    put(home / ".lmstudio/models/o/r/other.gguf", OTHER)
    assert [item["status"] for item in json.loads(command("--all", "--json").stdout)] == ["adopted", "adopted"]
    assert command("nope").returncode == 4
