"""Why the settings beside the context are what they are, and what was rejected."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tea_models.plan.plan_input import BATCHES, FAST_BATCH, SMALLER_TYPES, Decisions, PlanInput
from tea_models.plan.types import Rejected
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.engine.engine_settings import EngineSettings
    from tea_models.engine.formula import MemoryUse
    from tea_models.plan.context_search import ContextSearch


def explain_batches(given: PlanInput, decisions: Decisions, search: ContextSearch, point: EngineSettings) -> None:
    """Decide on `n_batch` and `n_ubatch`."""
    user = given.user
    if given.encoder:
        reason = "an encoder sees the whole text at once, so a batch holds the context"
        decisions.decide("n_batch", point.n_batch, user.source if user.n_batch else "gguf", reason)
        decisions.decide("n_ubatch", point.n_ubatch, user.source if user.n_ubatch else "gguf", reason)
        return
    reason = "tokens handed over at a time; more changes neither memory nor speed"
    decisions.decide("n_batch", point.n_batch, user.source if user.n_batch else "default", reason)
    if user.n_ubatch is not None:
        decisions.decide("n_ubatch", point.n_ubatch, user.source, "asked for")
        return
    if decisions.has("n_ubatch"):
        return
    rejected = []
    for size in BATCHES:
        use = search.use(replace(point, n_ubatch=size))
        if use is not None and size != point.n_ubatch:
            slower = ", slower prompts" if size < min(FAST_BATCH, point.n_ubatch) else ""
            rejected.append(Rejected(size, f"compute buffers of {human_bytes(use.compute)}{slower}"))
    logits, most = 4 * given.vocabulary * point.n_ubatch, 4 * given.vocabulary * BATCHES[0]
    if point.n_ubatch == min(BATCHES[0], point.n_batch):
        reason = f"tokens computed at a time; their logits take {human_bytes(logits)}"
        decisions.decide("n_ubatch", point.n_ubatch, "default", reason, *rejected)
        return
    reason = (
        f"logits take {human_bytes(logits)}; of {BATCHES[0]} tokens at a time they would take {human_bytes(most)}, "
        f"because the vocabulary has {given.vocabulary:,} pieces"
    )
    decisions.decide("n_ubatch", point.n_ubatch, "gguf", reason, *rejected)


def explain_cache(
    given: PlanInput, decisions: Decisions, search: ContextSearch, point: EngineSettings, use: MemoryUse
) -> None:
    """Decide on `flash_attn`, `type_k`, `type_v` and `swa_full`."""
    user = given.user
    _explain_attention(given, decisions, use)
    if not decisions.has("type_k"):
        source, reason = "default", "this model keeps no KV cache"
        rejected: list[Rejected] = []
        if user.kv_type is not None:
            source, reason = user.source, "asked for"
        elif given.layout.layers:
            reason = "full precision; smaller types are for where they buy the context that was asked for"
            rejected = _smaller_caches(given, search, point)
        for setting in ("type_k", "type_v"):
            decisions.decide(setting, point.type_k, source, reason, *rejected)
    if user.swa_full is not None:
        decisions.decide("swa_full", point.swa_full, user.source, "asked for")
    elif given.layout.windowed:
        other = search.use(replace(point, swa_full=True))
        whole = [Rejected(value=True, reason=f"a KV cache of {human_bytes(other.kv_cache)}")] if other else []
        reason = f"layers with a window of {given.layout.window:,} tokens keep only that window"
        decisions.decide("swa_full", point.swa_full, "gguf", reason, *whole)
    else:
        decisions.decide("swa_full", point.swa_full, "default", "no layer has a sliding window")


def _explain_attention(given: PlanInput, decisions: Decisions, use: MemoryUse) -> None:
    flash = use.flash_attn is not False
    if given.user.flash_attn is not None:
        decisions.decide("flash_attn", flash, given.user.source, "asked for")
    elif flash:
        decisions.decide("flash_attn", flash, "hardware", "never holds the matrix of all scores in memory")
    else:
        decisions.decide("flash_attn", flash, "hardware", "the engine does not have it for this model here")


def _smaller_caches(given: PlanInput, search: ContextSearch, point: EngineSettings) -> list[Rejected]:
    if not given.cache_type_is_free:
        return []
    rejected = []
    for kv_type in SMALLER_TYPES:
        use = search.use(replace(point, type_k=kv_type, type_v=kv_type))
        if use is not None:
            rejected.append(Rejected(kv_type, f"a KV cache of {human_bytes(use.kv_cache)}, at some loss of precision"))
    return rejected


def explain_threads(given: PlanInput, decisions: Decisions) -> int:
    """Decide on `n_threads` and `n_threads_batch`.

    Returns:
        The number of threads.
    """
    machine, asked = given.machine, given.user.n_threads
    threads = asked or machine.threads
    source = given.user.source if asked else "hardware"
    rejected = []
    if asked:
        reason = "asked for"
    elif machine.cpu_quota is not None and threads < machine.cores_allowed:
        reason = f"the cgroup grants {machine.cpu_quota:g} processors' time; a thread above that holds up the others"
        rejected = [Rejected(machine.cores_allowed, "the cores that may be used, but not all the time")]
    elif machine.cores_allowed < machine.cores_physical:
        reason = f"one a physical core; {machine.cores_allowed} of {machine.cores_physical} may be used (affinity)"
    else:
        reason = "one a physical core"
    if not asked and machine.cores_logical > machine.cores_physical == threads:
        rejected = [Rejected(machine.cores_logical, "two threads on a core share its arithmetic units")]
    for setting in ("n_threads", "n_threads_batch"):
        decisions.decide(setting, threads, source, reason, *rejected)
    return threads


def explain_mmap(decisions: Decisions, use: MemoryUse) -> bool:
    """Decide on `use_mmap` and `use_mlock`.

    Returns:
        Whether to map the file.
    """
    mapped = use.mapped
    if mapped:
        decisions.decide("use_mmap", mapped, "default", "pages are read when needed, and shared between processes")
    else:
        reason = (
            f"llama.cpp rearranges {human_bytes(use.repacked)} of the weights for this processor; "
            "with a mapped file they would be in memory twice"
        )
        decisions.decide("use_mmap", mapped, "hardware", reason)
    decisions.decide(
        "use_mlock", value=False, source="default", reason="the system may use the memory when the model rests"
    )
    return mapped
