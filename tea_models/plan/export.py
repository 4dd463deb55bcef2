"""A plan as settings for other servers, so that nobody is locked in.

`docs/plan.md` says what holds that each server takes what is written. What a server can't be told is left out and said.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tea_models.errors import MissingFileError, UsageError
from tea_models.files import base_name
from tea_models.plan.planner import plan_profile
from tea_models.plan.resolve import machine_now, open_for_plan
from tea_models.plan.types import RunPlan
from tea_models.plan.user_settings import UserSettings
from tea_models.profile.facts import ModelProfile
from tea_models.settings import Settings

_KV_TYPES_OF_OLLAMA = ("f16", "q8_0", "q4_0")


@dataclass(frozen=True, slots=True)
class ExportInput:
    """What is exported: a plan, where the file lies on the machine that is to serve it, and how the server calls it."""

    plan: RunPlan
    profile: ModelProfile
    path: str
    name: str

    @property
    def gpu_layers(self) -> int:
        """Layers on a GPU as a number, for servers that take none for all: the blocks and the output."""
        layers = self.plan.settings.n_gpu_layers
        return len(self.profile.weights.blocks) + 1 if layers < 0 else layers


@dataclass(frozen=True, slots=True)
class Export:
    """Settings for one server: a file or command line, ready to use, and a sentence for each that it can't be told."""

    target: str
    text: str
    left_out: tuple[str, ...] = ()


def plan_for_export(
    reference: str, settings: Settings, user: UserSettings, *, path: str | None = None, measure: bool = True
) -> ExportInput:
    """Plan a model that a server is to run, on whose machine the file may lie under another path."""
    with open_for_plan(reference, settings, measure=measure) as opened:
        here, profile = opened.path, opened.profile
        if path is None and here is None:
            hint = f"tea-models pull {reference}, or say with --path where it will lie"
            raise MissingFileError(f"{reference} is not on this machine, so its path is not known", hint=hint)
        # A name that servers accept: that of the registry, or the file's without its suffix.
        name = reference
        if "/" in reference or reference.endswith(".gguf"):
            name = (here.name if here else base_name(reference)).removesuffix(".gguf")
        plan = plan_profile(profile, machine_now(settings, measure=measure), user, opened.measurer, name=name)
    return ExportInput(plan, profile, path or str(here.resolve() if here else ""), name)


def export_plan(target: str, what: ExportInput) -> Export:
    """Write a plan for a server; a UsageError where a value can't be written in its format."""
    if target not in TARGETS:
        raise UsageError(f"--to {target!r}: expected one of {', '.join(TARGETS)}")
    for text in (what.path, what.name, *what.profile.chat.stop.value):
        if any(ord(character) < 0x20 and character not in "\n\t" for character in text):
            raise UsageError(f"{text!r}: control characters can't be written into settings")
    if "\n" in what.path + what.name:
        raise UsageError(f"{what.path!r}: line breaks can't be written into settings")
    text, left_out = TARGETS[target](what)
    if what.profile.chat.template.source.startswith("registry") and what.plan.purpose != "embed":
        shown = f"`tea-models inspect {shlex.quote(what.name)} --template` prints it"
        left_out.append(f"the registry's chat template, which replaces the file's: {shown}")
    return Export(target, text, tuple(left_out))


def _server_options(what: ExportInput) -> list[tuple[str, str, str]]:
    """Option, variable and value of each setting of `llama-server`; no value where the option is a switch."""
    s = what.plan.settings
    options = [
        ("--model", "MODEL", what.path),
        ("--alias", "ALIAS", what.name),
        ("--ctx-size", "CTX_SIZE", str(s.n_ctx)),
        ("--batch-size", "BATCH", str(s.n_batch)),
        ("--ubatch-size", "UBATCH", str(s.n_ubatch)),
        ("--threads", "THREADS", str(s.n_threads)),
        ("--threads-batch", "", str(s.n_threads_batch)),
        ("--gpu-layers", "N_GPU_LAYERS", "all" if s.n_gpu_layers < 0 else str(s.n_gpu_layers)),
        ("--flash-attn", "FLASH_ATTN", "on" if s.flash_attn else "off"),
        ("--cache-type-k", "CACHE_TYPE_K", s.type_k),
        ("--cache-type-v", "CACHE_TYPE_V", s.type_v),
        # The plan is for one sequence, and must not be changed to fit.
        ("--parallel", "N_PARALLEL", "1"),
        ("--fit", "FIT", "off"),
    ]
    if s.swa_full:
        options.append(("--swa-full", "SWA_FULL", ""))
    if not s.use_mmap:
        options.append(("--load-mode", "LOAD_MODE", "none"))
    if what.plan.purpose == "embed":
        options.append(("--embedding", "EMBEDDINGS", ""))
        if what.profile.pooling.value:
            options.append(("--pooling", "POOLING", what.profile.pooling.value))
    return options


def server_arguments(what: ExportInput) -> list[str]:
    """Arguments of `llama-server` as a list."""
    return [text for option, _, value in _server_options(what) for text in ((option, value) if value else (option,))]


def _server_words(what: ExportInput) -> list[str]:
    """Arguments of `llama-server`, quoted, an option with its value each."""
    return [f"{option} {shlex.quote(value)}" if value else option for option, _, value in _server_options(what)]


def _llama_server(what: ExportInput) -> tuple[str, list[str]]:
    return " \\\n  ".join(["llama-server", *_server_words(what)]) + "\n", []


def _env(what: ExportInput) -> tuple[str, list[str]]:
    options = _server_options(what)
    text = "".join(f"LLAMA_ARG_{name}={shlex.quote(value or '1')}\n" for _option, name, value in options if name)
    return text, []


def _ollama(what: ExportInput) -> tuple[str, list[str]]:
    s, path = what.plan.settings, what.path
    left_out = ["swa_full"] if s.swa_full else []
    wanted = [f"OLLAMA_FLASH_ATTENTION={int(bool(s.flash_attn))}", "OLLAMA_NUM_PARALLEL=1"]
    if s.type_k == s.type_v and s.type_k in _KV_TYPES_OF_OLLAMA:
        wanted.append(f"OLLAMA_KV_CACHE_TYPE={s.type_k}")
    else:
        left_out.append(f"a KV cache of {s.type_k}/{s.type_v}: Ollama has {', '.join(_KV_TYPES_OF_OLLAMA)}")
    lines = [
        f"# ollama create {shlex.quote(what.name)} -f Modelfile",
        f"# for the server: {' '.join(wanted)}",
        f"FROM {path if path.startswith(('/', './', '../')) else f'./{path}'}",
        f"PARAMETER num_ctx {s.n_ctx}",
        f"PARAMETER num_batch {s.n_ubatch}",
        f"PARAMETER num_thread {s.n_threads}",
        f"PARAMETER num_gpu {what.gpu_layers}",
    ]
    if not s.use_mmap:
        lines.append("PARAMETER use_mmap false")
    for stop in what.profile.chat.stop.value:
        if '"""' in stop:
            raise UsageError(f"{stop!r}: can't be written into a Modelfile")
        quotes = '"""' if '"' in stop or "\n" in stop else '"'
        lines.append(f"PARAMETER stop {quotes}{stop}{quotes}")
    return "\n".join(lines) + "\n", left_out


def _llama_swap(what: ExportInput) -> tuple[str, list[str]]:
    if "${" in what.path + what.name:
        raise UsageError(f"{what.path!r}: llama-swap would take ${{…}} for a macro")
    lines = ["models:", f"  {json.dumps(what.name)}:", f"    name: {json.dumps(what.plan.name)}", "    cmd: |"]
    lines += [f"      {words}" for words in ("llama-server --port ${PORT}", *_server_words(what))]
    return "\n".join(lines) + "\n", []


def _localai(what: ExportInput) -> tuple[str, list[str]]:
    import yaml

    s = what.plan.settings
    document: dict[str, Any] = {
        "name": what.name,
        "backend": "llama-cpp",
        "parameters": {"model": what.path, "batch": s.n_ubatch},
        "context_size": s.n_ctx,
        "threads": s.n_threads,
        "gpu_layers": what.gpu_layers,
        "flash_attention": "on" if s.flash_attn else "off",
        "cache_type_k": s.type_k,
        "cache_type_v": s.type_v,
        "mmap": s.use_mmap,
    }
    if what.plan.purpose == "embed":
        document["embeddings"] = True
    else:
        document["template"] = {"use_tokenizer_template": True}
        if what.profile.chat.stop.value:
            document["stopwords"] = list(what.profile.chat.stop.value)
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000)
    return text, ["swa_full"] if s.swa_full else []


def _lmstudio(what: ExportInput) -> tuple[str, list[str]]:
    s = what.plan.settings
    ratio: float | str = {0: "off", -1: "max"}.get(s.n_gpu_layers, "")
    ratio = ratio or round(min(1.0, s.n_gpu_layers / max(1, len(what.profile.weights.blocks))), 2)
    load = ["lms", "load", what.name, "--context-length", str(s.n_ctx), "--gpu", str(ratio), "--identifier", what.name]
    lines = [
        "# LM Studio keeps its own list of models: put the file there, then load it under the key that `lms ls` shows",
        f"lms import --symbolic-link {shlex.quote(what.path)}",
        shlex.join(load),
    ]
    left_out = [f"n_threads {s.n_threads}, n_batch {s.n_ubatch}, KV cache {s.type_k}: set them in the load settings"]
    return "\n".join(lines) + "\n", [*left_out, *(["swa_full"] if s.swa_full else [])]


def _python(what: ExportInput) -> tuple[str, list[str]]:
    arguments = {"model_path": what.path, **what.plan.llama_kwargs(), "verbose": False}
    notes = {"type_k": f"  # {what.plan.settings.type_k}", "type_v": f"  # {what.plan.settings.type_v}"}
    lines = ["from llama_cpp import Llama", "", "llm = Llama("]
    lines += [f"    {name}={value!r},{notes.get(name, '')}" for name, value in arguments.items()]
    return "\n".join([*lines, ")"]) + "\n", []


TARGETS: dict[str, Callable[[ExportInput], tuple[str, list[str]]]] = {
    "llama-server": _llama_server,
    "ollama": _ollama,
    "llama-swap": _llama_swap,
    "localai": _localai,
    "lmstudio": _lmstudio,
    "python": _python,
    "env": _env,
}
