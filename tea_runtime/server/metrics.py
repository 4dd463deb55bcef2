"""What `/metrics` tells Prometheus, under the names that llama-server and vLLM use, so that their dashboards work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tea_runtime.backend import LlmCallResult
from tea_runtime.server.pool import ModelPool

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts what an endpoint does, for each model."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool
        self._registry = CollectorRegistry()

        def make(kind: Any, text: str, *names: str, labels: Sequence[str] = (), **options: Any) -> list[Any]:
            return [kind(name, text, ["model_name", *labels], registry=self._registry, **options) for name in names]

        self._prompt_tokens = make(Counter, "Evaluated prompt tokens.", "llamacpp:prompt_tokens", "vllm:prompt_tokens")
        self._answer_tokens = make(Counter, "Tokens of answers.", "llamacpp:tokens_predicted", "vllm:generation_tokens")
        (self._prompt_seconds,) = make(Counter, "Seconds of evaluating prompts.", "llamacpp:prompt_seconds")
        (self._answer_seconds,) = make(Counter, "Seconds of writing answers.", "llamacpp:tokens_predicted_seconds")
        (self._answered,) = make(Counter, "Answered requests.", "vllm:request_success", labels=["finished_reason"])
        text = "Seconds until the first piece of a stream."
        (self._first,) = make(Histogram, text, "vllm:time_to_first_token_seconds", buckets=_SECONDS)
        text = "Seconds until the end of an answer."
        (self._whole,) = make(Histogram, text, "vllm:e2e_request_latency_seconds", buckets=_SECONDS)
        self._running = make(Gauge, "Running requests.", "llamacpp:requests_processing", "vllm:num_requests_running")
        self._waiting = make(Gauge, "Waiting requests.", "llamacpp:requests_deferred", "vllm:num_requests_waiting")
        text = "Share of the largest context that is in use."
        self._cache = make(Gauge, text, "llamacpp:kv_cache_usage_ratio", "vllm:kv_cache_usage_perc")
        self._loaded = make(Gauge, "1 for a model that is in memory.", "tea:model_loaded")

    def first(self, model: str, seconds: float) -> None:
        self._first.labels(model).observe(seconds)

    def finished(self, model: str, results: Sequence[LlmCallResult], seconds: float) -> None:
        self._whole.labels(model).observe(seconds)
        for result in results:
            usage, timings = result.usage or {}, result.timings or {}
            for counter in self._prompt_tokens:
                counter.labels(model).inc(max(usage.get("prompt_tokens", 0) - usage.get("cached_tokens", 0), 0))
            for counter in self._answer_tokens:
                counter.labels(model).inc(usage.get("completion_tokens", 0))
            self._prompt_seconds.labels(model).inc(timings.get("prompt_ms", 0) / 1000)
            self._answer_seconds.labels(model).inc(timings.get("predicted_ms", 0) / 1000)
            self._answered.labels(model, result.finish_reason or "").inc()

    def text(self) -> bytes:
        for model in self._pool.models:
            now = model.busy()
            for gauges, value in (
                (self._loaded, model.backend is not None),
                (self._running, now.get("running", 0)),
                (self._waiting, now.get("waiting", 0)),
                (self._cache, now.get("tokens", 0) / now.get("n_ctx", 1)),
            ):
                for gauge in gauges:
                    gauge.labels(model.name).set(value)
        return generate_latest(self._registry)
