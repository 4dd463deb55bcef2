"""The gate: a library that does not fit is refused with the function, the field, or how its process died."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tea_models.engine import gate
from tea_models.engine.gate import examine, features, reference
from tea_models.engine.installed import installed_engine
from tests.record_engine_reference import called_functions

ENGINE = installed_engine()
pytestmark = pytest.mark.skipif(ENGINE is None or ENGINE.library is None, reason="no engine is installed")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the installed binding, to be spoilt; its library is the same file."""
    assert ENGINE is not None
    copy = tmp_path / "llama_cpp"
    shutil.copytree(ENGINE.package, copy, ignore=shutil.ignore_patterns("lib", "__pycache__"))
    (copy / "lib").mkdir()
    for path in (ENGINE.package / "lib").iterdir():
        (copy / "lib" / path.name).symlink_to(path)
    return copy


def edit(package: Path, old: str, new: str) -> None:
    binding = package / "llama_cpp.py"
    text = binding.read_text("utf-8")
    assert old in text
    binding.write_text(text.replace(old, new), "utf-8")


def problems(package: Path, **options: Any) -> str:
    assert ENGINE is not None
    return "; ".join(examine(package, version=ENGINE.version or "", **options).problems)


def own_library(package: Path) -> Path:
    """The library as a file of its own, which may be damaged."""
    assert ENGINE is not None
    assert ENGINE.library is not None
    path = package / "lib" / ENGINE.library.name
    path.unlink()
    shutil.copyfile(ENGINE.library, path)
    return path


def test_the_functions_that_are_asked_for_are_those_that_the_code_calls() -> None:
    assert ENGINE is not None
    assert called_functions(ENGINE.package) == reference()["functions"]


def test_the_installed_engine_passes() -> None:
    assert ENGINE is not None
    verdict = examine(ENGINE.package, version=ENGINE.version or "")
    assert verdict.problems == ()
    assert verdict.devices
    assert not set(verdict.missing) & set(reference()["functions"])


def test_a_structure_of_another_size_is_refused(package: Path) -> None:
    edit(package, '("load_mtp", ctypes.c_bool),', '("load_mtp", ctypes.c_bool), ("more", ctypes.c_void_p),')
    found = problems(package)
    assert "llama_model_params has 78 bytes in the library, 88 in the binding" in found
    assert "llama_model_params.more: the library leaves bytes 80 to 88 of it alone" in found


def test_a_smaller_structure_is_refused_too(package: Path) -> None:
    edit(package, '("ctx_other", llama_context_p_ctypes),', "")
    assert "llama_context_params has 160 bytes in the library, 152 in the binding" in problems(package)


def test_fields_that_changed_places_are_refused(package: Path) -> None:
    edit(package, '("n_ctx", ctypes.c_uint32),\n        ("n_batch", ctypes.c_uint32),',
         '("n_batch", ctypes.c_uint32),\n        ("n_ctx", ctypes.c_uint32),')  # fmt: skip
    found = problems(package)
    assert "llama_context_params.n_ctx is 2048, expected 512" in found


def test_a_function_that_is_called_and_missing_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "reference", lambda: reference() | {"functions": ["llama_decode", "llama_not_there"]})
    assert problems(package) == "the library has no llama_not_there"


def test_a_library_of_another_architecture_is_refused(package: Path) -> None:
    path = own_library(package)
    with path.open("r+b") as file:
        file.seek(18)
        file.write((183 if os.uname().machine == "x86_64" else 62).to_bytes(2, "little"))  # e_machine of ELF
    assert "while the library was loaded" in problems(package)


@pytest.mark.parametrize("size", [0, 100, 100_000])
def test_half_a_library_is_refused(size: int, package: Path) -> None:
    path = own_library(package)
    os.truncate(path, size)
    assert "while the library was loaded" in problems(package)


def test_an_instruction_that_the_processor_lacks_is_told_as_such(package: Path) -> None:
    (package / "llama_cpp.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    found = problems(package)
    assert "signal 4 (Illegal instruction)" in found
    assert "while the library was loaded" in found


def test_a_library_that_hangs_is_given_up(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "TIMEOUT", 1)
    (package / "llama_cpp.py").write_text("import time\ntime.sleep(60)\n")
    assert "took longer than 1 s" in problems(package)


@pytest.mark.real
def test_the_self_test_passes(real_model: Path) -> None:
    assert ENGINE is not None
    assert examine(ENGINE.package, version=ENGINE.version or "", model=real_model).self_test == "passed"


@pytest.mark.real
@pytest.mark.parametrize("part", ["tokens", "embedding"])
def test_another_answer_fails_the_self_test(
    part: str, package: Path, real_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = reference()["self_test"]
    other = test | {part: [value + 1 for value in test[part]]}
    monkeypatch.setattr(gate, "reference", lambda: reference.__wrapped__() | {"self_test": other})
    assert "self-test: the " in problems(package, model=real_model)


def test_a_model_that_is_not_there_is_no_answer(package: Path, tmp_path: Path) -> None:
    assert "can't load the model" in problems(package, model=tmp_path / "nothing.gguf")


def test_features_are_the_names_that_are_set() -> None:
    assert features("CPU : AVX2 = 1 | AVX512 = 0 | OPENMP = 1 | REPACK = 1 | ") == ("AVX2", "OPENMP", "REPACK")
    assert features("CUDA : ARCHS = 900 | USE_GRAPHS = 1 | CPU : FMA = 1 | ") == ("USE_GRAPHS", "FMA")
