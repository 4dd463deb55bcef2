"""`engines.yaml`: what is pinned, and for which machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tea_models.errors import ConfigError, NotAvailableError
from tea_models.registry.engines import Catalog, Host, Target, load_catalog
from tea_models.yamlfile import read_yaml, validate

HERE = Host("linux", "x86_64", "2.36")


def test_every_engine_is_pinned_and_has_one_name() -> None:
    catalog = load_catalog()
    names = [engine.name for engine in catalog.engines]
    assert len(set(names)) == len(names)
    assert all(engine.size > 1 << 20 and engine.license and engine.libraries["llama"] for engine in catalog.engines)


def test_each_system_that_is_tested_has_an_engine() -> None:
    targets = {(engine.target.system, engine.target.machine) for engine in load_catalog().engines}
    assert {("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("windows", "x86_64")} <= targets


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (Host("linux", "x86_64", None), "needs glibc 2.34, and this system has another C library"),
        (Host("linux", "x86_64", "2.31"), "needs glibc 2.34, this system has 2.31"),
        (Host("linux", "x86_64", "2.4"), "needs glibc 2.34, this system has 2.4"),
        (Host("linux", "aarch64", "2.36"), "for linux on x86_64, this is linux on aarch64"),
        (Host("darwin", "x86_64", None), "for linux on x86_64, this is darwin on x86_64"),
    ],
)
def test_a_machine_that_a_library_is_not_for_is_told_why(host: Host, words: str) -> None:
    target = Target(system="linux", machine="x86_64", glibc="2.34")
    assert words in str(host.objection(target))
    assert HERE.objection(target) is None


def test_an_unknown_name_leads_to_the_nearest_one() -> None:
    with pytest.raises(NotAvailableError) as caught:
        load_catalog().find("xllamacpp-linux-x86")
    assert "xllamacpp-linux-x86_64" in caught.value.hint


def test_a_wrong_entry_is_told_with_line_and_key(tmp_path: Path) -> None:
    file = tmp_path / "engines.yaml"
    file.write_text("schema: tea.engines/1\nbinding:\n  package: x\n  version: 1.0\nengines: []\n")
    with pytest.raises(ConfigError) as caught:
        validate(Catalog, read_yaml(file))
    assert "engines.yaml:" in caught.value.message
