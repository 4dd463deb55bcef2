"""`tea-models inspect FILE` and `--version` without click, which takes longer to import than a header to read.

Only the plain forms are taken here; anything else, and every wrong usage, goes the ordinary way.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_FLAGS = frozenset({"--json", "--full", "--tensors", "--offline", "--quiet", "-q"})


def quick(argv: Sequence[str]) -> int | None:
    """Answer a plain command.

    Args:
        argv: Arguments without the program's name.

    Returns:
        The exit code, or None if this is not a command to be answered here.
    """
    if list(argv) == ["--version"]:
        from importlib.metadata import version

        print(f"tea-models {version('tea-models')}")
        return 0
    if not argv or argv[0] != "inspect":
        return None
    models = [argument for argument in argv[1:] if not argument.startswith("-")]
    flags = {argument for argument in argv[1:] if argument.startswith("-")}
    if len(models) != 1 or not flags <= _FLAGS:
        return None
    return _inspect(models[0], flags)


def _inspect(model: str, flags: set[str]) -> int:
    from tea_models.cli.exits import guarded
    from tea_models.cli.output import Output

    quiet = not flags.isdisjoint({"--quiet", "-q"})
    out = Output.from_environment(os.environ, as_json="--json" in flags, quiet=quiet)

    def command() -> None:
        from pathlib import Path

        from tea_models.cli.inspect_view import show
        from tea_models.settings import Settings

        settings = Settings.resolve(os.environ, cwd=Path.cwd(), offline=True if "--offline" in flags else None)
        out.note_foreign_registry(settings)
        show(model, settings, out, full="--full" in flags, tensors="--tensors" in flags)

    # What is read here has no cycles worth looking for.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return guarded(command, out)
    finally:
        if collecting:
            gc.enable()


def leave(code: int) -> None:
    """End the process; in the plain case at once, because to free every object takes a tenth of the time of `inspect`.

    Args:
        code: The exit code.
    """
    # Where threads or processes were started, they are ended in order.
    if not {"threading", "subprocess", "concurrent.futures"} & sys.modules.keys():
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            sys.exit(code)  # which says what is wrong with them
        os._exit(code)
    sys.exit(code)
