"""`tea-models verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import App, answering
from tea_models.cli.output import one_line, table
from tea_models.verbs.verify import VerifyResult, verify

if TYPE_CHECKING:
    from pathlib import Path

_STYLE = {"ok": "green", "repaired": "green", "unpinned": "yellow"}


@click.command("verify")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--repair", is_flag=True, help="Fetch again what is corrupt or missing.")
@answering
def command(app: App, names: tuple[str, ...], repair: bool) -> int:
    """Read every byte of installed models (all, or those named; a path of a GGUF file will do) and compare hashes.

    Exit code 3 if something is corrupt or can't be loaded, 4 if something is missing.
    """
    results = verify(names or None, app.caller, repair=repair)
    app.out.answer(results, lambda: _human(app, results, repair=repair))
    if any(result.broken for result in results):
        return 3
    return 4 if any(result.status == "missing" for result in results) else 0


def _human(app: App, results: list[VerifyResult], *, repair: bool) -> str:
    if not results:
        return "nothing is installed yet; start with: tea-models pull smollm2-135m"
    lines = table([[_word(result), result.name, str(result.path)] for result in results]).split("\n")
    out = []
    for line, result in zip(lines, results, strict=True):
        word = _word(result)
        out.append(app.out.style(word, _STYLE.get(word, "red")) + line[len(word) :])
        if result.status == "corrupt" and result.expected_sha256 and result.actual_sha256:
            out += [f"    expected {result.expected_sha256}", f"    found    {result.actual_sha256}"]
        out += [f"    {one_line(problem)}" for problem in result.problems]
    advice = "" if repair else _advice(results, app.settings.store_dir)
    return "\n".join([*out, "", advice] if advice else out)


def _word(result: VerifyResult) -> str:
    if result.repaired:
        return "repaired"
    return "not loadable" if result.status != "corrupt" and result.loadable is False else result.status


def _advice(results: list[VerifyResult], store: Path) -> str:
    if any(result.status in ("corrupt", "missing") and result.path.is_relative_to(store) for result in results):
        return "next: tea-models verify --repair fetches only what is broken"
    if any(result.status == "unpinned" for result in results):
        return "unpinned: nobody said beforehand what the hash should be; tea-models lock pins it"
    return ""
