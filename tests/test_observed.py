"""What loads really took: recorded, compared with the plan, and shown when they part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tea_models.engine.estimator import Estimator
from tea_models.plan.observed import all_observed, read_observed, record_load
from tea_models.plan.planner import plan_profile
from tea_models.plan.types import RunPlan
from tea_models.plan.user_settings import UserSettings
from tests.architectures import CASES
from tests.plan_profiles import GIB, MIB, machine_with, profile_of

SMOL = profile_of(*CASES["smollm2"])


@pytest.fixture
def plan() -> RunPlan:
    found = plan_profile(SMOL, machine_with(8 * GIB), UserSettings(), Estimator(SMOL))
    use = replace(found.memory.use, method="measured")
    return replace(found, memory=replace(found.memory, use=use))


def record(store: Path, plan: RunPlan, **more: Any) -> Any:
    use = plan.memory.use
    actual = {"kv_cache": use.kv_cache, "compute": use.compute, "peak": use.total - 10 * MIB}
    return record_load(store, plan, engine="0.3.36", actual=actual | more.pop("actual", {}), **more)


def test_a_plan_shows_what_its_last_load_took(plan: RunPlan, tmp_path: Path) -> None:
    assert read_observed(tmp_path, plan) is None
    record(tmp_path, plan)
    found = read_observed(tmp_path, plan)
    assert found is not None
    assert found["actual"]["kv_cache"] == plan.memory.use.kv_cache
    assert found["warnings"] == []


@pytest.mark.parametrize(
    ("part", "factor", "words"),
    [
        ("kv_cache", 1.001, "the KV cache took"),
        ("compute", 1.03, "more than"),
        ("compute", 0.9, "less than"),
        ("peak", 2.0, "at its peak"),
    ],
)
def test_a_warning_when_plan_and_reality_part(
    part: str, factor: float, words: str, plan: RunPlan, tmp_path: Path
) -> None:
    size = plan.memory.total if part == "peak" else getattr(plan.memory.use, part)
    record(tmp_path, plan, actual={part: int(size * factor)})
    found = read_observed(tmp_path, plan)
    assert found is not None
    (warning,) = found["warnings"]
    assert words in warning


@pytest.mark.parametrize(("part", "factor"), [("compute", 1.01), ("peak", 1.05), ("peak", 0.3)])
def test_no_warning_within_tolerance(part: str, factor: float, plan: RunPlan, tmp_path: Path) -> None:
    size = plan.memory.total if part == "peak" else getattr(plan.memory.use, part)
    record(tmp_path, plan, actual={part: int(size * factor)})
    found = read_observed(tmp_path, plan)
    assert found is not None
    assert found["warnings"] == []


def test_an_estimate_is_an_upper_bound_so_less_is_no_surprise(plan: RunPlan, tmp_path: Path) -> None:
    estimated = replace(plan, memory=replace(plan.memory, use=replace(plan.memory.use, method="estimated")))
    record(tmp_path, estimated, actual={"compute": 5})
    found = read_observed(tmp_path, estimated)
    assert found is not None
    assert found["warnings"] == []


def test_a_load_with_other_settings_says_nothing_about_a_plan(plan: RunPlan, tmp_path: Path) -> None:
    record(tmp_path, plan, n_ctx=2048)
    assert read_observed(tmp_path, plan) is None
    assert all_observed(tmp_path)[0].settings["n_ctx"] == 2048


def test_the_last_loads_of_all_models_newest_first(plan: RunPlan, tmp_path: Path) -> None:
    record(tmp_path, plan)
    record(tmp_path, replace(plan, header_sha256="1" * 64, name="other"))
    record(tmp_path, plan, actual={"peak": 5})
    names = [load.name for load in all_observed(tmp_path)]
    assert sorted(names) == ["other", "test-model"]
    assert {load.actual["peak"] for load in all_observed(tmp_path) if load.name == "test-model"} == {5}


def test_only_the_last_loads_are_kept(plan: RunPlan, tmp_path: Path) -> None:
    for _ in range(25):
        record(tmp_path, plan)
    (file,) = (tmp_path / ".tea" / "observed").iterdir()
    assert file.read_text().count('"when"') == 20


@pytest.mark.parametrize("text", ["", "{", '{"format": 7}', '{"format": 2, "loads": [{"x": 1}]}', "\x00\xff"])
def test_damaged_bookkeeping_is_forgotten(text: str, plan: RunPlan, tmp_path: Path) -> None:
    record(tmp_path, plan)
    (file,) = (tmp_path / ".tea" / "observed").iterdir()
    file.write_bytes(text.encode("latin-1"))
    assert read_observed(tmp_path, plan) is None
    assert all_observed(tmp_path) == []
    assert record(tmp_path, plan)


def test_a_store_that_cannot_be_written_is_no_error(plan: RunPlan, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert not record(blocked, plan)
    assert all_observed(blocked) == []
