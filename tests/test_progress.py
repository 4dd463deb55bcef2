"""The progress bar: one line that says what matters and never wraps."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from tea_models.cli.frame import App
from tea_models.cli.output import Output
from tea_models.cli.progress import Bar
from tea_models.progress import Progress
from tea_models.settings import Settings

MIB = 1 << 20


class Terminal(io.StringIO):
    def fileno(self):
        return 2


@pytest.fixture
def lines(monkeypatch):
    """What was on the line of a terminal at each moment."""

    def run(columns, *, total=100 * MIB, initial=0, name="model.gguf", steps=(10 * MIB,) * 4):
        monkeypatch.setattr("os.get_terminal_size", lambda _file=1: os.terminal_size((columns, 24)))
        stream = Terminal()
        bar = Bar(stream)
        bar.start(name, total, initial)
        for step in steps:
            bar.advance(step)
        bar.finish()
        return [line for line in stream.getvalue().replace("\n", "\r").split("\r") if line]

    return run


def test_share_and_amount_are_shown(lines):
    assert all(part in lines(100)[-1] for part in ("model.gguf", "40%", "40.0M/100M"))


def test_what_was_there_before_counts_for_the_share(lines):
    assert "90%" in lines(100, initial=50 * MIB)[-1]


@pytest.mark.parametrize("columns", [2, 3, 10, 20, 30, 40, 60, 79, 80, 200])
@pytest.mark.parametrize("total", [100 * MIB, None, 0, 5])
def test_no_line_is_wider_than_the_terminal(lines, columns, total):
    assert all(len(line) <= columns for line in lines(columns, total=total, name="a-very-long-model-name-" * 5))


def test_an_unknown_total_shows_the_amount(lines):
    line = lines(80, total=None)[-1]
    assert "40.0MiB" in line
    assert "%" not in line


def test_a_name_can_not_control_the_terminal(lines):
    text = "".join(lines(100, name="evil\x1b[2Jname\nnext"))
    assert "\x1b" not in text
    assert "\n" not in text


def test_bytes_that_are_thrown_away_are_taken_back(lines):
    assert "10%" in lines(100, total=10 * MIB, steps=(8 * MIB, -8 * MIB, MIB))[-1]


def test_it_is_drawn_at_most_ten_times_a_second(lines):
    assert len(lines(100, total=1000, steps=(1,) * 1000)) <= 12


def test_a_terminal_without_unicode_gets_ascii():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    bar = Bar(stream)
    bar.start("modèle.gguf", 100)
    bar.advance(50)
    bar.finish()
    stream.flush()
    assert b"#" in raw.getvalue()


def test_nothing_is_drawn_where_nobody_looks():
    settings = Settings(Path("store"))
    assert type(App(settings, Output(live=False)).caller.progress) is Progress
    assert isinstance(App(settings, Output(live=True)).caller.progress, Bar)
