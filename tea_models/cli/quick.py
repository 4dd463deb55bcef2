"""`--version`, `inspect` and `list` without click, which takes longer to import than they take to answer.

Only the plain forms are taken here; anything else, and every wrong usage, goes the ordinary way.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tea_models.cli.output import Output

_EVERYWHERE = frozenset({"--json", "--offline", "--quiet", "-q"})
_FLAGS = {"inspect": {"--full", "--tensors"}, "list": {"--all", "--installed", "--fit"}}


def quick(argv: Sequence[str]) -> int | None:
    """Answer a plain command.

    Returns:
        The exit code, or None if this is not a command to be answered here.
    """
    if list(argv) == ["--version"]:
        print(f"tea-models {version()}")
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
    # What is read here has no cycles worth looking for.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return guarded(lambda: _answer(argv[0], words, flags, out), out)
    finally:
        if collecting:
            gc.enable()


def _answer(command: str, words: list[str], flags: set[str], out: Output) -> None:
    from pathlib import Path

    from tea_models.settings import Settings

    settings = Settings.resolve(os.environ, cwd=Path.cwd(), offline=True if "--offline" in flags else None)
    out.note_foreign_registry(settings)
    if command == "inspect":
        from tea_models.cli import inspect_view

        inspect_view.show(words[0], settings, out, full="--full" in flags, tensors="--tensors" in flags)
        return
    from tea_models.cli import list_view

    list_view.show(settings, out, words, every="--all" in flags, installed="--installed" in flags, fit="--fit" in flags)


def version() -> str:
    """The version of this distribution, as its metadata state it.

    `importlib.metadata` says the same, but takes twice as long to import as Python to start.
    """
    for folder in sys.path:
        try:
            names = [name for name in os.listdir(folder or ".") if name.startswith("tea_models-")]  # noqa: PTH208
        except OSError:
            continue
        for name in names:
            if name.endswith(".dist-info"):
                return name.removesuffix(".dist-info").partition("-")[2]
    from importlib.metadata import version as slow_version

    return slow_version("tea-models")


def leave(code: int) -> None:
    """End the process; in the plain case at once: freeing every object takes a tenth of the time of `inspect`."""
    # Where threads or processes were started, they are ended in order.
    threading = sys.modules.get("threading")
    alone = threading is None or threading.active_count() == 1
    if alone and not {"subprocess", "concurrent.futures"} & sys.modules.keys():
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            sys.exit(code)  # which says what is wrong with them
        os._exit(code)
    sys.exit(code)
