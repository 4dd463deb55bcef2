"""What a plan is made from, worked out once: the model's traits, the budget, and the decisions so far."""

from __future__ import annotations

from tea_models.engine.formula import MIB, NO_CACHE, cache_layout
from tea_models.errors import UsageError
from tea_models.machine.detect import Machine
from tea_models.plan.types import Budget, Decision, Rejected, Setting
from tea_models.plan.user_settings import UserSettings
from tea_models.profile.facts import ModelProfile
from tea_models.profile.kind import why_no_chat
from tea_models.sizes import human_bytes

#: Below this many tokens `auto` gives up: a system prompt, a question and an answer must fit.
SMALLEST_CONTEXT = 2048
#: Where the file does not say what it was trained with.
UNKNOWN_CONTEXT = 4096
#: Physical batches worth comparing.
BATCHES = (512, 256, 128, 64)
#: Measured on a processor: prompts are about as fast in batches of 128 as of 512, and a fifth slower in batches of 64.
FAST_BATCH, SMALL_BATCH = 128, 64
#: KV types that a plan may choose for itself, in this order.
SMALLER_TYPES = ("q8_0", "q4_0")
# The user's setting that decides on one of the engine's; for `n_ctx` and `n_gpu_layers` the planner says more.
_ASKED = {name: name for name in ("n_batch", "n_ubatch", "n_threads", "flash_attn", "swa_full")} | {
    "n_threads_batch": "n_threads",
    "type_k": "kv_type",
    "type_v": "kv_type",
}


class PlanInput:
    """One model on one machine with the user's settings, and the decisions so far."""

    def __init__(self, profile: ModelProfile, machine: Machine, user: UserSettings, name: str) -> None:
        kind = profile.kind.value
        self.name = name or profile.name.value or profile.files[0].name
        if kind in ("projector", "adapter", "vocabulary"):
            raise UsageError(f"{self.name}: {why_no_chat(kind)}: there is nothing to plan")
        self.profile, self.machine, self.user = profile, machine, user
        self.purpose = user.purpose or ("embed" if kind in ("embedding", "reranker") else "chat")
        self.layout = cache_layout(profile)
        self.encoder = profile.architecture.value in NO_CACHE  # it sees a whole text at once, and keeps nothing
        self.trained = profile.context_length.value or UNKNOWN_CONTEXT
        self.vocabulary = profile.tokenizer.vocab_size.value or 0  # its pieces
        self.budget = make_budget(machine, user.memory)
        self.decisions: dict[str, Decision] = {}

    @property
    def batch_is_free(self) -> bool:
        """Whether the plan chooses the physical batch."""
        return not self.encoder and self.user.n_ubatch is None

    @property
    def cache_type_is_free(self) -> bool:
        """Whether the plan may choose a smaller KV type."""
        return self.user.kv_type is None and self.user.flash_attn is not False and bool(self.layout.layers)

    def decide(self, setting: str, value: Setting, source: str, reason: str, *rejected: Rejected) -> None:
        """Write down a decision, unless it was made before; what was asked for has no other reason."""
        if setting in _ASKED and getattr(self.user, _ASKED[setting]) is not None:
            source, reason, rejected = self.user.source, "asked for", ()
        self.decisions.setdefault(setting, Decision(setting, value, source, reason, rejected))


def make_budget(machine: Machine, memory: int | None) -> Budget:
    """What may be used: `memory`, or what is free now under every limit less a tenth (at most 1 GiB) to spare."""

    def margin(usable: int) -> int:
        return max(64 * MIB, min(1024 * MIB, usable // 10))

    devices = {gpu.name: gpu.memory_free - margin(gpu.memory_free) for gpu in machine.gpus if not gpu.unified}
    if memory is not None:
        return Budget(memory, "as asked for", devices)
    if not machine.memory_total:
        raise UsageError("how much memory this machine has can't be told here", hint="say it: --memory 8GiB")
    usable = machine.memory_usable
    spare = margin(usable)
    reason = f"{human_bytes(usable)} available of {human_bytes(machine.memory_total)}"
    if machine.limited:
        limit = human_bytes(machine.memory_limit or 0)
        reason = f"{human_bytes(usable)} free of the {limit} that {machine.memory_limit_source} allows"
    return Budget(max(0, usable - spare), f"{reason}, less {human_bytes(spare)} to spare", devices)
