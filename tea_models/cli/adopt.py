"""`tea-models adopt`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import answering
from tea_models.cli.output import printable, table
from tea_models.files import shard_names
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.cli.frame import App
    from tea_models.verbs.adopt import Candidate


@click.command("adopt", short_help="Link in GGUF files that other tools have already.")
@click.argument("names", nargs=-1, metavar="[NAME|PATH]...")
@click.option("--all", "everything", is_flag=True, help="Adopt all that is shown.")
@click.option(
    "--folder", "folders", multiple=True, type=click.Path(path_type=Path), help="Look here too; may be repeated."
)
@answering
def command(app: App, names: tuple[str, ...], everything: bool, folders: tuple[Path, ...]) -> None:
    """Show the GGUF files that Hugging Face, Ollama, LM Studio and llama.cpp keep here, or link some into the store.

    NAME is one that is shown, or a name of the registry. The bytes are checked first, and take no space twice where the
    file system has hard links. Other tools' files are never changed.
    """
    from tea_models.errors import MissingFileError
    from tea_models.verbs.adopt import adopt, candidates

    for folder in folders:
        if not folder.is_dir():
            raise MissingFileError(f"{folder}: no such folder")
    if not names and not everything:
        shown = candidates(app.settings, folders=folders)
        app.out.answer([candidate.to_json() for candidate in shown], lambda: _human(shown))
        return
    if everything:
        ready = [item for item in candidates(app.settings, folders=folders) if _ready(item)]
        names = (
            *names,
            *dict.fromkeys(str(item.found.path) if item.found.tool == "folder" else item.found.name for item in ready),
        )
        if not names:
            app.out.answer([], lambda: "nothing to adopt that is not in the store")
            return
    results = adopt(names, app.caller, folders=folders)
    rows = [[item.name, human_bytes(item.size), item.status, str(item.path)] for item in results]
    app.out.answer([item.to_json() for item in results], lambda: printable(table(rows, right=frozenset({1}))))


def _ready(item: Candidate) -> bool:
    """Whether `--all` takes it; the later shards of a model come with the first."""
    first = shard_names(item.found.filename)[0] == item.found.filename
    return first and not item.problem and not item.installed


def _human(shown: list[Candidate]) -> str:
    if not shown:
        return "no GGUF files of Hugging Face, Ollama, LM Studio or llama.cpp here (--folder DIR looks elsewhere)"
    rows = []
    for item in shown:
        about = "not usable" if item.problem else f"{item.architecture} {item.quantization}".strip()
        state = "in the store" if item.installed else item.model
        rows.append(
            [printable(item.found.name), item.found.tool, human_bytes(item.found.size), printable(about), state]
        )
    text = table(rows, header=["NAME", "TOOL", "SIZE", "MODEL", "HERE AS"], right=frozenset({2}))
    problems = [f"{printable(item.found.name)}: {printable(item.problem)}" for item in shown if item.problem]
    return "\n".join([text, *(["", *problems] if problems else []), "", "next: tea-models adopt NAME"])
