"""What `/metrics` tells Prometheus, under the names that llama-server and vLLM use, so that their dashboards work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tea_runtime.backend import LlmCallResult
    from tea_runtime.server.pool import ModelPool

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts what an endpoint does, for each model.

    Args:
        pool: The models.
    """

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool
        self._registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, ["model_name", *labels], registry=self._registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, ["model_name"], registry=self._registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(name, text, ["model_name"], registry=self._registry, buckets=_SECONDS)

        self._prompt_tokens = [
            counter(f"{prefix}:prompt_tokens", "Tokens of prompts that were evaluated.")
            for prefix in ("llamacpp", "vllm")
        ]
        self._generated_tokens = [
            counter("llamacpp:tokens_predicted", "Tokens of answers."),
            counter("vllm:generation_tokens", "Tokens of answers."),
        ]
        self._prompt_seconds = counter("llamacpp:prompt_seconds", "Seconds of evaluating prompts.")
        self._generated_seconds = counter("llamacpp:tokens_predicted_seconds", "Seconds of writing answers.")
        self._finished = counter("vllm:request_success", "Requests that were answered.", "finished_reason")
        self._first = histogram("vllm:time_to_first_token_seconds", "Seconds until the first piece of a stream.")
        self._whole = histogram("vllm:e2e_request_latency_seconds", "Seconds until the end of an answer.")
        self._running = [
            gauge("llamacpp:requests_processing", "Requests in the batch."),
            gauge("vllm:num_requests_running", "Requests in the batch."),
        ]
        self._waiting = [
            gauge("llamacpp:requests_deferred", "Requests that wait for room in the batch."),
            gauge("vllm:num_requests_waiting", "Requests that wait for room in the batch."),
        ]
        self._cache = [
            gauge("llamacpp:kv_cache_usage_ratio", "Share of the largest context that is in use."),
            gauge("vllm:kv_cache_usage_perc", "Share of the largest context that is in use."),
        ]
        self._loaded = gauge("tea:model_loaded", "1 for a model that is in memory.")

    def first(self, model: str, seconds: float) -> None:
        """A stream has begun."""
        self._first.labels(model).observe(seconds)

    def finished(self, model: str, results: Sequence[LlmCallResult], seconds: float) -> None:
        """A request was answered."""
        self._whole.labels(model).observe(seconds)
        for result in results:
            usage, timings = result.usage or {}, result.timings or {}
            evaluated = usage.get("prompt_tokens", 0) - usage.get("cached_tokens", 0)
            for prompts in self._prompt_tokens:
                prompts.labels(model).inc(max(evaluated, 0))
            for generated in self._generated_tokens:
                generated.labels(model).inc(usage.get("completion_tokens", 0))
            self._prompt_seconds.labels(model).inc(timings.get("prompt_ms", 0) / 1000)
            self._generated_seconds.labels(model).inc(timings.get("predicted_ms", 0) / 1000)
            self._finished.labels(model, result.finish_reason or "").inc()

    def text(self) -> bytes:
        """All of it in Prometheus's format."""
        for model in self._pool.models:
            figures = getattr(model.backend, "load_figures", None)
            now = figures() if figures is not None else {}
            self._loaded.labels(model.name).set(model.backend is not None)
            for gauges, value in (
                (self._running, now.get("running", 0)),
                (self._waiting, now.get("waiting", 0)),
                (self._cache, now.get("tokens", 0) / now.get("n_ctx", 1)),
            ):
                for one in gauges:
                    one.labels(model.name).set(value)
        return generate_latest(self._registry)
