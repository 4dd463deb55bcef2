"""The picture of memory against context, as SVG and as text."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest

from tea_models.cli.output import Output
from tea_models.cli.plan_view import explanation, overview
from tea_models.engine.estimator import Estimator
from tea_models.plan.curve import memory_curve
from tea_models.plan.plot import draw_svg, draw_text
from tea_models.plan.resolve import plan_profile
from tea_models.plan.user_settings import UserSettings
from tests.architectures import CASES
from tests.plan_profiles import GIB, machine_with, profile_of

NAMES = ["smollm2", "gemma3-270m", "phi4-mini", "mamba", "bert"]


def planned(name: str, available: int = 32 * GIB, **user: Any) -> tuple[Any, Any]:
    profile = profile_of(*CASES[name], name=name)
    plan = plan_profile(profile, machine_with(available), UserSettings(**user), Estimator(profile))
    return plan, memory_curve(plan, Estimator(profile))


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_is_well_formed_and_stays_inside(name: str) -> None:
    plan, curve = planned(name)
    root = ET.fromstring(draw_svg(plan, curve))
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    points = [
        tuple(map(float, pair.split(",")))
        for line in root.iter("{http://www.w3.org/2000/svg}polyline")
        for pair in line.attrib["points"].split()
    ]
    assert points
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    assert f"planned: {plan.settings.n_ctx:,}" in "".join(root.itertext())


def test_a_name_with_markup_does_not_break_the_picture() -> None:
    plan, curve = planned("smollm2")
    text = draw_svg(replace(plan, name='<script>&"x'), curve)
    assert "<script>" not in text
    ET.fromstring(text)


def test_the_budget_is_drawn_where_it_is_near() -> None:
    plan, curve = planned("phi4-mini", 8 * GIB)
    assert "may be used" in draw_svg(plan, curve)


def test_more_context_never_takes_less() -> None:
    _plan, curve = planned("gemma3-270m")
    for points in curve.series.values():
        totals = [use.total for _, use in points]
        assert totals == sorted(totals)


@pytest.mark.parametrize("name", NAMES)
def test_the_text_picture_marks_the_plan_and_fits_the_terminal(name: str) -> None:
    plan, curve = planned(name)
    lines = draw_text(plan, curve, 80)
    assert sum("planned" in line for line in lines) == 1
    assert all(len(line) <= 80 for line in lines), lines


def test_contexts_beyond_the_budget_are_marked() -> None:
    plan, curve = planned("phi4-mini", 8 * GIB)
    assert any("too much" in line for line in draw_text(plan, curve, 80))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_overview_and_explanation_keep_to_the_width(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, curve = planned(name)
    monkeypatch.setenv("COLUMNS", str(width))
    style = Output()
    for text in (overview(plan, style, name), explanation(plan, curve, style)):
        if width >= 60:
            assert max(map(len, text.splitlines())) <= max(width, 80), text


def test_the_explanation_names_every_setting_and_what_was_rejected() -> None:
    plan, curve = planned("gemma3-270m")
    text = explanation(plan, curve, Output())
    for decision in plan.decisions:
        assert decision.setting in text
    assert "not 512" in text
    assert "576 MiB" in text
    assert "pages of text" in " ".join(text.split())


def test_what_was_observed_is_part_of_the_explanation() -> None:
    plan, curve = planned("smollm2")
    observed = {
        "when": "2026-11-23T02:00:00+00:00", "engine": "0.3.36", "predicted": {"kv_cache": 100}, "actual": {"kv_cache": 200},
        "warnings": ["the KV cache took 200 B, 100% more than the 100 B planned"],
    }  # fmt: skip
    text = explanation(replace(plan, observed=observed), curve, Output())
    assert "100% more" in text
    assert "What it really took" in text
