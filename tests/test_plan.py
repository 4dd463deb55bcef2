"""Decisions of a plan: what fits, what gives way, what is refused, and why it is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tea_models import pull
from tea_models.engine.estimator import Estimator
from tea_models.engine.formula import MemoryUse
from tea_models.engine.probe import RefusedError, engine_version
from tea_models.errors import IntegrityError, MemoryDoesNotFitError, UsageError
from tea_models.gguf.header import Header, read_header
from tea_models.machine.detect import Gpu, detect_machine
from tea_models.plan.planner import plan_profile
from tea_models.plan.resolve import plan_model, resolve_plan
from tea_models.plan.types import RunPlan
from tea_models.plan.user_settings import UserSettings
from tea_models.profile import model_files
from tea_models.profile.document import to_json
from tea_models.profile.facts import ModelProfile
from tea_models.settings import Settings
from tea_models.sizes import parse_bytes
from tea_models.store import Store
from tests.architectures import CASES
from tests.gguf_build import build_gguf
from tests.hosts import write_host
from tests.plan_profiles import GIB, MIB, fact, machine_with, profile_of

PHI = profile_of(*CASES["phi4-mini"], weights=2491 * 10**6, name="phi4-mini")
GEMMA = profile_of(*CASES["gemma3-270m"], weights=241 * MIB, name="gemma")
SMOL = profile_of(*CASES["smollm2"], weights=92 * MIB, name="smollm2")


def plan(profile: Any = SMOL, available: int = 32 * GIB, **user: Any) -> RunPlan:
    return plan_profile(profile, machine_with(available), UserSettings(**user), Estimator(profile))


def fits(found: RunPlan) -> bool:
    return found.memory.excess(found.memory.use) <= 0


def test_auto_takes_the_trained_context_where_it_fits() -> None:
    found = plan()
    assert found.settings.n_ctx == 8192
    assert found.decision("n_ctx").source == "gguf"
    assert fits(found)


def test_auto_takes_the_largest_context_that_fits() -> None:
    found = plan(PHI, 8 * GIB)
    assert 4096 < found.settings.n_ctx < 131072
    assert found.settings.n_ctx % 256 == 0
    assert fits(found)
    larger = Estimator(PHI).measure([replace(found.settings, n_ctx=found.settings.n_ctx + 1024)])[0]
    assert isinstance(larger, MemoryUse)
    assert larger.total > found.memory.budget
    decision = found.decision("n_ctx")
    assert decision.source == "hardware"
    assert decision.rejected[0].value == 131072
    assert "GiB" in decision.rejected[0].reason


def test_more_memory_never_means_less_context() -> None:
    contexts = [plan(PHI, gib * GIB // 2).settings.n_ctx for gib in range(8, 40, 3)]
    assert contexts == sorted(contexts)
    assert contexts[-1] == 131072 or contexts[-1] > contexts[0]


def test_auto_never_goes_below_a_useful_context() -> None:
    with pytest.raises(MemoryDoesNotFitError) as caught:
        plan(PHI, 2 * GIB)
    assert caught.value.exit_code == 5
    assert "2,048 tokens needs" in caught.value.message
    assert "may be used" in caught.value.message


def test_a_number_is_that_number_or_an_error_with_what_would_fit() -> None:
    assert plan(n_ctx=1000).settings.n_ctx == 1000
    with pytest.raises(MemoryDoesNotFitError) as caught:
        plan(PHI, 6 * GIB, n_ctx=100000)
    assert "100,000 tokens" in caught.value.message
    assert "--n-ctx" in caught.value.hint


def test_what_the_error_proposes_does_fit() -> None:
    with pytest.raises(MemoryDoesNotFitError) as caught:
        plan(PHI, 5 * GIB, n_ctx="max")
    proposals = caught.value.hint.removeprefix("would fit: ").split(", or ")
    assert len(proposals) == 3
    for proposal in proposals:
        words = proposal.split()
        kv_type = words[3] if len(words) > 3 else None
        found = plan(PHI, 5 * GIB, n_ctx=int(words[1]), kv_type=kv_type)
        assert fits(found)


def test_max_is_the_trained_context_or_an_error() -> None:
    assert plan(PHI, 32 * GIB, n_ctx="max").settings.n_ctx == 131072
    with pytest.raises(MemoryDoesNotFitError):
        plan(PHI, 5 * GIB, n_ctx="max")


def test_a_smaller_cache_type_is_taken_where_it_buys_what_was_asked_for() -> None:
    found = plan(PHI, 16 * GIB, n_ctx="max")
    assert found.settings.n_ctx == 131072
    assert found.settings.type_k == found.settings.type_v == "q8_0"
    decision = found.decision("type_k")
    assert decision.source == "hardware"
    assert decision.rejected[0].value == "f16"


def test_auto_keeps_full_precision_and_takes_less_context_instead() -> None:
    found = plan(PHI, 16 * GIB)
    assert found.settings.type_k == "f16"
    assert {other.value for other in found.decision("type_k").rejected} == {"q8_0", "q4_0"}


def test_an_asked_for_cache_type_is_never_changed() -> None:
    found = plan(PHI, 16 * GIB, n_ctx=8192, kv_type="q4_0")
    assert found.settings.type_k == "q4_0"
    assert found.decision("type_k").source == "user"
    with pytest.raises(MemoryDoesNotFitError) as caught:
        plan(PHI, 16 * GIB, n_ctx="max", kv_type="f16")
    assert "--kv-type" not in caught.value.hint


def test_a_cache_type_that_does_not_divide_the_heads_is_refused_with_the_reason() -> None:
    odd = profile_of("phi2", CASES["phi2"][1])
    with pytest.raises(RefusedError, match="heads of 80"):
        plan(odd, kv_type="q8_0")


def test_a_quantised_value_cache_without_flash_attention_is_refused() -> None:
    with pytest.raises(RefusedError, match="flash attention"):
        plan(kv_type="q8_0", flash_attn=False)


def test_a_context_beyond_the_trained_one_is_honoured_and_noted() -> None:
    found = plan(n_ctx=16384)
    assert found.settings.n_ctx == 16384
    assert "8,192" in found.decision("n_ctx").reason


def test_the_batch_follows_the_vocabulary() -> None:
    assert plan().settings.n_ubatch == 512
    found = plan(GEMMA)
    assert found.settings.n_ubatch == 128
    reason = found.decision("n_ubatch").reason
    assert "512 MiB" in reason
    assert "262,144" in reason
    assert {other.value for other in found.decision("n_ubatch").rejected} == {512, 256, 64}


def test_an_asked_for_batch_is_honoured() -> None:
    found = plan(GEMMA, n_ubatch=1024)
    assert (found.settings.n_batch, found.settings.n_ubatch) == (1024, 1024)
    assert found.decision("n_ubatch").source == "user"
    assert plan(n_batch=64).settings.n_ubatch == 64


def test_a_smaller_batch_makes_room_before_precision_is_given_up() -> None:
    tight = plan(GEMMA, n_ctx="max", memory=584 * MIB)
    assert tight.settings.n_ubatch == 64
    assert tight.settings.type_k == "f16"
    assert tight.decision("n_ubatch").source == "hardware"


def test_windows_keep_only_the_window_unless_all_is_asked_for() -> None:
    found = plan(GEMMA)
    assert found.settings.swa_full is False
    assert "576 MiB" in found.decision("swa_full").rejected[0].reason
    whole = plan(GEMMA, swa_full=True)
    assert whole.settings.swa_full is True
    assert whole.memory.use.kv_cache == 576 * MIB


def test_threads_are_the_cores_that_may_be_used() -> None:
    machine = machine_with(8 * GIB, threads=8, cores_logical=16, cores_allowed=4)
    found = plan_profile(SMOL, machine, UserSettings(), Estimator(SMOL))
    assert found.settings.n_threads == found.settings.n_threads_batch == 4
    assert "4 of 8" in found.decision("n_threads").reason
    quota = plan_profile(SMOL, replace(machine, cpu_quota=2.5), UserSettings(), Estimator(SMOL))
    assert quota.settings.n_threads == 2
    assert "2.5" in quota.decision("n_threads").reason
    asked = plan_profile(SMOL, machine, UserSettings(n_threads=7, source="project"), Estimator(SMOL))
    assert asked.settings.n_threads == 7
    assert asked.decision("n_threads").source == "project"


def test_a_container_of_2_gib_on_a_host_with_256_gib_plans_for_2_gib(tmp_path: Path) -> None:
    machine = detect_machine(write_host("container", tmp_path))
    found = plan_profile(SMOL, machine, UserSettings(), Estimator(SMOL))
    assert found.memory.budget < 2 * GIB
    assert "cgroup v2 memory.max" in found.memory.budget_reason
    assert found.settings.n_threads == 1
    with pytest.raises(MemoryDoesNotFitError):
        plan_profile(PHI, machine, UserSettings(), Estimator(PHI))


def test_the_budget_leaves_something_to_spare_unless_it_is_given() -> None:
    assert plan(available=8 * GIB).memory.budget == 8 * GIB - 8 * GIB // 10
    assert plan(available=64 * GIB).memory.budget == 63 * GIB
    assert plan(memory=3 * GIB).memory.budget == 3 * GIB


def test_every_setting_has_a_decision_with_a_source_and_a_reason() -> None:
    for found in (plan(), plan(GEMMA), plan(PHI, 8 * GIB), plan(PHI, 16 * GIB, n_ctx="max", n_threads=2)):
        assert [decision.setting for decision in found.decisions] == list(found.settings.to_json())
        for decision in found.decisions:
            assert decision.source in {"user", "project", "registry", "gguf", "hardware", "default"}
            assert decision.reason
            assert decision.value == getattr(found.settings, decision.setting)


def test_the_document_has_the_keys_of_the_contract() -> None:
    document = plan(GEMMA).to_json()
    wanted = {
        "n_ctx", "n_batch", "n_ubatch", "n_threads", "n_threads_batch", "n_gpu_layers", "flash_attn", "type_k", "type_v",
        "swa_full",
    }  # fmt: skip
    assert wanted <= set(document["settings"])
    assert {"weights", "kv_cache", "compute", "total", "budget", "method"} <= set(document["memory"])
    assert document["memory"]["method"] == "estimated"
    assert set(document["decisions"][0]) == {"setting", "value", "source", "reason", "rejected"}
    assert json.loads(json.dumps(document)) == document


def test_llama_kwargs_are_what_llama_cpp_python_takes() -> None:
    kwargs = plan(kv_type="q8_0").llama_kwargs()
    assert kwargs["type_k"] == kwargs["type_v"] == 8
    assert kwargs["n_ctx"] == 8192
    assert kwargs["embedding"] is False


def test_an_encoder_is_planned_for_embedding_with_a_batch_that_holds_the_context() -> None:
    bert = profile_of(*CASES["bert"], kind="embedding")
    found = plan(bert)
    assert found.purpose == "embed"
    assert found.settings.n_ctx == found.settings.n_batch == found.settings.n_ubatch == 512
    assert found.memory.use.kv_cache == 0


@pytest.mark.parametrize("kind", ["projector", "adapter", "vocabulary"])
def test_what_does_not_run_by_itself_is_not_planned(kind: str) -> None:
    with pytest.raises(UsageError, match="nothing to plan"):
        plan(profile_of("clip", {}, kind=kind))


def test_long_rope_factors_are_noted_above_the_original_context() -> None:
    hyperparameters = CASES["phi4-mini"][1] | {"rope.scaling.original_context_length": 4096}
    profile = profile_of("phi3", hyperparameters)
    assert any("long RoPE factors" in note for note in plan(profile).notes)
    assert not any("long RoPE factors" in note for note in plan(profile, n_ctx=4096).notes)
    assert any("does not use the sliding window" in note for note in plan(profile).notes)


def test_a_file_without_a_trained_context_gets_a_stated_assumption() -> None:
    hyperparameters = {key: value for key, value in CASES["smollm2"][1].items() if key != "context_length"}
    profile = replace(profile_of("llama", hyperparameters), context_length=fact(None, "absent"))
    found = plan(profile)
    assert found.settings.n_ctx == 4096
    assert found.decision("n_ctx").source == "default"


def test_a_context_from_the_registry_says_so() -> None:
    profile = replace(SMOL, context_length=fact(2048, "registry:smollm2"))
    assert plan(profile).decision("n_ctx").source == "registry"


GPU = Gpu("CUDA0", "NVIDIA RTX", "gpu", 24 * GIB, 22 * GIB)


class Card(Estimator):
    """Puts layers on a card, as the engine does; sizes by formula."""

    def measure(self, points: Any) -> list[Any]:
        uses = super().measure(points)
        return [
            replace(use, devices={"CUDA0": next(iter(use.devices.values()))}) if use.devices else use for use in uses
        ]


def on_card(profile: Any, free: int, **user: Any) -> RunPlan:
    machine = machine_with(32 * GIB, gpus=(replace(GPU, memory_free=free),))
    return plan_profile(profile, machine, UserSettings(**user), Card(profile))


def test_all_layers_go_to_a_gpu_that_holds_them() -> None:
    found = on_card(SMOL, 8 * GIB)
    assert found.settings.n_gpu_layers == -1
    assert "all 30 layers" in found.decision("n_gpu_layers").reason
    assert found.to_json()["memory"]["devices"][0]["name"] == "CUDA0"


def test_a_small_gpu_gets_as_many_layers_as_fit() -> None:
    found = on_card(PHI, 3 * GIB)
    assert 0 < found.settings.n_gpu_layers < 32
    assert fits(found)
    assert found.decision("n_gpu_layers").rejected[0].value == -1
    # Layers are placed for a context of 8,192 tokens and the batch that the plan starts with.
    point = replace(found.settings, n_ctx=8192, n_gpu_layers=found.settings.n_gpu_layers + 1, n_ubatch=512)
    (more,) = Card(PHI).measure([point])
    assert sum(more.devices["CUDA0"]) > 3 * GIB * 9 // 10


def test_no_layers_on_a_gpu_when_that_is_asked_for() -> None:
    found = on_card(SMOL, 8 * GIB, n_gpu_layers=0)
    assert found.settings.n_gpu_layers == 0
    assert found.decision("n_gpu_layers").source == "user"
    assert found.memory.use.devices == {}


def test_a_gpu_without_room_gets_nothing() -> None:
    assert on_card(PHI, 100 * MIB).settings.n_gpu_layers == 0


class Repacking(Estimator):
    def measure(self, points: Any) -> list[Any]:
        return [replace(use, repacked=use.weights // 2, mapped=False) for use in super().measure(points)]


def test_a_file_whose_weights_are_rearranged_is_not_mapped() -> None:
    found = plan_profile(SMOL, machine_with(8 * GIB), UserSettings(), Repacking(SMOL))
    assert found.settings.use_mmap is False
    assert "twice" in found.decision("use_mmap").reason


@pytest.mark.parametrize(
    ("user", "name"),
    [
        ({"n_ctx": 0}, "n_ctx"), ({"n_ctx": -5}, "n_ctx"), ({"n_ctx": "most"}, "n_ctx"), ({"n_threads": 0}, "n_threads"),
        ({"kv_type": "q9"}, "KV cache type"), ({"memory": 0}, "memory"), ({"n_gpu_layers": -2}, "n_gpu_layers"),
        ({"n_ctx": 1 << 40}, "n_ctx"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_name(user: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=name):
        plan(**user)


@pytest.mark.parametrize(
    ("architecture", "facts"),
    [
        ("llama", {}),
        ("llama", {"block_count": -3, "embedding_length": -1, "attention.head_count": -9, "context_length": 64}),
        ("gemma3", {"block_count": 4, "attention.sliding_window": -5, "attention.sliding_window_pattern": [True]}),
        ("mamba", {"block_count": 2}),
        ("no-such-thing", {"block_count": 2, "attention.head_count": [1, 2, 3, 4], "embedding_length": 12}),
    ],
)
def test_odd_headers_are_estimated_without_a_crash(architecture: str, facts: dict[str, Any]) -> None:
    found = plan(profile_of(architecture, facts))
    assert found.memory.total > 0


def settings_for(tmp_path: Path) -> Settings:
    return Settings.resolve({"HOME": str(tmp_path), "TEA_MODELS_DIR": str(tmp_path / "store")}, cwd=tmp_path)


def test_a_file_is_planned_from_its_path(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(build_gguf())
    found = resolve_plan(path, settings=settings_for(tmp_path), measure=False)
    assert found.name == "tiny.gguf"
    assert found.memory.use.method == "estimated"
    assert any("estimated" in note for note in found.notes)


def test_a_profile_or_a_saved_one_is_planned_without_its_file(tmp_path: Path) -> None:
    path = tmp_path / "p.profile.json"
    path.write_text(json.dumps(to_json(SMOL)))
    settings = Settings.resolve({}, cwd=tmp_path, store_dir=tmp_path / "store")
    for given in (SMOL, path, str(path)):
        found = resolve_plan(given, settings=settings, machine=machine_with(8 * GIB))
        assert found.memory.use.method == "estimated"
        assert found.settings.n_ctx == SMOL.context_length.value


def test_an_absurd_context_is_refused_at_once_and_by_formula(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(build_gguf())
    settings = Settings.resolve({}, cwd=tmp_path, store_dir=tmp_path / "store")
    with pytest.raises(MemoryDoesNotFitError, match="estimated"):
        resolve_plan(path, settings=settings, n_ctx=2**31 - 1)


def test_a_load_reads_the_header_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(build_gguf())
    seen = []

    def counted(source: Any) -> Header:
        seen.append(source.name)
        return read_header(source)

    monkeypatch.setattr(model_files, "read_header", counted)
    profile, found = plan_model(path, settings_for(tmp_path), UserSettings(n_ctx=512))
    assert seen == [str(path)]
    assert (profile.header_sha256, found.settings.n_ctx) == (found.header_sha256, 512)


def test_a_load_takes_the_profile_that_lies_in_the_store(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(build_gguf())
    settings = settings_for(tmp_path)
    (pulled,) = pull([f"file:{tmp_path}/tiny.gguf"], settings=settings)
    stored = Store(settings.store_dir).profile_path(Path(pulled.path))
    stored.write_text(stored.read_text().replace("Small Llama", "From The Store"))
    assert plan_model(Path(pulled.path), settings, UserSettings())[0].name.value == "From The Store"
    stored.write_text("{}")
    assert plan_model(Path(pulled.path), settings, UserSettings())[0].name.value == "Small Llama"


def test_the_profile_of_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(build_gguf())
    with pytest.raises(UsageError, match="headers differ"):
        plan_model(path, settings_for(tmp_path), UserSettings(), profile=SMOL)


def test_a_model_that_is_of_no_use_is_not_planned(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(build_gguf())

    def refuse(profile: ModelProfile) -> None:
        raise UsageError(f"{profile.kind.value} is of no use")

    with pytest.raises(UsageError, match="chat is of no use"):
        plan_model(path, settings_for(tmp_path), UserSettings(), check=refuse)


def test_an_unknown_setting_is_named_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="n_context: expected n_ctx"):
        resolve_plan(SMOL, n_context=5)


@pytest.mark.parametrize(("text", "meant"), [("8", "8GiB"), ("0.5", "0.5GiB"), ("4096", "4096MiB")])
def test_a_small_size_without_a_unit_is_asked_back(text: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)
    assert meant in caught.value.hint
    assert parse_bytes("1073741824") == GIB


def test_memory_may_be_written_as_people_do(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(build_gguf())
    settings = settings_for(tmp_path)
    assert resolve_plan(path, settings=settings, measure=False, memory="1.5GiB").memory.budget == 3 * GIB // 2
    assert parse_bytes("2GB") == 2 * 10**9
    assert parse_bytes("512 MiB") == parse_bytes("512m") == 512 * MIB
    for text in ("", "GiB", "1e9", "-1GiB", "5 apples", "0"):
        with pytest.raises(UsageError, match="size"):
            resolve_plan(path, settings=settings, measure=False, memory=text)


def test_a_file_that_llama_cpp_would_not_load_is_never_shown_to_it(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(build_gguf({"general.architecture": "llama", "general.alignment": 24}, []))
    with pytest.raises(IntegrityError, match="would not load"):
        resolve_plan(path, settings=settings_for(tmp_path))


@pytest.mark.real
@pytest.mark.skipif(engine_version() is None, reason="llama-cpp-python is not installed")
def test_a_real_model_is_measured_within_one_second_run(real_model: Path, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    found = resolve_plan(real_model, settings=settings)
    assert found.memory.use.method == "measured"
    assert found.notes == ()
    again = resolve_plan(real_model, settings=settings)
    assert again.settings == found.settings
    assert list((settings.store_dir / ".tea" / "probe").iterdir())


@pytest.mark.real
def test_a_real_model_under_a_tight_budget_uses_nearly_all_of_it(real_model: Path, tmp_path: Path) -> None:
    whole = resolve_plan(real_model, settings=settings_for(tmp_path))
    budget = whole.memory.total - whole.memory.use.kv_cache // 2
    found = resolve_plan(real_model, settings=settings_for(tmp_path), memory=budget, n_ubatch=512)
    assert found.memory.total <= budget
    assert found.memory.total > budget - 12 * MIB
