"""The profile: provenance, round trip, corrections of the registry, no facts about a machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tea_models import pull
from tea_models.cli import group
from tea_models.cli.frame import run
from tea_models.errors import ConfigError, MissingFileError
from tea_models.gguf.header import read_header
from tea_models.profile.document import from_json, load_profile, to_json
from tea_models.profile.facts import Fact, ModelProfile, ProfileFile
from tea_models.profile.header_facts import profile_from_headers, resolve_profile
from tea_models.registry.entries import Entry, MetadataOverride, Overrides, TemplateOverride
from tea_models.settings import Settings
from tests.gguf_build import CHATML, BytesSource, Tensor, array, build_gguf, small_llama_metadata, small_llama_tensors

SCHEMA_FILE = Path(__file__).parent.parent / "docs" / "profile.schema.json"
PLAIN = small_llama_metadata(tokenizer__chat_template=None)


def profile_of(data: bytes, entry: Entry | None = None, **options: Any) -> ModelProfile:
    return profile_from_headers(
        [read_header(BytesSource(data))], [ProfileFile("m.gguf", len(data), None)], entry=entry, **options
    )


def entry(**overrides: Any) -> Entry:
    return Entry("small", "chat", "mit-0", (), "F32", {}, Overrides(**overrides), "", "built-in")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    path.write_bytes(build_gguf())
    return path


def command(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, str, str]:
    code = run(group(), ["profile", *map(str, args)])
    seen = capsys.readouterr()
    return code, seen.out, seen.err


def test_every_value_says_where_it_came_from() -> None:
    profile = profile_of(build_gguf())
    assert profile.architecture == Fact("llama", "gguf:general.architecture")
    assert profile.context_length == Fact(2048, "gguf:llama.context_length")
    assert profile.quantization == Fact("F32", "gguf:general.file_type")
    assert profile.parameters.source == "tensors"
    assert profile.tokenizer.eot == Fact(275, "derived:the token <|im_end|>")
    assert profile.chat.format == Fact("chatml", "template")
    assert profile.chat.template == Fact(CHATML, "gguf:tokenizer.chat_template")
    assert profile.hyperparameters["attention.head_count"] == Fact(4, "gguf:llama.attention.head_count")
    assert profile.pooling == Fact(None, "derived:not in the file")


def test_a_profile_survives_the_way_through_json() -> None:
    for data in (
        build_gguf(),
        build_gguf(PLAIN),
        build_gguf({}),
        build_gguf(PLAIN | {"llama.a": array("float32", [1.5]), "llama.b": [1, 2]}),
    ):
        profile = profile_of(data)
        assert from_json(json.loads(json.dumps(to_json(profile)))) == profile


def test_the_document_is_the_same_every_time_and_its_keys_stand_in_order() -> None:
    first, second = (json.dumps(to_json(profile_of(build_gguf()))) for _ in range(2))
    assert first == second
    document = to_json(profile_of(build_gguf()))
    assert next(iter(document.items())) == ("schema", "tea.model-profile/1")
    assert list(document["hyperparameters"]) == sorted(document["hyperparameters"])


def test_a_profile_holds_nothing_about_the_machine(model: Path) -> None:
    text = json.dumps(to_json(resolve_profile(model)))
    assert str(model.parent) not in text
    for word in ("thread", "mtime", "inode", "/tmp", "cpu"):
        assert word not in text.lower()


def test_the_header_hash_is_that_of_the_bytes_before_the_weights(model: Path) -> None:
    data = model.read_bytes()
    start = read_header(BytesSource(data)).data_offset
    assert resolve_profile(model).header_sha256 == hashlib.sha256(data[:start]).hexdigest()


def test_weights_are_counted_by_where_they_are() -> None:
    weights = profile_of(build_gguf()).weights
    sizes = {
        item.name: 4 * item.shape[0] * (item.shape[1] if len(item.shape) > 1 else 1) for item in small_llama_tensors()
    }
    assert weights.token_embedding == sizes["token_embd.weight"]
    assert weights.output == sizes["output.weight"]
    assert weights.other == sizes["output_norm.weight"]
    assert weights.blocks == tuple(sum(v for k, v in sizes.items() if k.startswith(f"blk.{n}.")) for n in range(2))
    assert weights.total == sum(sizes.values())


def test_a_block_number_beyond_reason_does_not_make_a_list_of_that_length() -> None:
    data = build_gguf(PLAIN, [Tensor("blk.99999999999.a", (8,)), Tensor("blk.1.a", (8,)), Tensor("blk.\u0663.a", (8,))])
    assert profile_of(data).weights.blocks == (0, 32)


def test_values_of_the_wrong_type_are_ignored_with_a_warning() -> None:
    profile = profile_of(
        build_gguf(PLAIN | {"llama.context_length": "8192", "general.license": 7, "tokenizer.ggml.add_bos_token": 1})
    )
    assert profile.context_length.value is None
    assert profile.license.value is None
    assert profile.tokenizer.add_bos == Fact(value=True, source="derived:the tokenizer's default")
    assert len(profile.warnings) == 3


@pytest.mark.parametrize(
    ("model", "pre", "add_bos", "add_eos"),
    [
        ("llama", None, True, False),
        ("gpt2", "qwen2", False, False),
        ("gpt2", "llama-bpe", True, False),
        ("t5", None, False, True),
    ],
)
def test_what_a_tokenizer_adds_without_being_told_is_as_in_llama_cpp(
    model: str, pre: str | None, add_bos: bool, add_eos: bool
) -> None:
    metadata = {key: value for key, value in PLAIN.items() if "add_" not in key} | {"tokenizer.ggml.model": model}
    metadata.pop("tokenizer.ggml.pre")
    if pre:
        metadata["tokenizer.ggml.pre"] = pre
    facts = profile_of(build_gguf(metadata)).tokenizer
    assert (facts.add_bos.value, facts.add_eos.value) == (add_bos, add_eos)


# -- corrections of the registry -------------------------------------------------------------------------------------------


def test_a_template_that_is_known_to_be_bad_is_replaced() -> None:
    digest = hashlib.sha256(CHATML.encode()).hexdigest()
    better = "{{ messages[0].content }}<|im_end|>"
    override = TemplateOverride(digest, better, "the stock one is bad")
    profile = profile_of(build_gguf(), entry(chat_templates=(override,)))
    assert profile.chat.template == Fact(better, "registry:small")
    assert profile.chat.template_sha256.value == hashlib.sha256(better.encode()).hexdigest()
    assert "the stock one is bad" in profile.warnings[0]


def test_another_template_than_the_one_known_to_be_bad_stays() -> None:
    override = TemplateOverride("0" * 64, "x", "other")
    assert profile_of(build_gguf(), entry(chat_templates=(override,))).chat.template.value == CHATML


def test_metadata_that_are_known_to_be_wrong_are_replaced_where_they_say_so() -> None:
    found = profile_of(
        build_gguf(),
        entry(
            metadata={
                "llama.context_length": MetadataOverride(4096, "trained on 4096", replaces=2048),
                "general.name": MetadataOverride("Other", "wrong name", replaces="Not It"),
                "tokenizer.ggml.add_bos_token": MetadataOverride(False, "the template writes BOS"),
            }
        ),
    )
    assert found.context_length == Fact(4096, "registry:small")
    assert found.hyperparameters["context_length"] == Fact(4096, "registry:small")
    assert found.name == Fact("Small Llama", "gguf:general.name")
    assert found.tokenizer.add_bos == Fact(value=False, source="registry:small")
    assert any("trained on 4096" in warning for warning in found.warnings)


def test_further_stop_texts_come_from_the_registry() -> None:
    assert profile_of(build_gguf(), entry(stop=("<|im_end|>",))).chat.stop == Fact(("<|im_end|>",), "template")
    assert profile_of(build_gguf(), entry(stop=("END",))).chat.stop == Fact(("<|im_end|>", "END"), "registry:small")
    assert profile_of(build_gguf(PLAIN), entry(stop=("END",))).chat.stop == Fact(("END",), "registry:small")


def test_the_licence_of_the_registry_is_taken_where_the_file_states_none() -> None:
    assert profile_of(build_gguf(), entry()).license == Fact("mit", "gguf:general.license")
    data = build_gguf({key: value for key, value in PLAIN.items() if key != "general.license"})
    assert profile_of(data, entry()).license == Fact("mit-0", "registry:small")


def test_another_model_with_a_known_bad_template_gets_no_further_corrections(tmp_path: Path, model: Path) -> None:
    digest = hashlib.sha256(CHATML.encode()).hexdigest()
    registry = tmp_path / "registry.yaml"
    registry.write_text(
        "schema: tea.registry/1\nmodels:\n  mine:\n    kind: chat\n    license: MIT\n    variants:\n      F32:\n"
        "        files:\n          - {filename: m.gguf, sources: ['./m.gguf']}\n    overrides:\n      metadata:\n"
        "        llama.context_length: {value: 99, reason: of that model only}\n      chat_templates:\n"
        f"        - {{replaces_sha256: '{digest}', template: 'mine<|im_end|>', reason: because}}\n"
    )
    profile = resolve_profile(model, settings=Settings(store_dir=tmp_path / "store", registry_files=(registry,)))
    assert profile.chat.template.value == "mine<|im_end|>"
    assert profile.context_length == Fact(2048, "gguf:llama.context_length")


def test_a_file_named_by_its_path_gets_the_corrections_of_the_registry_too(tmp_path: Path, model: Path) -> None:
    digest = hashlib.sha256(CHATML.encode()).hexdigest()
    registry = tmp_path / "registry.yaml"
    registry.write_text(
        "schema: tea.registry/1\nmodels:\n  mine:\n    kind: chat\n    license: MIT\n    variants:\n      F32:\n        files:\n"
        f"          - {{filename: m.gguf, sources: ['./m.gguf']}}\n    overrides:\n      stop: [HALT]\n      chat_templates:\n"
        f"        - {{replaces_sha256: '{digest}', template: 'mine<|im_end|>', reason: because}}\n"
    )
    settings = Settings(store_dir=tmp_path / "store", registry_files=(registry,))
    profile = resolve_profile(model, settings=settings)
    assert profile.chat.template == Fact("mine<|im_end|>", "registry:mine")
    assert "HALT" in profile.chat.stop.value


def test_a_registry_written_as_json_corrects_metadata_of_a_pulled_file(tmp_path: Path) -> None:
    data = build_gguf(PLAIN)
    (tmp_path / "m.gguf").write_bytes(data)
    file = {"filename": "m.gguf", "sha256": hashlib.sha256(data).hexdigest(), "sources": ["./m.gguf"]}
    correction = {"llama.context_length": {"value": 99, "reason": "the file is wrong"}}
    entry = {"variants": {"F32": {"files": [file]}}, "overrides": {"metadata": correction}}
    registry = tmp_path / "registry.yaml"
    registry.write_text(json.dumps({"schema": "tea.registry/1", "models": {"mine": entry}}))
    settings = Settings(store_dir=tmp_path / "store", registry_files=(registry,))
    (pulled,) = pull(["mine"], settings=settings)
    assert resolve_profile(Path(pulled.path), settings=settings).context_length == Fact(99, "registry:mine")


# -- the document ------------------------------------------------------------------------------------------------------


def conforms(value: Any, schema: dict[str, Any], where: str = "") -> None:
    """As much of JSON Schema as the published one uses."""
    if "anyOf" in schema:
        kinds = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list}
        assert any(type(value) is kinds[one["type"]] for one in schema["anyOf"]), (where, value)
    if "const" in schema:
        assert value == schema["const"], where
    if "enum" in schema:
        assert value in schema["enum"], where
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        names = {
            "string": isinstance(value, str),
            "null": value is None,
            "boolean": isinstance(value, bool),
            "integer": isinstance(value, int) and not isinstance(value, bool),
            "number": isinstance(value, int | float) and not isinstance(value, bool),
            "array": isinstance(value, list),
            "object": isinstance(value, dict),
        }
        assert any(names[kind] for kind in kinds), (where, value)
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= set(value), where
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            assert inner is not False, f"{where}.{key}"
            if isinstance(inner, dict):
                conforms(item, inner, f"{where}.{key}")
    if isinstance(value, list) and "items" in schema:
        for item in value:
            conforms(item, schema["items"], f"{where}[]")


def test_the_document_conforms_to_the_published_schema() -> None:
    schema = json.loads(SCHEMA_FILE.read_text("utf-8"))
    for data in (build_gguf(), build_gguf(PLAIN), build_gguf({})):
        conforms(to_json(profile_of(data)), schema)
    assert list(schema["properties"]) == list(to_json(profile_of(build_gguf())))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), "tea.model-profile/9", "schema: expected 'tea.model-profile/1'"),
        (("context_length",), 2048, "context_length: expected an object"),
        (("context_length", "value"), "2048", "context_length.value: expected a whole number or null"),
        (("context_length", "value"), True, "context_length.value: expected a whole number or null"),
        (("context_length", "source"), None, "context_length.source: expected a string"),
        (("tokenizer",), None, "tokenizer: expected an object, found nothing"),
        (("tokenizer", "bos", "value"), 1.5, "tokenizer.bos.value: expected a whole number or null"),
        (("chat", "stop", "value"), ["a", 7], "chat.stop.value[1]: expected a string"),
        (("chat", "warnings"), "x", "chat.warnings: expected a list"),
        (("files",), [{"name": 1}], "files[0].name: expected a string"),
        (("weights", "blocks"), ["x"], "weights.blocks[0]: expected a whole number"),
        (("hyperparameters", "block_count", "value"), {}, "hyperparameters.block_count.value"),
    ],
)
def test_a_wrong_document_is_refused_with_its_key(path: tuple[str, ...], value: Any, message: str) -> None:
    document = to_json(profile_of(build_gguf()))
    inner: Any = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ConfigError) as caught:
        from_json(document, file="p.json")
    assert caught.value.message.startswith(f"p.json: {message}")


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "null", '{"schema": 1}', "\x00"])
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"p\.json"):
        load_profile(path)


def test_a_missing_profile_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        load_profile(tmp_path / "p.json")


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_document(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(capsys, model, "--json")
    assert (code, err) == (0, "")
    assert from_json(json.loads(out)) == resolve_profile(model)


def test_the_command_shows_people_each_value_with_its_source(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capsys, model)
    assert code == 0
    assert any(line.split() == ["context_length", "2048", "gguf:llama.context_length"] for line in out.splitlines())


def test_a_written_profile_is_read_back(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "small.profile.json"
    assert command(capsys, model, "-o", target)[:2] == (0, "")
    assert load_profile(target) == resolve_profile(model)
    assert json.loads(command(capsys, target, "--json")[1]) == json.loads(target.read_text())


def test_a_profile_that_can_not_be_written_is_an_error(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = command(capsys, model, "-o", tmp_path / "absent" / "p.json")
    assert code == 1
    assert "can't be written" in err


@pytest.mark.parametrize("args", [["a.gguf", "b.gguf"], []])
def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert command(capsys, *args)[0] == 2
