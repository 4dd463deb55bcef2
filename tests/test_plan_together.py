"""Several models in one process: one budget for all, followed by the runtime and by `serve`."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from tea_models.caller import Caller
from tea_models.cli import group
from tea_models.cli.frame import run
from tea_models.errors import ConfigError
from tea_models.lock.pins import make_lock
from tea_models.plan.together import plan_together
from tea_models.registry.entries import Registry
from tea_models.requirements import node_models, read_requirements
from tea_models.settings import Settings
from tea_models.sizes import parse_bytes

pytest.importorskip("llama_cpp")
MIB = 1024 * 1024


def workflow(path: Path, *nodes: dict[str, Any], **llm: Any) -> Path:
    named = [{"name": f"node{number}", **node} for number, node in enumerate(nodes, 1)]
    path.write_text(yaml.safe_dump({"settings": {"llm": llm}, "nodes": named}))
    return path


@pytest.fixture
def two(tmp_path: Path, real_model: Path, gemma_model: Path) -> Path:
    """A workflow that asks one model, then the other, then the first again."""
    ask = {"action": "llm.call", "params": {"prompt": "hi", "max_tokens": 4, "temperature": 0}}
    embed = {"action": "llm.embed", "params": {"text": "hi", "model": str(gemma_model)}}
    return workflow(tmp_path / "two.yaml", ask, embed, ask, backend="local", model=str(real_model))


def planned(capsys: pytest.CaptureFixture[str], path: Path, memory: str, *more: str) -> dict[str, Any]:
    code = run(group(), ["plan", "--workflow", str(path), "--memory", memory, "--json", *more])
    out = capsys.readouterr().out
    assert code == 0, out
    found: dict[str, Any] = json.loads(out)
    return found


def own(model: dict[str, Any]) -> int:
    return int(model["memory"]["total"] - model["memory"]["overhead"])


def test_the_nodes_of_a_workflow_say_which_models_it_needs(tmp_path: Path) -> None:
    """A name that no registry has is an API's; the workflow's own model answers in its place."""
    path = workflow(
        tmp_path / "w.yaml",
        {"action": "llm.chat", "params": {"prompt": "x"}},
        {"uses": "llm.embed", "with": {"text": "x", "model": "nomic-embed-text-v1.5"}},
        {"action": "llm.call", "params": {"prompt": "x", "model": "gpt-4"}},
        {"action": "llm.call", "params": {"prompt": "x", "model": "gemma3-1b", "backend": "api"}},
        {"action": "llm.call", "params": {"prompt": "x", "model": "{{ state.model }}"}},
        {"run": "pass"},
        model="smollm2-135m",
    )
    registry = Registry.load(Settings.resolve({"HOME": str(tmp_path)}, cwd=tmp_path))
    asked = [(node.node, node.reference) for node in node_models(path, registry)]
    assert asked == [("node1", "smollm2-135m"), ("node2", "nomic-embed-text-v1.5"), ("node3", "smollm2-135m")]
    assert read_requirements(path, registry) == ["smollm2-135m", "nomic-embed-text-v1.5"]


def test_what_is_no_workflow_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "models.yaml").write_text("models: [smollm2-135m]\n")
    with pytest.raises(ConfigError, match="expected a workflow"):
        node_models(tmp_path / "models.yaml", Registry({}))
    path = workflow(tmp_path / "w.yaml", {"run": "pass"})
    assert run(group(), ["plan", "--workflow", str(path)]) == 2
    assert "no node of it asks a local model" in capsys.readouterr().err
    for wrong in (["plan"], ["plan", "x", "--workflow", str(path)], ["plan", "--workflow", str(path), "--explain"]):
        assert run(group(), wrong) == 2
        assert "--workflow FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [{"n_ctx": [1]}, {"n_ctx": "many"}, {"n_ctx": True}, {"memory": {}}, {"memory": "lots"}, {"n_threads": "x"},
     {"n_gpu_layers": True}, {"kv_type": 5}],
)  # fmt: skip
def test_a_setting_of_the_wrong_kind_is_named(
    tmp_path: Path, wrong: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = workflow(tmp_path / "w.yaml", {"action": "llm.call", "params": {"prompt": "x"}}, model="x.gguf", **wrong)
    assert run(group(), ["plan", "--workflow", str(path)]) == 2
    (key,) = wrong
    assert key.replace("kv_type", "KV cache type").replace("memory", "") in capsys.readouterr().err


@pytest.mark.parametrize("named", ["hf:", 5])
def test_what_a_node_names_wrongly_is_shown_with_its_line(tmp_path: Path, named: Any) -> None:
    path = workflow(tmp_path / "w.yaml", {"action": "llm.call", "params": {"prompt": "x", "model": named}})
    with pytest.raises(ConfigError, match=r"w\.yaml:\d+: nodes\[0\]\.params\.model"):
        read_requirements(path, Registry({}))


def test_templates_are_no_settings_before_the_run(tmp_path: Path) -> None:
    named = {"action": "llm.call", "params": {"prompt": "x", "n_ctx": "{{ state.n }}"}}
    path = workflow(tmp_path / "w.yaml", named, model="smollm2-135m", n_threads="{{ env.N }}")
    (node,) = node_models(path, Registry({}))
    assert set(node.settings) == {"model", "prompt"}


def test_the_models_of_nodes_are_locked_too(tmp_path: Path) -> None:
    path = workflow(
        tmp_path / "w.yaml",
        {"action": "llm.embed", "params": {"text": "x", "model": "gemma3-270m-base"}},
        model="smollm2-135m",
    )
    caller = Caller(Settings.resolve({"HOME": str(tmp_path)}, cwd=tmp_path, offline=True))
    registry = Registry.load(caller.settings)
    lock = make_lock(read_requirements(path, registry), caller)
    assert list(lock.models) == ["gemma3-270m-base", "smollm2-135m"]


@pytest.mark.real
def test_with_enough_memory_each_model_has_its_whole_context(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, two, "4GiB")
    assert plan["together"]
    assert [model["settings"]["n_ctx"] for model in plan["models"]] == [8192, 32768]
    assert [step["closes"] for step in plan["steps"]] == [[], [], []]


@pytest.mark.real
def test_contexts_shrink_until_all_models_fit_together(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, two, "860MiB")
    first, second = plan["models"]
    assert plan["together"]
    assert 2048 <= first["settings"]["n_ctx"] <= 8192
    assert 2048 <= second["settings"]["n_ctx"] < 32768
    process = max(model["memory"]["overhead"] for model in plan["models"])
    assert own(first) + own(second) + process == plan["total"] <= plan["budget"] == 860 * MIB
    # Two nodes ask the first and one the second: what is left after a small context for each goes by that.
    assert first["settings"]["n_ctx"] / 8192 > second["settings"]["n_ctx"] / 32768


@pytest.mark.real
def test_models_that_do_not_fit_together_take_turns(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, two, "650MiB")
    assert not plan["together"]
    first, second = (model["reference"] for model in plan["models"])
    assert plan["total"] <= plan["budget"]
    assert [(step["model"], step["opens"], step["closes"]) for step in plan["steps"]] == [
        (first, True, []),
        (second, True, [first]),
        (first, True, [second]),
    ]
    assert run(group(), ["plan", "--workflow", str(two), "--memory", "650MiB"]) == 0
    assert f"after closing {first}" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.real
def test_a_model_that_does_not_even_fit_alone_is_named_with_the_numbers(
    two: Path, gemma_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(group(), ["plan", "--workflow", str(two), "--memory", "450MiB"]) == 5
    assert gemma_model.stem in capsys.readouterr().err


@pytest.mark.real
@pytest.mark.parametrize(("memory", "closed"), [("650MiB", 2), ("860MiB", 0)])
def test_the_runtime_keeps_to_the_plan_for_all_models(
    two: Path, gemma_model: Path, memory: str, closed: int, caplog: pytest.LogCaptureFixture
) -> None:
    from tea_runtime import run_workflow

    data = yaml.safe_load(two.read_text())
    data["settings"]["llm"]["memory"] = memory
    caplog.set_level(logging.INFO, logger="tea_runtime")
    final = run_workflow(data)
    assert final["node1"] == final["node3"]
    assert len(final["node2"]) == 640
    assert sum(record.message.startswith("closing") for record in caplog.records) == closed
    two.write_text(yaml.safe_dump(data))
    settings = Settings.resolve({"HOME": str(two.parent)}, cwd=two.parent)
    plan = plan_together(node_models(two, Registry({})), settings)
    second = next(model for model in plan.models if model.reference == str(gemma_model))
    assert any(f"n_ctx {second.plan.settings.n_ctx:,}" in record.message for record in caplog.records)


@pytest.mark.real
def test_threads_whose_models_do_not_fit_together_wait_for_each_other(two: Path, real_model: Path) -> None:
    """A model is never closed while a thread uses it, and every thread gets its turn."""
    from tea_runtime.workflow.runner import LoadedWorkflow

    data = yaml.safe_load(two.read_text())
    data["settings"]["llm"]["memory"] = parse_bytes("650MiB")
    finals: list[dict[str, Any]] = []
    with LoadedWorkflow(data) as loaded:
        threads = [threading.Thread(target=lambda: finals.append(loaded.run({})), daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert len(finals) == 4
    assert {final["node3"] for final in finals} == {finals[0]["node1"]}


@pytest.mark.real
def test_nodes_with_other_settings_for_one_file_get_their_own_context(real_model: Path, gemma_model: Path) -> None:
    from tea_runtime import run_workflow

    def node(name: str, model: Path, n_ctx: int) -> dict[str, Any]:
        params = {"prompt": "hi", "max_tokens": 2, "temperature": 0, "model": str(model), "n_ctx": n_ctx}
        return {"name": name, "action": "llm.call", "params": params}

    nodes = [node("a", real_model, 256), node("b", real_model, 8192), node("c", gemma_model, 256)]
    final = run_workflow({"settings": {"llm": {"backend": "local"}}, "nodes": nodes})
    assert final["a"] == final["b"]


@pytest.mark.real
def test_a_model_that_only_the_run_names_stands_beside_those_of_the_plan(real_model: Path, gemma_model: Path) -> None:
    from tea_runtime import run_workflow

    params = {"prompt": "hi", "max_tokens": 2, "temperature": 0}
    nodes = [
        {"name": "t", "action": "llm.call", "params": {**params, "model": "{{ state.m }}", "n_ctx": 512}},
        {"name": "a", "action": "llm.call", "params": {**params, "model": str(real_model)}},
        {"name": "c", "action": "llm.call", "params": {**params, "model": str(gemma_model)}},
    ]
    final = run_workflow({"settings": {"llm": {"backend": "local"}}, "nodes": nodes}, {"m": str(real_model)})
    assert {"t", "a", "c"} <= set(final)


def test_a_node_with_a_wrong_setting_is_shown_with_its_line_when_it_runs(tmp_path: Path) -> None:
    from tea_runtime import run_workflow

    wrong = {"action": "llm.call", "params": {"prompt": "x", "n_ctx": "many"}}
    path = workflow(tmp_path / "w.yaml", wrong, wrong, backend="local", model="smollm2-135m")
    with pytest.raises(ConfigError, match=r"w\.yaml:\d+: node node1"):
        run_workflow(path)


@pytest.mark.real
def test_an_action_within_an_action_gets_its_model_although_others_wait_for_room(two: Path, gemma_model: Path) -> None:
    """A thread that uses a model is never made to wait for the end of its own use."""
    from tea_runtime.factory import BackendPool
    from tea_runtime.llm_settings import LlmSettings

    data = yaml.safe_load(two.read_text())
    first = LlmSettings.parse(data["settings"]["llm"] | {"memory": "650MiB"}, prefix=())
    second = first.model_copy(update={"model": str(gemma_model)})
    pool = BackendPool()
    pool.nodes = [("a", first), ("b", second)]
    waiting = threading.Thread(target=lambda: pool.use(second).__enter__(), daemon=True)
    with pool.use(first):
        waiting.start()
        waiting.join(1)
        with pool.use(second) as backend:
            assert backend.is_available()
    waiting.join(60)
    assert not waiting.is_alive()
    pool.close()


@pytest.mark.real
def test_all_that_wait_for_one_model_use_it_together(two: Path, gemma_model: Path) -> None:
    from tea_runtime.factory import BackendPool
    from tea_runtime.llm_settings import LlmSettings

    data = yaml.safe_load(two.read_text())
    first = LlmSettings.parse(data["settings"]["llm"] | {"memory": "650MiB"}, prefix=())
    second = first.model_copy(update={"model": str(gemma_model)})
    pool = BackendPool()
    pool.nodes = [("a", first), ("b", second)]
    together, used = threading.Barrier(4), []

    def use() -> None:
        with pool.use(second) as backend:
            together.wait(60)
            used.append(backend)

    threads = [threading.Thread(target=use, daemon=True) for _ in range(4)]
    with pool.use(first):
        for thread in threads:
            thread.start()
        threads[0].join(1)
        assert used == []
    for thread in threads:
        thread.join(90)
    assert len(used) == 4
    assert len(set(map(id, used))) == 1
    pool.close()
