"""The documentation is true: links lead somewhere, references match the programs, and every marked example runs."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tea_models.registry.entries import read_entries
from tea_models.yamlfile import load_yaml
from tests.doc_pages import PAGES, ROOT, follow, marked, name_of


@pytest.mark.real
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent.name != "tutorials" and marked(page)], ids=name_of
)
def test_what_a_page_says_can_be_done_and_comes_out_so(page: Path, tmp_path: Path, real_model: Path) -> None:
    follow(page, tmp_path, {"TEA_MODELS_DIR": str(real_model.parent)})


@pytest.mark.real
def test_the_picture_shows_what_its_commands_print(tmp_path: Path, real_model: Path) -> None:
    texts = ET.parse(ROOT / "docs" / "images" / "demo.svg").iter("{http://www.w3.org/2000/svg}text")
    lines = ["".join(text.itertext()) for text in texts]
    asked = [line for line in lines if line.startswith("$ ")]
    assert len(asked) >= 4
    # Empty lines are no texts in the picture: what the commands print is compared without them.
    body = "\n".join(f"{line} | grep -v '^$'" if line in asked else line for line in lines)
    page = tmp_path / "picture.md"
    page.write_text(f"<!-- example -->\n```console\n{body}\n```\n", "utf-8")
    (tmp_path / "work").mkdir()
    follow(page, tmp_path / "work", {"TEA_MODELS_DIR": str(real_model.parent)})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_place_that_the_architecture_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = re.findall(r"`((?:tea_models|tea_runtime)/[\w/.]*)`", text)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
    packages = [path for name in ("tea_models", "tea_runtime") for path in (ROOT / name).iterdir() if path.is_dir()]
    missing = [path.name for path in packages if (path / "__init__.py").exists() and f"{path.name}/`" not in text]
    assert missing == []


def test_what_is_generated_is_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name in generate.GENERATED:
        text = (generate.DOCS / name).read_text("utf-8")
        assert generate.updated(name, text) == text, f"{name}: run `make docs`"
    for name, schema in generate.SCHEMAS.items():
        assert schema() == (generate.DOCS / name).read_text("utf-8"), f"{name}: run `make docs`"


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


def test_every_environment_variable_that_is_read_is_in_the_table_and_no_other() -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8").partition("## Environment")[2].partition("<!-- generated")[0]
    documented = {
        name for row in re.findall(r"^\| (`.+?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)", row)
    }
    read, named = set(), set()
    for path in [*(ROOT / "tea_models").rglob("*.py"), *(ROOT / "tea_runtime").rglob("*.py")]:
        code = path.read_text("utf-8")
        read |= set(re.findall(r"""environ(?:\.get\(|\[)f?"([A-Z][A-Z0-9_]+)""", code))
        named |= set(re.findall(r"""(?<![\w$])"?((?:TEA|HF)_[A-Z_]+[A-Z])\b""", code))
    of_the_system = {"PATH", "PYTHONPATH"}
    assert (read - of_the_system) - {f"{name}_" for name in documented} <= documented | {"TEA_MODELS_AUTH_"}
    assert named - {"TEA_MODELS_AUTH"} <= documented
    assert {name for name in documented if name.startswith(("TEA_", "HF_"))} <= named | {"TEA_MODELS_AUTH_"}


def test_every_exit_code_is_in_the_tables() -> None:
    from tea_models import errors

    codes = {0, 130} | {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    for page in ("cli.md", "errors.md"):
        text = (ROOT / "docs" / page).read_text("utf-8").partition("<!-- generated")[0]
        assert {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)} == codes


def test_every_cell_of_the_comparison_has_a_source() -> None:
    text = (ROOT / "docs" / "comparison.md").read_text("utf-8")
    named = set(re.findall(r"^\[([\w-]+)\]: https://", text, re.MULTILINE))
    assert set(re.findall(r"\]\[([\w-]+)\]", text)) == named
    rows = [row for row in re.findall(r"^\| (.+) \|$", text, re.MULTILINE) if not row.startswith(("|", "tool |"))]
    cells = [cell for row in rows for cell in row.split(" | ")[1:]]
    assert len(cells) > 60
    assert [cell for cell in cells if not re.search(r"\]\[[\w-]+\]|\]\([\w./#-]+\)|not found|^\u2013$", cell)] == []
