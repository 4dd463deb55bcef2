"""`compare`: one workflow with several models, over the same rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real
FLOW = """
name: capitals
settings: {llm: {backend: local, model: smollm2-135m, n_ctx: 1024}}
nodes:
  - name: answer
    action: llm.chat
    params: {temperature: 0, max_tokens: 12, system: You are a helpful assistant., prompt: "Name the capital of {{ state.country }}."}
"""


def test_results_and_costs_stand_side_by_side(tmp_path: Path, real_model: Path, gemma_model: Path) -> None:
    (tmp_path / "flow.yaml").write_text(FLOW)
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"country": "{name}"}}\n' for name in ("France", "Germany", "Japan"))
    )

    def compare(variants: str, *more: str) -> subprocess.CompletedProcess[str]:
        program = "from tea_runtime.cli import main; main()"
        line = [
            sys.executable,
            "-c",
            program,
            "compare",
            "flow.yaml",
            "--over",
            "rows.jsonl",
            "--variants",
            variants,
            *more,
        ]
        environ = os.environ | {"TEA_MODELS_DIR": str(real_model.parent)}
        return subprocess.run(line, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=200)

    same = compare(f"Q4_1,{real_model}", "--json", "--min-agreement", "1", "--concurrency", "1")
    assert same.returncode == 0, same.stderr
    one, other = json.loads(same.stdout)
    assert (one["agreement"], other["agreement"], one["rows"], one["failed"]) == (1, 1, 3, 0)
    assert one["size"] == real_model.stat().st_size
    assert one["memory"] > one["size"]
    assert one["tokens_per_s"] > 0
    base = compare(f"Q4_1,{gemma_model}", "--min-agreement", "0.9")
    assert base.returncode == 1  # a base model has no chat template, so its rows fail
    assert "3 rows each" in base.stdout
    assert compare("Q4_1").returncode == 2
    named = compare("Q4_1,gemma3-270m-base", "--limit", "1", "--json")
    assert [one["model"] for one in json.loads(named.stdout)] == ["smollm2-135m:Q4_1", "gemma3-270m-base"]
    wrong = compare("Q4_1,Q9_9")
    assert (wrong.returncode, "loading" in wrong.stderr) == (4, False), "found before anything runs"
