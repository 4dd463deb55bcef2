"""`tea-models`: a thin command each. Commands parse, call the library and print; `main` alone catches and exits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tea_models.cli.frame import LazyGroup

COMMANDS = {
    "list": "Models of the registry, and which are installed.",
    "pull": "Download models and check every byte.",
    "inspect": "What a GGUF file says about itself, local or remote.",
    "profile": "Facts about a model, portable, with where each came from.",
    "plan": "Settings for this machine, with reasons; before the download.",
    "verify": "Hash installed models again and check that they load.",
    "path": "Where a model's file lies.",
    "lock": "Pin sources and hashes in models.lock.",
    "sync": "Make the store hold exactly what models.lock says.",
    "cache-key": "What a cache of the store should be keyed by.",
    "push": "Fill a mirror with what models.lock names.",
    "bundle": "Pack locked models into one file for machines without network.",
    "add": "Write a pinned entry into the project's registry.yaml.",
    "registry": "Check a registry file.",
    "adopt": "Link in GGUF files that other tools have already.",
    "rm": "Remove models from the store.",
    "gc": "Remove leftovers from the store.",
    "export": "A plan as settings for other servers.",
    "render": "The exact prompt a chat becomes.",
    "engine": "Install llama.cpp, prebuilt or compiled, and see what it can do.",
    "doctor": "This machine, the engine and the store at a glance.",
}
_HOMES = {
    **dict.fromkeys(("pull", "path", "verify", "adopt", "rm", "gc"), "store"),
    **dict.fromkeys(("list", "inspect", "profile"), "models"),
    **dict.fromkeys(("plan", "export"), "plans"),
    **dict.fromkeys(("lock", "sync", "bundle", "push", "cache-key"), "locks"),
    **dict.fromkeys(("add", "registry"), "registries"),
}


def group() -> LazyGroup:
    """The `tea-models` command group; a command's module is imported when it is used."""
    from tea_models.cli.frame import LazyGroup

    return LazyGroup(
        name="tea-models",
        package="tea_models.cli",
        commands=COMMANDS,
        homes=_HOMES,
        entry_points="tea_models.commands",
        help="Download, verify, inspect and plan local GGUF models.",
        epilog='Start with: tea-models pull smollm2-135m. What the words mean: docs/cli.md, "Words".',
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `tea-models` command."""
    from tea_models.cli.quick import quick

    arguments = sys.argv[1:] if argv is None else list(argv)
    code = quick(arguments)
    if code is None:
        from tea_models.cli.frame import run

        code = run(group(), arguments)
    sys.exit(code)
