"""The forge's action: its steps run here one after the other, as a runner would, with the real commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
pytestmark = pytest.mark.real


def filled(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ *([\w.]+) *\}\}", lambda match: values[match[1]], text)


def outputs(path: Path) -> dict[str, str]:
    """`name=value` lines and `name<<END` blocks, as a runner reads them."""
    text = path.read_text("utf-8") if path.exists() else ""
    found = {match[1]: match[3] for match in re.finditer(r"^(\w+)<<(\w+)\n(.*?)\n\2$", text, re.MULTILINE | re.DOTALL)}
    return found | dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def test_the_steps_bring_the_models_and_say_where_they_are(tmp_path: Path, real_model: Path) -> None:
    environ = os.environ | {
        "TEA_MODELS_DIR": str(real_model.parent),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    lock = ["tea-models", "lock", "smollm2-135m"]
    subprocess.run(lock, cwd=tmp_path, env=environ, check=True, capture_output=True, timeout=60)
    subprocess.run(
        ["tea-models", "push", "mirror"], cwd=tmp_path, env=environ, check=True, capture_output=True, timeout=60
    )
    environ |= {"TEA_MODELS_MIRROR": str(tmp_path / "mirror")}
    del environ["TEA_MODELS_DIR"]
    values = {f"inputs.{name}": str(given["default"]) for name, given in ACTION["inputs"].items()}
    for step in ACTION["runs"]["steps"]:
        if step.get("id") == "install" or "run" not in step or "engine install" in step["run"]:
            continue  # what is installed here is this project, with its engine
        output = tmp_path / f"{step['id']}.out"
        given = {name: filled(text, values) for name, text in step.get("env", {}).items()}
        files = {"GITHUB_OUTPUT": str(output), "GITHUB_ENV": str(tmp_path / "env"), "GITHUB_ACTION_PATH": str(ROOT)}
        subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", step["run"]],
            cwd=tmp_path,
            env=environ | files | given,
            check=True,
            timeout=120,
        )
        values |= {f"steps.{step['id']}.outputs.{name}": value for name, value in outputs(output).items()}
    said = {name: filled(output["value"], values) for name, output in ACTION["outputs"].items()}
    (file,) = json.loads(said["report"])["files"]
    assert Path(file["path"]).read_bytes() == real_model.read_bytes()
    assert Path(said["store"]) == Path(file["path"]).parent == tmp_path / ".models"
    assert (tmp_path / "env").read_text() == f"TEA_MODELS_DIR={tmp_path / '.models'}\n"
    assert re.fullmatch(r"tea-models-[0-9a-f]{32}", values["steps.key.outputs.key"])


def test_the_key_of_a_cache_changes_with_the_bytes_alone(tmp_path: Path, real_model: Path) -> None:
    def key(text: str) -> str:
        (tmp_path / "models.lock").write_text(text)
        line = [sys.executable, "-m", "tea_models.cli", "cache-key"]
        return subprocess.run(line, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60).stdout

    environ = os.environ | {"TEA_MODELS_DIR": str(real_model.parent)}
    lock = [sys.executable, "-m", "tea_models.cli", "lock", "smollm2-135m"]
    subprocess.run(lock, cwd=tmp_path, env=environ, check=True, capture_output=True, timeout=60)
    text = (tmp_path / "models.lock").read_text()
    assert key(text) == key(text.replace("Apache-2.0", "MIT"))
    assert key(text) != key(text.replace("b179c952", "b179c953"))
