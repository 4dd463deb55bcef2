"""Which model file a workflow means: the first that exists of what the user named; and what its header says."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tea_models.caller import Caller
from tea_models.errors import LockError, MissingFileError, OfflineError, TeaModelsError, UnknownModelError, UsageError
from tea_models.profile.document import load_profile
from tea_models.profile.facts import ModelProfile
from tea_models.profile.header_facts import resolve_profile
from tea_models.refs import FileRef, NameRef, parse_reference
from tea_models.registry.entries import Registry
from tea_models.settings import Settings
from tea_models.sources.locate import locate
from tea_models.store import Store
from tea_runtime.api.backend import api_may_answer
from tea_runtime.llm_settings import LlmSettings, expand

logger = logging.getLogger("tea_runtime")

_BUNDLED = Path("usr/share/models")
COMMAND_LINE = "the command line"
_REFERENCES = (COMMAND_LINE, "settings.llm.profile", "settings.llm.model")
_ADVICE = "name a model that is here (`tea-models list`), or get one: tea-models pull smollm2-135m"


# Architectures by their llama.cpp names → the family that people speak of.
_FAMILIES = ("gemma", "llama", "mistral", "phi", "qwen", "smollm", "deepseek", "falcon", "granite", "olmo", "bert")


@dataclass(frozen=True, slots=True)
class Search:
    """The model file that was found (of shards, the first) and what named it, or why none was and what is `absent`."""

    path: Path | None = None
    source: str = ""
    profile: ModelProfile | None = None
    skipped: tuple[str, ...] = ()
    absent: str | None = None
    hint: str = ""

    def error(self) -> MissingFileError:
        """What to say where a model is needed and none was found."""
        return MissingFileError(
            "no local model: " + ("; ".join(self.skipped) or "none is named and the store is empty"),
            hint=f"tea-models pull {self.absent}" if self.absent else self.hint or _ADVICE,
        )


def resolve_model_path(
    settings: Mapping[str, Any] | LlmSettings | None = None,
    *,
    gguf: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Path | None:
    """Find the model file that a workflow means.

    It is the first that exists of `gguf` (`--gguf`), `TEA_MODEL_PATH`, `settings.llm.profile`,
    `settings.llm.model_path`, `settings.llm.model`, `$APPDIR/usr/share/models` and the store.
    `~` and `$VAR` are expanded. The last two hold files without a name for them, so one is taken only where there is no
    choice. No other model answers in the place of one that was named: the store gives the file of that very name only,
    and `APPDIR` stands in for a path of another machine, not for a model's name. What is named and can't be found is
    logged as a warning. Nothing is downloaded.

    Args:
        settings: The `settings.llm` block.
        gguf: What the user gave on the command line; if this can't be found, nothing else is taken in its place.
        environ: The process's own by default.

    Raises:
        ConfigError: The block has an unknown key or a wrong value.
        MissingFileError: `gguf` can't be found.
        UnknownModelError: `settings.llm.model` is no name of the registry, and no API is there whose model it could be.
    """
    result = search(LlmSettings.parse(settings), gguf=gguf, environ=os.environ if environ is None else environ)
    if result.path is None and gguf:
        raise result.error()
    return result.path


def search(block: LlmSettings, *, gguf: str | None, environ: Mapping[str, str]) -> Search:
    """As `resolve_model_path`, with the reasons."""
    world = Settings.resolve(environ, cwd=Path.cwd())
    skipped: list[str] = []
    missing: list[tuple[str, str]] = []
    absent, hint = None, ""
    named = {
        COMMAND_LINE: gguf,
        "TEA_MODEL_PATH": environ.get("TEA_MODEL_PATH"),
        "settings.llm.profile": block.profile,
        "settings.llm.model_path": block.model_path,
        "settings.llm.model": block.model,
    }

    def found(path: Path, source: str, profile: ModelProfile | None = None) -> Search:
        for reason in skipped:
            logger.warning("%s; taking %s of %s instead", reason, path.name, source)
        return Search(path, source, profile, tuple(skipped))

    for source, written in named.items():
        if not written:
            continue
        text = expand(written, environ)
        try:
            path, profile = _look(source, text, world)
        except TeaModelsError as error:
            if _is_final(error, source, block, environ):
                raise
            if source in _REFERENCES and not isinstance(error, OfflineError | UnknownModelError) and not _is_path(text):
                absent = absent or text
            missing.append((source, text))
            skipped.append(f"{source}: {error.message}")
            hint = hint or error.hint
            if source == COMMAND_LINE:
                return Search(skipped=tuple(skipped), absent=absent, hint=hint)
            continue
        return found(path, source, profile)
    folders = {"APPDIR": Path(environ["APPDIR"]) / _BUNDLED} if environ.get("APPDIR") else {}
    for source, folder in {**folders, "store": world.store_dir}.items():
        models = _models_in(folder)
        paths = models if not missing else _in_place_of(missing, source, models)
        if len(paths) == 1:
            return found(_locked(paths[0], world), source)
        if paths:
            names = ", ".join(path.name for path in paths[:5]) + (", …" if len(paths) > 5 else "")
            skipped.append(f"{source}: {len(paths)} models and none named ({names})")
    return Search(skipped=tuple(skipped), absent=absent, hint=hint)


def is_model_name(text: str, environ: Mapping[str, str]) -> bool:
    """Whether a text names a model that can be had here: `gpt-4` does not, a path to a file that is missing does."""
    text = expand(text, environ)
    try:
        reference = parse_reference(text)
    except UsageError:
        return False
    if isinstance(reference, FileRef):
        # `provider/model` is how APIs name models; with a suffix or a leading mark it is a path.
        is_path = text.lower().endswith(".gguf") or text.startswith((".", "/", "~", "\\", "file:"))
        return is_path or reference.path.exists()
    if not isinstance(reference, NameRef):
        return True
    world = Settings.resolve(environ, cwd=Path.cwd())
    try:
        locate(text, Caller(world), remote=False)
    except (UnknownModelError, LockError):
        try:  # a variant that is unknown is a slip, not another model
            Registry.load(world).find(NameRef(reference.name))
        except UnknownModelError:
            return False
    except TeaModelsError:
        pass  # it is known, and not here
    return True


def _is_final(error: TeaModelsError, source: str, block: LlmSettings, environ: Mapping[str, str]) -> bool:
    """Whether nothing else may be looked for; a name that the registry does not know may be one of an API's models."""
    if isinstance(error, LockError) or (source == COMMAND_LINE and not isinstance(error, MissingFileError)):
        return True
    return isinstance(error, UnknownModelError) and block.backend != "api" and not api_may_answer(block, environ)


def _in_place_of(missing: list[tuple[str, str]], source: str, models: list[Path]) -> list[Path]:
    """The files that may stand in for what was named: those of the same name, and under APPDIR for a path any."""
    names = {Path(text).name for _, text in missing}
    same = [path for path in models if path.name in names]
    by_name = any(which in _REFERENCES and not _is_path(text) for which, text in missing)
    return same if same or by_name or source == "store" else models


def _is_path(text: str) -> bool:
    try:
        return isinstance(parse_reference(text), FileRef)
    except UsageError:
        return False


def _look(source: str, text: str, world: Settings) -> tuple[Path, ModelProfile | None]:
    if source == "settings.llm.profile" and (text.endswith(".json") or "/" in text):
        return _by_profile(Path(text), world)
    if source in ("TEA_MODEL_PATH", "settings.llm.model_path"):
        return _locked(_file(Path(text), world), world), None
    return _file(locate(text, Caller(world), remote=False).paths[0], world), None


def _locked(path: Path, world: Settings) -> Path:
    """The file itself; with `--locked` an error unless the nearest lock has it."""
    if world.locked:
        locate(str(path.absolute()), Caller(world), remote=False)
    return path


def _file(path: Path, world: Settings) -> Path:
    if path.is_file():
        return path
    # A bare name may mean a file of the store, which keeps upstream names.
    if not path.is_absolute() and len(path.parts) == 1 and (world.store_dir / path).is_file():
        return world.store_dir / path
    raise MissingFileError(f"{path}: " + ("it is a folder, not a model file" if path.is_dir() else "no such file"))


def _by_profile(path: Path, world: Settings) -> tuple[Path, ModelProfile]:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    profile = load_profile(path)
    first = profile.files[0]
    known = Store.of(world).path_with(first.sha256) if first.sha256 else None
    for candidate in (path.parent / first.name, known, world.store_dir / first.name):
        if candidate is not None and candidate.is_file() and candidate.stat().st_size == first.size:
            return candidate, profile
    raise MissingFileError(
        f"{path}: its model {first.name} ({first.size:,} bytes) is neither beside it nor in the store"
    )


def _models_in(folder: Path) -> list[Path]:
    """The models directly in a folder; of the shards of one, the first."""
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())
    return [path for path in found if "-of-" not in path.stem or "-00001-of-" in path.stem]


def get_model_info(model_path: str | os.PathLike[str], *, settings: Settings | None = None) -> dict[str, Any]:
    """Facts about a model, from the header of its file and never from its name.

    Args:
        model_path: A file, or a reference; a remote one is asked for its header only.
        settings: Where the store and the hosts are; by default from the process's environment.

    Returns:
        `n_ctx` (trained context, in tokens), `chat_format` (None without a template), `family`, `architecture`, `name`,
        `kind`, `quantization`, `parameters`, `embedding_length`, `license`, `system_role`, `tools`, `stop`.

    Raises:
        MalformedGGUFError: The file is not GGUF, or broken.
        NotAvailableError: It can't be found or reached.
    """
    reference = model_path if isinstance(model_path, str) else Path(model_path)
    profile = resolve_profile(reference, settings=settings)
    architecture, chat = profile.architecture.value, profile.chat
    names = ("architecture", "name", "kind", "quantization", "parameters", "embedding_length", "license")
    return {
        "n_ctx": profile.context_length.value,
        "chat_format": chat.format.value,
        "family": next((family for family in _FAMILIES if family in architecture), architecture),
        **{name: getattr(profile, name).value for name in names},
        "system_role": chat.system_role.value,
        "tools": chat.tools.value,
        "stop": list(chat.stop.value),
    }
