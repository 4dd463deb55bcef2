"""Which variant of a model to take on this machine, and which models of the registry fit it at all.

A variant that is here, or whose header can be fetched, is planned. Of another the size of the file alone decides, and
the answer says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from tea_models.engine.estimator import PROCESS, Estimator
from tea_models.engine.formula import MIB, MemoryUse
from tea_models.errors import MemoryDoesNotFitError, NotAvailableError, TeaModelsError, UsageError
from tea_models.files import base_name, public
from tea_models.machine.detect import Machine
from tea_models.plan.plan_input import SMALLEST_CONTEXT, make_budget
from tea_models.plan.planner import plan_profile
from tea_models.plan.resolve import machine_now, open_for_plan
from tea_models.plan.speed import speed_of
from tea_models.plan.types import Speed
from tea_models.plan.user_settings import UserSettings
from tea_models.profile.facts import ModelProfile
from tea_models.refs import NameRef, parse_reference
from tea_models.registry.entries import Entry, Registry, Variant
from tea_models.settings import Settings
from tea_models.sizes import human_bytes
from tea_models.store import Store

#: A variant with at least this much context is preferred over a better quantisation with less.
GOOD_CONTEXT = 8192
_COMPARED = (4096, 8192, 32768, 131072)


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether one variant of a model fits here; None where something is not known. Sizes are in bytes."""

    name: str
    variant: str
    size: int | None  # to download
    budget: int
    fits: bool | None = None  # with a useful context
    n_ctx: int | None = None  # the largest context here
    context_length: int | None = None  # the trained one
    total: int | None = None  # with the largest context, or the least it needs
    method: str = "file size"  # or `measured`, `estimated`
    contexts: dict[int, int] = field(default_factory=dict)  # what it takes at some contexts
    speed: Speed | None = None

    @property
    def summary(self) -> str:
        if self.fits is None:
            return "unknown"
        if not self.fits:
            return f"too large: {human_bytes(self.total or 0)}"
        if self.n_ctx is None:
            return "fits, by its size"
        if self.context_length is None or self.n_ctx >= self.context_length:
            return f"{self.n_ctx:,} tokens"
        return f"{self.n_ctx:,} of {self.context_length:,} tokens"

    def to_json(self) -> dict[str, Any]:
        contexts = [
            {"n_ctx": n_ctx, "total": total, "fits": total <= self.budget} for n_ctx, total in self.contexts.items()
        ]
        return asdict(self) | {"summary": self.summary, "contexts": contexts}


class Choice(NamedTuple):
    """The variant to take: how to name it (`phi4-mini:Q4_K_M`), and why, in a sentence."""

    reference: str
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All variants of a model side by side."""

    name: str
    budget: int
    budget_reason: str
    fits: tuple[Fit, ...]

    def to_json(self) -> dict[str, Any]:
        rows = [fit.to_json() for fit in self.fits]
        return {"name": self.name, "budget": self.budget, "budget_reason": self.budget_reason, "variants": rows}


def best_fit(name: str, settings: Settings, *, user: UserSettings | None = None, measure: bool = True) -> Choice:
    """The variant to take here: the largest file with room for `GOOD_CONTEXT`, else the one with the most context."""
    entry = _entry(name, settings)
    if entry is None:
        raise UsageError(f"{name}: choosing a variant needs a name of the registry, without a variant")
    comparison = compare_variants(entry.name, settings, user or UserSettings(), measure=measure)
    fitting = [fit for fit in comparison.fits if fit.fits]
    if not fitting:
        least = min((fit.total for fit in comparison.fits if fit.total), default=0)
        budget = f"{human_bytes(comparison.budget)} may be used: {comparison.budget_reason}"
        raise MemoryDoesNotFitError(
            f"no variant of {entry.name} fits: the smallest needs {human_bytes(least)}, {budget}",
            hint="`tea-models list --fit` shows what does",
        )

    def rank(fit: Fit) -> tuple[bool, int, int]:
        enough = min(GOOD_CONTEXT, fit.context_length or GOOD_CONTEXT)
        good = fit.n_ctx is None or fit.n_ctx >= enough
        return (good, fit.size or 0, 0) if good else (good, fit.n_ctx or 0, fit.size or 0)

    best = max(fitting, key=rank)
    reasons = [f"{best.variant} ({human_bytes(best.size or 0)}): {best.summary}, {best.method}"]
    for fit in comparison.fits:
        if (fit.size or 0) > (best.size or 0):
            why = fit.summary if fit.fits is False else f"leaves room for only {fit.n_ctx or 0:,} tokens"
            reasons.append(f"{fit.variant} {why}")
    return Choice(f"{entry.name}:{best.variant}", "; ".join(reasons))


def compare_variants(reference: str, settings: Settings, user: UserSettings, *, measure: bool = True) -> Comparison:
    """All variants of a model on this machine, the context found for each; of a file or an address, that one alone."""
    user = replace(user, n_ctx="auto")
    machine = machine_now(settings, measure=measure)
    budget = make_budget(machine, user.memory)
    named = isinstance(parse_reference(reference), NameRef)
    entry = _entry(reference.partition(":")[0] if named else reference, settings)
    planner = _VariantPlanner(settings, machine, user, budget.budget, measure=measure)
    if entry is None:
        fit = planner.fit_of(reference, base_name(reference), "")
        return Comparison(public(reference), budget.budget, budget.budget_reason, (fit,))
    return Comparison(entry.name, budget.budget, budget.budget_reason, tuple(planner.fits_of(entry)))


def fit_table(entries: Iterable[Entry], settings: Settings) -> dict[tuple[str, str], dict[str, Any]]:
    """Whether each variant of each entry fits here, without fetching anything: `Fit.to_json()` by name and variant."""
    offline = replace(settings, offline=True)
    machine = machine_now(settings)
    planner = _VariantPlanner(offline, machine, UserSettings(), make_budget(machine, None).budget, measure=True)
    return {(fit.name, fit.variant): fit.to_json() for entry in entries for fit in planner.fits_of(entry)}


class _VariantPlanner:
    """Plans variants for one machine, as far as something is known of each."""

    def __init__(self, settings: Settings, machine: Machine, user: UserSettings, budget: int, *, measure: bool) -> None:
        self.settings, self.machine, self.user, self.budget, self.measure = settings, machine, user, budget, measure
        self._unreachable = False

    def fit_of(self, reference: str, name: str, variant: str) -> Fit:
        """Whether a model fits whose header can be read."""
        with open_for_plan(reference, self.settings, measure=self.measure) as opened:
            size = sum(file.size for file in opened.profile.files)
            return self._fit(opened.profile, opened.measurer, Fit(name, variant, size, self.budget))

    def fits_of(self, entry: Entry) -> list[Fit]:
        """Plan the variants whose header can be read; judge the others by their size."""
        found: dict[str, Fit] = {}
        for variant in entry.variants.values():
            if self._unreachable and not self._installed(variant):
                continue
            try:
                found[variant.name] = self.fit_of(f"{entry.name}:{variant.name}", entry.name, variant.name)
            except NotAvailableError:
                # A host that can't be reached is not asked again for each variant.
                self._unreachable = True
            except TeaModelsError:
                continue
        return [found.get(variant.name) or self._unread(entry, variant) for variant in entry.variants.values()]

    def _installed(self, variant: Variant) -> bool:
        store = Store.of(self.settings)
        return all(store.path_of(file) is not None for file in variant.files)

    def _fit(self, profile: ModelProfile, measurer: Estimator, fit: Fit) -> Fit:
        """Plan a profile; where nothing fits, say what the smallest useful context needs."""
        try:
            plan = plan_profile(profile, self.machine, self.user, measurer, name=fit.name)
        except MemoryDoesNotFitError:
            least = min(profile.context_length.value or SMALLEST_CONTEXT, SMALLEST_CONTEXT)
            endless = replace(self.user, memory=1 << 60, n_ctx=least)
            use = plan_profile(profile, self.machine, endless, measurer, name=fit.name).memory.use
            return replace(fit, fits=False, total=use.total, method=use.method)
        trained = profile.context_length.value or plan.settings.n_ctx
        wanted = sorted({n_ctx for n_ctx in (*_COMPARED, trained) if n_ctx <= trained})
        uses = measurer.measure([replace(plan.settings, n_ctx=n_ctx) for n_ctx in wanted])
        return replace(
            fit,
            fits=True,
            n_ctx=plan.settings.n_ctx,
            context_length=plan.context_length,
            total=plan.memory.total,
            method=plan.memory.use.method,
            contexts={n_ctx: use.total for n_ctx, use in zip(wanted, uses, strict=True) if isinstance(use, MemoryUse)},
            speed=speed_of(profile, plan.settings, self.machine, self.settings.store_dir),
        )

    def _unread(self, entry: Entry, variant: Variant) -> Fit:
        sizes = [file.size for file in variant.files if file.size is not None]
        if len(sizes) < len(variant.files):
            return Fit(entry.name, variant.name, None, self.budget)
        size = sum(sizes)
        # Room for the smallest cache and buffers; what they really take can't be known without the header.
        least = size + PROCESS + max(256 * MIB, size // 10)
        return Fit(entry.name, variant.name, size, self.budget, fits=least <= self.budget, total=least)


def _entry(reference: str, settings: Settings) -> Entry | None:
    """The entry of the registry that a name without a variant means; None for any other reference."""
    parsed = parse_reference(reference)
    if not isinstance(parsed, NameRef) or parsed.variant is not None:
        return None
    return Registry.load(settings).find(parsed)[0]
