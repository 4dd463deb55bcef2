"""Fixtures every test may use: its own home and store, and the real models, pulled once by our own `pull`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

# The same few examples in every run of the suite; `--hypothesis-profile=fuzz` looks further.
settings.register_profile("suite", max_examples=25, derandomize=True, deadline=None, database=None)
settings.register_profile("fuzz", max_examples=5000, deadline=None)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def no_ones_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What fixtures of a wider scope do never touches the store of the user who runs the tests."""
    home = tmp_path_factory.mktemp("home-of-session")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("TEA_MODELS_DIR", str(home / "models"))
        yield


# Threads that spin while they wait make a generation five times slower on a machine that is busy with other things, as
# those that run tests are. Read when the engine is loaded; programs that tests start inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(autouse=True)
def own_world(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a home of its own, and none of the user's settings or tokens."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(("TEA_", "HF_", "OPENAI_")) and name != "TEA_TEST_MODEL":
            monkeypatch.delenv(name)
    for name in ("APPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TEA_MODELS_DIR", str(home / "models"))
    return home


# Tests may run where SIGINT is ignored (in the background, by nohup), which every child inherits.
_WITH_SIGINT = [
    sys.executable,
    "-ISc",
    "import os, signal, sys; signal.signal(signal.SIGINT, getattr(signal, sys.argv[1])); os.execv(sys.argv[2], sys.argv[2:])",
]


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start programs that react to SIGINT (or, with `sigint="SIG_IGN"`, don't); all are ended with the test."""
    with ExitStack() as stack:

        def start_one(command: Sequence[str], *, sigint: str = "SIG_DFL", **options: object) -> subprocess.Popen:
            process = subprocess.Popen([*_WITH_SIGINT, sigint, *command], **options)  # type: ignore[call-overload]
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start_one


# The real models are downloaded once per machine, not once per test: the store of the user who runs the tests.
_HOME = os.environ.get("HOME", str(Path.home()))
_SHARED_STORE = Path(os.environ.get("TEA_MODELS_DIR") or Path.home() / ".cache" / "tea" / "models")


def _provision(name: str) -> Path:
    from tea_models import Settings, pull

    environ = dict(os.environ) | {"HOME": _HOME, "TEA_MODELS_DIR": str(_SHARED_STORE)}
    settings = Settings.resolve(environ, cwd=Path(__file__).parent)
    (result,) = pull([name], settings=settings)
    return Path(result.path)


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The model that `TEA_TEST_MODEL` names (a path or a reference), SmolLM2-135M by default."""
    named = os.environ.get("TEA_TEST_MODEL", "smollm2-135m")
    return Path(named) if Path(named).is_file() else _provision(named)


@pytest.fixture(scope="session")
def gemma_model() -> Path:
    """Gemma 3 270M, a base model with a vocabulary of 262,144 tokens and a sliding window."""
    return _provision("gemma3-270m-base")
