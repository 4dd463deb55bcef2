"""Whether the installed llama.cpp loads a file: asked of it, without its weights, in a process that may crash.

`check_loadable` names what is known to kill the loader; this finds all else that it refuses, from an unknown
tokenizer to a tensor that is missing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tea_models.engine.engine_settings import EngineSettings
from tea_models.engine.probe import TIMEOUT, engine_version
from tea_models.engine.probe_process import CrashError, ProbeError, ProbeProcess
from tea_models.files import shard_names
from tea_models.settings import Settings


class Refusal(NamedTuple):
    """Why llama.cpp does not load a file, and whether its process crashed."""

    reason: str
    crashed: bool


_SOURCE = re.compile(r"\S*/(?=[\w.-]+:\d+:)")  # the folder that the engine was built in


class DryLoader:
    """Loads files without their weights, all in one process."""

    def __init__(self, settings: Settings) -> None:
        self._process = ProbeProcess(settings.environ or None)

    def refusal(self, path: Path) -> Refusal | None:
        """Why llama.cpp does not load a file that passed `check_loadable`; None if it does, or nobody can say."""
        if engine_version() is None or not all(path.with_name(name).is_file() for name in shard_names(path.name)):
            return None
        request = {"model": str(path), "points": [EngineSettings(256, 64, 64).deciding_memory()], "exact": False}
        try:
            documents = self._process.ask(request, TIMEOUT)
        except CrashError as error:
            # An engine that does not even start says nothing about a file.
            told = error.documents or self._process.answered
            return Refusal(_SOURCE.sub("", error.message), crashed=True) if told else None
        except ProbeError:
            return None  # too slow, or it can't be started
        loaded = next((document for document in documents if "load" in document), {})
        if "error" in loaded:
            reason = loaded["error"].removeprefix("error loading model: ")
            return Refusal(f"llama.cpp refuses it: {reason[:300]}", crashed=False)
        return None
