"""The documentation is true: links lead somewhere, references match the programs, and every marked example runs."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tea_models.registry.entries import read_entries
from tea_models.yamlfile import load_yaml

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# An example is a fenced block of `$ command` lines with their output, after this comment. In the output `…` stands for any
# text, a line of `…` for any lines; numbers are compared as numbers of any value.
_EXAMPLE = re.compile(r"<!-- example(?: exit=(?P<code>\d+))? -->\n```console\n(?P<body>.*?)\n```", re.DOTALL)


@dataclass(frozen=True)
class Example:
    page: str
    number: int
    code: int
    body: str

    @property
    def name(self) -> str:
        return f"{self.page}-{self.number}"


def examples() -> list[Example]:
    found = []
    for page in PAGES:
        for number, match in enumerate(_EXAMPLE.finditer(page.read_text("utf-8")), 1):
            found.append(Example(page.name, number, int(match["code"] or 0), match["body"]))
    return found


def commands(body: str) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.startswith("> ") and found and not found[-1][1]:
            found[-1] = (found[-1][0] + "\n" + line[2:], [])
        else:
            found[-1][1].append(line)
    return found


def shape(lines: list[str]) -> str:
    """A regular expression for output that says the same with other numbers."""
    pattern = ""
    for line in lines:
        if line.strip() == "…":
            pattern += r"(?:.*\n)*?"
            continue
        text = re.escape(" ".join(line.split()))
        text = text.replace("…", ".*").replace(r"\ ", " +")
        text = re.sub(r"\d+(?:\\\.\d+)?", r"\\d+(?:[.]\\d+)?", text)
        pattern += rf" *{text} *\n"
    return pattern


@pytest.mark.real
@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_the_examples_run_and_print_what_the_page_says(example: Example, tmp_path: Path, real_model: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environ = dict(os.environ)
    environ["TEA_MODELS_DIR"] = str(real_model.parent)
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    environ["COLUMNS"] = "100"
    for command, expected in commands(example.body):
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == example.code, f"$ {command}\n{done.stdout}{done.stderr}"
        printed = done.stdout + done.stderr if example.code else done.stdout
        lines = "".join(" ".join(line.split()) + "\n" for line in printed.splitlines())
        wanted = "\n".join(expected).strip("\n").splitlines()
        assert re.fullmatch(shape(wanted), lines.strip("\n") + "\n" if wanted else ""), (
            f"$ {command}\n--- the page says\n" + "\n".join(wanted) + f"\n--- it prints\n{printed}"
        )


@pytest.mark.real
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_examples_run(page: Path, tmp_path: Path, real_model: Path) -> None:
    environ = dict(os.environ) | {"TEA_MODELS_DIR": str(real_model.parent)}
    for code in re.findall(r"<!-- example -->\n```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        for said in re.findall(r"print\(.*\)  # (.*)", code):  # what stands behind a print is what it prints
            assert said.rstrip(" …") in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_place_that_the_architecture_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = re.findall(r"`((?:tea_models|tea_runtime)/[\w/.]*)`", text)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
    packages = [path for name in ("tea_models", "tea_runtime") for path in (ROOT / name).iterdir() if path.is_dir()]
    missing = [path.name for path in packages if (path / "__init__.py").exists() and f"{path.name}/`" not in text]
    assert missing == []


def test_the_command_reference_is_what_the_commands_print() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    text = generate.FILE.read_text("utf-8")
    assert generate.updated(text) == text, "run `make docs`"
    assert generate.profile_schema() == generate.SCHEMA_FILE.read_text("utf-8"), "run `make docs`"


def test_the_registry_example_is_valid() -> None:
    (example,) = re.findall(
        r"```yaml\n(schema: tea\.registry.*?)```", (ROOT / "docs/registry.md").read_text(), re.DOTALL
    )
    (entry,) = read_entries(load_yaml(example, "docs/registry.md"), "built-in")
    assert entry.name == "my-model"


def test_the_files_of_the_project_name_no_machine_and_no_package_registry() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    forbidden = re.compile("/ro" "ot/|py" r"pi\.org|python" "hosted|debian" r"\.org|npm" "js")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file():
            hit = forbidden.search(path.read_text("utf-8", errors="replace"))
            assert hit is None, f"{name}: {hit and hit.group()}"


def test_every_test_that_the_security_page_names_exists() -> None:
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    missing = []
    for cell in re.findall(r"\| ([^|]+) \|$", page, re.MULTILINE):
        text = ""
        for word in re.findall(r"`(test_\w+(?:\.py)?)`", cell):
            if word.endswith(".py"):
                text = (ROOT / "tests" / word).read_text("utf-8")
            elif f"def {word}(" not in text:
                missing.append(word)
    assert missing == []
