"""Several models in one process: one budget shared out between them, or which is closed for which.

Where they fit together with their whole contexts, nothing is shared out. Where they only fit with less, each has what
it needs for a small context, and the rest goes to each by the number of nodes that use it. Where not even that fits,
each may use everything, and the longest unused ones are closed for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any

from tea_models.plan.plan_input import SMALLEST_CONTEXT, UNKNOWN_CONTEXT, make_budget
from tea_models.plan.resolve import OpenedModel, machine_now, open_for_plan, plan_opened
from tea_models.plan.types import RunPlan
from tea_models.plan.user_settings import UserSettings
from tea_models.requirements import NodeModel
from tea_models.settings import Settings
from tea_models.sizes import human_bytes

_NAMES = [item.name for item in fields(UserSettings)]


@dataclass(frozen=True, slots=True)
class SharedModel:
    """A model of several: the nodes that use it, the bytes that it may use, and its plan with these."""

    reference: str
    nodes: tuple[str, ...]
    share: int
    plan: RunPlan

    @property
    def own(self) -> int:
        """What it takes beside the process, which they all share."""
        return self.plan.memory.total - self.plan.memory.use.overhead


@dataclass(frozen=True, slots=True)
class SharedStep:
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

    def model(self, reference: str) -> SharedModel:
        """One of the models."""
        return next(model for model in self.models if model.reference == reference)

    def to_json(self) -> dict[str, Any]:
        """The document that `plan --workflow --json` prints."""
        names = ("budget", "budget_reason", "together", "reason", "total")
        models = [
            {"reference": model.reference, "nodes": list(model.nodes), "share": model.share, **model.plan.to_json()}
            for model in self.models
        ]
        steps = [{name: getattr(step, name) for name in ("node", "model", "opens", "closes")} for step in self.steps]
        return {name: getattr(self, name) for name in names} | {"models": models, "steps": steps}


def plan_together(nodes: Sequence[NodeModel], settings: Settings, *, measure: bool = True, **asked: Any) -> SharedPlan:
    """Plan the models of a workflow's nodes for one budget; `asked` goes before what a node's settings say.

    Raises:
        MemoryDoesNotFitError: One of them does not even fit alone.
        TeaModelsError: As `resolve_plan`, for any of them.
    """
    machine = machine_now(settings, measure=measure)
    users: dict[str, UserSettings] = {}
    for node in nodes:  # of nodes with different settings for one model, the first counts
        users.setdefault(node.reference, _user_settings(node.settings, asked))
    limit = next((user.memory for user in users.values() if user.memory), None)
    budget = make_budget(machine, limit)
    used_by = {reference: tuple(node.node for node in nodes if node.reference == reference) for reference in users}

    with ExitStack() as stack:

        def planned(opened: OpenedModel, reference: str, memory: int, n_ctx: int | None = None) -> SharedModel:
            user = users[reference]
            user = replace(user, memory=memory, n_ctx=n_ctx or user.n_ctx)
            plan = plan_opened(opened, settings, user, measure=measure)
            return SharedModel(reference, used_by[reference], memory, plan)

        opened = {one: stack.enter_context(open_for_plan(one, settings, measure=measure)) for one in users}
        models = [planned(opened[one], one, budget.budget) for one in users]
        process = max((model.plan.memory.use.overhead for model in models), default=0)
        room = budget.budget - process
        whole = sum(model.own for model in models)
        needed = f"with their whole contexts they take {human_bytes(whole + process)}"
        together, reason = True, f"{needed}: each has its own"
        models = [replace(model, share=model.plan.memory.total) for model in models]
        if whole > room:
            least = [
                planned(opened[one], one, budget.budget, _least(opened[one])) if user.n_ctx == "auto" else model
                for (one, user), model in zip(users.items(), models, strict=True)
            ]
            left = room - sum(model.own for model in least)
            together = left >= 0
            reason = f"{needed}, and do not fit together: the longest unused is closed for the next"
            if together:
                reason = f"{needed}: each has a smaller one, the larger the more nodes use it"
                shares = _shared_out(left, models, least)
                overheads = [model.plan.memory.use.overhead for model in models]
                models = [
                    planned(opened[one], one, share + overhead)
                    for one, share, overhead in zip(users, shares, overheads, strict=True)
                ]
    steps, most = _steps(nodes, {model.reference: model.own for model in models}, room)
    text = budget.budget_reason
    return SharedPlan(budget.budget, text, together, reason, most + process, tuple(models), tuple(steps))


def _user_settings(settings: Mapping[str, Any], asked: Mapping[str, Any]) -> UserSettings:
    given = {name: settings[name] for name in _NAMES if settings.get(name) not in (None, "")}
    for name, value in given.items():
        text = value.strip().lower() if isinstance(value, str) else value
        given[name] = int(text) if isinstance(text, str) and text.isdecimal() and name != "memory" else text
    purpose = "embed" if settings.get("embedding") else None
    return UserSettings.of(**{"purpose": purpose, **given, **{k: v for k, v in asked.items() if v is not None}})


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


def _steps(nodes: Sequence[NodeModel], sizes: Mapping[str, int], room: int) -> tuple[list[SharedStep], int]:
    """What each node opens and closes in the order of the file, and how much is in use at most."""
    steps, most = [], 0
    open_now: list[str] = []  # the longest unused first
    for node in nodes:
        opens, closes = node.reference not in open_now, []
        if not opens:
            open_now.remove(node.reference)
        while open_now and sum(sizes[one] for one in open_now) + sizes[node.reference] > room:
            closes.append(open_now.pop(0))
        open_now.append(node.reference)
        most = max(most, sum(sizes[one] for one in open_now))
        steps.append(SharedStep(node.node, node.reference, opens, tuple(closes)))
    return steps, most
