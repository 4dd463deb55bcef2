"""The pages of the documentation, and what stands in them to be run.

Three kinds of marked blocks, done from the top of a page to its end, in one folder: `<!-- file NAME -->` writes the block
after it, `<!-- example -->` runs it. An example is Python, or a console block of `$ command` lines with their output: `…`
stands for any text, a line of `…` for any lines; numbers are compared as numbers of any value, and bars
as bars of any length.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_MARKED = re.compile(
    r"<!-- (?:example(?: exit=(?P<code>\d+))?|file (?P<file>\S+)) -->\n```(?P<kind>\w+)\n(?P<body>.*?\n)```", re.DOTALL
)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def marked(page: Path) -> list[re.Match[str]]:
    return list(_MARKED.finditer(page.read_text("utf-8")))


def commands(body: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block (`> ` goes on with one), each with the lines that it prints."""
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
        text = re.sub("█+", "█+", text.replace(r"\ …\ ", r"\ (?:…\ )?"))  # bars have any length
        text = text.replace("…", ".*").replace(r"\ ", " +")
        text = re.sub(r"\d+(?:\\\.\d+)?", r"\\d+(?:[.]\\d+)?", text)
        pattern += rf" *{text} *\n"
    return pattern


def follow(page: Path, folder: Path, environ: Mapping[str, str]) -> None:
    """Do what a page says, in `folder`; an AssertionError where something else comes out."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environ = {**outer, "PATH": path, "COLUMNS": "100", **environ}
    for block in marked(page):
        if block["file"]:
            target = folder / block["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block["body"], "utf-8")
        elif block["kind"] == "python":
            done = subprocess.run(
                [sys.executable, "-c", block["body"]],
                stdin=subprocess.DEVNULL, cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=600,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            for said in re.findall(r"print\(.*\)  # (.*)", block["body"]):  # what stands behind a print is printed
                assert said.rstrip(" …") in done.stdout
        else:
            for command, expected in commands(block["body"]):
                _run(command, expected, int(block["code"] or 0), folder, environ)


def _run(command: str, expected: list[str], code: int, folder: Path, environ: Mapping[str, str]) -> None:
    done = subprocess.run(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == code, f"$ {command}\n{done.stdout}{done.stderr}"
    printed = done.stdout + done.stderr if code else done.stdout
    lines = "".join(" ".join(line.split()) + "\n" for line in printed.splitlines())
    wanted = "\n".join(expected).strip("\n").splitlines()
    assert re.fullmatch(shape(wanted), lines.strip("\n") + "\n" if wanted else ""), (
        f"$ {command}\n--- the page says\n" + "\n".join(wanted) + f"\n--- it prints\n{printed}"
    )
