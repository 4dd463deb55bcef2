"""The pytest plugin: models of a project's `models.lock` as fixtures, and answers that are replayed.

    def test_summary(tea_llm):
        llm = tea_llm("smollm2-135m")
        assert "Paris" in llm.chat([{"role": "user", "content": "What is the capital of France?"}]).content

    @pytest.mark.tea_cassette
    def test_a_workflow():
        assert run_workflow("flow.yaml", {"question": "…"})["answer"]

Loaded by pytest through the entry point `pytest11`, so nothing heavy is imported before a fixture is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tea_runtime.backend import LlmBackend


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare `--tea-record` and `--tea-offline`."""
    group = parser.getgroup("tea-models")
    group.addoption("--tea-record", action="store_true", help="ask the real model and write every cassette anew")
    group.addoption(
        "--tea-offline",
        nargs="?",
        const="skip",
        choices=("skip", "fail"),
        help="fetch no model: a test whose model is absent is skipped, or fails (--tea-offline=fail)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker `tea_cassette`."""
    config.addinivalue_line(
        "markers",
        "tea_cassette(path=None): replay the answers of models from a cassette; by default "
        "cassettes/<module>/<test>.jsonl beside the test",
    )


@pytest.fixture(scope="session")
def tea_model(pytestconfig: pytest.Config) -> Callable[[str], Path]:
    """A function: the name of a model in the nearest `models.lock` → the path of its verified file.

    Fetched once a session, also where several workers (pytest-xdist) ask for it at once.
    """
    from tea_models import Settings, pull
    from tea_models.errors import NotAvailableError, TeaModelsError

    paths: dict[str, Path] = {}
    offline = pytestconfig.getoption("--tea-offline")

    def model(name: str) -> Path:
        if name not in paths:
            try:
                settings = Settings.resolve(os.environ, cwd=pytestconfig.rootpath, offline=True if offline else None)
                paths[name] = pull([name], settings=settings)[0].path
            except TeaModelsError as error:
                if offline == "skip" and isinstance(error, NotAvailableError):
                    pytest.skip(str(error))
                pytest.fail(str(error), pytrace=False)
        return paths[name]

    return model


@pytest.fixture(scope="session")
def _tea_backends() -> Iterator[dict[Any, LlmBackend]]:
    backends: dict[Any, LlmBackend] = {}
    yield backends
    for backend in backends.values():
        backend.close()


@pytest.fixture
def tea_llm(tea_model: Callable[[str], Path], _tea_backends: dict[Any, LlmBackend]) -> Callable[..., LlmBackend]:
    """A function: the name of a model (and keys of `settings.llm`) → a backend, loaded once a session.

    With the marker `tea_cassette` its answers come from the cassette, and neither model nor engine is needed.
    """
    from tea_runtime.cassette.backend import CassetteBackend, asked_model, cassette_of
    from tea_runtime.factory import create_llm_backend
    from tea_runtime.llm_settings import LlmSettings

    def live(name: str, settings: dict[str, Any]) -> LlmBackend:
        key = (name, *sorted((key, repr(value)) for key, value in settings.items()))
        if key not in _tea_backends or not _tea_backends[key].is_available():
            environ = {key: value for key, value in os.environ.items() if not key.startswith("TEA_CASSETTE")}
            block = {"backend": "local", **settings}
            _tea_backends[key] = create_llm_backend(block, environ=environ, gguf=str(tea_model(name)))
        return _tea_backends[key]

    def llm(name: str, **settings: Any) -> LlmBackend:
        cassette = cassette_of(os.environ)
        if cassette is None:
            return live(name, settings)
        block = LlmSettings.parse({"model": name, **settings})
        return CassetteBackend(cassette, asked_model(block, os.environ), lambda: live(name, settings))

    return llm


@pytest.fixture(autouse=True)
def _tea_cassette(request: pytest.FixtureRequest) -> Iterator[None]:
    """Point `TEA_CASSETTE` at the file of a test that has the marker, for whatever the test runs."""
    marker = request.node.get_closest_marker("tea_cassette")
    if marker is None:
        yield
        return
    given = marker.kwargs.get("path", marker.args[0] if marker.args else None)
    from tea_runtime.cassette.backend import shared

    name = re.sub(r"[^\w.-]+", "-", request.node.name).strip("-")
    path = request.path.parent / (given or Path("cassettes", request.path.stem, f"{name}.jsonl"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEA_CASSETTE", str(path))
        patch.setenv("TEA_CASSETTE_MODE", "record" if request.config.getoption("--tea-record") else "replay")
        shared.cache_clear()
        yield
    shared.cache_clear()
