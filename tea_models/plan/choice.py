"""Which variant of a model to take on this machine, and which models of the registry fit it at all.

A model that is here, or whose header can be fetched, is planned. Where only another variant of it can be read, that
one's cache and buffers are taken with the size of this one's file. Where nothing can be read, the size of the file
alone decides, and the answer says so.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tea_models.engine.estimator import PROCESS, Estimator
from tea_models.engine.formula import MIB
from tea_models.errors import DoesNotFitError, MemoryDoesNotFitError, NotAvailableError, TeaModelsError, UsageError
from tea_models.files import base_name
from tea_models.plan.case import make_budget
from tea_models.plan.resolve import choose_measurer, machine_now, plan_profile
from tea_models.plan.user_settings import UserSettings
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tea_models.machine.detect import Machine
    from tea_models.plan.types import RunPlan
    from tea_models.profile import ModelProfile
    from tea_models.registry.entries import Entry, Variant
    from tea_models.settings import Settings

#: A variant with at least this much context is preferred over a better quantisation with less.
GOOD_CONTEXT = 8192
_COMPARED = (4096, 8192, 32768, 131072)


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether one variant of a model fits here.

    Attributes:
        name: The model.
        variant: The variant.
        size: Bytes to download, or None if unknown.
        fits: Whether it runs here with a useful context; None if nothing is known.
        n_ctx: The largest context here, None where only the size of the file is known.
        context_length: The trained context, if known.
        total: Bytes with that context, or the least it needs.
        budget: Bytes that may be used.
        method: `measured`, `estimated`, `estimated from another variant` or `file size`.
        contexts: Bytes at several contexts.
    """

    name: str
    variant: str
    size: int | None
    fits: bool | None
    n_ctx: int | None
    context_length: int | None
    total: int | None
    budget: int
    method: str
    contexts: dict[int, int] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """A few words for a table."""
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
        """All of it, and the summary."""
        document = {name: getattr(self, name) for name in self.__slots__ if name != "contexts"}
        contexts = [
            {"n_ctx": n_ctx, "total": total, "fits": total <= self.budget} for n_ctx, total in self.contexts.items()
        ]
        return document | {"summary": self.summary, "contexts": contexts}


@dataclass(frozen=True, slots=True)
class Choice:
    """The variant to take.

    Attributes:
        reference: How to name it (`phi4-mini:Q4_K_M`).
        reason: Why, in a sentence.
        fit: What is known of it.
        others: What is known of the others.
    """

    reference: str
    reason: str
    fit: Fit
    others: tuple[Fit, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All variants of a model side by side."""

    name: str
    budget: int
    budget_reason: str
    fits: tuple[Fit, ...]

    def to_json(self) -> dict[str, Any]:
        """The table's rows with the budget."""
        return {
            "name": self.name,
            "budget": self.budget,
            "budget_reason": self.budget_reason,
            "variants": [fit.to_json() for fit in self.fits],
        }


def best_fit(name: str, settings: Settings, *, user: UserSettings | None = None, measure: bool = True) -> Choice:
    """The best variant of a registry model that fits this machine.

    Best is the largest file, as long as a context of 8,192 tokens (or the trained one) fits beside it; after that the
    one with the most context.

    Args:
        name: A name of the registry, without a variant.
        settings: Where the registry and the store are.
        user: What else was asked for.
        measure: Whether the engine may be asked.

    Raises:
        UnknownModelError: There is no such model.
        UsageError: It is not a name of the registry, or names a variant already.
        MemoryDoesNotFitError: No variant fits.
    """
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
    larger = [fit for fit in comparison.fits if (fit.size or 0) > (best.size or 0)]
    reason = f"{best.variant} ({human_bytes(best.size or 0)}): {best.summary}, {best.method}"
    if larger:
        reason += "; " + ", ".join(f"{fit.variant} {_why_not(fit)}" for fit in larger)
    return Choice(
        f"{entry.name}:{best.variant}", reason, best, tuple(fit for fit in comparison.fits if fit is not best)
    )


def _why_not(fit: Fit) -> str:
    return fit.summary if fit.fits is False else f"leaves room for only {fit.n_ctx or 0:,} tokens"


def compare_variants(reference: str, settings: Settings, user: UserSettings, *, measure: bool = True) -> Comparison:
    """All variants of a model on this machine; of a file or an address, that one alone.

    Args:
        reference: A name of the registry, or any other reference.
        settings: Where the registry and the store are.
        user: What else was asked for; the context is found for each variant.
        measure: Whether the engine may be asked.
    """
    user = replace(user, n_ctx="auto")
    machine = machine_now(settings, measure=measure)
    budget = make_budget(machine, user.memory)
    entry = _entry(reference.partition(":")[0] if _is_name(reference) else reference, settings)
    judge = _Judge(settings, machine, user, budget.host, measure=measure)
    if entry is None:
        fit = judge.reference(reference)
        return Comparison(reference, budget.host, budget.reason, (fit,))
    return Comparison(entry.name, budget.host, budget.reason, tuple(judge.entry(entry)))


def fit_table(entries: Iterable[Entry], settings: Settings) -> dict[tuple[str, str], dict[str, Any]]:
    """Whether each variant of each entry fits here, without fetching anything.

    Args:
        entries: Of the registry.
        settings: Where the store is.

    Returns:
        By name and variant: `Fit.to_json()`, with a `summary` for a table.
    """
    offline = replace(settings, offline=True)
    machine = machine_now(settings)
    judge = _Judge(offline, machine, UserSettings(), make_budget(machine, None).host, measure=True)
    return {(fit.name, fit.variant): fit.to_json() for entry in entries for fit in judge.entry(entry)}


class _Judge:
    def __init__(self, settings: Settings, machine: Machine, user: UserSettings, budget: int, *, measure: bool) -> None:
        self.settings, self.machine, self.user, self.budget, self.measure = settings, machine, user, budget, measure
        self._unreachable = False

    def reference(self, reference: str) -> Fit:
        plan, contexts, _profile, size = self._read(reference)
        return self._fit(self._unknown(base_name(reference), "", size), plan, contexts)

    def entry(self, entry: Entry) -> list[Fit]:
        """Read what can be read; judge the others by it, or by their size."""
        found: dict[str, Fit] = {}
        sibling: ModelProfile | None = None
        for variant in entry.variants.values():
            if self._unreachable and not self._installed(variant):
                continue
            try:
                plan, contexts, profile, size = self._read(f"{entry.name}:{variant.name}")
            except NotAvailableError:
                # A host that can't be reached is not asked again for each variant.
                self._unreachable = True
                continue
            except DoesNotFitError:
                raise
            except TeaModelsError:
                continue
            sibling = sibling or profile
            found[variant.name] = self._fit(self._unknown(entry.name, variant.name, size), plan, contexts)
        return [found.get(variant.name) or self._unread(entry, variant, sibling) for variant in entry.variants.values()]

    def _installed(self, variant: Variant) -> bool:
        from tea_models.store import Store

        store = Store.of(self.settings)
        return all(store.path_of(file) is not None for file in variant.files)

    def _read(self, reference: str) -> tuple[RunPlan | int, dict[int, int], ModelProfile, int]:
        """Plan a model whose header can be read; what it needs at least takes the place of a plan that fails."""
        from tea_models.profile import profile_from_headers
        from tea_models.profile.model_files import open_model

        with open_model(reference, settings=self.settings) as model:
            model.require_loadable()
            profile = profile_from_headers(model.headers, model.files, entry=model.entry)
            size = sum(file.size for file in profile.files)
            with closing(choose_measurer(profile, self.settings, model=model, measure=self.measure)) as measurer:
                return *self._plan(profile, measurer, reference), profile, size

    def _plan(self, profile: ModelProfile, measurer: Any, name: str) -> tuple[RunPlan | int, dict[int, int]]:
        try:
            plan = plan_profile(profile, self.machine, self.user, measurer, name=name)
        except MemoryDoesNotFitError:
            loose = replace(self.user, memory=1 << 60)
            plan = plan_profile(profile, self.machine, replace(loose, n_ctx=_least(profile)), measurer, name=name)
            return plan.memory.total, {}
        return plan, _contexts(plan, profile, measurer)

    def _fit(self, fit: Fit, plan: RunPlan | int, contexts: dict[int, int], method: str = "") -> Fit:
        if isinstance(plan, int):
            return replace(fit, fits=False, total=plan, method=method or "measured")
        return replace(
            fit,
            fits=True,
            n_ctx=plan.settings.n_ctx,
            context_length=plan.context_length,
            total=plan.memory.total,
            method=method or plan.memory.method,
            contexts=contexts,
        )

    def _unread(self, entry: Entry, variant: Variant, sibling: ModelProfile | None) -> Fit:
        sizes = [file.size for file in variant.files]
        size = None if None in sizes else sum(size for size in sizes if size)
        unknown = self._unknown(entry.name, variant.name, size)
        if size is None:
            return unknown
        if sibling is not None:
            profile = replace(sibling, weights=replace(sibling.weights, total=size))
            plan, contexts = self._plan(profile, Estimator(profile), entry.name)
            return self._fit(unknown, plan, contexts, "estimated from another variant")
        # Room for the smallest cache and buffers; what they really take can't be known without the header.
        least = size + PROCESS + max(256 * MIB, size // 10)
        return replace(unknown, fits=least <= self.budget, total=least)

    def _unknown(self, name: str, variant: str, size: int | None) -> Fit:
        return Fit(
            name=name,
            variant=variant,
            size=size,
            fits=None,
            n_ctx=None,
            context_length=None,
            total=None,
            budget=self.budget,
            method="file size",
        )


def _least(profile: ModelProfile) -> int:
    from tea_models.plan.case import SMALLEST_CONTEXT

    return min(profile.context_length.value or SMALLEST_CONTEXT, SMALLEST_CONTEXT)


def _contexts(plan: RunPlan, profile: ModelProfile, measurer: Any) -> dict[int, int]:
    from tea_models.engine.probe import RefusedError

    trained = profile.context_length.value or plan.settings.n_ctx
    wanted = sorted({n_ctx for n_ctx in (*_COMPARED, trained) if n_ctx <= trained})
    answers: Mapping[int, Any] = dict(
        zip(wanted, measurer.measure([replace(plan.settings, n_ctx=n_ctx) for n_ctx in wanted]), strict=True)
    )
    return {n_ctx: use.total for n_ctx, use in answers.items() if not isinstance(use, RefusedError)}


def _is_name(reference: str) -> bool:
    from tea_models.refs import NameRef, parse_reference

    return isinstance(parse_reference(reference), NameRef)


def _entry(reference: str, settings: Settings) -> Entry | None:
    from tea_models.refs import NameRef, parse_reference
    from tea_models.registry.entries import Registry

    parsed = parse_reference(reference)
    if not isinstance(parsed, NameRef) or parsed.variant is not None:
        return None
    return Registry.load(settings).find(parsed)[0]
