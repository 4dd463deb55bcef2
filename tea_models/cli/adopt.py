"""`tea-models adopt`."""

from __future__ import annotations

from pathlib import Path

import click

from tea_models.cli.frame import App, answering
from tea_models.cli.output import one_line, table
from tea_models.errors import MissingFileError
from tea_models.files import shard_names
from tea_models.sizes import human_bytes
from tea_models.verbs.adopt import Candidate, adopt, candidates


@click.command("adopt")
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
    for folder in folders:
        if not folder.is_dir():
            raise MissingFileError(f"{folder}: no such folder")
    shown = candidates(app.settings, folders=folders) if everything or not names else []
    if not names and not everything:
        app.out.answer([candidate.to_json() for candidate in shown], lambda: _human(shown))
        return
    ready = [item.found for item in shown if _ready(item)]
    names += tuple(dict.fromkeys(str(found.path) if found.tool == "folder" else found.name for found in ready))
    results = adopt(names, app.caller, folders=folders)
    rows = [[item.name, human_bytes(item.size), item.status, str(item.path)] for item in results]
    app.out.answer(results, lambda: table(rows, right=frozenset({1})) or "nothing to adopt that is not in the store")


def _ready(item: Candidate) -> bool:
    """Whether `--all` takes it; the later shards of a model come with the first."""
    first = shard_names(item.found.filename)[0] == item.found.filename
    return first and not item.problem and not item.installed


def _human(shown: list[Candidate]) -> str:
    if not shown:
        return "no GGUF files of Hugging Face, Ollama, LM Studio or llama.cpp here (--folder DIR looks elsewhere)"
    rows = []
    for item in shown:
        known = [item.architecture or "", item.quantization or ""]
        about = "not usable" if item.problem else " ".join(known).strip()
        state = "in the store" if item.installed else item.model or ""
        rows.append([item.found.name, item.found.tool, human_bytes(item.found.size), about, state])
    text = table(rows, header=["NAME", "TOOL", "SIZE", "MODEL", "HERE AS"], right=frozenset({2}))
    problems = [one_line(f"{item.found.name}: {item.problem}") for item in shown if item.problem]
    return "\n".join([text, "", *problems, *([""] if problems else []), "next: tea-models adopt NAME"])
