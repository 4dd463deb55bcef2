"""Plans written for other servers: real option names, safe quoting, nothing dropped in silence."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tea_models.engine.estimator import Estimator
from tea_models.engine.probe import engine_version
from tea_models.errors import MissingFileError, UsageError
from tea_models.plan.export import TARGETS, ExportInput, export_plan, plan_for_export
from tea_models.plan.planner import plan_profile
from tea_models.plan.user_settings import UserSettings
from tea_models.settings import Settings
from tests.architectures import CASES
from tests.gguf_build import build_gguf
from tests.plan_profiles import GIB, fact, machine_with, profile_of

SMOL = profile_of(*CASES["smollm2"])
#: Options of llama-server and the variables that stand for them, as `common/arg.cpp` of the engine's version defines them.
SERVER_OPTIONS = {
    "--model", "--alias", "--ctx-size", "--batch-size", "--ubatch-size", "--threads", "--threads-batch", "--gpu-layers",
    "--flash-attn", "--cache-type-k", "--cache-type-v", "--parallel", "--fit", "--swa-full", "--load-mode", "--embedding",
    "--pooling", "--port",
}  # fmt: skip
SERVER_VARIABLES = {
    "LLAMA_ARG_MODEL", "LLAMA_ARG_ALIAS", "LLAMA_ARG_CTX_SIZE", "LLAMA_ARG_BATCH", "LLAMA_ARG_UBATCH",
    "LLAMA_ARG_THREADS", "LLAMA_ARG_N_GPU_LAYERS", "LLAMA_ARG_FLASH_ATTN", "LLAMA_ARG_CACHE_TYPE_K",
    "LLAMA_ARG_CACHE_TYPE_V", "LLAMA_ARG_N_PARALLEL", "LLAMA_ARG_FIT", "LLAMA_ARG_SWA_FULL", "LLAMA_ARG_LOAD_MODE",
    "LLAMA_ARG_EMBEDDINGS", "LLAMA_ARG_POOLING",
}  # fmt: skip
#: What Ollama's Modelfile takes as PARAMETER (`api/types.go`), of what is written.
OLLAMA_PARAMETERS = {"num_ctx", "num_batch", "num_thread", "num_gpu", "use_mmap", "stop"}
LOCALAI_KEYS = {
    "name", "backend", "parameters", "context_size", "threads", "gpu_layers", "flash_attention", "cache_type_k",
    "cache_type_v", "mmap", "template", "stopwords", "embeddings",
}  # fmt: skip
NASTY = '/models/it\'s "my" $HOME `x` ünï; rm -rf #1.gguf'


def exported(reference: str, target: str, settings: Settings, user: UserSettings, path: str | None = None) -> str:
    return export_plan(target, plan_for_export(reference, settings, user, path=path, measure=False)).text


def given(
    path: str = "/models/smol.gguf",
    *,
    stop: tuple[str, ...] = (),
    pooling: str | None = None,
    template_replaced: bool = False,
    **user: Any,
) -> ExportInput:
    plan = plan_profile(SMOL, machine_with(8 * GIB), UserSettings(**user), Estimator(SMOL))
    template = fact("…", "registry:smol" if template_replaced else "gguf:tokenizer.chat_template")
    chat = replace(SMOL.chat, stop=fact(stop), template=template)
    return ExportInput(plan, replace(SMOL, chat=chat, pooling=fact(pooling)), path, "smollm2-135m")


def options(text: str) -> dict[str, str | None]:
    words = shlex.split(text)
    assert words[0] == "llama-server"
    found: dict[str, str | None] = {}
    for index, word in enumerate(words):
        if word.startswith("--"):
            after = words[index + 1] if index + 1 < len(words) else "--"
            found[word] = None if after.startswith("--") else after
    return found


def test_llama_server_gets_every_setting_by_its_real_name() -> None:
    found = options(export_plan("llama-server", given(n_ctx=4096, kv_type="q8_0", n_threads=3)).text)
    assert set(found) <= SERVER_OPTIONS
    assert found["--ctx-size"] == "4096"
    assert found["--cache-type-k"] == found["--cache-type-v"] == "q8_0"
    assert found["--flash-attn"] == "on"
    assert found["--threads"] == "3"
    assert (found["--parallel"], found["--fit"]) == ("1", "off")


def test_switches_appear_only_where_they_are_needed() -> None:
    assert "--swa-full" not in export_plan("llama-server", given()).text
    assert "--swa-full" in export_plan("llama-server", given(swa_full=True)).text
    assert "--embedding" in export_plan("llama-server", given(purpose="embed")).text
    what = given()
    unmapped = replace(what, plan=replace(what.plan, settings=replace(what.plan.settings, use_mmap=False)))
    assert options(export_plan("llama-server", unmapped).text)["--load-mode"] == "none"
    assert "LLAMA_ARG_LOAD_MODE=none" in export_plan("env", unmapped).text
    assert yaml.safe_load(export_plan("localai", unmapped).text)["mmap"] is False
    assert "PARAMETER use_mmap false" in export_plan("ollama", unmapped).text


@pytest.mark.parametrize("layers", [-1, 0, 12])
def test_gpu_layers_are_said_in_each_servers_way(layers: int) -> None:
    what = given(n_gpu_layers=layers)
    text = {target: export_plan(target, what).text for target in TARGETS}
    assert options(text["llama-server"])["--gpu-layers"] == ("all" if layers < 0 else str(layers))
    assert f"num_gpu {31 if layers < 0 else layers}" in text["ollama"]
    assert yaml.safe_load(text["localai"])["gpu_layers"] == (31 if layers < 0 else layers)
    assert f"n_gpu_layers={layers}" in text["python"]
    assert {-1: "--gpu max", 0: "--gpu off", 12: "--gpu 0.4"}[layers] in text["lmstudio"]


def test_env_has_the_variables_that_llama_server_reads() -> None:
    lines = export_plan("env", given(swa_full=True, purpose="embed", pooling="mean")).text.splitlines()
    assert {line.partition("=")[0] for line in lines} <= SERVER_VARIABLES
    assert "LLAMA_ARG_SWA_FULL=1" in lines
    assert "LLAMA_ARG_POOLING=mean" in lines


def test_a_modelfile_has_known_parameters_and_quoted_stops() -> None:
    text = export_plan("ollama", given(stop=("<|im_end|>", 'say "no"'))).text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines[0] == "FROM /models/smol.gguf"
    assert {line.split()[1] for line in lines[1:]} <= OLLAMA_PARAMETERS
    assert 'PARAMETER stop "<|im_end|>"' in lines
    assert 'PARAMETER stop """say "no""""' in lines
    assert "OLLAMA_KV_CACHE_TYPE=f16" in text


def test_what_a_server_cannot_be_told_is_said() -> None:
    assert any("q5_1" in sentence for sentence in export_plan("ollama", given(kv_type="q5_1")).left_out)
    assert any("swa_full" in sentence for sentence in export_plan("localai", given(swa_full=True)).left_out)
    assert any("n_threads" in sentence for sentence in export_plan("lmstudio", given()).left_out)
    for target in TARGETS:
        replaced = export_plan(target, given(template_replaced=True))
        assert any("chat template" in sentence for sentence in replaced.left_out), target


def test_llama_swap_runs_the_same_server_under_its_port() -> None:
    document = yaml.safe_load(export_plan("llama-swap", given()).text)
    command = document["models"]["smollm2-135m"]["cmd"]
    found = options(command)
    assert found["--port"] == "${PORT}"
    found.pop("--port")
    assert found == options(export_plan("llama-server", given()).text)


def test_localai_gets_known_keys() -> None:
    document = yaml.safe_load(export_plan("localai", given(stop=("<|im_end|>",))).text)
    assert set(document) <= LOCALAI_KEYS
    assert document["flash_attention"] == "on"
    assert document["stopwords"] == ["<|im_end|>"]
    assert document["parameters"]["model"] == "/models/smol.gguf"


def test_lm_studio_gets_commands() -> None:
    text = export_plan("lmstudio", given()).text
    assert "lms load smollm2-135m --context-length 8192 --gpu off" in text


@pytest.mark.parametrize("target", TARGETS)
def test_a_path_full_of_traps_arrives_unchanged(target: str) -> None:
    text = export_plan(target, given(NASTY)).text
    match target:
        case "llama-server":
            assert options(text)["--model"] == NASTY
        case "llama-swap":
            assert options(yaml.safe_load(text)["models"]["smollm2-135m"]["cmd"])["--model"] == NASTY
        case "localai":
            assert yaml.safe_load(text)["parameters"]["model"] == NASTY
        case "ollama":
            assert f"FROM {NASTY}" in text.splitlines()
        case "python":
            assert repr(NASTY) in text
            compile(text, "export", "exec")
        case "env":
            script = f'{text}\nprintf %s "$LLAMA_ARG_MODEL"'
            done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
            assert done.stdout == NASTY
        case _:
            line = next(line for line in text.splitlines() if line.startswith("lms import"))
            assert shlex.split(line)[-1] == NASTY


@pytest.mark.parametrize("path", ["/models/a\nRUN evil.gguf", "/models/\x1b[31m.gguf"])
@pytest.mark.parametrize("target", TARGETS)
def test_line_breaks_and_control_characters_are_refused(target: str, path: str) -> None:
    with pytest.raises(UsageError):
        export_plan(target, given(path))


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="llama-server"):
        export_plan("vllm", given())


def test_a_relative_path_in_a_modelfile_is_not_a_model_name() -> None:
    assert "FROM ./smol.gguf" in export_plan("ollama", given("smol.gguf")).text


@pytest.mark.real
@pytest.mark.skipif(engine_version() is None, reason="llama-cpp-python is not installed")
def test_the_python_export_runs_as_it_stands(real_model: Path, tmp_path: Path) -> None:
    settings = Settings.resolve({"HOME": str(tmp_path)}, cwd=tmp_path)
    text = exported(str(real_model), "python", settings, UserSettings(n_ctx=512))
    script = tmp_path / "run.py"
    script.write_text(
        text + "\nprint(llm.n_ctx(), llm('The capital of France is', max_tokens=4)['choices'][0]['text'])\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    assert done.stdout.startswith("512 ")


def test_the_path_on_another_machine_can_be_given(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(build_gguf())
    settings = Settings.resolve({"HOME": str(tmp_path), "TEA_OFFLINE": "1"}, cwd=tmp_path)
    here = exported(str(path), "env", settings, UserSettings())
    assert f"LLAMA_ARG_MODEL={path}\n" in here
    there = exported(str(path), "env", settings, UserSettings(), path="/srv/m.gguf")
    assert "LLAMA_ARG_MODEL=/srv/m.gguf\n" in there
    with pytest.raises(MissingFileError):
        exported(str(tmp_path / "absent.gguf"), "env", settings, UserSettings())
