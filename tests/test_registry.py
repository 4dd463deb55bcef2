"""The registry: what is in it, how layers combine, and what a wrong file is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tea_models.errors import ConfigError, MissingFileError, UnknownModelError, UsageError
from tea_models.refs import HubRef, NameRef, OllamaRef, WheelRef, parse_reference
from tea_models.registry import packaged_text
from tea_models.registry.entries import Registry, read_entries
from tea_models.settings import Settings
from tea_models.yamlfile import load_yaml, read_yaml

HEAD = "schema: tea.registry/1\nmodels:\n  m:\n"
FILE = (
    "    variants:\n      Q4:\n        files:\n          - filename: a.gguf\n            sources: [https://x/a.gguf]\n"
)


def registry(tmp_path: Path, **environ: str) -> Registry:
    return Registry.load(Settings.resolve({"HOME": str(tmp_path), **environ}, cwd=tmp_path))


def problem(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_entries(load_yaml(text, "r.yaml"), "built-in")
    return caught.value


def test_every_built_in_source_is_pinned_by_hash_or_says_that_it_is_trusted_on_first_use(tmp_path: Path) -> None:
    written = load_yaml(packaged_text("registry.yaml"), "registry.yaml").data["models"]
    for entry in registry(tmp_path).entries.values():
        for variant in entry.variants.values():
            note = written[entry.name]["variants"][variant.name].get("note", "")
            for file in variant.files:
                assert file.sha256 or "trusted on first use" in note, (entry.name, variant.name)
                for source in file.sources:
                    for reference in source.parts:
                        assert isinstance(reference, HubRef | WheelRef | OllamaRef)
                        if isinstance(reference, HubRef) and reference.revision is not None:
                            assert len(reference.revision) == 40
                        elif not isinstance(reference, WheelRef):
                            # A branch or tag may move on: the hash refuses other bytes then.
                            assert file.sha256, (entry.name, variant.name)


def test_every_built_in_file_says_where_its_facts_were_seen(tmp_path: Path) -> None:
    document = load_yaml(packaged_text("registry.yaml"), "registry.yaml")
    silent = [
        file["filename"]
        for entry in document.data["models"].values()
        for variant in entry["variants"].values()
        for file in variant["files"]
        if not file.get("seen")
    ]
    # The bytes of these were looked at: they come in wheels. The third has no known hash.
    assert silent == ["SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-1b-it-Q8_0.gguf", "gemma-3-270m-q4_k_m.gguf"]


def test_no_two_built_in_files_have_one_hash(tmp_path: Path) -> None:
    hashes = [
        file.sha256
        for entry in registry(tmp_path).entries.values()
        for variant in entry.variants.values()
        for file in variant.files
        if file.sha256
    ]
    assert len(hashes) == len(set(hashes)) >= 38


@pytest.mark.parametrize(
    ("name", "entry", "variant"),
    [
        ("phi4-mini", "phi4-mini", "Q3_K_S"),
        ("phi4-mini:q4_k_m", "phi4-mini", "Q4_K_M"),
        ("gemma", "gemma3n-e4b", "Q4_K_M"),
        ("gemma3-1b", "gemma3-1b", "Q4_K_M"),
        ("tinyllama", "tinyllama", "Q4_K_M"),
        ("smollm2-135m", "smollm2-135m", "Q4_1"),
    ],
)
def test_names_aliases_and_variants_find_their_entry(tmp_path: Path, name: str, entry: str, variant: str) -> None:
    reference = parse_reference(name)
    assert isinstance(reference, NameRef)
    found, which = registry(tmp_path).find(reference)
    assert (found.name, which.name) == (entry, variant)


def test_an_unknown_name_is_told_the_nearest_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="no model 'phi4mini'") as caught:
        registry(tmp_path).find(NameRef("phi4mini"))
    assert "phi4-mini" in caught.value.hint
    assert caught.value.exit_code == 4


def test_an_unknown_variant_is_told_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="no variant 'Q9'") as caught:
        registry(tmp_path).find(NameRef("phi4-mini", "Q9"))
    assert "Q3_K_S" in caught.value.hint


def test_later_layers_replace_entries(tmp_path: Path) -> None:
    user = tmp_path / ".config" / "tea" / "registry.yaml"
    user.parent.mkdir(parents=True)
    user.write_text(HEAD.replace("  m:", "  tinyllama:") + "    license: user\n" + FILE)
    assert registry(tmp_path).entries["tinyllama"].license == "user"
    (tmp_path / "registry.yaml").write_text(HEAD.replace("  m:", "  tinyllama:") + "    license: project\n" + FILE)
    assert registry(tmp_path).entries["tinyllama"].license == "project"
    named = tmp_path / "named.yaml"
    named.write_text(HEAD.replace("  m:", "  tinyllama:") + "    license: named\n" + FILE)
    found = registry(tmp_path, TEA_REGISTRY=str(named)).entries["tinyllama"]
    assert (found.license, found.origin) == ("named", str(named))


def test_a_missing_registry_that_was_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        registry(tmp_path, TEA_REGISTRY=str(tmp_path / "none.yaml"))


def test_a_relative_path_in_a_registry_means_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "registry.yaml").write_text(HEAD + FILE.replace("https://x/a.gguf", "./weights/a.gguf"))
    loaded = Registry.load(Settings.resolve({"HOME": str(tmp_path)}, cwd=folder))
    assert list(map(str, loaded.entries["m"].variants["Q4"].files[0].sources)) == [f"file:{folder}/weights/a.gguf"]


def test_a_copy_of_the_built_in_registry_in_the_project_is_a_layer_like_any_other(tmp_path: Path) -> None:
    builtin = registry(tmp_path).entries
    (tmp_path / "registry.yaml").write_text(packaged_text("registry.yaml"))
    copied = registry(tmp_path).entries
    assert {entry.origin for entry in copied.values()} == {str(tmp_path / "registry.yaml")}
    assert {name: entry.overrides for name, entry in copied.items()} == {
        name: entry.overrides for name, entry in builtin.items()
    }


@pytest.mark.parametrize("text", ["", "images:\n  - nginx:1.27\n", "- 1\n", "a: [\n", "\0\xff"])
def test_a_registry_of_another_program_in_the_project_is_not_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "registry.yaml").write_text(text)
    settings = Settings.resolve({"HOME": str(tmp_path)}, cwd=tmp_path)
    assert (settings.registry_files, settings.foreign_registry) == ((), tmp_path / "registry.yaml")
    assert {entry.origin for entry in Registry.load(settings).entries.values()} == {"built-in"}


def test_a_registry_of_another_program_that_was_named_is_an_error(tmp_path: Path) -> None:
    named = tmp_path / "registry.yaml"
    named.write_text("images: [nginx]\n")
    with pytest.raises(ConfigError, match="images"):
        registry(tmp_path, TEA_REGISTRY=str(named))


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        (HEAD + FILE + "            sha256: 1234\n", 9, "models.m.variants.Q4.files[0].sha256", "text in quotes"),
        (HEAD + FILE + '            sha256: "12ab"\n', 9, "models.m.variants.Q4.files[0].sha256", "64 lower-case"),
        (HEAD + FILE + f'            sha256: "{"A" * 64}"\n', 9, "models.m.variants.Q4.files[0].sha256", "lower-case"),
        (HEAD + FILE + "            size: -1\n", 9, "models.m.variants.Q4.files[0].size", "greater than 0"),
        (HEAD + FILE + '            size: "12"\n', 9, "models.m.variants.Q4.files[0].size", "whole number"),
        (HEAD + FILE + "    kind: wrong\n", 9, "models.m.kind", "'chat'"),
        (HEAD + FILE + "    default: Q5\n", 9, "models.m.default", "no variant 'Q5'"),
        (
            HEAD + FILE.replace("https://x/a.gguf", "tinyllama"),
            8,
            "models.m.variants.Q4.files[0].sources[0]",
            "is a name",
        ),
        (
            HEAD + FILE.replace("a.gguf\n", "../a.gguf\n", 1),
            7,
            "models.m.variants.Q4.files[0].filename",
            "plain file name",
        ),
        ("models: {}\n", 1, "", "'schema' is missing"),
        ("schema: tea.registry/1\nmodels: 5\n", 2, "models", "mapping"),
    ],
)
def test_a_wrong_value_is_told_with_file_line_and_key(text: str, line: int, key: str, says: str) -> None:
    error = problem(text)
    assert (error.file, error.line, error.key) == ("r.yaml", line, key)
    assert says in str(error)
    assert error.exit_code == 2


@pytest.mark.parametrize(("wrong", "right"), [("varients", "variants"), ("licence", "license"), ("alias", "aliases")])
def test_an_unknown_key_is_told_the_nearest_one(wrong: str, right: str) -> None:
    error = problem(HEAD + FILE + f"    {wrong}: x\n")
    assert error.line == 9
    assert f"did you mean '{right}'" in error.hint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: !!python/object/apply:os.system [x]", "tag"),
        ("a: !custom x", "tag"),
        ("a: &a [*a]", "refers to itself"),
        ("x: 1\nx: 2", "duplicate key, first on line 1"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ("a: b: c", "not valid YAML"),
        ("a: 'open", "not valid YAML"),
        ("? [a]\n: b", "plain text"),
        ("a: 2026-99-99", "can't be read"),
    ],
)
def test_dangerous_or_broken_yaml_is_refused(text: str, says: str) -> None:
    assert says in str(problem(text))


def test_nesting_that_the_parser_refuses_itself_is_an_error_too() -> None:
    assert problem("[" * 100_000).file == "r.yaml"


def test_an_alias_bomb_is_refused_before_it_expands() -> None:
    lines = ["a: &a [1,1,1,1,1,1,1,1,1,1]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{','.join(['*' + before] * 10)}]")
    assert "expands to more than" in str(problem("\n".join(lines)))


def test_a_file_that_is_not_utf8_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8") as caught:
        read_yaml(path)
    assert caught.value.line == 2
    with pytest.raises(MissingFileError):
        read_yaml(tmp_path / "none.yaml")


def test_the_built_in_registry_is_readable_as_text() -> None:
    assert packaged_text("registry.yaml").startswith("#")


def test_the_built_in_registry_reads_the_same_checked_and_unchecked(tmp_path: Path) -> None:
    checked = read_entries(load_yaml(packaged_text("registry.yaml"), "registry.yaml"), "built-in")
    kept = tmp_path / ".tea" / "registry.json"
    for folder_is_there in (False, True, True):
        if folder_is_there:
            kept.parent.mkdir(exist_ok=True)
        assert list(Registry.load(Settings(tmp_path)).entries.values()) == checked
    assert kept.is_file()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"sha256": "0", "data": {"models": {}}}', '{"data": 1}'])
def test_what_was_kept_of_another_registry_is_not_believed(text: str, tmp_path: Path) -> None:
    (tmp_path / ".tea").mkdir()
    (tmp_path / ".tea" / "registry.json").write_text(text)
    assert "smollm2-135m" in Registry.load(Settings(tmp_path)).entries
