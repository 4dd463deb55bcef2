"""Exports given to the real thing: llama-server, and the types that Ollama and LM Studio publish for their clients.

The engine that is installed first has llama-server in it. For the others: pip install ollama lmstudio
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tea_models.engine.installed import installed_engine
from tea_models.plan.export import ExportInput, export_plan, plan_for_export
from tea_models.plan.user_settings import UserSettings
from tea_models.settings import Settings
from tea_runtime import run_workflow
from tests.test_export import NASTY, given


def unmapped() -> ExportInput:
    what = given()
    return replace(what, plan=replace(what.plan, settings=replace(what.plan.settings, use_mmap=False)))


#: Plans that together write every option.
PLANS: dict[str, Callable[[], ExportInput]] = {
    "plain": given,
    "quantised cache": lambda: given(kv_type="q8_0", n_ctx=4096, n_threads=3),
    "other cache": lambda: given(kv_type="q5_1", swa_full=True),
    "no map": unmapped,
    "vectors": lambda: given(purpose="embed", pooling="mean"),
    "all layers": lambda: given(n_gpu_layers=-1),
    "some layers": lambda: given(n_gpu_layers=12),
    "a path full of traps": lambda: given(NASTY),
}

# The engine that xllamacpp brings has llama-server in it: the program's parser of arguments, which fills the structure
# that lies in a `CommonParams` behind Python's two words, and the server. Which number means llama-server to the parser
# is found by an option that only it has.
LLAMA_SERVER = r"""
import ctypes, os, re, signal, sys
from importlib import machinery, util

path = sys.argv[1]
loader = machinery.ExtensionFileLoader("xllamacpp", path)
xllamacpp = util.module_from_spec(util.spec_from_loader("xllamacpp", loader))
loader.exec_module(xllamacpp)
symbol = re.search(rb"_Z19common_params_parse\w+", open(path, "rb").read())[0].decode()
parse = getattr(ctypes.CDLL(path), symbol)
parse.restype = ctypes.c_bool

def parsed(program, arguments):
    words = [b"llama-server", *map(os.fsencode, arguments)]
    params = xllamacpp.CommonParams()
    place = ctypes.c_void_p(id(params) + object.__basicsize__)
    return parse(len(words), (ctypes.c_char_p * (len(words) + 1))(*words), place, program, None) and params

stderr = os.dup(2)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
program = next(number for number in range(40) if parsed(number, ["--props"]))
os.dup2(stderr, 2)
params = parsed(program, sys.argv[2:])
if not params:
    sys.exit(1)
server = xllamacpp.Server(params)
signal.pause()
"""


@pytest.fixture(scope="module")
def llama_server() -> list[str]:
    """The command that is llama-server, of the installed engine."""
    library = getattr(installed_engine(), "library", None)
    if library is None or not sys.platform.startswith("linux") or "xllamacpp" not in library.name:
        pytest.skip("llama-server is in the engine that xllamacpp brings: tea-models engine install")
    return [sys.executable, "-c", LLAMA_SERVER, str(library)]


def words_and_variables(target: str, what: ExportInput, port: int) -> tuple[list[str], dict[str, str]]:
    """How an export starts llama-server: its arguments, as a shell sees them, and variables of its environment."""
    text = export_plan(target, what).text
    if target == "env":
        lines = [line.partition("=") for line in shlex.split(text)]
        return ["--port", str(port)], {name: value for name, _, value in lines}
    if target == "llama-swap":
        (model,) = yaml.safe_load(text)["models"].values()
        return shlex.split(model["cmd"].replace("${PORT}", str(port)))[1:], {}
    script = f"llama-server() {{ printf '%s\\0' \"$@\"; }}\n{text}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=20)
    return [*done.stdout.split("\0")[:-1], "--port", str(port)], {}


@pytest.mark.real
@pytest.mark.parametrize("target", ["llama-server", "env", "llama-swap"])
@pytest.mark.parametrize("plan", PLANS)
def test_llama_server_takes_every_exported_option_and_value(llama_server: list[str], plan: str, target: str) -> None:
    arguments, variables = words_and_variables(target, PLANS[plan](), 1)
    # It prints its version and ends, when it comes there without a complaint.
    command = [*llama_server, *arguments, "--version"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.real
@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["--n-ubatch-size", "3"], {}),
        (["stray"], {}),
        (["--cache-type-k", "q9"], {}),
        (["--load-mode", "no"], {}),
        ([], {"LLAMA_ARG_FIT": "perhaps"}),
    ],
)
def test_llama_server_refuses_what_is_no_option_or_value_of_its(
    llama_server: list[str], arguments: list[str], variables: dict[str, str]
) -> None:
    command = [*llama_server, *arguments, "--version"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr[-500:]


@pytest.mark.real
def test_llama_server_reads_every_exported_variable(llama_server: list[str]) -> None:
    texts = {"LLAMA_ARG_MODEL", "LLAMA_ARG_ALIAS"}
    variables = words_and_variables("env", unmapped(), 1)[1].keys() - texts
    assert len(variables) == 11
    for name in variables:
        command = [*llama_server, "--version"]
        done = subprocess.run(command, env=os.environ | {name: "?"}, capture_output=True, timeout=60, check=False)
        assert done.returncode == 1, name


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def serving(start: Callable[..., Any], tmp_path: Path, llama_server: list[str]) -> Callable[[str, ExportInput], str]:
    """Start llama-server as an export says; the address of its API, when it is ready."""

    def serve(target: str, what: ExportInput) -> str:
        port = free_port()
        arguments, variables = words_and_variables(target, what, port)
        with (tmp_path / "server.log").open("wb") as log:
            process = start([*llama_server, *arguments], env=os.environ | variables, stdout=log, stderr=log)
        while process.poll() is None:
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    return f"http://127.0.0.1:{port}/v1"
            except httpx2.TransportError:
                pass
            time.sleep(0.05)
        pytest.fail((tmp_path / "server.log").read_text()[-2000:])

    return serve


NODE: dict[str, Any] = {
    "name": "answer",
    "action": "llm.chat",
    "params": {
        "messages": [
            {"role": "system", "content": "You answer in one short sentence."},
            {"role": "user", "content": "What is the capital of France?"},
        ],
        "temperature": 0,
        "max_tokens": 12,
    },
    "output": "result",
}


@pytest.mark.real
@pytest.mark.parametrize("target", ["llama-server", "env", "llama-swap"])
def test_a_workflow_gets_the_same_answer_from_the_exported_server(
    target: str, serving: Callable[[str, ExportInput], str], real_model: Path, tmp_path: Path
) -> None:
    settings = Settings.resolve({"HOME": str(tmp_path)}, cwd=tmp_path)
    what = plan_for_export(str(real_model), settings, UserSettings(n_ctx=1024), measure=False)
    base = serving(target, what)
    props = httpx2.get(base.removesuffix("v1") + "props").json()
    assert props["default_generation_settings"]["n_ctx"] == 1024
    assert props["total_slots"] == 1
    assert (props["model_path"], props["model_alias"]) == (str(real_model), what.name)
    said = {}
    for place, llm in {
        "here": {"backend": "local", "model_path": str(real_model)},
        "there": {"api_base": base},
    }.items():
        said[place] = run_workflow({"nodes": [NODE], "settings": {"llm": {"backend": "api", **llm}}})["result"]
    assert said["there"]["backend"] == "api"
    assert said["there"]["content"] == said["here"]["content"] == "The capital of France is Paris."
    assert said["there"]["usage"]["prompt_tokens"] == said["here"]["usage"]["prompt_tokens"]


# -- what other servers publish --------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS)
def test_the_parameters_of_a_modelfile_are_ollamas_and_have_its_types(plan: str) -> None:
    options = pytest.importorskip("ollama", reason="checked where ollama is installed").Options
    found: dict[str, Any] = {}
    for line in export_plan("ollama", replace_stops(PLANS[plan]())).text.splitlines():
        if line.startswith("PARAMETER "):
            name, value = line.split(" ", 2)[1:]
            found[name] = [value.strip('"')] if name == "stop" else yaml.safe_load(value)
    assert found.keys() <= options.model_fields.keys()
    assert options.model_validate(found, strict=True).model_dump(exclude_none=True) == found


def replace_stops(what: ExportInput) -> ExportInput:
    chat = replace(what.profile.chat, stop=replace(what.profile.chat.stop, value=("<|im_end|>",)))
    return replace(what, profile=replace(what.profile, chat=chat))


@pytest.mark.parametrize("plan", PLANS)
def test_lm_studio_is_told_to_load_with_values_that_its_sdk_takes(plan: str) -> None:
    lmstudio = pytest.importorskip("lmstudio", reason="checked where lmstudio is installed")
    import msgspec

    line = export_plan("lmstudio", PLANS[plan]()).text.splitlines()[-1]
    told = dict(re.findall(r"--([\w-]+) (\S+)", line))
    ratio = told["gpu"] if told["gpu"] in ("max", "off") else float(told["gpu"])
    config = {"contextLength": int(told["context-length"]), "gpu": {"ratio": ratio}}
    read = msgspec.convert(config, lmstudio.LlmLoadModelConfig)
    assert (read.context_length, read.gpu.ratio) == (config["contextLength"], ratio)
