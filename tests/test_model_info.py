"""`get_model_info`: facts from the header, never from the name."""

from __future__ import annotations

import pytest

from tea_models.errors import MalformedGGUFError, MissingFileError
from tea_runtime import get_model_info
from tests.gguf_build import build_gguf, small_llama_metadata


def test_the_header_decides_and_not_the_name(tmp_path):
    path = tmp_path / "phi-4-mini-gemma-128k.gguf"
    path.write_bytes(build_gguf())
    info = get_model_info(path)
    assert (info["n_ctx"], info["chat_format"], info["family"]) == (2048, "chatml", "llama")


def test_a_file_without_a_template_has_no_chat_format(tmp_path):
    path = tmp_path / "base.gguf"
    path.write_bytes(build_gguf(small_llama_metadata(tokenizer__chat_template=None), []))
    info = get_model_info(str(path))
    assert (info["chat_format"], info["kind"]) == (None, "vocabulary")


def test_a_broken_file_is_an_integrity_error(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(build_gguf()[:100])
    with pytest.raises(MalformedGGUFError):
        get_model_info(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"nothing\.gguf"):
        get_model_info(tmp_path / "nothing.gguf")


@pytest.mark.real
def test_a_real_model_shows_its_trained_context(gemma_model):
    info = get_model_info(gemma_model)
    assert (info["n_ctx"], info["family"], info["chat_format"]) == (32768, "gemma", None)
