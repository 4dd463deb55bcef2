"""Settings: flag, environment, default."""

from __future__ import annotations

from pathlib import Path

import pytest

from tea_models.errors import UsageError
from tea_models.settings import DEFAULT_HF_ENDPOINT, Settings


def test_the_store_is_in_the_cache_folder_that_the_host_looks_in(tmp_path: Path) -> None:
    found = Settings.resolve({"HOME": str(tmp_path)}, cwd=tmp_path)
    assert found.store_dir == tmp_path / ".cache" / "tea" / "models"
    assert found.hf_endpoint == DEFAULT_HF_ENDPOINT


def test_the_environment_overrides_and_a_flag_overrides_it(tmp_path: Path) -> None:
    environ = {
        "HOME": str(tmp_path),
        "TEA_MODELS_DIR": "~/m",
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": "http://127.0.0.1:1/",
    }
    found = Settings.resolve(environ, cwd=tmp_path)
    assert (found.store_dir, found.offline, found.hf_endpoint) == (tmp_path / "m", True, "http://127.0.0.1:1")
    flagged = Settings.resolve(environ, cwd=tmp_path, store_dir=tmp_path / "other", offline=False)
    assert (flagged.store_dir, flagged.offline) == (tmp_path / "other", False)


def test_a_relative_store_is_under_the_working_directory(tmp_path: Path) -> None:
    assert Settings.resolve({"TEA_MODELS_DIR": "m"}, cwd=tmp_path).store_dir == tmp_path / "m"


@pytest.mark.parametrize(
    ("name", "value"),
    [("TEA_OFFLINE", "perhaps"), ("TEA_MODELS_CONNECTIONS", "0"), ("TEA_MODELS_CONNECTIONS", "x")],
)
def test_a_variable_that_makes_no_sense_is_told(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(UsageError, match=name):
        Settings.resolve({name: value}, cwd=tmp_path)


def test_the_token_is_not_in_the_text_of_the_settings(tmp_path: Path) -> None:
    assert "s3cret" not in repr(Settings.resolve({"HF_TOKEN": "s3cret"}, cwd=tmp_path))
