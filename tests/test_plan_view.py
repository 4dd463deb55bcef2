"""A plan as text for people."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tea_models.cli.output import Output
from tea_models.cli.plan_view import explanation, overview
from tea_models.engine.estimator import Estimator
from tea_models.plan.planner import plan_profile
from tea_models.plan.user_settings import UserSettings
from tests.architectures import CASES
from tests.plan_profiles import GIB, machine_with, profile_of

NAMES = ["smollm2", "gemma3-270m", "phi4-mini", "mamba", "bert"]


def planned(name: str) -> Any:
    profile = profile_of(*CASES[name], name=name)
    return plan_profile(profile, machine_with(32 * GIB), UserSettings(), Estimator(profile))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_overview_and_explanation_keep_to_the_width(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(name)
    monkeypatch.setenv("COLUMNS", str(width))
    style = Output()
    for text in (overview(plan, style, name), explanation(plan, style)):
        if width >= 60:
            assert max(map(len, text.splitlines())) <= max(width, 80), text


def test_the_explanation_names_every_setting_and_what_was_rejected() -> None:
    plan = planned("gemma3-270m")
    text = explanation(plan, Output())
    for decision in plan.decisions:
        assert decision.setting in text
    assert "not 512" in text
    assert "576 MiB" in text
    assert "pages of text" in " ".join(text.split())


def test_what_was_observed_is_part_of_the_explanation() -> None:
    plan = planned("smollm2")
    observed = {
        "when": "2026-11-23T02:00:00+00:00", "engine": "0.3.36", "predicted": {"kv_cache": 100}, "actual": {"kv_cache": 200},
        "warnings": ["the KV cache took 200 B, 100% more than the 100 B planned"],
    }  # fmt: skip
    text = explanation(replace(plan, observed=observed), Output())
    assert "100% more" in text
    assert "What it really took" in text
