"""The pytest plugin, as a project that uses it meets it: pytest in a process of its own, with and without workers."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.gguf_build import build_gguf
from tests.hub_server import Repo, serve

PLUGIN = (
    []
    if "tea-models" in {point.name for point in entry_points(group="pytest11")}
    else ["-p", "tea_runtime.pytest_plugin"]
)
MODEL = build_gguf({"general.architecture": "llama"})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = '--strict-markers'\n", "utf-8")
    return folder


def run(project: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", *PLUGIN, "-q", "-p", "no:cacheprovider", *options]
    root = str(Path(__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": root, "TEA_MODELS_DIR": str(project.parent / "store"), **environ}
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False, timeout=300)


def write(project: Path, text: str, name: str = "test_it.py") -> None:
    (project / name).write_text(textwrap.dedent(text), "utf-8")


def lock(project: Path, endpoint: str, **environ: str) -> None:
    env = {**os.environ, "TEA_MODELS_DIR": str(project.parent / "store"), "HF_ENDPOINT": endpoint, **environ}
    code = "from tea_models.cli import main; main(['lock', 'hf:o/a/a-Q4_0.gguf'])"
    subprocess.run([sys.executable, "-c", code], cwd=project, env=env, check=True, capture_output=True, timeout=60)


ASKS = """
    import pytest

    @pytest.mark.parametrize("number", range(16))
    def test_the_file(tea_model, number):
        assert tea_model("hf:o/a/a-Q4_0.gguf").read_bytes()[:4] == b"GGUF"
"""


def test_eight_workers_get_one_model_by_one_download(project: Path) -> None:
    with serve(repos={"o/a": Repo({"a-Q4_0.gguf": MODEL})}) as server:
        lock(project, server.url)
        write(project, ASKS)
        server.requests.clear()
        done = run(project, "-n", "8", HF_ENDPOINT=server.url)
        assert done.returncode == 0, done.stdout
        fetched = [path for method, path, _ in server.requests if method == "GET" and path.endswith("a-Q4_0.gguf")]
        assert len(fetched) == 1
        server.requests.clear()
        assert run(project, HF_ENDPOINT=server.url).returncode == 0
        assert server.requests == []


def test_without_network_an_absent_model_fails_or_skips_as_the_option_says(project: Path) -> None:
    with serve(repos={"o/a": Repo({"a-Q4_0.gguf": MODEL})}) as server:
        lock(project, server.url)
    write(project, ASKS)
    for option, code, word in (("--tea-offline", 0, "16 skipped"), ("--tea-offline=fail", 1, "16 failed")):
        done = run(project, option, HF_ENDPOINT=server.url)
        assert (done.returncode, word in done.stdout) == (code, True), done.stdout
    assert "is not in the store" in done.stdout


def test_the_marker_is_declared_and_a_test_without_its_cassette_says_how_to_record(project: Path) -> None:
    write(
        project,
        """
        import pytest

        @pytest.mark.tea_cassette
        def test_it(tea_llm):
            tea_llm("smollm2-135m").chat([{"role": "user", "content": "Hello"}])
        """,
    )
    done = run(project)
    assert done.returncode == 1
    assert "no such cassette" in done.stdout
    assert "--tea-record" in done.stdout


@pytest.mark.real
def test_answers_are_recorded_once_and_replayed_without_model_and_engine(project: Path, real_model: Path) -> None:
    write(
        project,
        """
        import pytest
        from tea_runtime import run_workflow

        FLOW = {
            "settings": {"llm": {"model": "smollm2-135m"}},
            "nodes": [{"name": "answer", "action": "llm.chat", "params": {
                "temperature": 0, "max_tokens": 16, "system": "You are a helpful assistant.",
                "prompt": "Name the capital of {{ state.country }}."}}],
        }

        @pytest.mark.tea_cassette
        @pytest.mark.parametrize(("country", "city"), [("France", "Paris"), ("Japan", "Tokyo")])
        def test_a_workflow(country, city):
            assert city in run_workflow(FLOW, {"country": country})["answer"]

        @pytest.mark.tea_cassette("together.jsonl")
        def test_a_backend(tea_llm):
            with tea_llm("smollm2-135m", n_ctx=512) as llm:
                answer = llm.chat([{"role": "user", "content": "Name a color."}], max_tokens=4, temperature=0)
            assert answer.usage["completion_tokens"] == 4
        """,
    )
    store = str(real_model.parent)
    live = run(project, "--tea-record", TEA_MODELS_DIR=store)
    assert live.returncode == 0, live.stdout
    names = sorted(path.relative_to(project).as_posix() for path in project.rglob("*.jsonl"))
    assert names == [
        "cassettes/test_it/test_a_workflow-France-Paris.jsonl",
        "cassettes/test_it/test_a_workflow-Japan-Tokyo.jsonl",
        "together.jsonl",
    ]
    (project / "llama_cpp").mkdir()
    (project / "llama_cpp" / "__init__.py").write_text("raise ImportError('the engine is not for replays')\n")
    replayed = run(project, PYTHONPATH=f"{project}{os.pathsep}{Path(__file__).parent.parent}")
    assert replayed.returncode == 0, replayed.stdout
