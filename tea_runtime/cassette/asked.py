"""Which cassette a process was told to use, and which model its requests are for, without opening either's model."""

from __future__ import annotations

import functools
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tea_models.caller import Caller
from tea_models.errors import TeaModelsError, UsageError
from tea_models.refs import FileRef, NameRef, parse_reference
from tea_models.settings import Settings
from tea_runtime.cassette.entries import AskedModel, Cassette, Mode
from tea_runtime.llm_settings import LlmSettings, expand

if TYPE_CHECKING:
    from collections.abc import Mapping


def cassette_of(environ: Mapping[str, str]) -> Cassette | None:
    """The cassette that `TEA_CASSETTE` names, used as `TEA_CASSETTE_MODE` says, one for all who use that file."""
    path = environ.get("TEA_CASSETTE")
    if not path:
        return None
    mode = environ.get("TEA_CASSETTE_MODE") or Mode.REPLAY
    if mode not in list(Mode):
        raise UsageError(f"TEA_CASSETTE_MODE={mode!r}: expected {', '.join(Mode)}")
    return _shared(Path(path).absolute(), Mode(mode))


def forget() -> None:
    """Read cassettes anew when they are asked for the next time."""
    _shared.cache_clear()


@functools.cache
def _shared(path: Path, mode: Mode) -> Cassette:
    return Cassette(path, mode)


def asked_model(block: LlmSettings, environ: Mapping[str, str], gguf: str | None = None) -> AskedModel:
    """The upstream file name and pin of what `--gguf`, `TEA_MODEL_PATH` or settings ask for; it needn't be there."""
    local = gguf or environ.get("TEA_MODEL_PATH") or block.profile or block.model_path
    written = block.model if block.backend == "api" else local or block.model
    if not written:
        return AskedModel("default")
    text = expand(written, environ)
    try:
        reference = parse_reference(text)
    except UsageError:
        return AskedModel(text)
    if block.backend == "api" or isinstance(reference, FileRef):
        return AskedModel(text if block.backend == "api" else Path(text).name)
    if isinstance(reference, NameRef):
        from tea_models.sources import resolve
        from tea_models.sources.locate import locked_artifact

        caller = Caller(Settings.resolve(environ, cwd=Path.cwd()))
        try:
            file = (locked_artifact(text, caller) or resolve(text, caller)).files[0]
        except TeaModelsError:
            return AskedModel(text)
        return AskedModel(file.filename, file.sha256)
    return AskedModel(PurePosixPath(str(reference).partition("@")[0]).name)
