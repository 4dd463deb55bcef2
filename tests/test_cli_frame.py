"""The frame of the commands: exit codes, one JSON document, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from tea_models import errors
from tea_models.cli import COMMANDS, group
from tea_models.cli.frame import App, answering, run
from tea_models.cli.output import Output, printable, table
from tea_models.sizes import human_bytes


def tea_models(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tea_models.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environ, check=False, timeout=600)


def failing(error: BaseException) -> click.Command:
    @click.command("failing")
    @answering
    def command(_app: App) -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.TeaModelsError("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.ChecksumMismatchError("x", expected="a", actual="b"), 3),
        (errors.MalformedGGUFError("x", offset=4, problem="p"), 3),
        (errors.UnknownModelError("x"), 4),
        (errors.MemoryDoesNotFitError("x"), 5),
        (OSError(28, "No space left on device", "f"), 5),
        (PermissionError(13, "Permission denied", "f"), 1),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 1),
        (ZeroDivisionError("a bug"), 1),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_each_error_has_its_exit_code_and_one_message(
    error: BaseException, code: int, as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(failing(error), ["--json"] if as_json else []) == code
    captured = capsys.readouterr()
    if as_json:
        assert set(json.loads(captured.out)["error"]) == {"type", "message", "hint"}
        assert captured.err.strip() == ""
    else:
        assert captured.out == ""
        assert "Traceback" not in captured.err


def test_a_wrong_option_with_json_is_one_json_document() -> None:
    done = tea_models("list", "--jsno", "--json")
    assert done.returncode == 2
    assert "--jsno" in json.loads(done.stdout)["error"]["message"]


def test_an_unknown_command_is_told_the_nearest_one() -> None:
    done = tea_models("pul", "x")
    assert done.returncode == 2
    assert "Did you mean 'pull'?" in done.stderr


def test_a_closed_pipe_is_not_an_error() -> None:
    command = f"{sys.executable} -m tea_models.cli list | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=600)
    assert done.stderr == ""


def test_every_command_of_the_help_can_be_loaded_and_says_what_it_is_for() -> None:
    made = group()
    context = click.Context(made)
    for name in COMMANDS:
        command = made.get_command(context, name)
        assert command is not None
        assert command.help or command.short_help, name


def test_the_version_costs_no_heavy_import() -> None:
    code = (
        "import sys; from tea_models.cli import main\n"
        "try: main(['--version'])\nexcept SystemExit: pass\n"
        "print(sorted(set(sys.modules) & {'pydantic', 'yaml', 'huggingface_hub', 'jinja2', 'llama_cpp', 'httpx2'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout.splitlines()[-1] == "[]"


def test_control_characters_never_reach_the_terminal() -> None:
    assert printable("a\x1b[31mb\x9bc\u202ed\ud800") == "a\\x1b[31mb\\x9bc\\x202ed\\xd800"
    assert printable("über\tΩ\n") == "über\tΩ\n"


def test_json_has_no_control_character_and_keeps_the_values(capsys: pytest.CaptureFixture[str]) -> None:
    bad = [*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), *"\u061c\u200e\u200f\u2028\u202a\u202e\u2066\u2069"]
    value = {"k\x9bey": "".join(bad), "plain": "caf\u00e9 \u6f22\U0001f600 \\ \\u009b"}
    Output(as_json=True).answer(value, str)
    printed = capsys.readouterr().out
    assert not set(printed) & (set(bad) - {"\n"})
    assert "caf\u00e9 \u6f22\U0001f600" in printed
    assert json.loads(printed) == value


def test_lone_surrogates_are_legal_json(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).answer({"a": "\ud800"}, str)
    assert json.loads(capsys.readouterr().out) == {"a": "\ud800"}


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (98_362_432, "93.8 MiB"), (1 << 40, "1.00 TiB")],
)
def test_sizes_are_said_with_three_digits(size: int, text: str) -> None:
    assert human_bytes(size) == text


def test_tables_are_aligned() -> None:
    assert table([["a", "1"], ["bb", "22"]], header=["N", "S"], right=frozenset({1})) == "N    S\na    1\nbb  22"


@pytest.fixture
def with_runtime(tmp_path: Path) -> dict[str, str]:
    """An environment in which the entry points of this project's metadata are installed."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
    folder = tmp_path / "door-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: door\nVersion: 1\n")
    points = project["entry-points"]["tea_models.commands"]
    text = "[tea_models.commands]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
    (folder / "entry_points.txt").write_text(text)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


def test_one_door_leads_to_the_commands_of_the_runtime(with_runtime: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text("nodes: [{name: a, run: 'return 5'}]\n")

    def call(*argv: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "tea_models.cli", *argv]
        return subprocess.run(
            program, env=with_runtime, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
        )

    assert call("run", "w.yaml").stdout == "a: 5\n"
    assert call("run", "nope.yaml").returncode == 4
    assert "Usage: tea-models chat" in call("chat", "--help").stdout
    assert "Did you mean 'chat'?" in call("chta").stderr
    assert "Talk to a model." in call("--help").stdout


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("tea-models pu", {"plain,pull", "plain,push"}),
        ("tea-models pull smollm2-", {"plain,smollm2-135m", "plain,smollm2-360m", "plain,smollm2-1.7b"}),
        ("tea-models plan smollm2-135m:", {"plain,smollm2-135m:Q4_1", "plain,smollm2-135m:Q8_0"}),
        ("tea-models inspect ./mo", {"file,./mo"}),
    ],
)
def test_the_shell_completes_commands_and_models(words: str, wanted: set[str]) -> None:
    count = len(words.split()) - 1
    environ = os.environ | {"COMP_WORDS": words, "COMP_CWORD": str(count), "_TEA_MODELS_COMPLETE": "bash_complete"}
    line = [sys.executable, "-m", "tea_models.cli"]
    done = subprocess.run(line, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert set(done.stdout.split()) == wanted
