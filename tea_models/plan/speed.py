"""How fast a model runs here: measured where it has run, else estimated from the memory that each token reads."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from tea_models.disk.kept_json import keep, read_kept, read_rows
from tea_models.engine.engine_settings import EngineSettings
from tea_models.engine.formula import Hyperparameters, cache_layout, kv_bytes_per_token
from tea_models.machine.bandwidth import memory_bandwidth
from tea_models.machine.detect import Machine
from tea_models.plan.types import RunPlan, Speed
from tea_models.profile.facts import ModelProfile

_SPEEDS, _BANDWIDTHS = ".tea/speeds.json", ".tea/bandwidth.json"
_KEPT = 200
_SAMPLES = 5
# Shorter runs tell more about starting than about running.
_LEAST_PROMPT, _LEAST_TOKENS = 32, 16
# Measured on two cores with two models of 18 and 30 layers: what threads wait for each other, a layer and token.
_LAYER_SECONDS = 55e-6
# A context that answers are given at: its cache is read for each token too.
_CONTEXT = 512


def record_speed(store_dir: Path, plan: RunPlan, timings: dict[str, float]) -> bool:
    """Record the rates of an answer (`prompt_n`, `prompt_ms`, `predicted_…`); False if it was too short for that."""
    sample = {
        "header_sha256": plan.header_sha256,
        "n_threads": plan.settings.n_threads,
        "n_gpu_layers": plan.settings.n_gpu_layers,
        "prompt_tokens_per_s": _rate(timings, "prompt", _LEAST_PROMPT),
        "tokens_per_s": _rate(timings, "predicted", _LEAST_TOKENS),
    }
    if sample["prompt_tokens_per_s"] is None and sample["tokens_per_s"] is None:
        return False
    path = store_dir / _SPEEDS
    return keep(path, [*read_rows(path), sample][-_KEPT:])


def speed_of(profile: ModelProfile, settings: EngineSettings, machine: Machine, store_dir: Path) -> Speed | None:
    """How fast a model runs with some settings here; None if nothing is known."""
    same: dict[str, Any] = {"header_sha256": profile.header_sha256}
    same |= {"n_threads": settings.n_threads, "n_gpu_layers": settings.n_gpu_layers}
    samples = [sample for sample in read_rows(store_dir / _SPEEDS) if same.items() <= sample.items()]
    if samples:
        return Speed(_median(samples, "prompt_tokens_per_s"), _median(samples, "tokens_per_s"), "measured")
    if settings.n_gpu_layers or settings.embeddings:
        return None  # a GPU's memory is another one, and an embedding is no answer
    bandwidth = _bandwidth(machine, settings.n_threads, store_dir)
    if bandwidth is None or not profile.weights.total:
        return None
    layers = Hyperparameters(profile).layers
    return Speed(None, round(1 / (bytes_per_token(profile) / bandwidth + layers * _LAYER_SECONDS), 1), "estimated")


def bytes_per_token(profile: ModelProfile) -> int:
    """Bytes that writing one token reads: the weights that take part, and the cache of a short context."""
    h, weights = Hyperparameters(profile), profile.weights
    experts, used = h.number("expert_count"), h.number("expert_used_count")
    blocks = sum(weights.blocks)
    active = blocks * used // experts if experts and used else blocks
    # Of the token embedding one row is read, unless it is the output too.
    output = weights.output or weights.token_embedding
    return active + output + weights.other + _CONTEXT * kv_bytes_per_token(cache_layout(profile))


def _bandwidth(machine: Machine, threads: int, store_dir: Path) -> float | None:
    """The machine's memory bandwidth, measured once for each number of threads and kept."""
    path, key = store_dir / _BANDWIDTHS, f"{machine.cpu}, {threads}"
    kept = read_kept(path)
    known = kept if isinstance(kept, dict) else {}
    if not isinstance(known.get(key), float):
        found = memory_bandwidth(threads, machine.memory_usable)
        if found is None:
            return None
        known[key] = found
        keep(path, known)
    return float(known[key])


def _rate(timings: dict[str, float], part: str, least: int) -> float | None:
    count, milliseconds = timings[f"{part}_n"], timings[f"{part}_ms"]
    return round(count * 1000 / milliseconds, 1) if count >= least and milliseconds > 0 else None


def _median(samples: list[dict[str, Any]], name: str) -> float | None:
    rates = [rate for sample in samples if isinstance(rate := sample.get(name), float)]
    return statistics.median(rates[-_SAMPLES:]) if rates else None
