"""`RunPlan`: the settings a model runs with on one machine at one moment, and why each is what it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tea_models.engine.engine_settings import EngineSettings
from tea_models.engine.formula import MemoryUse
from tea_models.machine.detect import Machine

Setting = int | float | str | bool | None


@dataclass(frozen=True, slots=True)
class Rejected:
    """An alternative that was not taken."""

    value: Setting
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """One setting, and who decided: `user`, `project`, `registry`, `gguf`, `hardware` or `default`, in this order."""

    setting: str  # as llama.cpp and llama-cpp-python call it
    value: Setting
    source: str
    reason: str  # in a sentence with the numbers
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that may be used of the machine's memory, where that comes from, and those of each device by its name."""

    budget: int
    budget_reason: str
    device_budgets: dict[str, int]

    def excess(self, use: MemoryUse) -> int:
        """Bytes by which something is too large where it is most so; 0 or less where it fits."""
        own = {name: sum(parts) for name, parts in use.devices.items() if name in self.device_budgets}
        # A device without a budget of its own works in the machine's memory.
        host = use.total - sum(own.values()) - self.budget
        return max([host, *(size - self.device_budgets[name] for name, size in own.items())])


@dataclass(frozen=True, slots=True)
class MemoryPlan(Budget):
    """What may be used, and what was measured or estimated for the settings."""

    use: MemoryUse

    @property
    def total(self) -> int:
        return self.use.total

    def to_json(self) -> dict[str, Any]:
        """The contract's keys and more, in bytes."""
        use = self.use
        parts = ("weights", "kv_cache", "compute", "overhead", "total", "method", "repacked")
        document: dict[str, Any] = {name: getattr(use, name) for name in parts}
        document["budget"] = self.budget + sum(self.device_budgets.get(name, 0) for name in use.devices)
        document["budget_reason"] = self.budget_reason
        if use.devices:
            document["host"] = {"total": use.host, "budget": self.budget}
            document["devices"] = [
                dict(zip(parts[:3], sizes, strict=True))
                | {"name": name, "total": sum(sizes), "budget": self.device_budgets.get(name)}
                for name, sizes in use.devices.items()
            ]
        return document


@dataclass(frozen=True, slots=True)
class Speed:
    """Rates in tokens a second, of reading a prompt and of writing an answer; None where one is unknown."""

    prompt_tokens_per_s: float | None
    tokens_per_s: float | None
    method: Literal["measured", "estimated"]  # on this machine, or from its memory bandwidth


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Settings for this machine, made from a profile, the hardware and the user's settings.

    Attributes:
        name: What the model is called.
        purpose: `chat` or `embed`.
        context_length: The trained context, or None if the file does not say.
        settings: The settings.
        memory: What they take and what may be used.
        decisions: Why, a decision a setting.
        notes: What a user should know beside the decisions, a sentence each.
        machine: The machine that it was made for.
        header_sha256: The model that it was made for.
        observed: What loading it has really taken here before, if it was recorded.
        speed: How fast it runs here, if something is known.
    """

    name: str
    purpose: str
    context_length: int | None
    settings: EngineSettings
    memory: MemoryPlan
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...]
    machine: Machine
    header_sha256: str
    observed: dict[str, Any] | None = None
    speed: Speed | None = None

    def decision(self, setting: str) -> Decision:
        """The decision on a setting; a KeyError if there is none."""
        return {decision.setting: decision for decision in self.decisions}[setting]

    def to_json(self) -> dict[str, Any]:
        """The document that `plan --json` prints."""
        known = ("name", "purpose", "context_length", "observed")
        return {name: getattr(self, name) for name in known} | {
            "settings": self.settings.to_json(),
            "memory": self.memory.to_json(),
            "speed": asdict(self.speed) if self.speed else None,
            "decisions": [asdict(one) | {"rejected": list(map(asdict, one.rejected))} for one in self.decisions],
            "notes": list(self.notes),
        }

    def llama_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for `llama_cpp.Llama`, KV types as the numbers that it expects."""
        return self.settings.to_json() | self.settings.type_numbers() | {"embedding": self.purpose == "embed"}
