"""What stands in the documentation and is not run: its YAML is valid, its Python compiles, its commands and options exist."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import jsonschema
import pytest
import yaml

from tea_models.lockfile import parse_lock
from tea_models.registry.entries import Registry, read_entries
from tea_models.requirements import read_requirements
from tea_models.yamlfile import load_yaml
from tea_runtime.workflow.runner import check_workflow
from tests.doc_pages import PAGES, ROOT, name_of

SCHEMA = json.loads((ROOT / "docs" / "workflow.schema.json").read_text("utf-8"))
PROGRAMS = ("tea-models", "tea-runtime")


def errors_of(schema: str, data: object) -> list[str]:
    found = jsonschema.Draft202012Validator(json.loads((ROOT / "docs" / schema).read_text("utf-8"))).iter_errors(data)
    return [f"{error.json_path}: {error.message}" for error in found]


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def problems(workflow: object) -> list[str]:
    return errors_of("workflow.schema.json", workflow)


# --- workflows and other YAML


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=name_of)
def test_yaml_of_the_pages_is_what_its_reader_takes(page: Path, tmp_path: Path) -> None:
    for number, text in enumerate(blocks(page, "yaml")):
        data = load_yaml(text, page.name).data
        file = tmp_path / f"{number}.yaml"
        file.write_text(text, "utf-8")
        if "jobs" in data or "tests" in data:  # of a CI service
            continue
        if str(data.get("schema", "")).startswith("tea.registry/"):
            assert read_entries(load_yaml(text, page.name), "project")
            assert errors_of("registry.schema.json", data) == []
        elif str(data.get("schema", "")).startswith("tea.models-lock/"):
            assert parse_lock(text, page.name).models
            assert errors_of("models-lock.schema.json", data) == []
        elif "models" in data:
            assert read_requirements(file, Registry({}))
        elif "overrides" in data:
            entry = {"variants": {"x": {"files": [{"filename": "x.gguf", "sources": ["./x.gguf"]}]}}, **data}
            registry = yaml.safe_dump({"schema": "tea.registry/1", "models": {"x": entry}})
            assert read_entries(load_yaml(registry, page.name), "project")
        elif "nodes" in data and "parms" not in text:  # a page shows what a mistake looks like
            assert problems(data) == []
            if "imports" not in data:
                check_workflow(file)
        elif "parms" not in text:  # a part of a workflow
            assert [problem for problem in problems(data) if "required property" not in problem] == []
            assert set(data) <= {"imports", "settings"}, f"{page.name}: no reader for {list(data)}"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_follows_the_schema_of_workflows(path: Path) -> None:
    assert problems(yaml.safe_load(path.read_text("utf-8"))) == []


def node(**keys: object) -> dict[str, object]:
    return {"name": "n", "action": "llm.chat", "params": {"prompt": "x"}} | keys


@pytest.mark.parametrize(
    "workflow",
    [
        {"nodes": [node()], "nmae": "x"},
        {"nodes": [node(parms={})]},
        {"nodes": [node(params={"promt": "x"})]},
        {"nodes": [{"name": "n", "uses": "llm.embed", "with": {"texts": ["x"]}}]},
        {"nodes": [node()], "settings": {"llm": {"modell": "x"}}},
        {"nodes": [node()], "settings": {"llm": {"backend": "lokal"}}},
        {"nodes": [node()], "settings": {"llm": {"n_ctx": "much"}}},
        {"nodes": [node(run="return 1")]},
        {"nodes": [{"name": "n"}]},
        {"nodes": [node()], "edges": [{"from": "n", "to": "n", "wenn": True}]},
        {"nodes": []},
        {},
    ],
    ids=str,
)
def test_what_is_misspelt_or_missing_breaks_the_schema_as_it_breaks_the_reader(workflow: dict, tmp_path: Path) -> None:
    assert problems(workflow) != []
    file = tmp_path / "w.yaml"
    file.write_text(yaml.safe_dump(workflow), "utf-8")
    with pytest.raises(Exception, match=r"w\.yaml|expected"):
        check_workflow(file)


@pytest.mark.parametrize(
    "workflow",
    [
        {"nodes": [node()], "settings": {"llm": {"n_ctx": "{{ env.N }}", "model": None, "provider": "azure_openai"}}},
        {"nodes": [node()], "settings": {"llm": {"backend": "local", "n_gpu_layers": -1, "prompt_cache": "./cache"}}},
        {"nodes": [node(goto=[{"if": "state.x", "to": "n"}, {"to": "__end__"}])], "settings": None, "edges": None},
        {"nodes": [{"name": "n", "action": "my.own", "params": {"anything": 1}}], "config": {"x": 1}},
    ],
    ids=str,
)
def test_what_the_reader_takes_follows_the_schema(workflow: dict) -> None:
    assert problems(workflow) == []


def test_the_built_in_registry_follows_its_schema_and_what_is_wrong_does_not() -> None:
    registry = yaml.safe_load((ROOT / "registry.yaml").read_text("utf-8"))
    assert errors_of("registry.schema.json", registry) == []
    entry = registry["models"]["smollm2-135m"]
    (variant, *_) = entry["variants"].values()
    variant["files"][0]["sha256"] = variant["files"][0]["sha256"].upper()
    assert errors_of("registry.schema.json", registry) != []
    assert errors_of("registry.schema.json", {"schema": "tea.registry/1", "models": {"x": {"variant": {}}}}) != []


def test_every_key_of_the_schema_says_what_it_means() -> None:
    properties = SCHEMA["properties"] | SCHEMA["$defs"]["NodeSpec"]["properties"]
    for action in ("llm.call", "llm.chat", "llm.stream", "llm.embed", "llm.batch", "llm.rerank"):
        properties |= SCHEMA["$defs"][action]["properties"]
    properties |= properties.pop("settings")["properties"]["llm"]["properties"]
    silent = [name for name, schema in properties.items() if "description" not in schema]
    assert set(silent) <= {"language"}


# --- Python and JSON


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_of_the_pages_compiles_and_json_is_json(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, page.name, "exec")
    for text in blocks(page, "json"):
        try:
            json.loads(text)
        except json.JSONDecodeError:  # or a document a line
            for line in text.splitlines():
                json.loads(line)


# --- commands


def command_lines(page: Path) -> Iterator[str]:
    """Every command line of a page: in blocks of the shell and of consoles, indented ones, and those inside a sentence."""
    text = page.read_text("utf-8").partition("<!-- generated by")[0]
    for kind in ("sh", "console"):
        for block in blocks(page, kind):
            lines = re.sub(r"\\\n(?:> )?", " ", block).splitlines()
            yield from ([line[2:] for line in lines if line.startswith("$ ")] if kind == "console" else lines)
    yield from re.findall(r"^    (?:\$ )?(tea-\w.*)$", text, re.MULTILINE)
    for span in re.findall(r"(?<!`)`(tea-(?:models|runtime) [^`]+)`(?!`)", text):
        yield span.replace("\n", " ").replace(r"\|", "|")


def calls(line: str) -> Iterator[list[str]]:
    """The programs that a shell line starts, with their arguments; substitutions in it count too."""
    for inner in re.findall(r"\$\(([^()]*)\)", line):
        yield from calls(inner)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("|&;<>"):
            while words and re.match(r"\w+=|export$|eval$", words[0]):
                words = words[1:]
            if words and words[0] in PROGRAMS:
                yield words
            words = []
        else:
            words.append(word)


def check_call(words: list[str]) -> None:
    """Parse a call as the program would, and run nothing."""
    from tea_models.cli import group as models
    from tea_runtime.cli import group as runtime

    command: click.Command = models() if words[0] == "tea-models" else runtime()
    context = click.Context(command, info_name=words[0], **command.context_settings)
    arguments = [word for word in words[1:] if word != "…"]
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        found = command.get_command(context, arguments[0])
        assert found is not None, f"there is no command {arguments[0]!r}"
        command, arguments = found, arguments[1:]
        context = click.Context(command, info_name=command.name, parent=context)
    values, _, _ = command.make_parser(context).parse_args(arguments)
    for parameter in command.params:
        value = values.get(parameter.name or "")
        if isinstance(parameter.type, click.Choice) and isinstance(value, str) and "|" not in value:
            parameter.type.convert(value, parameter, context)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_and_option_in_the_pages_exists(page: Path) -> None:
    wrong = []
    for line in command_lines(page):
        try:
            for words in calls(line):
                check_call(words)
        except (click.ClickException, AssertionError, ValueError) as error:
            wrong.append(f"{line}: {getattr(error, 'message', error)}")
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    ["tea-models pul x", "tea-models pull x --fast", "tea-models export x --to nowhere", "true && tea-runtime rnu x"],
)
def test_a_command_line_that_is_wrong_is_found(line: str) -> None:
    (words,) = calls(line)
    with pytest.raises((click.ClickException, AssertionError)):
        check_call(words)


def test_the_programs_that_a_line_starts_are_found() -> None:
    assert list(calls('A=1 tea-models pull "$(tea-models path x)" | head # tea-models y')) == [
        ["tea-models", "path", "x"],
        ["tea-models", "pull", "$(tea-models path x)"],
    ]
    assert len([words for page in PAGES for line in command_lines(page) for words in calls(line)]) > 150
