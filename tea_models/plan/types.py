"""`RunPlan`: the settings a model runs with on one machine at one moment, and why each is what it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tea_models.sizes import human_bytes

if TYPE_CHECKING:
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
    """One setting.

    Attributes:
        setting: Its name, as llama.cpp and llama-cpp-python call it.
        value: What was decided.
        source: Who decided: `user`, `project`, `registry`, `gguf`, `hardware` or `default`, most important first.
        reason: Why, in a sentence with the numbers.
        rejected: What else was possible.
    """

    setting: str
    value: Setting
    source: str
    reason: str
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What the settings take, in bytes.

    Attributes:
        use: What was measured or estimated for them.
        budget: What may be used.
        budget_reason: Where the budget comes from.
        device_budgets: The same for devices beside the processor, by name of their buffers.
    """

    use: MemoryUse
    budget: int
    budget_reason: str
    device_budgets: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All of it, on all devices."""
        return self.use.total

    @property
    def method(self) -> str:
        """`measured` or `estimated`."""
        return self.use.method

    @property
    def fits(self) -> bool:
        """Whether the machine's memory and every device have room."""
        return excess(self.use, self.budget, self.device_budgets) <= 0

    def to_json(self) -> dict[str, Any]:
        """The contract's keys and more, in bytes."""
        use = self.use
        document: dict[str, Any] = {
            "weights": use.weights,
            "kv_cache": use.kv_cache,
            "compute": use.compute,
            "overhead": use.overhead,
            "total": use.total,
            "budget": self.budget + sum(self.device_budgets.get(name, 0) for name in use.devices),
            "budget_reason": self.budget_reason,
            "method": use.method,
            "repacked": use.repacked,
        }
        if use.devices:
            document["host"] = {"total": use.host, "budget": self.budget}
            document["devices"] = [
                {
                    "name": name,
                    "weights": weights,
                    "kv_cache": cache,
                    "compute": compute,
                    "total": weights + cache + compute,
                    "budget": self.device_budgets.get(name),
                }
                for name, (weights, cache, compute) in use.devices.items()
            ]
        return document


def excess(use: MemoryUse, budget: int, device_budgets: dict[str, int]) -> int:
    """Bytes by which something is too large for the machine's memory or for a device; 0 or less where it fits."""
    own = {name: sum(parts) for name, parts in use.devices.items() if name in device_budgets}
    # A device without a budget of its own works in the machine's memory.
    host = use.total - sum(own.values()) - budget
    return max(host, *(size - device_budgets[name] for name, size in own.items())) if own else host


@dataclass(frozen=True, slots=True)
class Speed:
    """Rates in tokens a second, None where one is unknown.

    Attributes:
        prompt_tokens_per_s: Of reading a prompt.
        tokens_per_s: Of writing an answer.
        method: `measured` on this machine, or `estimated` from its memory bandwidth.
    """

    prompt_tokens_per_s: float | None
    tokens_per_s: float | None
    method: Literal["measured", "estimated"]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


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
        """The decision on a setting.

        Raises:
            KeyError: There is none.
        """
        for decision in self.decisions:
            if decision.setting == setting:
                return decision
        raise KeyError(setting)

    def to_json(self) -> dict[str, Any]:
        """The document that `plan --json` prints."""
        return {
            "name": self.name,
            "purpose": self.purpose,
            "context_length": self.context_length,
            "settings": self.settings.to_json(),
            "memory": self.memory.to_json(),
            "speed": self.speed.to_json() if self.speed else None,
            "decisions": [
                asdict(decision) | {"rejected": list(map(asdict, decision.rejected))} for decision in self.decisions
            ],
            "notes": list(self.notes),
            "observed": self.observed,
        }

    def llama_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for `llama_cpp.Llama`, KV types as the numbers that it expects."""
        return self.settings.to_json() | self.settings.type_numbers() | {"embedding": self.purpose == "embed"}

    def summary(self) -> str:
        """One line for a log."""
        settings, use = self.settings, self.memory.use
        trained = f" of {self.context_length:,}" if self.context_length else ""
        gpu = "" if not settings.n_gpu_layers else f", {settings.n_gpu_layers} layers on GPU"
        return (
            f"{self.name}: n_ctx {settings.n_ctx:,}{trained}, {settings.n_threads} threads{gpu}, "
            f"KV cache {settings.type_k}, {human_bytes(use.total)} of {human_bytes(self.memory.budget)} ({use.method})"
        )
