"""The door to llama.cpp: version, missing package, log, shared weights."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
import weakref

import pytest

from tea_models.engine.engine_settings import EngineSettings
from tea_models.errors import EngineError, UsageError
from tea_runtime.backend import LlmCallParams
from tea_runtime.engine.growing_context import ModelSpec
from tea_runtime.engine.model import open_model
from tea_runtime.errors import ContextOverflowError
from tea_runtime.llama.engine import SPIN_COUNT, check_version, llama, log, prepare
from tea_runtime.llama.sampling import Sampler
from tea_runtime.llama.weights import Vocabulary, Weights
from tests.scripted_model import build_scripted, loaded

pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small.gguf"
    build_scripted(path, [["one", "two"]])
    return path


@pytest.fixture
def weights(small_file):
    weights = Weights(small_file, EngineSettings(512))
    yield weights
    weights.close()


def opened(path, n_ctx=256, **settings):
    """A model of the engine's, and what stands for its user."""
    owner = object()
    spec = ModelSpec(path, EngineSettings(n_ctx, **settings))
    return open_model(spec, owner), owner


@pytest.mark.parametrize("version", ["0.3.35", "0.2.90", "0.3", "0.3.9"])
def test_an_engine_that_is_too_old_is_refused_with_the_version_that_is_needed(version):
    with pytest.raises(EngineError, match=r"too old: 0\.3\.36 or newer is needed"):
        check_version(version)


@pytest.mark.parametrize("version", ["0.3.36", "0.3.40", "0.4.0", "1.0", "0.3.36+cu124"])
def test_an_engine_that_is_new_enough_is_taken(version):
    check_version(version)


def test_without_the_package_a_local_backend_is_an_import_error_that_names_the_extra(small_file):
    program = (
        "import sys; sys.modules['llama_cpp'] = None\n"
        "import importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'llama_cpp' else find(name, *a)\n"
        "import tea_runtime\n"
        f"try: tea_runtime.LocalLlmBackend({str(small_file)!r})\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True)
    assert "tea-models engine install" in done.stdout


def test_a_failed_assertion_in_the_engine_starts_no_debugger():
    program = (
        "import ctypes, os\n"
        "os.environ.pop('GGML_NO_BACKTRACE', None)\n"
        "from tea_runtime.llama.engine import llama\n"
        "from pathlib import Path\n"
        "library = next((Path(llama().__file__).parent / 'lib').glob('*ggml-base*'), None)\n"
        "get = ctypes.CDLL(None).getenv; get.restype = ctypes.c_char_p\n"
        "print(get(b'GGML_NO_BACKTRACE'), flush=True)\n"
        "if library: ctypes.CDLL(str(library)).ggml_abort(b'here.c', 7, b'stop')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout == "b'1'\n"
    assert [line for line in done.stderr.splitlines() if line.strip()] in ([], ["here.c:7: stop"])


@pytest.mark.parametrize(
    ("given", "cpus", "spins"),
    [
        ({}, 2, SPIN_COUNT),
        ({}, 64, None),
        ({"GOMP_SPINCOUNT": "7"}, 2, "7"),
        ({"OMP_WAIT_POLICY": "active"}, 2, None),
    ],
)
def test_threads_on_few_cpus_spin_shortly_unless_the_user_says_otherwise(given, cpus, spins):
    environ = dict(given)
    prepare(environ, cpus=cpus)
    assert environ.get("GOMP_SPINCOUNT") == spins


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_openmp_reads_what_was_set_when_the_engine_is_loaded():
    program = (
        "import os\n"
        "for name in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'): os.environ.pop(name, None)\n"
        "os.environ['OMP_DISPLAY_ENV'] = 'verbose'\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from tea_runtime.llama.engine import llama; llama()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this llama.cpp was built without GNU OpenMP")
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in done.stderr


def test_the_same_file_and_plan_are_one_model(small_file):
    (first, one), (second, other) = opened(small_file), opened(small_file)
    assert first is second
    assert loaded() == [(small_file, 2)]
    first.leave(one)
    assert loaded() == [(small_file, 1)]
    second.leave(other)
    assert loaded() == []


def test_another_plan_for_a_file_shares_its_weights(small_file):
    (first, one), (second, other) = opened(small_file), opened(small_file, n_ctx=512)
    assert first is not second
    assert first.weights is second.weights
    first.leave(one)
    second.leave(other)
    assert loaded() == []


def test_other_load_options_are_another_copy(small_file):
    (first, one), (second, other) = opened(small_file), opened(small_file, use_mmap=False)
    assert first.weights is not second.weights
    first.leave(one)
    second.leave(other)
    assert loaded() == []


def test_threads_that_load_together_share_one_copy(small_file):
    found = []
    threads = [threading.Thread(target=lambda: found.append(opened(small_file))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(model) for model, _ in found}) == 1
    for model, owner in found:
        model.leave(owner)
    assert loaded() == []


def test_weights_are_freed_when_nobody_refers_to_them_any_more(small_file):
    model, owner = opened(small_file)
    weights = weakref.ref(model.weights)
    tokenise = model.vocabulary.tokenize
    model.leave(owner)
    del model
    assert weights() is not None
    assert tokenise("a", special=False)
    del tokenise
    assert weights() is None


def test_a_failed_load_says_why_and_leaves_nothing_behind(tmp_path, small_file):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    with pytest.raises(EngineError, match="invalid magic characters"):
        opened(broken)
    assert loaded() == []
    model, owner = opened(small_file)
    model.leave(owner)


def test_the_engines_log_is_silent_on_stderr_and_goes_to_logging(small_file, capfd, caplog):
    caplog.set_level(logging.DEBUG, logger="tea_runtime.llama")
    Weights(small_file, EngineSettings(512)).close()
    assert capfd.readouterr().err == ""
    assert any("general.architecture" in record.message for record in caplog.records)


def test_a_capture_sees_only_its_own_thread():
    with log.capture() as lines:
        thread = threading.Thread(target=lambda: log.write(4, b"elsewhere\n", None))
        thread.start()
        thread.join()
        log.write(4, b"here", None)
        log.write(5, b" and on\n", None)
    assert [line for _, line in lines] == ["here", " and on"]


def test_bos_is_put_in_front_once(weights):
    vocabulary = Vocabulary(weights)
    assert vocabulary.prompt("x")[:1] == [1]
    assert vocabulary.prompt("<s>x") == vocabulary.prompt("x")


def test_control_tokens_are_parsed_only_where_that_is_asked_for(weights):
    vocabulary = Vocabulary(weights)
    assert len(vocabulary.tokenize("<|im_end|>", special=True)) == 1
    assert len(vocabulary.tokenize("<|im_end|>", special=False)) == len("<|im_end|>")


def test_nul_is_a_character_like_others(weights):
    vocabulary = Vocabulary(weights)
    tokens = vocabulary.tokenize("a\0b", special=False)
    assert b"".join(vocabulary.piece(token) for token in tokens) == b"a\0b"


def test_a_text_that_can_only_be_too_long_is_refused_before_it_is_tokenised(weights):
    longest = max(len(Vocabulary(weights).text(token).encode()) for token in range(weights.n_vocab))
    vocabulary = Vocabulary(weights, limit=100)
    assert len(vocabulary.tokenize("a" * 1000, special=False)) == 1000
    with pytest.raises(ContextOverflowError, match="at least 1,000 tokens"):
        vocabulary.tokenize("a" * 1000 * longest, special=False)


def test_half_a_character_is_refused_with_its_place(weights):
    with pytest.raises(UsageError, match=r"surrogate U\+D800\) at position 3"):
        Vocabulary(weights).tokenize("abc\ud800", special=False)


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ('foo ::= "a"', "root"),
        ("root ::= missing", "Undefined rule identifier 'missing'"),
        ('root ::= root "a" | "b"', "left recursion"),
        ("root ::= (((", r"expecting '\)' at its end"),
        ('root ::= "a\0b"', "NUL"),
        ("root ::= " + "(" * 200_000 + '"a"' + ")" * 200_000, "nested"),
        ('root ::= "' + "a" * 5_000_000 + '"', "more than"),
    ],
)
def test_a_grammar_that_cant_be_used_is_refused_with_the_reason(weights, grammar, problem):
    with pytest.raises(UsageError, match=problem):
        Sampler(weights, LlmCallParams("x"), grammar)


@pytest.mark.parametrize("grammar", ["root ::= missing", "root ::= (((", "foo", 'root ::= "a" }'])
def test_a_bad_grammar_is_told_once_and_prints_nothing(weights, capfd, grammar):
    with pytest.raises(UsageError, match=r"grammar: \w+") as caught:
        Sampler(weights, LlmCallParams("x"), grammar)
    assert capfd.readouterr().err == ""
    assert "can't read it" not in caught.value.message
    Sampler(weights, LlmCallParams("x"), 'root ::= "a"').close()
    print("heard", file=sys.stderr)
    assert capfd.readouterr().err == "heard\n"


def test_samplers_are_freed_by_the_garbage_collector_too(weights):
    for _ in range(50):
        Sampler(weights, LlmCallParams("x"), 'root ::= "a"')
    gc.collect()


def test_the_engine_is_imported_once():
    assert llama() is llama()
