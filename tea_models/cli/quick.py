"""`--version`, `inspect` and `list` without click, which takes longer to import than they take to answer.

Only the plain forms are taken here; anything else, and every wrong usage, goes the ordinary way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tea_models.cli.output import Output

_EVERYWHERE = {"--json", "--offline", "--quiet", "-q"}
_FLAGS = {"inspect": {"--full", "--tensors"}, "list": {"--all", "--installed", "--fit"}}


def quick(argv: Sequence[str]) -> int | None:
    """The exit code of a plain command that was answered, or None if it is not to be answered here."""
    if list(argv) == ["--version"]:
        print(f"tea-models {_version()}")
        return 0
    if not argv or argv[0] not in _FLAGS:
        return None
    words = [argument for argument in argv[1:] if not argument.startswith("-")]
    flags = {argument for argument in argv[1:] if argument.startswith("-")}
    if not flags <= _FLAGS[argv[0]] | _EVERYWHERE or (argv[0] == "inspect" and len(words) != 1):
        return None
    from tea_models.cli.exits import guarded
    from tea_models.cli.output import Output

    quiet = not flags.isdisjoint({"--quiet", "-q"})
    out = Output.from_environment(os.environ, as_json="--json" in flags, quiet=quiet)
    return guarded(lambda: _answer(argv[0], words, flags, out), out)


def _answer(command: str, words: list[str], flags: set[str], out: Output) -> None:
    from pathlib import Path

    from tea_models.settings import Settings

    settings = Settings.resolve(os.environ, cwd=Path.cwd(), offline="--offline" in flags or None)
    out.note_foreign_registry(settings)
    if command == "inspect":
        from tea_models.cli import inspect_view

        inspect_view.show(words[0], settings, out, full="--full" in flags, tensors="--tensors" in flags)
        return
    from tea_models.cli import list_view

    list_view.show(settings, out, words, every="--all" in flags, installed="--installed" in flags, fit="--fit" in flags)


def _version() -> str:
    """As `importlib.metadata`, which takes twice as long to import as Python to start."""
    from pathlib import Path

    for folder in sys.path:
        for found in Path(folder).glob("tea_models-*.dist-info"):
            return found.name.removesuffix(".dist-info").partition("-")[2]
    from importlib.metadata import version

    return version("tea-models")
