"""`tea-models pull` and `path` as a user types them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tea_models.cli import group
from tea_models.cli.frame import run
from tests.gguf_build import build_gguf
from tests.hub_server import serve

MODEL = build_gguf()
DIGEST = hashlib.sha256(MODEL).hexdigest()


def tea_models(*arguments: str) -> int:
    return run(group(), arguments)


def test_pull_answers_the_contract_and_says_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(files={"/m.gguf": MODEL}) as server:
        url = f"{server.url}/m.gguf#sha256={DIGEST}"
        assert tea_models("pull", url) == 0
        human = capsys.readouterr()
        assert "downloaded" in human.out
        assert "next: tea-models inspect" in human.out
        assert tea_models("pull", url, "--json") == 0
        (answer,) = json.loads(capsys.readouterr().out)
        assert answer["status"] == "present"
        assert answer["path"] == str(Path(os.environ["TEA_MODELS_DIR"]) / "m.gguf")
        assert tea_models("path", url) == 0
        assert capsys.readouterr().out == answer["path"] + "\n"


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["pull"], 2, "NAME"),
        (["pull", "no such name"], 2, "NAME:VARIANT"),
        (["pull", "no-such-name"], 4, "registry"),
        (["pull", "./nothing.gguf"], 4, "no such file"),
        (["pull", "smollm2-135m", "--offline"], 4, "--offline"),
        (["path", "smollm2-135m"], 4, "tea-models pull smollm2-135m"),
        (["path", "./absent.gguf"], 4, "no such file"),
        (["path", "/"], 4, "not a file"),
        (["pull", "smollm2-135m:Q9"], 4, "Q4_1"),
    ],
)
def test_a_users_mistake_gets_a_line_and_a_code(
    arguments: list[str], code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tea_models(*arguments) == code
    assert word in capsys.readouterr().err
    assert tea_models(*arguments, "--json") == code
    assert json.loads(capsys.readouterr().out)["error"]["message"]


def test_wrong_bytes_end_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(files={"/m.gguf": MODEL}) as server:
        assert tea_models("pull", f"{server.url}/m.gguf#sha256={'0' * 64}", "--json") == 3
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "ChecksumMismatch"


def test_path_without_a_name_is_the_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert tea_models("path") == 0
    assert capsys.readouterr().out.strip() == os.environ["TEA_MODELS_DIR"]


def test_there_already_needs_neither_http_nor_the_hub_library(tmp_path: Path) -> None:
    with serve(files={"/m.gguf": MODEL}) as server:
        url = f"{server.url}/m.gguf#sha256={DIGEST}"
        assert tea_models("pull", url) == 0
    code = (
        "import sys; from tea_models.cli import group; from tea_models.cli.frame import run; run(group(), sys.argv[1:])\n"
        "print([name for name in ('httpx2', 'huggingface_hub', 'pydantic', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, "pull", url], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
