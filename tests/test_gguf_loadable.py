"""What `check_loadable` refuses, and that llama.cpp itself refuses (or dies of) the same files."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tea_models.gguf.header import read_header
from tea_models.gguf.loadable import check_loadable, check_tokenizable
from tests.gguf_build import (
    BytesSource,
    Tensor,
    array,
    build_gguf,
    small_llama_metadata,
    small_llama_tensors,
    small_vocabulary,
    typed,
)

TEXTS, SCORES, TYPES = small_vocabulary()
GPT2: dict[str, Any] = {
    "tokenizer__ggml__model": "gpt2",
    "tokenizer__ggml__merges": array("string", ["t h", ""]),
    "tokenizer__ggml__token_type": array("int32", [1] * len(TEXTS)),
}


def rwkv_tokens(*, without: str = "") -> list[str]:
    """The bytes, each as RWKV vocabularies write it, then longer tokens."""
    single = ["\\t", "\\n", "\\r", *(f"\\x{byte:02x}" for byte in range(256) if byte not in (9, 10, 13))]
    texts = [text for text in single if text != (without if without != "\\x0a" else "\\n")]
    longer = ["\\n\\n", "\\x0aa", "\\\\the", "the"]
    return texts + longer + [f"a{index}" for index in range(len(TEXTS) - len(texts) - len(longer))]


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
    "groups without experts": ({"llama__expert_group_count": 3}, "llama.expert_group_count is 3 for 0 experts"),
    "experts that groups do not divide": (
        {"llama__expert_count": 8, "llama__expert_used_count": 2, "llama__expert_group_count": 3},
        "llama.expert_group_count is 3 for 8 experts",
    ),
    "all groups used": (
        {
            "llama__expert_count": 8,
            "llama__expert_used_count": 2,
            "llama__expert_group_count": 4,
            "llama__expert_group_used_count": 4,
        },
        "llama.expert_group_used_count is 4 of 4 groups",
    ),
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
    "no byte tokens": (
        {"tokenizer__ggml__tokens": array("string", [text.replace("<0x", "<0y") for text in TEXTS])},
        "tokenizer.ggml.tokens lacks 247 of the 256 bytes, the first is <0x00>",
    ),
    "one byte token less": (
        {"tokenizer__ggml__tokens": array("string", [text.replace("<0xE6>", "<0yE6>") for text in TEXTS])},
        "tokenizer.ggml.tokens lacks 1 of the 256 bytes, the first is <0xE6>",
    ),
    "no byte tokens, PLaMo": (
        {
            "tokenizer__ggml__model": "plamo2",
            "tokenizer__ggml__tokens": array("string", [text.replace("<0x", "<0y") for text in TEXTS]),
        },
        "lacks 256 of the 256 bytes",
    ),
    "an RWKV token whose first byte is no token": (
        {"tokenizer__ggml__model": "rwkv", "tokenizer__ggml__tokens": array("string", rwkv_tokens(without="\\x0a"))},
        "has tokens that begin with <0x0A>, but not that byte alone",
    ),
    "byte tokens of BERT": ({"tokenizer__ggml__model": "bert"}, "tokenizer.ggml.token_type has byte tokens"),
    "a BERT vocabulary of 100 tokens": (
        {
            "tokenizer__ggml__model": "bert",
            "tokenizer__ggml__tokens": array("string", TEXTS[:100]),
            "tokenizer__ggml__scores": None,
            "tokenizer__ggml__token_type": None,
        },
        "the tokenizer adds a separator token, but the vocabulary has none",
    ),
    "BOS wanted, but GLM has none": (
        GPT2 | {"tokenizer__ggml__pre": "glm4", "tokenizer__ggml__bos_token_id": None},
        "the tokenizer adds a BOS token, but the vocabulary has none",
    ),
    "Gemma 4 without BOS": (
        GPT2
        | {
            "tokenizer__ggml__model": "gemma4",
            "tokenizer__ggml__add_bos_token": False,
            "tokenizer__ggml__bos_token_id": None,
        },
        "the tokenizer adds a BOS token",
    ),
    "a negative epsilon": ({"llama__attention__layer_norm_rms_epsilon": -1.0}, "rms_epsilon is -1, llama.cpp takes 0"),
    "an epsilon that is no number": (
        {"llama__attention__layer_norm_rms_epsilon": float("nan")},
        "llama.attention.layer_norm_rms_epsilon is nan",
    ),
    "an array of arrays": ({"x__nested": array("array", [array("bool", [True])])}, "array of arrays"),
    "an odd alignment": ({"general__alignment": 24}, "powers of two"),
}


def problems(data: bytes) -> tuple[str, ...]:
    header = read_header(BytesSource(data))
    return check_loadable(header) or check_tokenizable(header)


def broken(changes: dict[str, Any]) -> bytes:
    return build_gguf(small_llama_metadata(**changes), small_llama_tensors())


def test_a_good_file_has_no_problems() -> None:
    assert problems(build_gguf()) == ()


@pytest.mark.parametrize("case", UNLOADABLE)
def test_what_the_native_loader_would_fail_on_is_named(case: str) -> None:
    changes, expected = UNLOADABLE[case]
    assert any(expected in problem for problem in problems(broken(changes)))


def test_what_only_tokenizing_dies_of_may_be_loaded_and_planned() -> None:
    header = read_header(BytesSource(broken(UNLOADABLE["no byte tokens"][0])))
    assert check_loadable(header) == ()
    assert "lacks 247 of the 256 bytes" in check_tokenizable(header)[0]


def test_a_token_that_is_there_twice_is_only_looked_for_when_asked() -> None:
    header = read_header(BytesSource(broken(UNLOADABLE["a token twice"][0])))
    assert check_loadable(header, thorough=False) == ()


def test_several_empty_tokens_are_no_problem() -> None:
    changes = {"tokenizer__ggml__tokens": array("string", [*TEXTS[:-2], "", ""])}
    assert problems(broken(changes)) == ()


def test_a_byte_may_be_a_token_as_it_is() -> None:
    texts = [text.replace("<0x61>", "a long word") for text in TEXTS]  # "a" is one of the words
    assert "a" in texts
    assert problems(broken({"tokenizer__ggml__tokens": array("string", texts)})) == ()


def test_other_tokenizers_need_no_byte_tokens() -> None:
    texts = array("string", [text.replace("<0x", "<0y") for text in TEXTS])
    assert problems(broken(GPT2 | {"tokenizer__ggml__tokens": texts})) == ()
    assert problems(broken({"tokenizer__ggml__tokens": texts, "tokenizer__ggml__model": "t5"})) == ()


def test_an_rwkv_vocabulary_with_every_byte_is_no_problem() -> None:
    changes = {"tokenizer__ggml__model": "rwkv", "tokenizer__ggml__tokens": array("string", rwkv_tokens())}
    assert problems(broken(changes)) == ()


def test_a_token_that_is_added_may_have_the_default_number() -> None:
    assert problems(broken(GPT2 | {"tokenizer__ggml__bos_token_id": None})) == ()
    assert problems(broken({"tokenizer__ggml__bos_token_id": 1 << 20})) == ()


def test_bytes_of_a_token_that_are_no_text_are_shown_as_one_escape_each() -> None:
    changes = {"tokenizer__ggml__tokens": array("string", [*TEXTS[:-2], b"\xff", b"\xff"])}
    assert problems(broken(changes)) == ("the token '\\xff' is in tokenizer.ggml.tokens twice (again at 287)",)


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
        "groups without experts",
        "rope scaling nobody knows",
        "a token twice",
        "no merges",
        "byte tokens of BERT",
    ):
        path = tmp_path / "bad.gguf"
        path.write_bytes(broken(UNLOADABLE[case][0]))
        assert not loads(path), case


@pytest.mark.real
@pytest.mark.parametrize(
    "case", ["no byte tokens", "one byte token less", "a BERT vocabulary of 100 tokens", "BOS wanted, but GLM has none"]
)
def test_llama_cpp_loads_such_a_vocabulary_and_dies_of_the_first_text(case: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    metadata = small_llama_metadata(**UNLOADABLE[case][0])
    path.write_bytes(build_gguf(metadata, small_llama_tensors(metadata)))
    assert loads(path)
    assert run_engine(path, TOKENIZE) == -signal.SIGABRT


@pytest.mark.real
def test_llama_cpp_reads_texts_with_the_good_vocabularies(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    rwkv = {"tokenizer__ggml__model": "rwkv", "tokenizer__ggml__tokens": array("string", rwkv_tokens())}
    for changes in ({}, rwkv, GPT2):
        path.write_bytes(broken(changes))
        assert problems(path.read_bytes()) == ()
        assert run_engine(path, TOKENIZE) == 0


TOKENIZE = (
    "text = 'a\u00e9\u6f22\\n'.encode()\n"
    "tokens = (llama_cpp.llama_token * 99)()\n"
    "vocabulary = llama_cpp.llama_model_get_vocab(model)\n"
    "assert llama_cpp.llama_tokenize(vocabulary, text, len(text), tokens, 99, True, False) > 0\n"
)


def loads(path: Path) -> bool:
    """Whether llama.cpp loads a file."""
    return run_engine(path) == 0


def run_engine(path: Path, then: str = "") -> int:
    """Exit code of a process that loads a file and does more; of its own, because an assertion ends the process."""
    script = (
        "import llama_cpp, sys\n"
        "model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), llama_cpp.llama_model_default_params())\n"
        f"if not model: sys.exit(9)\n{then}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        env={"GGML_NO_BACKTRACE": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=False,
        timeout=600,
    )
    return done.returncode
