"""`map`: a line for each row, in any order; killed at any moment and run again it does what is missing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tea_models.errors import ConfigError, MissingFileError, UsageError
from tea_runtime.mapping.rows import LONGEST_ROW, Output, Row, map_rows, read_rows
from tea_runtime.workflow.runner import LoadedWorkflow

DOUBLE = """
name: double
nodes:
  - name: twice
    run: |
      if state["n"] == 13:
          raise ValueError("unlucky")
      return {"twice": 2 * state["n"]}
"""
RUN = [sys.executable, "-c", "from tea_runtime.cli import main; main()", "map"]


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    path = tmp_path / "double.yaml"
    path.write_text(DOUBLE, "utf-8")
    return path


def numbers(path: Path, count: int) -> Path:
    path.write_text("".join(f'{{"n": {n}}}\n' for n in range(count)), "utf-8")
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120)


def test_each_row_gets_a_line_and_a_row_that_fails_keeps_its_error(workflow: Path, tmp_path: Path) -> None:
    rows, out = numbers(tmp_path / "rows.jsonl", 20), tmp_path / "out.jsonl"
    done = run(workflow, "--over", rows, "-o", out)
    assert done.returncode == 1
    assert "1 row failed; --max-errors allows 0" in done.stderr
    found = {line["_row"]: line for line in lines(out)}
    assert sorted(found) == list(range(20))
    assert "unlucky" in found.pop(13)["_error"]
    assert all(line["twice"] == 2 * line["n"] == 2 * row for row, line in found.items())


def test_a_second_run_does_nothing_and_ends_as_the_errors_allow(workflow: Path, tmp_path: Path) -> None:
    rows, out = numbers(tmp_path / "rows.jsonl", 15), tmp_path / "out.jsonl"
    run(workflow, "--over", rows, "-o", out)
    before = out.read_bytes()
    again = run(workflow, "--over", rows, "-o", out, "--max-errors", 1, "--json")
    assert (again.returncode, out.read_bytes()) == (0, before)
    told = json.loads(again.stdout)
    assert (told["rows"], told["present"], told["errors"]) == (0, 15, 1)


def test_a_line_that_a_killed_process_left_half_is_done_again(workflow: Path, tmp_path: Path) -> None:
    rows, out = numbers(tmp_path / "rows.jsonl", 8), tmp_path / "out.jsonl"
    run(workflow, "--over", rows, "-o", out)
    out.write_bytes(out.read_bytes()[:-5])
    assert json.loads(run(workflow, "--over", rows, "-o", out, "--json").stdout)["rows"] == 1
    assert sorted(line["_row"] for line in lines(out)) == list(range(8))


def test_killed_at_any_moment_and_run_again_no_row_is_lost_or_doubled(tmp_path: Path) -> None:
    slow = tmp_path / "slow.yaml"
    slow.write_text(
        "nodes:\n  - name: a\n    run: |\n      import time; time.sleep(0.01)\n      return {'a': 1}\n", "utf-8"
    )
    rows, out = numbers(tmp_path / "rows.jsonl", 400), tmp_path / "out.jsonl"
    for most in (20, 150):
        child = subprocess.Popen([*RUN, str(slow), "--over", str(rows), "-o", str(out)], stderr=subprocess.DEVNULL)
        while child.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < most):
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
    before = out.read_bytes().count(b"\n")
    assert 150 <= before < 400
    done = run(slow, "--over", rows, "-o", out, "--json")
    assert json.loads(done.stdout)["rows"] in (400 - before, 401 - before)
    assert sorted(line["_row"] for line in lines(out)) == list(range(400))


def test_the_output_of_another_workflow_is_refused(workflow: Path, tmp_path: Path) -> None:
    rows, out = numbers(tmp_path / "rows.jsonl", 3), tmp_path / "out.jsonl"
    run(workflow, "--over", rows, "-o", out)
    workflow.write_text(DOUBLE.replace("2 *", "3 *"), "utf-8")
    refused = run(workflow, "--over", rows, "-o", out)
    assert (refused.returncode, "another workflow wrote it" in refused.stderr) == (2, True)
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("{}\n", "utf-8")
    refused = run(workflow, "--over", rows, "-o", foreign)
    assert (refused.returncode, "not written by map" in refused.stderr) == (2, True)
    assert foreign.read_text("utf-8") == "{}\n"


def test_two_processes_do_not_write_one_output(tmp_path: Path) -> None:
    with (
        Output(tmp_path / "o.jsonl", "w"),
        pytest.raises(UsageError, match="another process"),
        Output(tmp_path / "o.jsonl", "w"),
    ):
        pass


def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    with Output(path, "w") as output:
        output.append(0, {})
    with path.open("a") as file:
        file.write("{oops\n")
    with pytest.raises(ConfigError) as raised, Output(path, "w"):
        pass
    assert raised.value.line == 2


def test_rows_are_in_flight_together_and_never_more_than_asked(tmp_path: Path) -> None:
    together, most = 0, 0
    gate, lock = threading.Barrier(4, timeout=60), threading.Lock()

    def answer(_values: object) -> dict[str, int]:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        gate.wait()
        with lock:
            together -= 1
        return {}

    with Output(tmp_path / "o.jsonl", "w") as output:
        summary = map_rows(answer, (Row(index, {}) for index in range(12)), output, concurrency=4)
    assert (summary.rows, most) == (12, 4)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("r.jsonl", '{"a": 1}\n\n[2]\n{"a": ', [{"a": 1}, None, None]),
        ("r.ndjson", '\ufeff{"a": "ä"}', [{"a": "ä"}]),
        ("r.csv", "a,b\n1,x\n2\n3,y,z\n", [{"a": "1", "b": "x"}, None, None]),
        ("r.jsonl", '{"a": "' + "x" * LONGEST_ROW + '"}\n{"a": 2}\n', [None, {"a": 2}]),
    ],
)
def test_rows_are_read_and_a_bad_one_is_an_error_of_its_own(
    tmp_path: Path, name: str, text: str, expected: list
) -> None:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    rows = list(read_rows(path))
    assert [row.values for row in rows] == expected
    assert [row.index for row in rows] == list(range(len(rows)))
    assert all(bool(row.error) == (row.values is None) for row in rows)


def test_a_sample_is_the_same_each_time_and_a_limit_comes_first(tmp_path: Path) -> None:
    path = numbers(tmp_path / "r.jsonl", 100)
    assert [row.index for row in read_rows(path, limit=3)] == [0, 1, 2]
    chosen = [row.index for row in read_rows(path, sample=10)]
    assert chosen == [row.index for row in read_rows(path, sample=10)]
    assert len(set(chosen)) == 10
    assert max(row.index for row in read_rows(path, limit=20, sample=10)) < 20


@pytest.mark.parametrize("there", ["a note\n", '{"_row": 0'])
def test_a_target_that_map_did_not_write_is_refused_and_nothing_lies_beside_it(
    workflow: Path, tmp_path: Path, there: str
) -> None:
    rows, out = numbers(tmp_path / "rows.jsonl", 1), tmp_path / "notes.txt"
    out.write_text(there)
    before = sorted(tmp_path.iterdir())
    done = run(workflow, "--over", rows, "-o", out)
    assert (done.returncode, "it was not written by map" in done.stderr) == (2, True)
    assert (sorted(tmp_path.iterdir()), out.read_text()) == (before, there)


@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_fails_before_the_first_line_leaves_nothing(tmp_path: Path, there: bool) -> None:
    out = tmp_path / "out.jsonl"
    if there:
        out.touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MissingFileError), Output(out, "w"):
        raise MissingFileError("no model")
    assert sorted(tmp_path.iterdir()) == before
    with Output(out, "w"):
        pass
    assert out.read_bytes() == b"", "no rows are an empty file"


def test_a_file_that_is_none_or_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "r.txt").write_text("x")
    with pytest.raises(UsageError, match=r"ends in \.jsonl"):
        read_rows(tmp_path / "r.txt")


@pytest.mark.real
def test_rows_answered_together_are_those_answered_alone(tmp_path: Path, real_model: Path) -> None:
    workflow = {
        "settings": {"llm": {"model_path": str(real_model), "n_ctx": 2048}},
        "nodes": [
            {
                "name": "answer",
                "action": "llm.chat",
                "params": {
                    "temperature": 0,
                    "max_tokens": 12,
                    "system": "You are a helpful assistant.",
                    # Tokens that are evaluated together differ in the last bits from those alone; here no choice hangs on them.
                    "prompt": "Name the capital of {{ state.country }}.",
                },
            }
        ],
    }
    wanted = {"France": "Paris", "Germany": "Berlin", "Japan": "Tokyo"}
    with LoadedWorkflow(workflow) as loaded, Output(tmp_path / "o.jsonl", "w") as output:
        rows = (Row(index, {"country": country}) for index, country in enumerate(wanted))
        map_rows(loaded.run, rows, output, concurrency=3)
    answers = {line["country"]: line["answer"] for line in lines(tmp_path / "o.jsonl")}
    assert all(city in answers[country] for country, city in wanted.items()), answers
