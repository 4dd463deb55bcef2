"""`tea-runtime`: run workflows and models. A thin command each; `main` alone catches and exits."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tea_models.cli import frame

COMMANDS = {
    "run": "Run a YAML workflow.",
    "map": "Run a workflow over the rows of a file.",
    "compare": "Run a workflow with several models, and show how far they agree.",
    "validate": "Check a workflow, for here and for The Edge Agent.",
    "chat": "Talk to a model.",
    "embed": "Turn texts into vectors.",
    "serve": "An OpenAI-compatible endpoint for a model.",
    "cassette": "Ask a model the requests of a cassette again.",
    "selftest": "Check that a model works with this engine.",
}


def group() -> frame.LazyGroup:
    """Build the `tea-runtime` command group; a command's module is imported when it is used."""
    return frame.LazyGroup(
        name="tea-runtime",
        package="tea_runtime.cli",
        commands=COMMANDS,
        help="Run local GGUF models: workflows, chat, embeddings, an endpoint.",
        epilog="Start with: tea-runtime chat smollm2-135m",
    )


def main(argv: Sequence[str] | None = None) -> None:
    # `run` by its module: the name would be that of our own command once it was imported.
    sys.exit(frame.run(group(), sys.argv[1:] if argv is None else list(argv)))
