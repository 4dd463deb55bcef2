"""The profile that lies in the store beside what is known of a file; with other registries it is written anew."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from tea_models.caller import Caller
from tea_models.errors import TeaModelsError
from tea_models.profile.document import load_profile, to_json
from tea_models.profile.facts import ModelProfile, ProfileFile
from tea_models.profile.header_facts import resolve_profile
from tea_models.registry import packaged_text
from tea_models.settings import Settings
from tea_models.store import Store


def read_profile(path: Path, files: Sequence[ProfileFile], settings: Settings) -> ModelProfile | None:
    """The profile that was written for a file of the store, if it is that of these bytes and these registries."""
    store = Store.of(settings)
    record = store.record_of(path)
    if record is None or not store.intact(record) or not _current(path, store, _registries(settings)):
        return None
    try:
        profile = load_profile(store.profile_path(path))
    except (TeaModelsError, OSError):
        return None  # damaged bookkeeping is worth nothing; the header says the same
    sizes = [file.size for file in files]
    return profile if [file.size for file in profile.files] == sizes else None


def write_profile(path: Path, caller: Caller) -> None:
    """Write the resolved profile of a file of the store, if it lacks; that it can't be resolved is only noted."""
    store = Store.of(caller.settings)
    digest = _registries(caller.settings)
    try:
        with store.alone(f"profile-{path.name}"):
            if _current(path, store, digest):
                return
            document = to_json(resolve_profile(path, settings=caller.settings))
            store.write_hidden(store.profile_path(path), json.dumps(document, indent=2, ensure_ascii=True) + "\n")
            record = store.record_of(path)
            if record is not None:
                store.write_record(replace(record, registry=digest))
    except TeaModelsError as error:
        caller.note(f"{path.name}: no profile was written: {error.message}")


def _current(path: Path, store: Store, digest: str) -> bool:
    record = store.record_of(path)
    return record is not None and record.registry == digest and store.profile_path(path).is_file()


def _registries(settings: Settings) -> str:
    """What tells the present corrections from others: this release, and the texts of the registries."""
    digest = hashlib.sha256(_release())
    for path in settings.registry_files:
        with contextlib.suppress(OSError):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


@functools.cache
def _release() -> bytes:
    """What this release corrects; read once, before a process gives up the right to read it."""
    return (version("tea-models") + packaged_text("registry.yaml")).encode()
