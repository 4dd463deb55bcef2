"""The profile that lies in the store beside what is known of a file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tea_models.errors import TeaModelsError
from tea_models.profile.document import to_json
from tea_models.profile.resolve import resolve_profile
from tea_models.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from tea_models.caller import Caller


def write_profile(path: Path, caller: Caller) -> None:
    """Write the resolved profile of a file of the store, if there is none; that it can't be resolved is only noted."""
    store = Store(caller.settings.store_dir)
    target = store.profile_path(path)
    if target.exists():
        return
    try:
        with store.alone(f"profile-{path.name}"):
            if target.exists():
                return  # another process was faster
            document = to_json(resolve_profile(path, settings=caller.settings))
            store.write_hidden(target, json.dumps(document, indent=2, ensure_ascii=True) + "\n")
    except TeaModelsError as error:
        caller.note(f"{path.name}: no profile was written: {error.message}")
