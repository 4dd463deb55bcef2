"""Why the settings beside the context are what they are, and what was rejected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tea_models.engine.engine_settings import EngineSettings
from tea_models.engine.estimator import ESTIMATE_ERROR
from tea_models.engine.formula import Hyperparameters, MemoryUse
from tea_models.plan.plan_input import BATCHES, FAST_BATCH, SMALLER_TYPES, PlanInput
from tea_models.plan.types import Rejected
from tea_models.sizes import human_bytes

Measured = Callable[[EngineSettings], MemoryUse | None]  # None where the engine refuses them


def explain_batches(given: PlanInput, measured: Measured, point: EngineSettings) -> None:
    """Decide on `n_batch` and `n_ubatch`."""
    if given.encoder:
        for setting in ("n_batch", "n_ubatch"):
            reason = "an encoder sees the whole text at once, so a batch holds the context"
            given.decide(setting, getattr(point, setting), "gguf", reason)
        return
    reason = "tokens handed over at a time; more changes neither memory nor speed"
    given.decide("n_batch", point.n_batch, "default", reason)

    def logits(tokens: int) -> str:
        return human_bytes(4 * given.vocabulary * tokens)

    rejected = []
    for size in BATCHES if given.batch_is_free else ():
        use = measured(replace(point, n_ubatch=size))
        if use is not None and size != point.n_ubatch:
            slower = ", slower prompts" if size < min(FAST_BATCH, point.n_ubatch) else ""
            rejected.append(Rejected(size, f"compute buffers of {human_bytes(use.compute)}{slower}"))
    source, reason = "default", f"tokens computed at a time; their logits take {logits(point.n_ubatch)}"
    if point.n_ubatch != min(BATCHES[0], point.n_batch):
        source = "gguf"
        reason = (
            f"logits take {logits(point.n_ubatch)}; of {BATCHES[0]} tokens at a time they would take "
            f"{logits(BATCHES[0])}, because the vocabulary has {given.vocabulary:,} pieces"
        )
    given.decide("n_ubatch", point.n_ubatch, source, reason, *rejected)


def explain_cache(given: PlanInput, measured: Measured, point: EngineSettings, use: MemoryUse) -> None:
    """Decide on `flash_attn`, `type_k`, `type_v` and `swa_full`."""
    flash = use.flash_attn is not False
    absent = "the engine does not have it for this model here"
    given.decide("flash_attn", flash, "hardware", "never holds the matrix of all scores in memory" if flash else absent)
    reason, rejected = "this model keeps no KV cache", []
    if given.layout.layers:
        reason = "full precision; smaller types are for where they buy the context that was asked for"
        for kv_type in SMALLER_TYPES if given.cache_type_is_free else ():
            other = measured(replace(point, type_k=kv_type, type_v=kv_type))
            if other is not None:
                price = f"a KV cache of {human_bytes(other.kv_cache)}, at some loss of precision"
                rejected.append(Rejected(kv_type, price))
    for setting in ("type_k", "type_v"):
        given.decide(setting, point.type_k, "default", reason, *rejected)
    if not given.layout.windowed:
        given.decide("swa_full", point.swa_full, "default", "no layer has a sliding window")
        return
    other = measured(replace(point, swa_full=True))
    whole = [Rejected(value=True, reason=f"a KV cache of {human_bytes(other.kv_cache)}")] if other else []
    reason = f"layers with a window of {given.layout.window:,} tokens keep only that window"
    given.decide("swa_full", point.swa_full, "gguf", reason, *whole)


def explain_threads(given: PlanInput) -> int:
    """Decide on `n_threads` and `n_threads_batch`; the number of threads."""
    machine = given.machine
    threads = given.user.n_threads or machine.threads
    rejected = []
    reason = "one a physical core"
    if machine.cpu_quota is not None and threads < machine.cores_allowed:
        reason = f"the cgroup grants {machine.cpu_quota:g} processors' time; a thread above that holds up the others"
        rejected = [Rejected(machine.cores_allowed, "the cores that may be used, but not all the time")]
    elif machine.cores_allowed < machine.cores_physical:
        reason += f"; {machine.cores_allowed} of {machine.cores_physical} may be used (affinity)"
    if machine.cores_logical > machine.cores_physical == threads:
        rejected = [Rejected(machine.cores_logical, "two threads on a core share its arithmetic units")]
    for setting in ("n_threads", "n_threads_batch"):
        given.decide(setting, threads, "hardware", reason, *rejected)
    return threads


def explain_mmap(given: PlanInput, use: MemoryUse) -> bool:
    """Decide on `use_mmap`: whether to map the file."""
    source, reason = "default", "pages are read when needed, and shared between processes"
    if not use.mapped:
        source = "hardware"
        reason = (
            f"llama.cpp rearranges {human_bytes(use.repacked)} of the weights for this processor; "
            "with a mapped file they would be in memory twice"
        )
    given.decide("use_mmap", use.mapped, source, reason)
    return use.mapped


def notes_for(given: PlanInput, settings: EngineSettings, estimated_because: str) -> tuple[str, ...]:
    """What a user should know beside the decisions, a sentence each, most important first."""
    h, notes = Hyperparameters(given.profile), []
    if estimated_because:
        notes.append(
            f"memory is estimated, not measured: an upper bound, at most {ESTIMATE_ERROR:.0%} above the truth in what "
            f"was measured; {estimated_because}"
        )
        if not given.layout.exact:
            notes.append(f"the KV cache of {h.architecture} is not one that the formulas know: take it as a guess")
    original = h.number("rope.scaling.original_context_length")
    if original and settings.n_ctx > original and h.architecture in ("phi3", "phimoe", "minicpm3"):
        notes.append(
            f"with a context above {original:,} tokens llama.cpp uses the long RoPE factors for every position, "
            f"short prompts too; at {original:,} or less it uses the short ones"
        )
    window = h.number("attention.sliding_window")
    if window and not given.layout.windowed:
        notes.append(
            f"llama.cpp does not use the sliding window of {window:,} tokens that the file names for this architecture"
        )
    return tuple(notes)
