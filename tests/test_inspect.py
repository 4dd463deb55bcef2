"""`inspect`: the contract's document, the view for people, and what happens with files from strangers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tea_models import inspect_model
from tea_models.cli import group
from tea_models.cli.frame import run
from tea_models.cli.quick import quick
from tests.faulty_server import FaultyServer
from tests.gguf_build import (
    F16,
    Q4_0,
    Q4_K,
    Q8_0,
    Tensor,
    array,
    build_gguf,
    small_llama_metadata,
    small_llama_tensors,
    small_vocabulary,
    typed,
)
from tests.hub_server import COMMIT, Repo
from tests.hub_server import serve as serve_hub

PLAIN = small_llama_metadata(tokenizer__chat_template=None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    path.write_bytes(build_gguf())
    return path


def written(path: Path, metadata: dict[str, Any], tensors: list[Tensor] | None = None) -> Path:
    path.write_bytes(build_gguf(metadata, tensors))
    return path


def command(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, str, str]:
    code = run(group(), ["inspect", *map(str, args)])
    seen = capsys.readouterr()
    return code, seen.out, seen.err


def test_the_document_has_the_keys_of_the_contract(model: Path) -> None:
    document = inspect_model(model, tensors=True).to_json()
    assert set(document) >= {
        "path", "size", "gguf", "name", "architecture", "quantization", "parameters", "context_length",
        "embedding_length", "license", "tokenizer", "chat", "metadata", "tensors", "warnings",
    }  # fmt: skip
    assert set(document["gguf"]) == {"version", "byte_order", "alignment", "kv_count", "tensor_count", "header_size"}
    assert set(document["tokenizer"]) >= {"model", "vocab_size", "bos", "eos", "eot"}
    assert set(document["chat"]) >= {"template", "template_sha256", "format", "system_role", "tools", "stop"}
    assert set(document["tensors"][0]) == {"name", "shape", "type", "offset", "bytes"}


def test_the_document_says_what_the_file_says(model: Path) -> None:
    document = inspect_model(model).to_json()
    assert document["path"] == str(model)
    assert document["size"] == model.stat().st_size
    assert document["gguf"] | {"header_size": 0} == {
        "version": 3, "byte_order": "little", "alignment": 32, "kv_count": 26, "tensor_count": 21, "header_size": 0,
    }  # fmt: skip
    assert (document["name"], document["architecture"], document["license"]) == ("Small Llama", "llama", "mit")
    assert (document["quantization"], document["bits_per_weight"]) == ("F32", 32.0)
    assert (document["context_length"], document["embedding_length"]) == (2048, 64)
    assert document["tokenizer"] | {} == {
        "model": "llama", "pre": "default", "vocab_size": 288, "bos": 1, "eos": 2, "eot": 275, "bos_token": "<s>",
        "eos_token": "</s>", "eot_token": "<|im_end|>", "add_bos": True, "add_eos": False,
    }  # fmt: skip
    assert document["chat"]["format"] == "chatml"
    assert document["chat"]["stop"] == ["<|im_end|>"]
    assert document["metadata"]["tokenizer.ggml.tokens"] == {"type": "string", "count": 288}
    assert "tensors" not in document
    assert document["warnings"] == []


def test_parameters_are_the_weights_of_all_tensors(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", PLAIN, [Tensor("a", (32, 3), Q8_0), Tensor("b", (5,)), Tensor("c", ())])
    document = inspect_model(path).to_json()
    assert document["parameters"] == 96 + 5 + 1
    assert document["bits_per_weight"] == round((102 + 20 + 4) * 8 / 102, 3)


def test_full_gives_whole_arrays(model: Path) -> None:
    metadata = inspect_model(model, full=True).to_json()["metadata"]
    assert metadata["tokenizer.ggml.tokens"] == small_vocabulary()[0]
    assert metadata["tokenizer.ggml.token_type"] == small_vocabulary()[2]


def test_numbers_that_json_lacks_are_named(tmp_path: Path) -> None:
    metadata = PLAIN | {
        "a.nan": float("nan"),
        "a.inf": typed("float64", float("-inf")),
        "a.many": array("float32", [1.0, float("inf")]),
        "llama.rope.freq_scale": float("nan"),
    }
    path = written(tmp_path / "m.gguf", metadata)
    found = inspect_model(path, full=True).to_json()["metadata"]
    assert (found["a.nan"], found["a.inf"], found["a.many"]) == ("NaN", "-Infinity", [1.0, "Infinity"])
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("file_type", "types", "name", "warns"),
    [
        (15, (Q4_K, Q4_K), "Q4_K_M", False),
        (15, (Q8_0, Q8_0), "Q4_K_M", True),
        (7, (Q8_0, Q8_0), "Q8_0", False),
        (7, (Q4_0, Q4_0), "Q8_0", True),
        (1, (F16, F16), "F16", False),
        (1, (Q8_0, F16), "F16", True),
        (0, (F16, F16), "F32", True),
        (1024 + 7, (Q8_0, Q8_0), "Q8_0", False),
        (999, (Q8_0, Q8_0), "Q8_0", True),
        (None, (Q4_K, Q4_K), "Q4_K", False),
        (33, (Q4_0, Q4_0), "Q4_0_4_4", False),
    ],
)
def test_the_quantization_is_checked_against_the_tensors(
    tmp_path: Path, file_type: int | None, types: tuple[int, int], name: str, warns: bool
) -> None:
    metadata = dict(PLAIN) | {"general.file_type": file_type}
    if file_type is None:
        del metadata["general.file_type"]
    tensors = [Tensor("a", (256, 4), types[0]), Tensor("b", (256, 4), types[1]), Tensor("n", (256,))]
    document = inspect_model(written(tmp_path / "m.gguf", metadata, tensors)).to_json()
    assert document["quantization"] == name
    assert any("general.file_type" in warning for warning in document["warnings"]) is warns


def test_rows_that_do_not_fit_a_k_quant_are_no_mismatch(tmp_path: Path) -> None:
    # llama-quantize takes Q5_0 where Q4_K does not divide the rows, as in Gemma 3 270M.
    metadata = PLAIN | {"general.file_type": 15}
    tensors = [Tensor("a", (96, 4), 6, data=bytes(3 * 4 * 22))]
    assert inspect_model(written(tmp_path / "m.gguf", metadata, tensors)).to_json()["warnings"] == []


SPECIAL = small_vocabulary()[0][:-4]


@pytest.mark.parametrize(
    ("texts", "template", "expected"),
    [
        (["<|end|>", "<|endoftext|>"], None, "<|end|>"),
        (["<|endoftext|>"], None, "<|endoftext|>"),
        (["<end_of_turn>", "<|eot_id|>"], None, "<|eot_id|>"),
        (["<end_of_turn>", "<|eot_id|>"], "{{ messages[0].content }}<end_of_turn>", "<end_of_turn>"),
        ([], None, None),
    ],
)
def test_the_turn_end_is_found_by_its_text(
    tmp_path: Path, texts: list[str], template: str | None, expected: str | None
) -> None:
    plain = [text for text in SPECIAL if not text.startswith("<|im")]
    tokens = plain + [f"<unused{n}x>" for n in range(288 - len(plain) - len(texts))] + texts
    metadata = PLAIN | {"tokenizer.ggml.tokens": array("string", tokens)}
    if template:
        metadata["tokenizer.chat_template"] = template
    found = inspect_model(written(tmp_path / "m.gguf", metadata)).to_json()["tokenizer"]
    assert found["eot_token"] == expected
    assert found["eot"] == (tokens.index(expected) if expected else None)


def test_the_key_for_the_turn_end_comes_before_its_text(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", PLAIN | {"tokenizer.ggml.eot_token_id": 260})
    assert inspect_model(path).to_json()["tokenizer"]["eot"] == 260


def test_special_tokens_beyond_the_vocabulary_are_ignored_with_a_warning(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", PLAIN | {"tokenizer.ggml.bos_token_id": 0xFFFFFFFF})
    document = inspect_model(path).to_json()
    assert document["tokenizer"]["bos"] == 1  # the tokenizer's default, as llama.cpp takes it
    assert any("bos_token_id" in warning for warning in document["warnings"])


KINDS: dict[str, tuple[dict[str, Any], list[Tensor], str]] = {
    "encoder": ({"general.architecture": "bert", "bert.pooling_type": 1}, [Tensor("a", (8,))], "embedding"),
    "nomic": ({"general.architecture": "nomic-bert"}, [Tensor("a", (8,))], "embedding"),
    "gemma embedding": ({"general.architecture": "gemma-embedding"}, [Tensor("a", (8,))], "embedding"),
    "causal embedder": ({"general.architecture": "qwen3", "qwen3.pooling_type": 3}, [Tensor("a", (8,))], "embedding"),
    "rank pooling": ({"general.architecture": "qwen3", "qwen3.pooling_type": 4}, [Tensor("a", (8,))], "reranker"),
    "ranking head": ({"general.architecture": "bert"}, [Tensor("cls.output.weight", (8, 1))], "reranker"),
    "encoder-decoder": ({"general.architecture": "t5"}, [Tensor("a", (8,))], "encoder-decoder"),
    "projector": ({"general.type": "mmproj", "general.architecture": "clip"}, [Tensor("a", (8,))], "projector"),
    "old projector": ({"general.architecture": "clip"}, [Tensor("a", (8,))], "projector"),
    "adapter": ({"general.type": "adapter", "general.architecture": "llama"}, [Tensor("a", (8,))], "adapter"),
    "matrix": ({"general.type": "imatrix"}, [Tensor("a", (8,))], "other"),
    "vocabulary": (PLAIN, [], "vocabulary"),
    "text": (PLAIN, [Tensor("a", (8,))], "text"),
    "chat": (small_llama_metadata(), [Tensor("a", (8,))], "chat"),
    "nothing": ({}, [], "other"),
}


@pytest.mark.parametrize("case", KINDS)
def test_what_a_file_is_for_is_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    metadata, tensors, kind = KINDS[case]
    path = written(tmp_path / "m.gguf", metadata, tensors)
    assert inspect_model(path).to_json()["kind"] == kind
    code, out, _ = command(capsys, path)
    assert code == 0
    assert ("no: " in out) is (kind != "chat")


@pytest.mark.parametrize(
    ("metadata", "names", "warning"),
    [
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 4}, ["a"], "no ranking head"),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 4}, ["cls.output.weight"], ""),
        ({"general.architecture": "gemma-embedding"}, ["a"], "lacks the dense layers"),
        ({"general.architecture": "gemma-embedding"}, ["dense_2.weight", "dense_3.weight"], ""),
    ],
)
def test_what_conversions_are_known_to_leave_out_is_warned_about(
    tmp_path: Path, metadata: dict[str, Any], names: list[str], warning: str
) -> None:
    path = written(tmp_path / "m.gguf", metadata, [Tensor(name, (8,)) for name in names])
    found = inspect_model(path).profile.warnings
    assert (warning in found[0]) if warning else found == ()


def test_further_templates_of_the_file_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "m.gguf", small_llama_metadata() | {"tokenizer.chat_template.tool_use": "x"})
    assert "others in the file: tool_use" in command(capsys, path)[1]


def test_an_unloadable_file_is_shown_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "m.gguf", PLAIN | {"llama.block_count": 600}, small_llama_tensors())
    document = inspect_model(path).to_json()
    assert document["loadable"] is False
    assert "llama.block_count is 600" in document["warnings"][0]
    code, out, _ = command(capsys, path)
    assert code == 0
    assert "llama.cpp would not load it: llama.block_count is 600" in " ".join(out.split())


def test_the_view_fits_one_screen(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(capsys, model)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) <= 24
    assert max(map(len, out.splitlines()[:-1])) <= 100
    assert out.startswith("Small Llama\n")
    assert f"tea-models plan {model}" in out


def test_control_characters_of_a_file_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "a\x1b[31mred\x07\r\x9b2J\u202eb"
    metadata = small_llama_metadata(
        general__name=evil,
        general__license=evil,
        tokenizer__ggml__pre=evil,
        tokenizer__chat_template="{# \x1b[2J #}" + evil,
    ) | {f"evil.\x1b[2J{number}": evil for number in range(2)}
    path = written(tmp_path / "m.gguf", metadata, [Tensor("\x1b[2J", (8,))])
    for options in ([], ["--full", "--tensors"], ["--key", "general.name"], ["--template"]):
        _, out, err = command(capsys, path, *options)
        assert not set(out + err) & set("\x1b\x07\r\x9b\u202e")
        assert "\\x1b[" in out
    assert json.loads(command(capsys, path, "--json")[1])["name"] == evil


def test_one_value_can_be_asked_for(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(capsys, model, "--key", "general.license") == (0, "mit\n", "")
    assert command(capsys, model, "--key", "tokenizer.ggml.add_bos_token") == (0, "true\n", "")
    assert json.loads(command(capsys, model, "--key", "llama.block_count", "--json")[1]) == {"llama.block_count": 2}
    assert len(command(capsys, model, "--key", "tokenizer.ggml.tokens")[1].splitlines()) == 288
    code, out, err = command(capsys, model, "--key", "general.licence")
    assert (code, out) == (4, "")
    assert "general.license" in err


def test_the_template_can_be_asked_for(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = small_llama_metadata()["tokenizer.chat_template"]
    assert command(capsys, model, "--template") == (0, template + "\n", "")
    assert json.loads(command(capsys, model, "--template", "--json")[1]) == {"template": template}
    code, _, err = command(capsys, written(tmp_path / "m.gguf", PLAIN), "--template")
    assert code == 4
    assert "no chat template" in err


def test_a_malformed_file_exits_with_3_and_the_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(build_gguf()[:100])
    code, out, err = command(capsys, path)
    assert (code, out) == (3, "")
    assert ": byte " in err
    assert "Traceback" not in err
    code, out, err = command(capsys, path, "--json")
    assert (code, err) == (3, "")
    assert json.loads(out)["error"]["type"] == "MalformedGGUF"


@pytest.mark.parametrize("name", ["absent.gguf", ".", "dangling.gguf", "fifo.gguf"])
def test_what_is_no_file_exits_with_4(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "dangling.gguf").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo.gguf")
    code, out, err = command(capsys, tmp_path / name)
    assert (code, out) == (4, "")
    assert err.startswith("error: ")


def sharded(folder: Path) -> list[Path]:
    tensors = small_llama_tensors()
    parts = [tensors[:8], tensors[8:15], tensors[15:]]
    paths = []
    for index, part in enumerate(parts):
        metadata = PLAIN if index == 0 else {"general.architecture": "llama"}
        split = {
            "split.no": typed("uint16", index),
            "split.count": typed("uint16", 3),
            "split.tensors.count": typed("int32", len(tensors)),
        }
        paths.append(written(folder / f"small-{index + 1:05d}-of-00003.gguf", dict(metadata) | split, part))
    return paths


@pytest.mark.parametrize("asked", range(3))
def test_all_shards_are_found_from_any_one_and_counted_together(tmp_path: Path, asked: int) -> None:
    paths = sharded(tmp_path)
    document = inspect_model(paths[asked], tensors=True).to_json()
    whole = inspect_model(written(tmp_path / "whole.gguf", PLAIN, small_llama_tensors())).to_json()
    assert [file["name"] for file in document["files"]] == [path.name for path in paths]
    assert document["size"] == sum(path.stat().st_size for path in paths)
    assert document["path"] == str(paths[0])
    for key in ("parameters", "name", "context_length", "bits_per_weight"):
        assert document[key] == whole[key]
    assert document["gguf"]["tensor_count"] == len(document["tensors"]) == 21


def test_a_missing_shard_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sharded(tmp_path)
    paths[1].unlink()
    code, _, err = command(capsys, paths[2])
    assert code == 4
    assert paths[1].name in err


def test_a_shard_that_is_another_one_under_its_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sharded(tmp_path)
    paths[1].write_bytes(paths[2].read_bytes())
    code, _, err = command(capsys, paths[0])
    assert code == 3
    assert paths[1].name in err
    assert "split.no" in err


def test_a_shard_under_another_name_is_not_loadable(tmp_path: Path) -> None:
    paths = sharded(tmp_path)
    alone = paths[0].rename(tmp_path / "renamed.gguf")
    assert "one of 3 files" in inspect_model(alone).to_json()["warnings"][0]


def test_a_remote_file_is_inspected_by_its_header_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = build_gguf(small_llama_metadata(), [*small_llama_tensors(), Tensor("z", (1 << 21,))])
    with FaultyServer(data) as server:
        document = json.loads(command(capsys, server.url, "--json")[1])
        code, out, _ = command(capsys, server.url)
    assert code == 0
    assert document["size"] == len(data)
    assert document["remote"]["bytes_read"] < len(data) // 2
    assert "fetched" in out
    assert f"tea-models pull {server.url}" in out


def test_a_model_on_the_hub_is_inspected_at_its_commit_with_all_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in sharded(tmp_path)}
    with serve_hub(repos={"owner/repo": Repo(files)}) as world:
        monkeypatch.setenv("HF_ENDPOINT", world.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        asked = f"hf:owner/repo/{sorted(files)[1]}"
        document = json.loads(command(capsys, asked, "--json")[1])
        code, out, err = command(capsys, asked)
    assert (code, err) == (0, "")
    assert [file["name"] for file in document["files"]] == sorted(files)
    assert [file["sha256"] for file in document["files"]] == [
        hashlib.sha256(files[name]).hexdigest() for name in sorted(files)
    ]
    assert document["remote"]["revision"] == COMMIT
    assert document["size"] == sum(map(len, files.values()))
    assert document["gguf"]["tensor_count"] == 21
    assert COMMIT[:12] in out
    assert "hf_secret" not in out + json.dumps(document)


def test_offline_does_not_ask_a_remote_host(capsys: pytest.CaptureFixture[str]) -> None:
    with FaultyServer(build_gguf()) as server:
        assert command(capsys, server.url, "--offline")[0] == 4
    assert server.seen == []


def test_the_same_file_with_other_bytes_gets_another_answer(
    tmp_path: Path, own_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "m.gguf", small_llama_metadata(), small_llama_tensors())
    before = path.stat()
    assert "Small Llama" in command(capsys, path)[1]
    path.write_bytes(path.read_bytes().replace(b"Small Llama", b"Other Llama"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "Other Llama" in command(capsys, path)[1]
    assert not own_world.exists() or not list(own_world.rglob("*.json"))


def test_the_quick_way_and_the_ordinary_way_answer_the_same(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--json"], ["--full", "--tensors", "-q"], ["--offline"]):
        assert quick(["inspect", *options, str(model)]) == 0
        assert capsys.readouterr().out == command(capsys, *options, model)[1]
    for other in (["inspect"], ["inspect", "a", "b"], ["inspect", "a", "--key", "b"], ["inspect", "-h"], ["pull"], []):
        assert quick(other) is None


def test_inspecting_imports_nothing_heavy(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", PLAIN, small_llama_tensors())
    script = (
        "import sys\n"
        "from tea_models.cli.quick import quick\n"
        "code = quick(['inspect', sys.argv[1]])\n"
        "heavy = {'click', 'pydantic', 'yaml', 'huggingface_hub', 'httpx2', 'jinja2', 'llama_cpp', 'numpy', 'tea_runtime'}\n"
        "print(sorted(heavy & set(sys.modules)), code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


@pytest.mark.real
def test_the_real_model_is_what_is_known_about_it(real_model: Path) -> None:
    if "SmolLM2-135M-Instruct" not in real_model.name:
        pytest.skip("known about SmolLM2 only")
    document = inspect_model(real_model).to_json()
    assert (document["quantization"], document["parameters"], document["context_length"]) == ("Q4_1", 134_515_008, 8192)
    assert document["tokenizer"]["vocab_size"] == 49_152
    assert document["tokenizer"]["eot_token"] == "<|im_end|>"
    assert document["chat"]["default_system_prompt"].startswith("You are a helpful AI assistant named SmolLM")
    assert document["warnings"] == []


@pytest.mark.real
def test_gemma_is_what_is_known_about_it(gemma_model: Path) -> None:
    document = inspect_model(gemma_model).to_json()
    assert (document["kind"], document["quantization"], document["context_length"]) == ("text", "Q4_K_M", 32_768)
    assert document["chat"]["template"] is None
    assert (document["tokenizer"]["eos"], document["tokenizer"]["eot"]) == (1, 106)
    assert document["warnings"] == []


@pytest.mark.real
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_inspecting_a_vocabulary_of_262144_tokens_takes_less_than_60_mb(gemma_model: Path) -> None:
    script = (
        "import pathlib, sys\n"
        "from tea_models.cli.quick import quick\n"
        "quick(['inspect', sys.argv[1]])\n"
        # Not ru_maxrss, which begins with that of the process that started this one.
        "print(pathlib.Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(gemma_model)], capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) * 1024 < 60_000_000


_ENGINE = """
import json, llama_cpp as l, sys
params = l.llama_model_default_params()
model = l.llama_model_load_from_file(sys.argv[1].encode(), params)
vocab = l.llama_model_get_vocab(model)
print(json.dumps({
    "parameters": l.llama_model_n_params(model), "weights": l.llama_model_size(model),
    "context_length": l.llama_model_n_ctx_train(model), "embedding_length": l.llama_model_n_embd(model),
    "vocab_size": l.llama_vocab_n_tokens(vocab), "bos": l.llama_vocab_bos(vocab), "eos": l.llama_vocab_eos(vocab),
    "ends": [t for t in map(int, sys.argv[2:]) if l.llama_vocab_is_eog(vocab, t)], "add_bos": l.llama_vocab_get_add_bos(vocab), "add_eos": l.llama_vocab_get_add_eos(vocab),
}))
"""


def engine(path: Path, turn_end: int) -> dict[str, Any]:
    """What llama.cpp itself says about a file, in a process of its own."""
    arguments = [sys.executable, "-c", _ENGINE, str(path), str(turn_end)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


@pytest.mark.real
@pytest.mark.parametrize("which", ["real_model", "gemma_model", "built", "built without ids"])
def test_the_engine_agrees_about_the_model_and_its_special_tokens(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if which.startswith("built"):
        missing = {
            f"tokenizer.ggml.{key}": None for key in ("bos_token_id", "eos_token_id", "add_bos_token", "add_eos_token")
        }
        metadata = {k: v for k, v in PLAIN.items() if which == "built" or k not in missing}
        path = written(tmp_path / "m.gguf", metadata, small_llama_tensors())
    else:
        path = request.getfixturevalue(which)
    found = inspect_model(path)
    document, tokens = found.to_json(), found.to_json()["tokenizer"]
    # llama.cpp takes as `eot` whichever candidate its hash map yields first, but generation ends at any of them.
    assert engine(path, tokens["eot"]) == {
        "ends": [tokens["eot"]],
        "parameters": document["parameters"],
        "weights": found.profile.weights.total,
        "context_length": document["context_length"],
        "embedding_length": document["embedding_length"],
    } | {key: tokens[key] for key in ("vocab_size", "bos", "eos", "add_bos", "add_eos")}
