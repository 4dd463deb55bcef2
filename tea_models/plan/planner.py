"""The choices of a plan, one after the other: batch, GPU layers, then the largest context that fits beside them."""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass, field, replace

from tea_models.engine.engine_settings import EngineSettings
from tea_models.engine.estimator import Estimator
from tea_models.engine.formula import MIB, MemoryUse, kv_bytes_per_token
from tea_models.engine.probe import RefusedError
from tea_models.errors import MemoryDoesNotFitError
from tea_models.machine.detect import Machine
from tea_models.plan.plan_input import BATCHES, FAST_BATCH, SMALL_BATCH, SMALLER_TYPES, SMALLEST_CONTEXT, PlanInput
from tea_models.plan.reasons import explain_batches, explain_cache, explain_mmap, explain_threads, notes_for
from tea_models.plan.types import MemoryPlan, Rejected, RunPlan
from tea_models.plan.user_settings import UserSettings
from tea_models.profile.facts import ModelProfile
from tea_models.sizes import human_bytes

#: Context for which layers are put on a GPU that can't hold everything.
GPU_CONTEXT = 8192
_STEP = 256  # the engine pads contexts to this


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Settings that might be taken, and what was given up for them: setting → the price."""

    point: EngineSettings
    prices: dict[str, str] = field(default_factory=dict)


def plan_profile(
    profile: ModelProfile, machine: Machine, user: UserSettings, measurer: Estimator, *, name: str = ""
) -> RunPlan:
    """Plan a model known by its profile; a MemoryDoesNotFitError says by how much it does not, and what would."""
    return _Planner(PlanInput(profile, machine, user, name), measurer).plan()


class _Planner:
    def __init__(self, given: PlanInput, measurer: Estimator) -> None:
        self._given = given
        self._measurer = measurer
        self._whole_batch = given.encoder and given.user.n_ubatch is None  # it has to hold the context: both grow

    def plan(self) -> RunPlan:
        given, budget = self._given, self._given.budget
        point = self._start()
        point = replace(point, n_gpu_layers=self._gpu_layers(point))
        point, use = self._context(point)
        explain_batches(given, self._use, point)
        explain_cache(given, self._use, point, use)
        threads = explain_threads(given)
        settings = replace(
            point,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=use.flash_attn is not False,
            use_mmap=explain_mmap(given, use),
        )
        return RunPlan(
            name=given.name,
            purpose=given.purpose,
            context_length=given.profile.context_length.value,
            settings=settings,
            memory=MemoryPlan(budget.budget, budget.budget_reason, budget.device_budgets, use),
            decisions=tuple(given.decisions[setting] for setting in settings.to_json()),
            notes=notes_for(given, settings, self._measurer.reason),
            machine=given.machine,
            header_sha256=given.profile.header_sha256,
        )

    def _start(self) -> EngineSettings:
        given, user = self._given, self._given.user
        if given.encoder:
            # The whole text is one batch, so it holds the context; the search moves both together.
            batch, ubatch = user.n_batch or given.trained, user.n_ubatch or given.trained
        else:
            # The logits of a batch are no larger than half the weights.
            limit = max(160 * MIB, given.profile.weights.total // 2)
            largest = next((size for size in BATCHES if 4 * given.vocabulary * size <= limit), BATCHES[-1])
            batch = max(user.n_batch or BATCHES[0], user.n_ubatch or 0)
            ubatch = user.n_ubatch or min(largest, batch)
        kv_type = user.kv_type or "f16"
        return EngineSettings(
            n_ctx=given.trained,
            n_batch=batch,
            n_ubatch=ubatch,
            type_k=kv_type,
            type_v=kv_type,
            swa_full=bool(user.swa_full),
            flash_attn=user.flash_attn,
            embeddings=given.purpose == "embed",
        )

    def _gpu_layers(self, point: EngineSettings) -> int:
        given = self._given
        layers, gpus = given.user.n_gpu_layers, given.machine.gpus
        source, reason = given.user.source, "asked for"
        rejected: list[Rejected] = []
        if layers is None:
            source, layers, reason = "hardware", 0, "the installed llama.cpp reports no GPU"
            if gpus:
                at = replace(point, n_ctx=min(given.trained, GPU_CONTEXT))
                layers, reason, rejected = self._most_layers(at, len(given.profile.weights.blocks))
        elif layers and not gpus:
            reason = "asked for, but the installed llama.cpp reports no GPU: all layers stay on the processor"
        given.decide("n_gpu_layers", layers, source, reason, *rejected)
        return layers

    def _context(self, point: EngineSettings) -> tuple[EngineSettings, MemoryUse]:
        given, asked_context = self._given, self._given.user.n_ctx
        if asked_context == "auto":
            return self._auto_context(point)
        n_ctx = given.trained if asked_context == "max" else int(asked_context)
        asked = self._at(point, n_ctx)
        self._require(asked)
        for candidate in self._cheaper(asked):
            use = self._fitting(candidate.point)
            if use is not None:
                reason = "the whole trained context was asked for" if asked_context == "max" else "asked for"
                trained = given.profile.context_length.value
                if trained and n_ctx > trained:
                    reason += f"; beyond the {trained:,} tokens that the model was trained with, so expect poor answers"
                given.decide("n_ctx", n_ctx, given.user.source, reason)
                self._give_way(candidate, asked)
                return candidate.point, use
        raise self._does_not_fit(asked)

    def _auto_context(self, point: EngineSettings) -> tuple[EngineSettings, MemoryUse]:
        given = self._given
        least = min(given.trained, SMALLEST_CONTEXT)
        self._require(self._at(point, least))
        best: tuple[_Candidate, MemoryUse] | None = None
        for candidate in self._cheaper(point):
            if best is not None and (candidate.point.type_k != point.type_k or candidate.point.n_ubatch < FAST_BATCH):
                break  # what costs precision or speed is for where nothing else reaches the least context
            found = self._largest(candidate.point, given.trained, least)
            if found is None:
                continue
            if best is None or found[0].n_ctx > best[0].point.n_ctx * 1.1:
                best = _Candidate(found[0], candidate.prices), found[1]
            if found[0].n_ctx == given.trained:
                break
        if best is None:
            raise self._does_not_fit(self._at(point, least))
        chosen, use = best
        self._explain_context(chosen.point, use)
        self._give_way(chosen, point)
        return chosen.point, use

    def _explain_context(self, chosen: EngineSettings, use: MemoryUse) -> None:
        given, fact = self._given, self._given.profile.context_length
        budget = human_bytes(given.budget.budget)
        rejected = []
        if chosen.n_ctx < given.trained:
            full = self._use(self._at(chosen, given.trained))
            need = f"the trained context needs {human_bytes(full.total)}" if full else "the engine refuses it"
            rejected = [Rejected(given.trained, need)]
            source = "hardware"
            each = human_bytes(kv_bytes_per_token(given.layout, chosen.type_k, chosen.type_v))
            reason = f"the largest that fits into {budget}; each token of context costs {each}"
        elif fact.value is None:
            source = "default"
            reason = f"the file does not say what it was trained with; {given.trained:,} is assumed"
        else:
            source = "registry" if fact.source.startswith("registry") else "gguf"
            reason = f"the whole trained context fits: {human_bytes(use.total)} of {budget}"
        given.decide("n_ctx", chosen.n_ctx, source, reason, *rejected)

    def _give_way(self, chosen: _Candidate, wanted: EngineSettings) -> None:
        """Say which other settings were given up for the context."""
        for setting, price in chosen.prices.items():
            value, before = getattr(chosen.point, setting), getattr(wanted, setting)
            if value != before:
                self._given.decide(setting, value, "hardware", price, Rejected(before, "the context would not fit"))

    def _cheaper(self, point: EngineSettings) -> list[_Candidate]:
        """The point, then the same with what costs least to give up: a smaller batch, then a smaller type of cache."""
        given = self._given
        candidates = [_Candidate(point)]
        prices: dict[str, str] = {}
        if given.batch_is_free:
            for size, price in ((FAST_BATCH, "about as fast on a processor"), (SMALL_BATCH, "prompts get slower")):
                if size < point.n_ubatch:
                    prices = {"n_ubatch": f"leaves more room for the context; {price}"}
                    candidates.append(_Candidate(replace(point, n_ubatch=size), prices))
        if given.cache_type_is_free:
            batch = candidates[-1].point.n_ubatch
            for kv_type in SMALLER_TYPES:
                smaller = replace(point, type_k=kv_type, type_v=kv_type, n_ubatch=batch)
                price = f"makes the context fit, at some loss of precision; {point.type_k} would not"
                candidates.append(_Candidate(smaller, prices | {"type_k": price, "type_v": price}))
        return candidates

    def _does_not_fit(self, point: EngineSettings) -> MemoryDoesNotFitError:
        given = self._given
        use = self._require(point)
        nearest: dict[str, str] = {}
        most, least = min(point.n_ctx, given.trained), min(point.n_ctx, _STEP)
        for candidate in self._cheaper(point):
            found = self._largest(candidate.point, most, least)
            if found is not None:
                option = f" --kv-type {candidate.point.type_k}" if candidate.point.type_k != point.type_k else ""
                nearest[option] = f"--n-ctx {found[0].n_ctx}{option}"
        parts = (
            f"weights {human_bytes(use.weights)}, KV cache {human_bytes(use.kv_cache)}, "
            f"compute {human_bytes(use.compute)}, process {human_bytes(use.overhead)}; {use.method}"
        )
        message = (
            f"{given.name} with a context of {point.n_ctx:,} tokens needs {human_bytes(use.total)} ({parts}), "
            f"but {human_bytes(given.budget.budget)} may be used: {given.budget.budget_reason}"
        )
        hint = "no context of it fits: take a smaller quantisation or a smaller model"
        return MemoryDoesNotFitError(message, hint=f"would fit: {', or '.join(nearest.values())}" if nearest else hint)

    # What settings take ---------------------------------------------------------------------------------------------

    def _at(self, point: EngineSettings, n_ctx: int) -> EngineSettings:
        """The same settings with another context."""
        if self._whole_batch:
            return replace(point, n_ctx=n_ctx, n_batch=n_ctx, n_ubatch=n_ctx)
        return replace(point, n_ctx=n_ctx)

    def _require(self, point: EngineSettings) -> MemoryUse:
        """What settings take; a RefusedError where the engine refuses them."""
        (answer,) = self._measurer.measure([point])
        if isinstance(answer, RefusedError):
            raise answer
        return answer

    def _use(self, point: EngineSettings) -> MemoryUse | None:
        """What settings take; None where the engine refuses them."""
        (answer,) = self._measurer.measure([point])
        return None if isinstance(answer, RefusedError) else answer

    def _fitting(self, point: EngineSettings) -> MemoryUse | None:
        """What settings take; None where that does not fit, or the engine refuses them."""
        use = self._use(point)
        return use if use is not None and self._given.budget.excess(use) <= 0 else None

    def _largest(self, point: EngineSettings, most: int, least: int) -> tuple[EngineSettings, MemoryUse] | None:
        """The settings with the largest context up to `most` that fits; None where not even `least` does."""
        whole = self._at(point, most)
        use = self._fitting(whole)
        if use is not None:
            return whole, use
        contexts = range(min(least, most), most, _STEP)
        count = bisect(contexts, False, key=lambda n_ctx: self._fitting(self._at(point, n_ctx)) is None)
        if not count:
            return None
        settings = self._at(point, contexts[count - 1])
        return settings, self._require(settings)

    def _most_layers(self, point: EngineSettings, layers: int) -> tuple[int, str, list[Rejected]]:
        """As many layers on the GPUs as fit there (-1 for all), the reason, and what was rejected."""
        everything = self._use(replace(point, n_gpu_layers=-1))
        rejected = []
        if everything is not None:
            taken = human_bytes(sum(sum(parts) for parts in everything.devices.values()))
            if self._given.budget.excess(everything) <= 0:
                return -1, f"all {layers} layers fit on the GPU: {taken}", []
            rejected.append(Rejected(-1, f"all layers would take {taken} of it"))
        counts = range(1, layers + 1)
        low = bisect(counts, False, key=lambda count: self._fitting(replace(point, n_gpu_layers=count)) is None)
        reason = f"{low} of {layers} layers fit on the GPU" if low else "not one layer fits on the GPU"
        return low, reason, rejected
