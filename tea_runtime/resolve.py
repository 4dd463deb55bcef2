"""Which model file a workflow means: the first that exists of what the user said, the most explicit first."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Self

from tea_models.errors import MissingFileError, TeaModelsError, UnknownModelError
from tea_models.settings import Settings
from tea_runtime.llm_settings import LlmSettings, expand

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from tea_models.profile import ModelProfile

logger = logging.getLogger("tea_runtime")

_BUNDLED = Path("usr/share/models")


class ResolvedModelPath(str):
    """A model file that was found: its path as a text, which is equal to the same path as a `Path` too.

    Attributes:
        path: The file, or the first of its shards.
        source: What named it: `--gguf`, `TEA_MODEL_PATH`, `settings.llm.profile`, `settings.llm.model_path`,
            `settings.llm.model`, `APPDIR` or `store`.
        reference: What was written there.
        profile: The profile document that was named, if one was.
        skipped: What was named more explicitly and could not be used, with the reasons.
    """

    __slots__ = ("path", "profile", "reference", "skipped", "source")

    path: Path
    source: str
    reference: str
    profile: ModelProfile | None
    skipped: tuple[str, ...]

    def __new__(
        cls,
        path: str | os.PathLike[str],
        source: str = "",
        reference: str = "",
        profile: ModelProfile | None = None,
        skipped: tuple[str, ...] = (),
    ) -> Self:
        self = super().__new__(cls, os.fspath(path))
        self.path = Path(path)
        self.source = source
        self.reference = reference
        self.profile = profile
        self.skipped = skipped
        return self

    def __fspath__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return str.__str__(self)

    def __eq__(self, other: object) -> bool:
        return self.path == other if isinstance(other, PurePath) else str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def resolve_model_path(
    settings: Mapping[str, Any] | LlmSettings | None = None,
    *,
    gguf: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> ResolvedModelPath | None:
    """Find the model file that a workflow means.

    It is the first that exists of `gguf` (`--gguf`), `TEA_MODEL_PATH`, `settings.llm.profile`,
    `settings.llm.model_path`, `settings.llm.model`, `$APPDIR/usr/share/models` and the store.
    `~` and `$VAR` are expanded. The last two hold files without a name for them, so one is taken only where there is no
    choice; and from the store only where nothing was named, or the file of that very name: no other model may answer in
    the place of one that is missing. What is named and can't be found is logged as a warning. Nothing is downloaded.

    Args:
        settings: The `settings.llm` block.
        gguf: What the user gave on the command line; if this can't be found, nothing else is taken in its place.
        environ: The process's own by default.

    Raises:
        ConfigError: The block has an unknown key or a wrong value.
        MissingFileError: `gguf` can't be found.
        UnknownModelError: `settings.llm.model` is no name of the registry, and no API is there whose model it could be.
    """
    return search(settings, gguf=gguf, environ=environ).found


@dataclass(frozen=True, slots=True)
class Search:
    """What `resolve_model_path` found, why it did not take the others, and what could be pulled."""

    found: ResolvedModelPath | None
    skipped: tuple[str, ...]
    absent: str | None = None


def search(
    settings: Mapping[str, Any] | LlmSettings | None = None,
    *,
    gguf: str | None = None,
    environ: Mapping[str, str] | None = None,
    pull: bool = False,
) -> Search:
    """As `resolve_model_path`, with the reasons; `pull` stops at the first reference that could be downloaded."""
    environ = os.environ if environ is None else environ
    block = LlmSettings.parse(settings)
    world = Settings.resolve(environ, cwd=Path.cwd())
    skipped: list[str] = []
    missing: set[str] = set()
    for source, written in _named(block, gguf, environ):
        try:
            path, profile = _look(source, expand(written, environ), world)
        except TeaModelsError as error:
            if pull and source in ("--gguf", "settings.llm.model") and isinstance(error, MissingFileError):
                return Search(None, tuple(skipped), written)
            if source == "--gguf" or (isinstance(error, UnknownModelError) and not _is_for_an_api(block, environ)):
                raise
            missing.add(Path(expand(written, environ)).name)
            skipped.append(f"{source}: {error.message}")
            continue
        return _found(ResolvedModelPath(path, source, written, profile, tuple(skipped)))
    for source, found in _unnamed(environ, world):
        paths = [path for path in found if path.name in missing] if missing and source == "store" else found
        if len(paths) == 1:
            return _found(ResolvedModelPath(paths[0], source, str(paths[0]), None, tuple(skipped)))
        if paths:
            names = ", ".join(path.name for path in paths[:5]) + (", …" if len(paths) > 5 else "")
            skipped.append(f"{source}: {len(paths)} models and none named ({names})")
    return Search(None, tuple(skipped))


def _found(result: ResolvedModelPath) -> Search:
    for reason in result.skipped:
        logger.warning("%s; taking %s of %s instead", reason, result.path.name, result.source)
    return Search(result, result.skipped)


def _named(block: LlmSettings, gguf: str | None, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    candidates = (
        ("--gguf", gguf),
        ("TEA_MODEL_PATH", environ.get("TEA_MODEL_PATH")),
        ("settings.llm.profile", block.profile),
        ("settings.llm.model_path", block.model_path),
        ("settings.llm.model", block.model),
    )
    return ((source, written) for source, written in candidates if written)


def _is_for_an_api(block: LlmSettings, environ: Mapping[str, str]) -> bool:
    """Whether a name that the registry does not know may be one of an API's models."""
    if block.backend == "api":
        return True
    # Whoever asks for `local` means a local model, unless the settings name the server that may take over.
    if block.backend == "local" and not block.api_base:
        return False
    from tea_runtime.api.fallback import api_problem

    return block.fallback and not api_problem(block.expanded(environ), environ)


def _look(source: str, text: str, world: Settings) -> tuple[Path, ModelProfile | None]:
    if source == "settings.llm.profile" and (text.endswith(".json") or "/" in text):
        return _by_profile(Path(text), world)
    if source in ("TEA_MODEL_PATH", "settings.llm.model_path"):
        return _file(Path(text), world), None
    from tea_models.caller import Caller
    from tea_models.sources.locate import locate

    return _file(locate(text, Caller(world), remote=False).paths[0], world), None


def _file(path: Path, world: Settings) -> Path:
    if path.is_file():
        return path
    # A bare name may mean a file of the store, which keeps upstream names.
    if not path.is_absolute() and len(path.parts) == 1 and (world.store_dir / path).is_file():
        return world.store_dir / path
    raise MissingFileError(f"{path}: " + ("it is a folder, not a model file" if path.is_dir() else "no such file"))


def _by_profile(path: Path, world: Settings) -> tuple[Path, ModelProfile]:
    from tea_models.profile.document import load_profile
    from tea_models.store import Store

    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    profile = load_profile(path)
    first = profile.files[0]
    store = Store.of(world)
    beside = path.parent / first.name
    known = store.path_with(first.sha256) if first.sha256 else None
    for candidate in (beside, known, world.store_dir / first.name):
        if candidate is not None and candidate.is_file() and candidate.stat().st_size == first.size:
            return candidate, profile
    raise MissingFileError(
        f"{path}: its model {first.name} ({first.size:,} bytes) is neither beside it nor in the store"
    )


def _unnamed(environ: Mapping[str, str], world: Settings) -> Iterator[tuple[str, list[Path]]]:
    appdir = environ.get("APPDIR")
    if appdir:
        yield "APPDIR", _models_in(Path(appdir) / _BUNDLED)
    yield "store", _models_in(world.store_dir)


def _models_in(folder: Path) -> list[Path]:
    """The models directly in a folder; of the shards of one, the first."""
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())
    return [path for path in found if "-of-" not in path.stem or "-00001-of-" in path.stem]
