"""The faces of the packages: names are imported late, and still seen by `dir`, `help` and editors."""

from __future__ import annotations

import importlib
import pydoc
import subprocess
import sys

import pytest

PACKAGES = ("tea_models", "tea_models.chat", "tea_runtime")


@pytest.mark.parametrize("name", PACKAGES)
def test_dir_and_help_show_every_public_name_with_what_it_does(name: str) -> None:
    package = importlib.import_module(name)
    public = {one for one in dir(package) if not one.startswith("_")}
    assert public == set(package.__all__)
    text = pydoc.render_doc(package, renderer=pydoc.plaintext)
    for one in public:
        assert one in text
        assert getattr(package, one).__doc__


@pytest.mark.parametrize("name", PACKAGES)
def test_nothing_heavy_is_imported_before_a_name_is_used(name: str) -> None:
    script = f"import sys, {name}; dir({name}); print([one for one in ('pydantic', 'yaml', 'llama_cpp') if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
