"""`tea-runtime`: run workflows and models. A thin command each; `main` alone catches and exits."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tea_models.cli.frame import LazyGroup, run

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "run": "Run a YAML workflow.",
    "map": "Run a workflow over the rows of a file.",
    "chat": "Talk to a model.",
    "embed": "Turn texts into vectors.",
    "serve": "An OpenAI-compatible endpoint for a model.",
    "selftest": "Check that a model works with this engine.",
}


def group() -> LazyGroup:
    """Build the `tea-runtime` command group; a command's module is imported when it is used."""
    return LazyGroup(
        name="tea-runtime",
        package="tea_runtime.cli",
        commands=COMMANDS,
        help="Run local GGUF models: workflows, chat, embeddings, an endpoint.",
        epilog="Start with: tea-runtime chat smollm2-135m",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `tea-runtime` command."""
    sys.exit(run(group(), sys.argv[1:] if argv is None else list(argv)))
