"""Deployments: each value from the plan, each byte from the lock, and an init step that really refuses others."""

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

from tea_models.lockfile import parse_lock

pytestmark = pytest.mark.real
MODEL = "smollm2-135m"


@pytest.fixture(autouse=True)
def store_with_the_model(own_world: Path, real_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEA_MODELS_DIR", str(real_model.parent))


def run(*arguments: str, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tea_models.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=cwd, env=os.environ | environ, check=False
    )


def exported(target: str, *more: str) -> list[dict[str, Any]]:
    done = run("export", MODEL, "--to", target, "--estimate", "--memory", "4GiB", "--threads", "3", *more)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


@pytest.fixture
def plan() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        run("plan", MODEL, "--estimate", "--memory", "4GiB", "--threads", "3", "--json").stdout
    )
    return document


def check_server(arguments: list[str], plan: dict[str, Any]) -> None:
    settings = plan["settings"]
    assert option(arguments, "--ctx-size") == str(settings["n_ctx"])
    assert option(arguments, "--threads") == "3"
    assert option(arguments, "--cache-type-k") == settings["type_k"]
    assert option(arguments, "--model") == "/models/SmolLM2-135M-Instruct.Q4_1.gguf"


def check_lock(text: str, real_model: Path) -> None:
    (file,) = parse_lock(text, "models.lock").files
    assert (file.filename, file.size) == (real_model.name, real_model.stat().st_size)


def test_kubernetes_gets_the_plan_and_the_pins(plan: dict[str, Any], real_model: Path) -> None:
    documents = {one["kind"]: one for one in exported("kubernetes")}
    assert set(documents) == {"ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    check_server(server["args"], plan)
    needed = -(-plan["memory"]["total"] // 2**20)
    assert server["resources"] == {
        "requests": {"cpu": "3", "memory": f"{needed}Mi"},
        "limits": {"memory": f"{needed}Mi"},
    }
    check_lock(documents["ConfigMap"]["data"]["models.lock"], real_model)
    validate = pytest.importorskip("kubernetes_validate", reason="checked where kubernetes-validate is installed")
    for document in documents.values():
        validate.validate(document, "1.30", strict=True)


def test_kserve_and_compose_get_the_same(plan: dict[str, Any], real_model: Path) -> None:
    lock, service = exported("kserve")
    (server,) = service["spec"]["predictor"]["containers"]
    check_server(server["args"], plan)
    check_lock(lock["data"]["models.lock"], real_model)
    (compose,) = exported("compose")
    check_server(compose["services"]["llama-server"]["command"], plan)
    assert compose["services"]["llama-server"]["mem_limit"] >= plan["memory"]["total"]
    check_lock(compose["configs"]["models-lock"]["content"], real_model)


@pytest.mark.parametrize("damaged", [False, True])
def test_the_init_step_brings_the_pinned_bytes_or_fails(tmp_path: Path, real_model: Path, damaged: bool) -> None:
    (compose,) = exported("compose", "--mirror", f"file://{tmp_path}/mirror")
    shell, flags, script = compose["services"]["models"]["command"]
    assert (shell, flags) == ("sh", "-ec")
    mirror = tmp_path / "mirror" / "blobs" / "sha256"
    mirror.mkdir(parents=True)
    (file,) = parse_lock(compose["configs"]["models-lock"]["content"], "models.lock").files
    content = bytearray(real_model.read_bytes())
    content[-1] ^= damaged
    (mirror / str(file.sha256)).write_bytes(content)
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock" / "models.lock").write_text(compose["configs"]["models-lock"]["content"])
    # What is installed in the container is this project.
    install, here = "pip install --quiet --target /tmp/tea", "cp /lock/models.lock /tmp && cd /tmp && "
    script = re.sub(rf"^{install} [^&]*&& ", "", script).replace("PYTHONPATH=/tmp/tea python", sys.executable)
    assert here in script
    script = script.replace(here, f"cp {tmp_path}/lock/models.lock {tmp_path} && cd {tmp_path} && ")
    environ = os.environ | {"TEA_MODELS_DIR": str(tmp_path / "models"), "CI": "true"}
    done = subprocess.run([shell, flags, script], env=environ, capture_output=True, text=True, timeout=120, check=False)
    brought = tmp_path / "models" / real_model.name
    assert (done.returncode, brought.is_file()) == ((3, False) if damaged else (0, True)), done.stderr


def test_vllm_gets_the_upstream_weights_or_a_reason(real_model: Path) -> None:
    done = run("export", MODEL, "--to", "vllm", "--estimate")
    (command,) = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert command.startswith("vllm serve HuggingFaceTB/SmolLM2-135M-Instruct --revision main ")
    assert "left out: a commit of the upstream weights" in done.stderr
    refused = run("export", str(real_model), "--to", "vllm", "--estimate")
    assert refused.returncode == 2
    assert "upstream: hf:owner/repo@revision" in refused.stderr


def test_a_path_of_this_machine_is_nothing_for_a_cluster(real_model: Path) -> None:
    refused = run("export", str(real_model), "--to", "kubernetes", "--estimate")
    assert refused.returncode == 2
    assert "a cluster can't fetch it" in refused.stderr
