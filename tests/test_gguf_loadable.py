"""What `check_loadable` refuses, and that llama.cpp itself refuses (or dies of) the same files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tea_models.gguf import BytesSource, check_loadable, read_header
from tests.gguf_build import (
    Tensor,
    array,
    build_gguf,
    small_llama_metadata,
    small_llama_tensors,
    small_vocabulary,
    typed,
)

TEXTS, SCORES, TYPES = small_vocabulary()

UNLOADABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no architecture": ({"general__architecture": None}, "general.architecture is missing"),
    "architecture not a string": ({"general__architecture": 7}, "general.architecture is missing"),
    "no context length": ({"llama__context_length": None}, "llama.context_length is missing"),
    "context length 0": ({"llama__context_length": 0}, "llama.context_length is 0"),
    "no width": ({"llama__embedding_length": None}, "llama.embedding_length is missing"),
    "no block count": ({"llama__block_count": None}, "llama.block_count is missing"),
    "no blocks": ({"llama__block_count": 0}, "llama.block_count is 0"),
    "513 blocks": ({"llama__block_count": 513}, "llama.block_count is 513"),
    "4 billion blocks": ({"llama__block_count": 0xFFFFFFFF}, "llama.block_count is 4,294,967,295"),
    "block count of another type": ({"llama__block_count": typed("int64", 2)}, "llama.block_count is int64"),
    "heads for other blocks": ({"llama__attention__head_count": array("uint32", [4])}, "has 1 items for 2 blocks"),
    "KV heads that do not divide": ({"llama__attention__head_count_kv": 3}, "no multiple of 3 KV heads"),
    "more heads than width": ({"llama__attention__head_count": 1 << 20}, "for a width of 64"),
    "rope beyond the head": ({"llama__rope__dimension_count": 64}, "a head has 16"),
    "too many experts": ({"llama__expert_count": 5000, "llama__expert_used_count": 2}, "llama.expert_count is 5,000"),
    "experts none of which is used": ({"llama__expert_count": 8}, "llama.expert_used_count is 0 of 8"),
    "used experts without experts": ({"llama__expert_used_count": 2}, "is 2 of 0 experts"),
    "rope scaling nobody knows": ({"llama__rope__scaling__type": "magic"}, "'magic'"),
    "pooling nobody knows": ({"llama__pooling_type": 9}, "llama.pooling_type is 9"),
    "nextn beyond the blocks": ({"llama__nextn_predict_layers": 9}, "beyond 2 blocks"),
    "no tokenizer": ({"tokenizer__ggml__model": None}, "tokenizer.ggml.model is missing"),
    "no tokens": ({"tokenizer__ggml__tokens": None}, "tokenizer.ggml.tokens is missing"),
    "tokens of another type": (
        {"tokenizer__ggml__tokens": array("int32", [1, 2])},
        "tokenizer.ggml.tokens is not an array of string",
    ),
    "fewer scores than tokens": (
        {"tokenizer__ggml__scores": array("float32", SCORES[:-1])},
        "tokenizer.ggml.scores has 287 items for 288 tokens",
    ),
    "fewer types than tokens": (
        {"tokenizer__ggml__token_type": array("int32", TYPES[:-1])},
        "tokenizer.ggml.token_type has 287 items for 288 tokens",
    ),
    "types of another type": (
        {"tokenizer__ggml__token_type": array("uint8", TYPES)},
        "tokenizer.ggml.token_type is not an array of int32",
    ),
    "no merges": ({"tokenizer__ggml__model": "gpt2"}, "tokenizer.ggml.merges is missing"),
    "a token twice": (
        {"tokenizer__ggml__tokens": array("string", [*TEXTS[:-1], "<s>"])},
        "'<s>' is in tokenizer.ggml.tokens twice (again at 287)",
    ),
    "an array of arrays": ({"x__nested": array("array", [array("bool", [True])])}, "array of arrays"),
    "an odd alignment": ({"general__alignment": 24}, "powers of two"),
}


def problems(data: bytes) -> tuple[str, ...]:
    return check_loadable(read_header(BytesSource(data)))


def broken(changes: dict[str, Any]) -> bytes:
    return build_gguf(small_llama_metadata(**changes), small_llama_tensors())


def test_a_good_file_has_no_problems() -> None:
    assert problems(build_gguf()) == ()


@pytest.mark.parametrize("case", UNLOADABLE)
def test_what_the_native_loader_would_fail_on_is_named(case: str) -> None:
    changes, expected = UNLOADABLE[case]
    assert any(expected in problem for problem in problems(broken(changes)))


def test_a_token_that_is_there_twice_is_only_looked_for_when_asked() -> None:
    header = read_header(BytesSource(broken(UNLOADABLE["a token twice"][0])))
    assert check_loadable(header, thorough=False) == ()


def test_several_empty_tokens_are_no_problem() -> None:
    changes = {"tokenizer__ggml__tokens": array("string", [*TEXTS[:-2], "", ""])}
    assert problems(broken(changes)) == ()


def test_the_other_byte_order_is_not_loadable_here() -> None:
    other = "big" if sys.byteorder == "little" else "little"
    assert any("endian" in problem for problem in problems(build_gguf(byte_order=other)))


@pytest.mark.parametrize(
    "metadata",
    [
        {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"},
        {"general.type": "mmproj", "general.architecture": "clip"},
        {"general.type": "imatrix"},
    ],
)
def test_files_that_are_no_models_are_judged_by_their_layout_alone(metadata: dict[str, Any]) -> None:
    assert problems(build_gguf(metadata, [Tensor("a", (32,))])) == ()
    assert problems(build_gguf(metadata, [Tensor("a" * 70, (32,))]))


def test_a_vocabulary_needs_no_hyperparameters() -> None:
    metadata = {k: v for k, v in small_llama_metadata().items() if k.startswith(("general.", "tokenizer."))}
    assert problems(build_gguf(metadata)) == ()


def test_the_later_files_of_a_model_are_judged_by_their_layout_alone() -> None:
    part = {"split.no": typed("uint16", 1), "split.count": typed("uint16", 2)}
    assert problems(build_gguf(part, [Tensor("a", (32,))])) == ()
    assert problems(build_gguf(part, [Tensor("a" * 70, (32,))]))


def test_per_layer_arrays_of_the_right_length_are_no_problem() -> None:
    changes = {"llama__attention__head_count": array("uint32", [4, 4])}
    assert problems(broken(changes)) == ()


@pytest.mark.real
def test_llama_cpp_refuses_what_we_refuse(tmp_path: Path, real_model: Path) -> None:
    (tmp_path / "good.gguf").write_bytes(build_gguf())
    assert loads(tmp_path / "good.gguf")
    # One case each of a loader that asserts, throws, and refuses the file before that.
    for case in (
        "513 blocks",
        "used experts without experts",
        "rope scaling nobody knows",
        "a token twice",
        "no merges",
    ):
        path = tmp_path / "bad.gguf"
        path.write_bytes(broken(UNLOADABLE[case][0]))
        assert not loads(path), case


def loads(path: Path) -> bool:
    """Whether llama.cpp loads a file; in a process of its own, because an assertion ends the process."""
    script = (
        "import llama_cpp, sys\n"
        "model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), llama_cpp.llama_model_default_params())\n"
        "sys.exit(0 if model else 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        env={"GGML_NO_BACKTRACE": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    return done.returncode == 0
