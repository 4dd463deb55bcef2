"""A plan as settings for other servers, so that nobody is locked in.

Option names were read from: llama.cpp's `common/arg.cpp` (the build in llama-cpp-python 0.3.36), Ollama's Modelfile
reference and `api/types.go`, llama-swap's `config.example.yaml`, LocalAI's model configuration, LM Studio's `lms` and
its load configuration, `llama_cpp.Llama`. What a server can't be told is left out and said.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tea_models.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tea_models.engine.engine_settings import EngineSettings
    from tea_models.plan.types import RunPlan
    from tea_models.profile.facts import ModelProfile

_KV_TYPES_OF_OLLAMA = ("f16", "q8_0", "q4_0")


@dataclass(frozen=True, slots=True)
class ExportInput:
    """What is exported.

    Attributes:
        plan: The plan.
        profile: Facts about the model.
        path: Where the file lies on the machine that is to serve it.
        name: How the server calls the model.
    """

    plan: RunPlan
    profile: ModelProfile
    path: str
    name: str

    @property
    def settings(self) -> EngineSettings:
        """The settings of the plan."""
        return self.plan.settings

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end a turn."""
        return self.profile.chat.stop.value

    @property
    def layers(self) -> int:
        """Blocks of the model."""
        return len(self.profile.weights.blocks)


@dataclass(frozen=True, slots=True)
class Export:
    """Settings for one server.

    Attributes:
        target: Which one.
        text: The file or command line, ready to use.
        left_out: Settings of the plan that it can't be told, a sentence each.
    """

    target: str
    text: str
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {"target": self.target, "text": self.text, "left_out": list(self.left_out)}


def export_plan(target: str, what: ExportInput) -> Export:
    """Write a plan for a server.

    Raises:
        UsageError: The target is unknown, or a value can't be written in its format.
    """
    if target not in TARGETS:
        raise UsageError(f"--to {target!r}: expected one of {', '.join(TARGETS)}")
    for text in (what.path, what.name, *what.stop):
        if any(ord(character) < 0x20 and character not in "\n\t" for character in text):
            raise UsageError(f"{text!r}: control characters can't be written into settings")
    if "\n" in what.path + what.name:
        raise UsageError(f"{what.path!r}: line breaks can't be written into settings")
    return TARGETS[target](what)


def server_arguments(what: ExportInput) -> list[tuple[str, ...]]:
    """Arguments of `llama-server`, an option with its value each."""
    return [(option, value) if value else (option,) for option, _variable, value in _server_options(what)]


def _server_options(what: ExportInput) -> list[tuple[str, str, str]]:
    """Option, variable and value of each setting of `llama-server`; no value where the option is a switch."""
    s = what.settings
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
    if not s.use_mmap or s.use_mlock:
        mode = {(True, True): "mmap+mlock", (False, True): "mlock"}.get((s.use_mmap, s.use_mlock), "none")
        options.append(("--load-mode", "LOAD_MODE", mode))
    if what.plan.purpose == "embed":
        options.append(("--embedding", "EMBEDDINGS", ""))
        if what.profile.pooling.value:
            options.append(("--pooling", "POOLING", what.profile.pooling.value))
    return options


def _llama_server(what: ExportInput) -> Export:
    lines = ["llama-server", *("  " + " ".join(map(shlex.quote, option)) for option in server_arguments(what))]
    return Export("llama-server", " \\\n".join(lines) + "\n", _template_note(what))


def _env(what: ExportInput) -> Export:
    options = _server_options(what)
    text = "".join(f"LLAMA_ARG_{name}={shlex.quote(value or '1')}\n" for _option, name, value in options if name)
    s = what.settings
    no_variable = (f"--threads-batch {s.n_threads_batch} has no variable",) if s.n_threads_batch != s.n_threads else ()
    return Export("env", text, (*_template_note(what), *no_variable))


def _ollama(what: ExportInput) -> Export:
    s = what.settings
    lines = [f"FROM {_modelfile_path(what.path)}"]
    lines += [
        f"PARAMETER num_ctx {s.n_ctx}",
        f"PARAMETER num_batch {s.n_ubatch}",
        f"PARAMETER num_thread {s.n_threads}",
        f"PARAMETER num_gpu {what.layers + 1 if s.n_gpu_layers < 0 else s.n_gpu_layers}",
    ]
    if not s.use_mmap:
        lines.append("PARAMETER use_mmap false")
    lines += [f"PARAMETER stop {_modelfile_text(stop)}" for stop in what.stop]
    left_out = []
    wanted = [f"OLLAMA_FLASH_ATTENTION={int(bool(s.flash_attn))}"]
    if s.type_k == s.type_v and s.type_k in _KV_TYPES_OF_OLLAMA:
        wanted.append(f"OLLAMA_KV_CACHE_TYPE={s.type_k}")
    else:
        left_out.append(f"a KV cache of {s.type_k}/{s.type_v}: Ollama has {', '.join(_KV_TYPES_OF_OLLAMA)}")
    if s.swa_full:
        left_out.append("swa_full")
    lines = [
        f"# ollama create {shlex.quote(what.name)} -f Modelfile",
        f"# for the server: {' '.join(wanted)} OLLAMA_NUM_PARALLEL=1",
        *lines,
    ]
    return Export("ollama", "\n".join(lines) + "\n", (*left_out, *_template_note(what)))


def _llama_swap(what: ExportInput) -> Export:
    if "${" in what.path + what.name:
        raise UsageError(f"{what.path!r}: llama-swap would take ${{…}} for a macro")
    options = [" ".join(map(shlex.quote, option)) for option in server_arguments(what)]
    command = "\n".join(["llama-server --port ${PORT}", *options]) + "\n"
    document = {"models": {what.name: {"cmd": command, "name": what.plan.name}}}
    return Export("llama-swap", _yaml(document), _template_note(what))


def _localai(what: ExportInput) -> Export:
    s = what.settings
    document: dict[str, Any] = {
        "name": what.name,
        "backend": "llama-cpp",
        "parameters": {"model": what.path, "batch": s.n_ubatch},
        "context_size": s.n_ctx,
        "threads": s.n_threads,
        "gpu_layers": what.layers + 1 if s.n_gpu_layers < 0 else s.n_gpu_layers,
        "flash_attention": "on" if s.flash_attn else "off",
        "cache_type_k": s.type_k,
        "cache_type_v": s.type_v,
        "mmap": s.use_mmap,
        "mmlock": s.use_mlock,
    }
    if what.plan.purpose == "embed":
        document["embeddings"] = True
    else:
        document["template"] = {"use_tokenizer_template": True}
        if what.stop:
            document["stopwords"] = list(what.stop)
    left_out = ("swa_full",) if s.swa_full else ()
    return Export("localai", _yaml(document), (*left_out, *_template_note(what)))


def _lmstudio(what: ExportInput) -> Export:
    s = what.settings
    import json

    ratio: float | str = "off" if not s.n_gpu_layers else "max"
    if s.n_gpu_layers > 0:
        ratio = round(min(1.0, s.n_gpu_layers / max(1, what.layers)), 2)
    config = {
        "contextLength": s.n_ctx,
        "evalBatchSize": s.n_ubatch,
        "flashAttention": s.flash_attn,
        "gpu": {"ratio": ratio},
        "llamaKCacheQuantizationType": s.type_k,
        "llamaVCacheQuantizationType": s.type_v,
        "tryMmap": s.use_mmap,
        "keepModelInMemory": s.use_mlock,
    }
    load = ["lms", "load", what.name, "--context-length", str(s.n_ctx), "--gpu", str(ratio), "--identifier", what.name]
    lines = [
        "# LM Studio keeps its own list of models: put the file there, then load it under the key that `lms ls` shows",
        f"lms import --symbolic-link {shlex.quote(what.path)}",
        " ".join(map(shlex.quote, load)),
        "",
        "# the same, and what the command line does not take, as a load configuration for its SDK:",
        *(f"# {line}" for line in json.dumps(config, indent=2).splitlines()),
    ]
    left_out = [f"n_threads {s.n_threads}: set it in the model's load settings"]
    if s.swa_full:
        left_out.append("swa_full")
    return Export("lmstudio", "\n".join(lines) + "\n", (*left_out, *_template_note(what)))


def _python(what: ExportInput) -> Export:
    arguments = {"model_path": what.path, **what.plan.llama_kwargs(), "verbose": False}
    notes = {"type_k": f"  # {what.settings.type_k}", "type_v": f"  # {what.settings.type_v}"}
    lines = ["from llama_cpp import Llama", "", "llm = Llama("]
    lines += [f"    {name}={value!r},{notes.get(name, '')}" for name, value in arguments.items()]
    lines.append(")")
    return Export("python", "\n".join(lines) + "\n", _template_note(what))


TARGETS: dict[str, Callable[[ExportInput], Export]] = {
    "llama-server": _llama_server,
    "ollama": _ollama,
    "llama-swap": _llama_swap,
    "localai": _localai,
    "lmstudio": _lmstudio,
    "python": _python,
    "env": _env,
}


def _template_note(what: ExportInput) -> tuple[str, ...]:
    replaced = what.profile.chat.template.source.startswith("registry")
    if not replaced or what.plan.purpose == "embed":
        return ()
    shown = f"`tea-models inspect {shlex.quote(what.name)} --template` prints it"
    return (f"the registry's chat template, which replaces the file's: {shown}",)


def _modelfile_path(path: str) -> str:
    return path if path.startswith(("/", "./", "../")) else f"./{path}"


def _modelfile_text(text: str) -> str:
    """A quoted value of a Modelfile; triple quotes where the text has quotes itself."""
    if '"""' in text:
        raise UsageError(f"{text!r}: can't be written into a Modelfile")
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'


def _yaml(document: dict[str, Any]) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)
