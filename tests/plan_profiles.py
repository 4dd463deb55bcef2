"""Profiles made from hyperparameters, and machines made from numbers, for tests of plans."""

from __future__ import annotations

from typing import Any

from tea_models.machine.detect import Gpu, Machine
from tea_models.profile.facts import ChatFacts, Fact, ModelProfile, ProfileFile, TokenizerFacts, WeightFacts

MIB, GIB = 1024**2, 1024**3


def fact(value: Any, source: str = "gguf:test") -> Fact[Any]:
    return Fact(value, source)


def profile_of(
    architecture: str,
    hyperparameters: dict[str, Any],
    *,
    weights: int = 100 * MIB,
    kind: str = "chat",
    name: str = "test-model",
) -> ModelProfile:
    """A profile with these hyperparameters, the weights spread evenly over the blocks."""
    nothing = fact(None)
    blocks = int(hyperparameters.get("block_count", 1))
    facts = {key: fact(tuple(value) if isinstance(value, list) else value) for key, value in hyperparameters.items()}
    tokenizer = TokenizerFacts(
        fact("gpt2"), nothing, fact(hyperparameters.get("vocab_size")), nothing, nothing, nothing, nothing, nothing,
        nothing, fact(value=True), fact(value=False),
    )  # fmt: skip
    no = fact(value=False)
    chat = ChatFacts(nothing, nothing, nothing, no, no, fact(()), nothing, nothing, no)
    return ModelProfile(
        files=(ProfileFile(f"{name}.gguf", weights, None),),
        header_sha256="0" * 64,
        kind=fact(kind),
        name=fact(name),
        architecture=fact(architecture),
        quantization=fact("F16"),
        bits_per_weight=fact(16.0),
        parameters=fact(weights // 2),
        context_length=fact(hyperparameters.get("context_length")),
        embedding_length=fact(hyperparameters.get("embedding_length")),
        license=nothing,
        pooling=nothing,
        tokenizer=tokenizer,
        chat=chat,
        weights=WeightFacts(weights, (weights // (blocks + 1),) * blocks, weights // (blocks + 1), 0, 0),
        hyperparameters=facts,
    )


def machine_with(available: int, *, gpus: tuple[Gpu, ...] = (), threads: int = 4, **more: Any) -> Machine:
    """A machine with this much memory available."""
    values: dict[str, Any] = {
        "system": "linux", "cpu": "test", "memory_total": 2 * available, "memory_available": available,
        "memory_limit": None, "memory_limit_free": None, "memory_limit_source": "", "cores_logical": threads,
        "cores_physical": threads, "cores_allowed": threads, "cpu_quota": None, "gpus": gpus,
    }  # fmt: skip
    return Machine(**(values | more))
