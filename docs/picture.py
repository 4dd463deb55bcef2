"""Draw the picture of the README: what some commands print here, as an SVG that needs no font and no other file.

Run it in the repository, with the engine and SmolLM2 installed: `python docs/picture.py`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "demo.svg"
# Each command, and how many of its lines are shown.
SHOWN = [
    ("tea-models pull smollm2-135m", 1),
    ("tea-models inspect smollm2-135m", 9),
    ("tea-models plan smollm2-135m", 7),
    ("tea-runtime run --quiet examples/local-chat.yaml", 1),
]
COLUMNS = 88
_WIDTH, _HEIGHT, _MARGIN = 8.4, 19, 18


def printed(command: str, count: int) -> list[str]:
    """The first lines that a command prints here; `…` stands for what is left out, and for this machine's folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = os.environ | {"PATH": path, "COLUMNS": str(COLUMNS), "NO_COLOR": "1"}
    done = subprocess.run(command.split(), cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    lines = [re.sub(r"(?<=\s)/\S+/(?=\S+\.gguf)", "…/", line.rstrip()) for line in done.stdout.strip().splitlines()]
    return lines[:count] + (["…"] if len(lines) > count else [])


def drawn(lines: list[str]) -> str:
    """The SVG of lines of a terminal; those that begin with `$` are commands."""
    height = round(len(lines) * _HEIGHT + 2 * _MARGIN)
    width = round(COLUMNS * _WIDTH + 2 * _MARGIN)
    rows = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        kind = ' class="command"' if line.startswith("$ ") else ""
        place = f'x="{_MARGIN}" y="{_MARGIN + number * _HEIGHT - 5}" textLength="{len(line) * _WIDTH:.1f}"'
        text = re.sub("█+", r'<tspan class="bar">\g<0></tspan>', escape(line, quote=False))
        rows.append(f"  <text {place}{kind}>{text}</text>")
    size = f'width="{width}" height="{height}"'
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
    return f"""<svg {box} {size} role="img" xml:space="preserve">
  <title>A terminal: a model is pulled, looked into, planned for, and run</title>
  <style>
    rect {{ fill: #1b1f24 }}
    text {{ fill: #d0d7de; font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre }}
    .command {{ fill: #ffffff; font-weight: bold }}
    .bar {{ fill: #2dd4bf }}
  </style>
  <rect {size} rx="8"/>
{chr(10).join(rows)}
</svg>
"""


if __name__ == "__main__":
    lines: list[str] = []
    for command, count in SHOWN:
        lines += [*([""] if lines else []), f"$ {command}", *printed(command, count)]
    PICTURE.write_text(drawn(lines), "utf-8")
    sys.stdout.write(f"{PICTURE.name}: {len(lines)} lines\n")
