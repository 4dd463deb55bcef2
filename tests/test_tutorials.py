"""The tutorials, from the top to the end, on the real models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tea_models import Settings, pull
from tests.doc_pages import PAGES, follow, marked, name_of

TUTORIALS = [page for page in PAGES if page.parent.name == "tutorials"]

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def store(real_model: Path, gemma_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the tutorials' own, with both models: some bring files of their own into it."""
    folder = tmp_path_factory.mktemp("store")
    for path in (real_model, gemma_model):
        shutil.copyfile(path, folder / path.name)
    settings = Settings.resolve({"HOME": str(folder), "TEA_MODELS_DIR": str(folder)}, cwd=folder)
    pull(["smollm2-135m", "gemma3-270m-base"], settings=settings)  # takes over what lies there
    return folder


def test_there_is_something_to_do_in_every_tutorial() -> None:
    assert len(TUTORIALS) >= 9
    assert [name_of(page) for page in TUTORIALS if not marked(page)] == []


@pytest.mark.parametrize("page", TUTORIALS, ids=name_of)
def test_a_tutorial_can_be_followed_and_comes_out_as_it_says(page: Path, tmp_path: Path, store: Path) -> None:
    follow(page, tmp_path, {"TEA_MODELS_DIR": str(store)})
