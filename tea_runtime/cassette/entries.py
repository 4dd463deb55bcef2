"""Record and replay: answers of models in a file, so that tests of a workflow need neither model nor engine.

A cassette is JSON lines that people can read, compare and review. The first line names the format, each other line is

    {"request": {"kind": "chat", "model": …, "messages": […], "parameters": {…}},
     "answer": {"content": …, "finish_reason": …, "usage": …},
     "recorded": {"model_sha256": …, "template_sha256": …, "engine": …}}

A request is found again by what was asked; an entry does not answer for a model that is known to have other bytes than
those `recorded`. The same request recorded twice is replayed in that order, and the last one from then on.
"""

from __future__ import annotations

import difflib
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tea_models.errors import ConfigError, MissingFileError, StoreError
from tea_runtime.errors import CassetteMissError

SCHEMA = "tea.cassette/1"
_PARTS = ("request", "answer", "recorded")
_SHOWN, _BEFORE = 300, 40


class Mode(StrEnum):
    """What a cassette does with a request."""

    REPLAY = "replay"  # answered from the file; one that is not there is an error
    RECORD = "record"  # asked of the model and written; what the file held before goes
    AUTO = "auto"  # answered from the file where it is there, otherwise asked and added


@dataclass(frozen=True, slots=True)
class AskedModel:
    """The model that requests are for: its file's upstream name or an API's name, and the hash where it is pinned."""

    name: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a cassette; `answer` has the keys of `LlmCallResult.to_dict`, or `embedding`."""

    request: Mapping[str, Any]
    answer: Mapping[str, Any]
    recorded: Mapping[str, Any]


class Cassette:
    """The file of one cassette, safe to use from several threads; one that can't be read is an error."""

    def __init__(self, path: Path, mode: Mode) -> None:
        self.path, self.mode = path, mode
        self._lock = threading.Lock()
        self._replayed: dict[str, int] = {}
        self.entries: list[Entry] = []
        if mode is Mode.RECORD:
            if path.is_file() and path.stat().st_size:
                read_cassette(path)  # what is none is not overwritten
            self._write("w", {"schema": SCHEMA})
        elif path.exists():
            self.entries = read_cassette(path)
        elif mode is Mode.REPLAY:
            raise MissingFileError(
                f"{path}: no such cassette", hint="record it: TEA_CASSETTE_MODE=record, --record, or --tea-record"
            )

    def find(self, request: Mapping[str, Any], model: AskedModel) -> Entry | None:
        """The next recorded entry for a request, or None."""
        wanted = _canonical(request)
        with self._lock:
            asked = (entry for entry in self.entries if _canonical(entry.request) == wanted)
            found = [entry for entry in asked if not _other_bytes(entry, model)]
            if not found:
                return None
            count = self._replayed.get(wanted, 0)
            self._replayed[wanted] = count + 1
        return found[min(count, len(found) - 1)]

    def add(self, entry: Entry) -> None:
        """Append an entry to the file, or raise a StoreError."""
        with self._lock:
            if not self.path.exists():
                self._write("w", {"schema": SCHEMA})
            self._write("a", asdict(entry))
            self.entries.append(entry)

    def miss(self, request: Mapping[str, Any], model: AskedModel) -> CassetteMissError:
        """The error for a request that is not there: the nearest recorded one, and what differs."""
        matcher = difflib.SequenceMatcher(None, b=_canonical(request), autojunk=False)

        def likeness(entry: Entry) -> float:
            matcher.set_seq1(_canonical(entry.request))
            return matcher.quick_ratio()

        nearest = max(self.entries, key=likeness, default=None)
        if nearest is None:
            what = "it holds no answers"
        else:
            differs = [*_differences(nearest.request, request), *_other_bytes(nearest, model)]
            what = "the nearest recorded one differs in " + "; ".join(differs)
        return CassetteMissError(
            f"{self.path}: a request that is not recorded ({request['kind']} of {request['model']}): {what}",
            hint="record it: TEA_CASSETTE_MODE=auto (or --record, --tea-record) with the model at hand",
        )

    def _write(self, how: str, line: dict[str, Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open(how, encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise StoreError(f"{self.path}: can't be written: {error.strerror}") from None


def read_cassette(path: Path) -> list[Entry]:
    """Read a cassette; a MissingFileError or ConfigError says file and line."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise MissingFileError(f"{path}: can't be read: {(error.strerror or '').lower()}") from None
    except UnicodeDecodeError:
        raise ConfigError("not a cassette: it is not UTF-8 text", file=str(path)) from None
    if not lines:
        raise ConfigError("an empty file is no cassette", file=str(path))
    entries: list[Entry] = []
    for number, line in enumerate(lines, start=1):
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            raise ConfigError("not a line of JSON", file=str(path), line=number) from None
        if number == 1:
            found = data.get("schema") if isinstance(data, dict) else None
            if found != SCHEMA:
                raise ConfigError(f"expected a cassette of schema {SCHEMA}, found {found!r}", file=str(path), line=1)
            continue
        parts: list[Any] = [data.get(name) for name in _PARTS] if isinstance(data, dict) else []
        if not parts or not all(isinstance(part, dict) for part in parts):
            raise ConfigError(f"expected {', '.join(_PARTS)}", file=str(path), line=number)
        problem = _problem(*parts[:2])
        if problem:
            raise ConfigError(problem, file=str(path), line=number)
        entries.append(Entry(*parts))
    return entries


def _problem(request: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """What keeps an entry from being asked again, or ""."""
    kind, messages = request.get("kind"), request.get("messages")
    if kind not in ("chat", "call", "embed") or not isinstance(request.get("model"), str):
        return "request: expected a kind (chat, call, embed) and a model"
    if kind == "chat" and not (isinstance(messages, list) and all(isinstance(one, dict) for one in messages)):
        return "request.messages: expected a list of messages"
    if kind != "chat" and not isinstance(request.get("text" if kind == "embed" else "prompt"), str):
        return f"request: expected a text to {kind}"
    if not isinstance(request.get("parameters", {}), dict):
        return "request.parameters: expected keys and values"
    wanted = "embedding" if kind == "embed" else "content"
    return "" if wanted in answer else f"answer: expected {wanted}"


def _canonical(request: Mapping[str, Any]) -> str:
    return json.dumps(request, ensure_ascii=False, sort_keys=True)


def _other_bytes(entry: Entry, model: AskedModel) -> list[str]:
    """Of which other bytes an entry speaks, where that is known."""
    recorded = entry.recorded.get("model_sha256")
    if recorded is None or model.sha256 in (None, recorded):
        return []
    return [f"the model's bytes: recorded sha256 {str(recorded)[:12]}…, asked {str(model.sha256)[:12]}…"]


def _differences(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    found = []
    for key in dict.fromkeys([*recorded, *asked]):
        if recorded.get(key) != asked.get(key):
            before, now = (json.dumps(side.get(key), ensure_ascii=False) for side in (recorded, asked))
            first = next((at for at, (one, other) in enumerate(zip(before, now, strict=False)) if one != other), 0)
            shown = slice(max(0, first - _BEFORE), max(0, first - _BEFORE) + _SHOWN)
            found.append(f"{key}: recorded {before[shown]}, asked {now[shown]}")
    return found
