"""The progress bar: one line that says what matters and never wraps."""

from __future__ import annotations

import io
import re

import pytest

from tea_models.cli.output import Output
from tea_models.cli.progress import Bar, progress_for
from tea_models.progress import Silent

MIB = 1 << 20


def shown(stream):
    """What was on the line at each moment, without control sequences."""
    return [re.sub(r"\x1b\[2K|\n", "", line) for line in stream.getvalue().split("\r") if line]


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr("tea_models.cli.progress.time.monotonic", lambda: Clock.now)
    return Clock


def run(clock, columns, *, total=100 * MIB, initial=0, name="model.gguf"):
    stream = io.StringIO()
    bar = Bar(stream, columns)
    bar.start(name, total, initial)
    for _ in range(4):
        clock.now += 1
        bar.advance(10 * MIB)
    bar.finish()
    return shown(stream)


def test_share_amount_rate_and_time_left_are_shown(clock):
    line = run(clock, 100)[4]
    for part in ("model.gguf", "40%", "40.0 MiB of 100 MiB", "10.0 MiB/s", "6.0 s left"):
        assert part in line


def test_the_last_line_says_how_much_and_how_long(clock):
    assert run(clock, 100)[-1] == "model.gguf  40.0 MiB in 4.0 s, 10.0 MiB/s"


def test_what_was_there_before_counts_for_the_share_and_not_for_the_rate(clock):
    lines = run(clock, 100, initial=50 * MIB)
    assert "90%" in lines[4]
    assert "10.0 MiB/s" in lines[4]
    assert lines[-1].endswith("10.0 MiB/s")


@pytest.mark.parametrize("columns", [1, 2, 10, 20, 30, 40, 60, 79, 80, 200])
@pytest.mark.parametrize("total", [100 * MIB, None, 0, 5])
def test_no_line_is_wider_than_the_terminal(clock, columns, total):
    for line in run(clock, columns, total=total, name="a-very-long-model-name-" * 5):
        assert len(line) < max(columns, 2)


def test_an_unknown_total_shows_amount_and_rate(clock):
    line = run(clock, 80, total=None)[4]
    assert "40.0 MiB" in line
    assert "10.0 MiB/s" in line
    assert "%" not in line


def test_a_name_can_not_control_the_terminal(clock):
    text = "".join(run(clock, 100, name="evil\x1b[2Jname\nnext"))
    assert "\x1b" not in text
    assert "\n" not in text


def test_bytes_that_are_thrown_away_are_taken_back(clock):
    stream = io.StringIO()
    bar = Bar(stream, 100)
    bar.start("x", 10 * MIB)
    bar.advance(8 * MIB)
    bar.advance(-8 * MIB)
    clock.now += 1
    bar.advance(MIB)
    assert "10%" in shown(stream)[-1]


def test_it_is_drawn_at_most_ten_times_a_second(clock):
    stream = io.StringIO()
    bar = Bar(stream, 100)
    bar.start("x", 1000)
    for _ in range(1000):
        clock.now += 0.001
        bar.advance(1)
    assert len(shown(stream)) <= 12


def test_a_terminal_without_unicode_gets_ascii(clock):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    bar = Bar(stream, 100)
    bar.start("modèle.gguf", 100)
    clock.now += 1
    bar.advance(50)
    bar.finish()
    stream.flush()
    assert b"#" in raw.getvalue()


def test_nothing_is_drawn_where_nobody_looks():
    assert isinstance(progress_for(Output(live=False)), Silent)
    assert isinstance(progress_for(Output(live=True)), Bar)
