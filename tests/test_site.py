"""The site of docs/: it builds without a warning, and loads nothing from another host."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Attributes whose address a browser asks for by itself; of an `<a>` only the reader does.
_LOADED = {"src", "srcset", "poster", "data", "background"}
_FOREIGN = re.compile(r"^\s*(?:[a-z][a-z+.-]*:)?//", re.IGNORECASE)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("material") is None, reason="needs mkdocs-material: pip install -r requirements/site.txt"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return folder


class _Loaded(HTMLParser):
    """Every address that a page makes a browser load, and the text of its styles."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.styles = ""
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        for name, value in attrs:
            if name in _LOADED or (name == "href" and tag in ("link", "use", "image")):
                self.addresses += [part.split()[0] for part in (value or "").split(",") if part.strip()]
            elif name == "style":
                self.styles += value or ""

    def handle_endtag(self, tag: str) -> None:
        self._in_style = self._in_style and tag != "style"

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.styles += data


def _foreign(page: str) -> list[str]:
    parser = _Loaded()
    parser.feed(page)
    in_styles = re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""", parser.styles)
    return [address for address in (*parser.addresses, *in_styles) if _FOREIGN.match(address)]


def test_what_would_be_loaded_from_elsewhere_is_found() -> None:
    assert _foreign('<script src="https://a.example/x.js"></script>') == ["https://a.example/x.js"]
    assert _foreign('<link rel="preconnect" href="//a.example">') == ["//a.example"]
    assert _foreign('<img srcset="x.png 1x, https://a.example/x.png 2x">') == ["https://a.example/x.png"]
    assert _foreign("<style>@import 'https://a.example/x.css'; p {color: red}</style>") == ["https://a.example/x.css"]
    assert _foreign('<p style="background: url(https://a.example/x.png)">') == ["https://a.example/x.png"]
    assert _foreign('<a href="https://a.example">a</a><img src="x.png"><script src="../x.js"></script>') == []


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(list((ROOT / "docs").rglob("*.md")))
    found = {str(page.relative_to(site)): _foreign(page.read_text("utf-8")) for page in pages}
    assert {name: addresses for name, addresses in found.items() if addresses} == {}


def test_no_style_or_picture_of_the_site_loads_anything_from_another_host(site: Path) -> None:
    files = [path for kind in ("*.css", "*.svg") for path in site.rglob(kind)]
    assert files
    for path in files:
        addresses = re.findall(r"""(?:url\(|@import|href=)\s*["']?([^"')\s;>]+)""", path.read_text("utf-8"))
        assert [address for address in addresses if _FOREIGN.match(address)] == [], path.name
