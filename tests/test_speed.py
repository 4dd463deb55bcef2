"""How fast a model is said to be: measured where it has run, estimated from the memory that a token reads."""

from __future__ import annotations

import ctypes
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tea_models.engine.estimator import Estimator
from tea_models.machine.bandwidth import memory_bandwidth
from tea_models.plan.planner import plan_profile
from tea_models.plan.speed import bytes_per_token, record_speed, speed_of
from tea_models.plan.types import RunPlan, Speed
from tea_models.plan.user_settings import UserSettings
from tea_models.profile.facts import ModelProfile, WeightFacts
from tests.architectures import CASES
from tests.plan_profiles import GIB, machine_with, profile_of

SMOL = profile_of(*CASES["smollm2"], weights=GIB)
MACHINE = machine_with(8 * GIB)
KV_OF_512_TOKENS = 512 * 30 * 3 * 64 * 2 * 2


@pytest.fixture
def plan() -> RunPlan:
    return plan_profile(SMOL, MACHINE, UserSettings(), Estimator(SMOL))


def record(store: Path, plan: RunPlan, rate: float, **more: Any) -> None:
    timings = {"prompt_n": 100, "prompt_ms": 500, "predicted_n": 50, "predicted_ms": 50_000 / rate}
    record_speed(store, plan, timings | more)


def found(store: Path, plan: RunPlan, profile: ModelProfile = SMOL) -> Speed | None:
    return speed_of(profile, plan.settings, MACHINE, store)


def with_bandwidth(store: Path, bytes_per_s: float) -> None:
    (store / ".tea").mkdir(parents=True, exist_ok=True)
    known = {f"{MACHINE.cpu}, {MACHINE.threads}": bytes_per_s}
    (store / ".tea" / "bandwidth.json").write_text(json.dumps(known))


def test_a_model_that_has_run_here_is_as_fast_as_it_was(plan: RunPlan, tmp_path: Path) -> None:
    for rate in (10, 40, 20):
        record(tmp_path, plan, rate)
    assert found(tmp_path, plan) == Speed(200.0, 20.0, "measured")


def test_only_the_last_runs_count(plan: RunPlan, tmp_path: Path) -> None:
    for rate in (100, 100, 100, 10, 10, 10, 10, 10):
        record(tmp_path, plan, rate)
    assert found(tmp_path, plan) == Speed(200.0, 10.0, "measured")


def test_runs_with_other_threads_or_of_another_model_do_not_count(plan: RunPlan, tmp_path: Path) -> None:
    with_bandwidth(tmp_path, 10e9)
    record(tmp_path, replace(plan, settings=replace(plan.settings, n_threads=1)), 30)
    record(tmp_path, replace(plan, header_sha256="1" * 64), 30)
    speed = found(tmp_path, plan)
    assert speed is not None
    assert speed.method == "estimated"


def test_runs_that_are_too_short_tell_nothing(plan: RunPlan, tmp_path: Path) -> None:
    record(tmp_path, plan, 30, prompt_n=3, predicted_n=2, predicted_ms=100)
    assert not (tmp_path / ".tea" / "speeds.json").exists()
    record(tmp_path, plan, 30, prompt_n=3)
    assert found(tmp_path, plan) == Speed(None, 30.0, "measured")


def test_an_estimate_is_the_time_to_read_the_weights_and_to_wait_for_each_layer(plan: RunPlan, tmp_path: Path) -> None:
    with_bandwidth(tmp_path, 10e9)
    read = bytes_per_token(SMOL)
    assert read == pytest.approx(GIB + KV_OF_512_TOKENS, rel=0.001)
    assert found(tmp_path, plan) == Speed(None, round(1 / (read / 10e9 + 30 * 55e-6), 1), "estimated")


def test_of_a_mixture_of_experts_only_those_that_are_used_are_read() -> None:
    architecture, facts = CASES["qwen3moe"]
    weights = WeightFacts(total=900, blocks=(400, 400), token_embedding=60, output=40, other=0)
    few = replace(profile_of(architecture, facts | {"block_count": 0}), weights=weights)
    assert bytes_per_token(few) == 800 * 8 // 128 + 40


def test_a_tied_embedding_is_read_whole_and_another_is_not() -> None:
    bare = profile_of("llama", {})
    tied = replace(bare, weights=WeightFacts(150, (100,), 50, 0, 0))
    untied = replace(bare, weights=WeightFacts(200, (100,), 50, 50, 0))
    assert bytes_per_token(tied) == bytes_per_token(untied) == 150


def test_nothing_is_said_of_a_gpu_whose_memory_is_unknown(plan: RunPlan, tmp_path: Path) -> None:
    with_bandwidth(tmp_path, 10e9)
    assert found(tmp_path, replace(plan, settings=replace(plan.settings, n_gpu_layers=-1))) is None
    assert found(tmp_path, replace(plan, settings=replace(plan.settings, embeddings=True))) is None


@pytest.mark.parametrize("text", ["", "{", "7", '[7, {"cpu": 1}]', "\x00"])
def test_damaged_records_are_no_reason_to_fail(text: str, plan: RunPlan, tmp_path: Path) -> None:
    with_bandwidth(tmp_path, 10e9)
    (tmp_path / ".tea" / "speeds.json").write_text(text)
    assert found(tmp_path, plan) is not None
    (tmp_path / ".tea" / "bandwidth.json").write_text(text)
    assert found(tmp_path, plan) is not None


def test_the_bandwidth_is_measured_once(plan: RunPlan, tmp_path: Path) -> None:
    first = found(tmp_path, plan)
    assert first is not None
    assert found(tmp_path, plan) == first
    assert len(json.loads((tmp_path / ".tea" / "bandwidth.json").read_text())) == 1


def test_a_store_that_can_not_be_written_is_no_error(plan: RunPlan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    record(tmp_path / "file", plan, 30)
    assert found(tmp_path / "file", plan) is not None


def test_without_a_c_library_or_memory_nothing_is_measured(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert memory_bandwidth(4, 1 << 20) is None

    def missing(_name: object) -> None:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert memory_bandwidth(4, 8 * GIB) is None
    assert found(tmp_path, plan) is None
