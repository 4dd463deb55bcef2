"""Several models in one process: one budget shared out between them, or which is closed for which.

What happens in which case: docs/plan.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from tea_models.plan.plan_input import SMALLEST_CONTEXT, UNKNOWN_CONTEXT, make_budget
from tea_models.plan.resolve import OpenedModel, machine_now, open_for_plan, plan_opened
from tea_models.plan.types import RunPlan
from tea_models.plan.user_settings import UserSettings
from tea_models.requirements import NodeModel
from tea_models.settings import Settings
from tea_models.sizes import human_bytes

_NAMES = [item.name for item in fields(UserSettings) if item.name not in ("purpose", "source")]
_Use = tuple[str, UserSettings]  # a reference, and with which settings


@dataclass(frozen=True, slots=True)
class SharedModel:
    """A model of several, with its settings: the nodes that use it, its plan, and the bytes that it may use."""

    reference: str
    user: UserSettings
    nodes: tuple[str, ...]
    share: int | None  # None where nothing is shared out
    plan: RunPlan

    @property
    def own(self) -> int:
        """What it takes beside the process, which they all share."""
        return self.plan.memory.total - self.plan.memory.use.overhead


class SharedStep(NamedTuple):
    """A node in the order of the workflow: what has to be opened for it, and closed before."""

    node: str
    model: str
    opens: bool
    closes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SharedPlan:
    """Models that one process uses; `together` says whether all are open at once. Sizes are in bytes."""

    budget: int
    budget_reason: str
    together: bool
    reason: str
    total: int  # when most of it is in use
    models: tuple[SharedModel, ...]
    steps: tuple[SharedStep, ...]

    @property
    def room(self) -> int:
        """What the models may take beside the process."""
        return self.budget - max(model.plan.memory.use.overhead for model in self.models)

    def model(self, reference: str, settings: Mapping[str, Any]) -> SharedModel | None:
        """The model that a node with these settings uses; None if the plan has it not."""
        key = reference, user_settings(settings)
        return next((model for model in self.models if (model.reference, model.user) == key), None)

    def to_json(self) -> dict[str, Any]:
        """The document that `plan --workflow --json` prints."""
        names = ("budget", "budget_reason", "together", "reason", "total")
        models = [
            {"reference": model.reference, "nodes": list(model.nodes), "share": model.share, **model.plan.to_json()}
            for model in self.models
        ]
        steps = [step._asdict() for step in self.steps]
        return {name: getattr(self, name) for name in names} | {"models": models, "steps": steps}


def plan_together(nodes: Sequence[NodeModel], settings: Settings, *, measure: bool = True, **asked: Any) -> SharedPlan:
    """Plan the models of a workflow's nodes for one budget; `asked` goes before what a node's settings say.

    Raises:
        MemoryDoesNotFitError: One of them does not even fit alone.
        TeaModelsError: As `resolve_plan`, for any of them.
    """
    machine = machine_now(settings, measure=measure)
    used_by: dict[_Use, list[str]] = {}
    for node in nodes:  # one file with other settings is another model
        used_by.setdefault((node.reference, user_settings(node.settings, asked)), []).append(node.node)
    limits = [user.memory for _, user in used_by]
    budget = make_budget(machine, max(filter(None, limits)) if all(limits) else None)

    with ExitStack() as stack:

        def planned(use: _Use, memory: int, n_ctx: int | None = None, share: int | None = None) -> SharedModel:
            reference, user = use
            given = replace(user, memory=min(memory, user.memory or memory), n_ctx=n_ctx or user.n_ctx)
            plan = plan_opened(opened[reference], settings, given, measure=measure)
            return SharedModel(reference, user, tuple(used_by[use]), share, plan)

        references = dict.fromkeys(reference for reference, _ in used_by)
        opened = {one: stack.enter_context(open_for_plan(one, settings, measure=measure)) for one in references}
        models = [planned(use, budget.budget) for use in used_by]
        process = max((model.plan.memory.use.overhead for model in models), default=0)
        room = budget.budget - process
        whole = sum(model.own for model in models)
        needed = f"with their whole contexts they take {human_bytes(whole + process)}"
        together, reason = True, f"{needed}: each has its own"
        if whole > room:
            least = [
                planned(use, budget.budget, _least(opened[use[0]])) if use[1].n_ctx == "auto" else model
                for use, model in zip(used_by, models, strict=True)
            ]
            left = room - sum(model.own for model in least)
            together = left >= 0
            reason = f"{needed}, and do not fit together: the longest unused is closed for the next"
            if together:
                reason = f"{needed}: each has a smaller one, the larger the more nodes use it"
                shares = _shared_out(left, models, least)
                totals = [own + model.plan.memory.use.overhead for own, model in zip(shares, models, strict=True)]
                models = [planned(use, total, share=total) for use, total in zip(used_by, totals, strict=True)]
    uses = [(node.reference, user_settings(node.settings, asked)) for node in nodes]
    sizes = {(model.reference, model.user): model.own for model in models}
    steps, most = _steps([node.node for node in nodes], uses, sizes, room)
    text = budget.budget_reason
    return SharedPlan(budget.budget, text, together, reason, most + process, tuple(models), tuple(steps))


def user_settings(settings: Mapping[str, Any], asked: Mapping[str, Any] | None = None) -> UserSettings:
    """What keys of `settings.llm` ask of a plan; `asked` goes before them."""
    given = {name: settings[name] for name in _NAMES if settings.get(name) not in (None, "")}
    for name, value in given.items():
        text = value.strip().lower() if isinstance(value, str) else value
        given[name] = int(text) if isinstance(text, str) and text.isdecimal() and name != "memory" else text
    purpose = "embed" if settings.get("embedding") else None
    return UserSettings.of(**{"purpose": purpose, **given, **{k: v for k, v in (asked or {}).items() if v is not None}})


def _least(opened: OpenedModel) -> int:
    return min(opened.profile.context_length.value or UNKNOWN_CONTEXT, SMALLEST_CONTEXT)


def _shared_out(left: int, models: Sequence[SharedModel], least: Sequence[SharedModel]) -> list[int]:
    """What each may use beside the process: its least, and of what is left by its nodes, up to what it can use."""
    shares = [model.own for model in least]
    hungry = [index for index, model in enumerate(models) if model.own > shares[index]]
    while hungry and left > 0:
        weights = sum(len(models[index].nodes) for index in hungry)
        gained = {index: left * len(models[index].nodes) // weights for index in hungry}
        full = [index for index in hungry if shares[index] + gained[index] >= models[index].own]
        for index in full or hungry:
            more = min(gained[index], models[index].own - shares[index])
            shares[index] += more
            left -= more
        hungry = [index for index in hungry if index not in full] if full else []
    return shares


def _steps(
    nodes: Sequence[str], uses: Sequence[_Use], sizes: Mapping[_Use, int], room: int
) -> tuple[list[SharedStep], int]:
    """What each node opens and closes in the order of the file, and how much is in use at most."""
    steps, most = [], 0
    open_now: list[_Use] = []  # the longest unused first
    for node, use in zip(nodes, uses, strict=True):
        opens, closes = use not in open_now, []
        if not opens:
            open_now.remove(use)
        while open_now and sum(sizes[one] for one in open_now) + sizes[use] > room:
            closes.append(open_now.pop(0)[0])
        open_now.append(use)
        most = max(most, sum(sizes[one] for one in open_now))
        steps.append(SharedStep(node, use[0], opens, tuple(closes)))
    return steps, most
