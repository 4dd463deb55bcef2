"""What the static checks do not know and llama.cpp refuses is found by asking it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tea_models.caller import Caller
from tea_models.engine.dry_load import DryLoader
from tea_models.engine.probe import engine_version
from tea_models.errors import IntegrityError
from tea_models.gguf.header import read_header
from tea_models.gguf.loadable import check_loadable
from tea_models.plan.resolve import plan_model
from tea_models.plan.user_settings import UserSettings
from tea_models.settings import Settings
from tea_models.verbs.verify import verify
from tests.gguf_build import BytesSource, Tensor, array, build_gguf, small_llama_metadata, small_llama_tensors

pytestmark = [
    pytest.mark.skipif(engine_version() is None, reason="llama-cpp-python is not installed"),
    pytest.mark.real,
]


def with_metadata(**changes: Any) -> bytes:
    return build_gguf(small_llama_metadata(**changes), small_llama_tensors())


def with_tensors(change: Callable[[list[Tensor]], list[Tensor]]) -> bytes:
    return build_gguf(small_llama_metadata(), change(small_llama_tensors()))


def of_architecture(name: str, **more: Any) -> bytes:
    """The small llama under another name."""
    metadata = {key.replace("llama.", f"{name}."): value for key, value in small_llama_metadata().items()}
    metadata |= {"general.architecture": name, **{f"{name}.{key}": value for key, value in more.items()}}
    return build_gguf(metadata, small_llama_tensors(metadata))


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "an unknown tokenizer": (lambda: with_metadata(tokenizer__ggml__model="zzz"), "zzz"),
    "an unknown pre-tokenizer": (
        lambda: with_metadata(
            tokenizer__ggml__model="gpt2",
            tokenizer__ggml__merges=array("string", ["t h"]),
            tokenizer__ggml__token_type=None,
            tokenizer__ggml__pre="zzz",
        ),
        "zzz",
    ),
    "an unknown architecture": (lambda: of_architecture("zzz"), "zzz"),
    "no heads": (lambda: with_metadata(llama__attention__head_count=0), "attn_q.weight"),
    "no KV heads": (lambda: with_metadata(llama__attention__head_count_kv=0), "attn_k.weight"),
    "no FFN": (lambda: with_metadata(llama__feed_forward_length=0), "ffn_"),
    "rope of no dimensions": (lambda: with_metadata(llama__rope__dimension_count=0), "rot"),
    "no epsilon": (lambda: with_metadata(llama__attention__layer_norm_rms_epsilon=None), "layer_norm_rms_epsilon"),
    "no tensors": (lambda: build_gguf(small_llama_metadata()), "token_embd.weight"),
    "no embeddings": (lambda: with_tensors(lambda tensors: tensors[1:]), "token_embd.weight"),
    "embeddings without dimensions": (
        lambda: with_tensors(lambda tensors: [Tensor("token_embd.weight", ()), *tensors[1:]]),
        "token_embd.weight",
    ),
    "an assertion": (lambda: of_architecture("nanbeige", num_loops=0), "llama.cpp"),
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.resolve({"HOME": str(tmp_path), "TEA_MODELS_DIR": str(tmp_path / "store")}, cwd=tmp_path)


def test_verify_says_what_llama_cpp_refuses_and_why(tmp_path: Path, settings: Settings) -> None:
    paths = {}
    for number, (case, (build, _)) in enumerate(REFUSED.items()):
        paths[case] = tmp_path / f"{number}.gguf"
        paths[case].write_bytes(build())
        assert check_loadable(read_header(BytesSource(build()))) == (), case
    good = tmp_path / "good.gguf"
    good.write_bytes(build_gguf())
    results = verify([*map(str, paths.values()), str(good)], Caller(settings))
    for case, result in zip(paths, results, strict=False):
        assert result.loadable is False, case
        assert REFUSED[case][1] in result.problems[0], case
    assert (results[-1].loadable, results[-1].problems) == (True, ())


def test_a_crash_is_told_from_a_refusal_and_without_the_folder_of_the_build(tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "bad.gguf"
    for case, crashed in (("an assertion", True), ("an unknown tokenizer", False)):
        path.write_bytes(REFUSED[case][0]())
        refusal = DryLoader(settings).refusal(path)
        assert refusal is not None
        assert refusal.crashed is crashed
        assert "/" not in refusal.reason


def test_nothing_is_asked_about_files_that_are_no_models(tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "adapter.gguf"
    path.write_bytes(build_gguf({"general.type": "adapter", "general.architecture": "llama"}, [Tensor("a", (32,))]))
    assert verify([str(path)], Caller(settings))[0].loadable


def test_the_first_part_is_not_blamed_for_a_missing_one(tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "a-00001-of-00002.gguf"
    path.write_bytes(with_metadata(split__no=0, split__count=2))
    assert DryLoader(settings).refusal(path) is None


def test_an_engine_that_does_not_start_says_nothing_about_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(REFUSED["an unknown tokenizer"][0]())
    environ = {"HOME": str(tmp_path), "TEA_MODELS_DIR": str(tmp_path / "store"), "PYTHONHOME": str(tmp_path)}
    assert DryLoader(Settings.resolve(environ, cwd=tmp_path)).refusal(path) is None


def test_the_runtime_does_not_load_what_another_process_crashed_on(tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(REFUSED["an assertion"][0]())
    with pytest.raises(IntegrityError, match=r"bad\.gguf"):
        plan_model(path, settings, UserSettings())
