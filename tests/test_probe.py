"""The engine's dry run: what it measures, what it survives, what it remembers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tea_models.engine.probe
import tea_models.engine.probe_process
from tea_models.engine.engine_settings import EngineSettings
from tea_models.engine.estimator import ESTIMATE_ERROR, Estimator, Measured
from tea_models.engine.formula import MemoryUse
from tea_models.engine.probe import (
    Prober,
    RefusedError,
    engine_build,
    engine_info,
    engine_version,
)
from tea_models.engine.probe_process import ProbeError, ProbeProcess
from tea_models.profile.header_facts import profile_from_headers
from tea_models.profile.model_files import open_model
from tests.gguf_build import build_gguf

needs_engine = pytest.mark.skipif(engine_version() is None, reason="llama-cpp-python is not installed")
pytestmark = [needs_engine, pytest.mark.real]

SMALL = EngineSettings(n_ctx=256, n_batch=64, n_ubatch=64)


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    path.write_bytes(build_gguf())
    return path


def prober(path: Path, **more: Any) -> Prober:
    return Prober("ab" * 32, path, **more)


def test_the_engine_describes_itself_in_a_subprocess() -> None:
    info = engine_info()
    assert info.version == engine_version()
    assert info.gpus == tuple(gpu for gpu in info.gpus if gpu.kind in ("gpu", "igpu"))


def test_this_package_never_imports_the_engine_in_its_own_process() -> None:
    program = (
        "import sys; from tea_models.engine.probe import engine_info; engine_info()\n"
        "import tea_models.plan.resolve, tea_models.verbs.verify, tea_models.verbs.doctor\n"
        "print('llama_cpp' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout == "False\n"


def test_a_build_has_a_name_that_stays() -> None:
    assert engine_build() == engine_build()
    assert re.fullmatch("[0-9a-f]{16}", engine_build() or "")


def test_a_small_file_is_measured(small_file: Path) -> None:
    (use,) = prober(small_file).measure([SMALL])
    assert isinstance(use, MemoryUse)
    assert use.method == "measured"
    assert use.kv_cache > 0
    assert use.compute > 0
    assert use.overhead > 30 * 1024**2


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the engine was asked."""
    found: list[dict[str, Any]] = []
    ask = ProbeProcess.ask

    def asking(self: ProbeProcess, request: dict[str, Any], timeout: float) -> list[dict[str, Any]]:
        found.append(request)
        return ask(self, request, timeout)

    monkeypatch.setattr(ProbeProcess, "ask", asking)
    return found


def test_many_points_cost_one_run(small_file: Path, asked: list[dict[str, Any]]) -> None:
    measured = prober(small_file)
    points = [EngineSettings(n_ctx=n_ctx, n_batch=64, n_ubatch=64) for n_ctx in (256, 512, 1024, 256)]
    first, second, third, again = measured.measure(points)
    assert len(asked) == 1
    assert first == again
    assert isinstance(first, MemoryUse)
    assert isinstance(second, MemoryUse)
    assert isinstance(third, MemoryUse)
    assert second.kv_cache == 2 * first.kv_cache
    assert third.kv_cache == 4 * first.kv_cache


def test_one_process_answers_many_questions_until_it_is_closed(small_file: Path) -> None:
    measured = prober(small_file)
    measured.measure([SMALL])
    first = measured._process._process
    measured.measure([EngineSettings(n_ctx=512, n_batch=64, n_ubatch=64)])
    assert measured._process._process is first
    assert first is not None
    measured.close()
    assert first.poll() is not None
    assert isinstance(measured.measure([EngineSettings(n_ctx=768, n_batch=64, n_ubatch=64)])[0], MemoryUse)


def test_one_refused_point_leaves_the_others_alone(small_file: Path) -> None:
    refused = EngineSettings(n_ctx=256, n_batch=64, n_ubatch=64, type_v="q8_0", flash_attn=False)
    answers = prober(small_file).measure([SMALL, refused, SMALL])
    assert isinstance(answers[1], RefusedError)
    assert "flash_attn" in answers[1].message or "block" in answers[1].message
    assert isinstance(answers[2], MemoryUse)


def test_answers_are_remembered_by_header_and_build(
    small_file: Path, tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    cache = tmp_path / "cache"
    first = prober(small_file, cache_dir=cache)
    expected = first.measure([SMALL])
    second = prober(small_file, cache_dir=cache)
    assert second.measure([SMALL]) == expected
    assert len(asked) == 1
    (file,) = cache.iterdir()
    assert engine_build() in file.name


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1, "points": {"x": {}}}', '{"format": 99, "points": {}}'])
def test_a_damaged_memory_of_answers_is_measured_anew(
    text: str, small_file: Path, tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    cache = tmp_path / "cache"
    prober(small_file, cache_dir=cache).measure([SMALL])
    (file,) = cache.iterdir()
    file.write_text(text)
    asked.clear()
    assert isinstance(prober(small_file, cache_dir=cache).measure([SMALL])[0], MemoryUse)
    assert len(asked) == 1


def test_a_cache_folder_that_cannot_be_written_is_no_error(small_file: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    assert isinstance(prober(small_file, cache_dir=blocked / "cache").measure([SMALL])[0], MemoryUse)


def test_a_file_that_the_engine_refuses_is_said_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(build_gguf({"general.architecture": "no-such-architecture"}, []))
    with pytest.raises(ProbeError, match="no-such-architecture"):
        prober(path).measure([SMALL])


def test_a_process_that_died_in_between_is_started_again(small_file: Path) -> None:
    measured = prober(small_file)
    measured.measure([SMALL])
    assert measured._process._process is not None
    measured._process._process.kill()
    assert isinstance(measured.measure([EngineSettings(n_ctx=512, n_batch=64, n_ubatch=64)])[0], MemoryUse)


def worker_that(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "worker.py"
    script.write_text(program)
    monkeypatch.setattr(tea_models.engine.probe_process, "_WORKER", script)


def test_a_failed_assertion_of_the_engine_is_an_error_here(
    small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_that(
        "import os, sys; sys.stderr.write('ggml.c:1: GGML_ASSERT(n > 0) failed\\n'); sys.stderr.flush(); os.abort()",
        tmp_path,
        monkeypatch,
    )
    with pytest.raises(ProbeError, match=r"signal 6 .*GGML_ASSERT\(n > 0\)"):
        prober(small_file).measure([SMALL])


def test_a_dry_run_that_hangs_is_stopped(small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker_that("import time; time.sleep(60)", tmp_path, monkeypatch)
    monkeypatch.setattr(tea_models.engine.probe, "TIMEOUT", 1)
    with pytest.raises(ProbeError, match="took longer than 1 s"):
        prober(small_file).measure([SMALL])


def test_after_a_failed_dry_run_the_formulas_answer_and_say_so(
    small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_that("raise SystemExit(3)", tmp_path, monkeypatch)
    with open_model(small_file) as model:
        profile = profile_from_headers(model.headers, model.files)
    measured = Measured(prober(small_file), profile)
    (use,) = measured.measure([SMALL])
    assert isinstance(use, MemoryUse)
    assert use.method == "estimated"
    assert "exit code 3" in measured.reason


def test_a_worker_that_talks_nonsense_is_an_error(
    small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_that("print('hello'); print('{\"engine\": 1')", tmp_path, monkeypatch)
    with pytest.raises(ProbeError, match="ended with exit code 0"):
        prober(small_file).measure([SMALL])


def test_a_header_alone_measures_like_the_file(small_file: Path, tmp_path: Path) -> None:
    points = [SMALL, EngineSettings(n_ctx=1024, n_batch=64, n_ubatch=32, type_k="q8_0")]
    whole = prober(small_file).measure(points)
    with open_model(small_file) as model:
        header = Prober("cd" * 32, model).measure(points)
    assert [_sizes(use) for use in whole] == [_sizes(use) for use in header]
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("tea-probe-*"))


def _sizes(use: Any) -> Any:
    return (use.weights, use.kv_cache, use.compute) if isinstance(use, MemoryUse) else use.message


LOAD = """
import json, re, sys
import llama_cpp as engine
types = {"f16": 1, "q8_0": 8, "q4_0": 2, "f32": 0}
lines = []
callback = engine.llama_log_callback(lambda level, text, data: lines.append(text.decode()) if level != 1 else None)
engine.llama_log_set(callback, None)
parameters = engine.llama_model_default_params()
parameters.n_gpu_layers = 0
model = engine.llama_model_load_from_file(sys.argv[1].encode(), parameters)
# What is really allocated, rounded to 0.01 MiB: "CPU KV buffer size", "CPU compute buffer size".
def size(kind):
    return sum(map(float, re.findall(kind + r" buffer size =\\s*([0-9.]+) MiB", "\\n".join(lines))))
weights = size("model")
answers = []
for point in json.loads(sys.argv[2]):
    lines.clear()
    context = engine.llama_context_default_params()
    for name in ("n_ctx", "n_batch", "n_ubatch", "swa_full"):
        setattr(context, name, point[name])
    context.type_k, context.type_v = types[point["type_k"]], types[point["type_v"]]
    context.flash_attn_type = -1 if point["flash_attn"] is None else int(point["flash_attn"])
    opened = engine.llama_init_from_model(model, context)
    answers.append({"weights": weights, "kv_cache": size("KV"), "compute": size("compute")})
    engine.llama_free(opened)
print(json.dumps(answers))
"""

REAL_POINTS = [
    EngineSettings(n_ctx=2048, n_batch=512, n_ubatch=512),
    EngineSettings(n_ctx=8192, n_batch=512, n_ubatch=128, type_k="q8_0", type_v="q8_0"),
    EngineSettings(n_ctx=4096, n_batch=512, n_ubatch=256, swa_full=True, type_k="f16", type_v="q4_0"),
    EngineSettings(n_ctx=1000, n_batch=100, n_ubatch=64, flash_attn=False),
]


@pytest.mark.parametrize("model", ["real_model", "gemma_model"])
def test_predicted_buffers_are_those_of_a_real_load(model: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(model)
    points = (
        [*REAL_POINTS, EngineSettings(n_ctx=32768, n_batch=512, n_ubatch=128)]
        if model == "gemma_model"
        else REAL_POINTS
    )
    wanted = [{name: getattr(point, name) for name in point.__slots__} for point in points]
    arguments = [sys.executable, "-P", "-c", LOAD, str(path), json.dumps(wanted)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    really = json.loads(done.stdout.splitlines()[-1])
    for point, predicted, taken in zip(points, prober(path).measure(points), really, strict=True):
        assert isinstance(predicted, MemoryUse)
        assert predicted.kv_cache / 2**20 == pytest.approx(taken["kv_cache"], abs=0.011), point
        assert predicted.compute / 2**20 == pytest.approx(taken["compute"], rel=0.02), point
        assert predicted.weights / 2**20 == pytest.approx(taken["weights"], rel=0.02), point


@pytest.mark.parametrize("model", ["real_model", "gemma_model"])
def test_an_estimate_is_never_below_the_measurement(model: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(model)
    with open_model(path) as opened:
        profile = profile_from_headers(opened.headers, opened.files)
    contexts = [EngineSettings(n_ctx=n_ctx, n_batch=512, n_ubatch=512) for n_ctx in (512, 4096, 32768)]
    points = [*REAL_POINTS, *contexts]
    measured, estimated = prober(path).measure(points), Estimator(profile).measure(points)
    for exact, rough in zip(measured, estimated, strict=True):
        assert isinstance(exact, MemoryUse)
        assert isinstance(rough, MemoryUse)
        assert rough.kv_cache == exact.kv_cache
        for part in ("weights", "compute", "overhead"):
            assert getattr(rough, part) >= getattr(exact, part)
        # The process itself is that of the largest engine that can be installed, whichever is here.
        assert rough.total <= exact.total * (1 + ESTIMATE_ERROR) + 32 * 1024 * 1024
