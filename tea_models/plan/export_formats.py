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

_KV_TYPES_OF_OLLAMA = ("f16", "q8_0", "q4_0")


@dataclass(frozen=True, slots=True)
class ExportInput:
    """What is exported.

    Attributes:
        plan: The plan.
        path: Where the file lies on the machine that is to serve it.
        name: How the server calls the model.
        stop: Texts that end a turn.
        layers: Blocks of the model.
        pooling: How an embedding model pools, if its file says so.
        template_replaced: The registry replaces the chat template of the file.
    """

    plan: RunPlan
    path: str
    name: str
    stop: tuple[str, ...] = ()
    layers: int = 0
    pooling: str | None = None
    template_replaced: bool = False

    @property
    def settings(self) -> EngineSettings:
        """The settings of the plan."""
        return self.plan.settings


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

    Args:
        target: One of `TARGETS`.
        what: The plan and the model.

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
    s = what.settings
    options: list[tuple[str, ...]] = [
        ("--model", what.path),
        ("--alias", what.name),
        ("--ctx-size", str(s.n_ctx)),
        ("--batch-size", str(s.n_batch)),
        ("--ubatch-size", str(s.n_ubatch)),
        ("--threads", str(s.n_threads)),
        ("--threads-batch", str(s.n_threads_batch)),
        ("--gpu-layers", _layers(s.n_gpu_layers)),
        ("--flash-attn", "on" if s.flash_attn else "off"),
        ("--cache-type-k", s.type_k),
        ("--cache-type-v", s.type_v),
        # The plan is for one sequence, and must not be changed to fit.
        ("--parallel", "1"),
        ("--fit", "off"),
    ]
    if s.swa_full:
        options.append(("--swa-full",))
    if not s.use_mmap or s.use_mlock:
        options.append(("--load-mode", _load_mode(s)))
    if what.plan.purpose == "embed":
        options.append(("--embedding",))
        if what.pooling:
            options.append(("--pooling", what.pooling))
    return options


def _llama_server(what: ExportInput) -> Export:
    options = server_arguments(what)
    lines = ["llama-server", *("  " + " ".join(map(shlex.quote, option)) for option in options)]
    return Export("llama-server", " \\\n".join(lines) + "\n", _template_note(what))


def _env(what: ExportInput) -> Export:
    s = what.settings
    values = {
        "LLAMA_ARG_MODEL": what.path,
        "LLAMA_ARG_ALIAS": what.name,
        "LLAMA_ARG_CTX_SIZE": str(s.n_ctx),
        "LLAMA_ARG_BATCH": str(s.n_batch),
        "LLAMA_ARG_UBATCH": str(s.n_ubatch),
        "LLAMA_ARG_THREADS": str(s.n_threads),
        "LLAMA_ARG_N_GPU_LAYERS": _layers(s.n_gpu_layers),
        "LLAMA_ARG_FLASH_ATTN": "on" if s.flash_attn else "off",
        "LLAMA_ARG_CACHE_TYPE_K": s.type_k,
        "LLAMA_ARG_CACHE_TYPE_V": s.type_v,
        "LLAMA_ARG_N_PARALLEL": "1",
        "LLAMA_ARG_FIT": "off",
    }
    if s.swa_full:
        values["LLAMA_ARG_SWA_FULL"] = "1"
    if not s.use_mmap or s.use_mlock:
        values["LLAMA_ARG_LOAD_MODE"] = _load_mode(s)
    if what.plan.purpose == "embed":
        values["LLAMA_ARG_EMBEDDINGS"] = "1"
        if what.pooling:
            values["LLAMA_ARG_POOLING"] = what.pooling
    left_out = _template_note(what)
    if s.n_threads_batch != s.n_threads:
        left_out += (f"--threads-batch {s.n_threads_batch} has no variable",)
    text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    return Export("env", text, left_out)


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


def _layers(layers: int) -> str:
    return "all" if layers < 0 else str(layers)


def _load_mode(s: EngineSettings) -> str:
    if s.use_mlock:
        return "mmap+mlock" if s.use_mmap else "mlock"
    return "none"


def _template_note(what: ExportInput) -> tuple[str, ...]:
    if not what.template_replaced or what.plan.purpose == "embed":
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
