"""Metrics of the server for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .engine import Engine

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS_PER_S = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics:
    """Metrics of one server. Each has its own registry, so several may share a process."""

    def __init__(self, engine: Engine) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"fastvlm_{name}", help, labels, registry=registry)

        def gauge(name: str, help: str) -> Gauge:
            return Gauge(f"fastvlm_{name}", help, registry=registry)

        self.requests = counter("requests", "Responses by HTTP status.", "status")
        self.answer_tokens = counter("answer_tokens", "Generated tokens.")
        self.first_token = Histogram(
            "fastvlm_first_token_seconds",
            "Time from a request to its first token, including waiting.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.speed = Histogram(
            "fastvlm_tokens_per_second",
            "Decoding speed of an answer after its first token.",
            buckets=_TOKENS_PER_S,
            registry=registry,
        )
        for name, help, read in (
            ("waiting", "Questions waiting for a place.", lambda: engine.waiting),
            ("answering", "Questions being answered.", lambda: engine.answering),
            ("places", "Maximum number of questions answered at once.", lambda: engine.places),
            ("picture_hits", "Pictures whose features were cached.", lambda: engine.features.hits),
            ("picture_misses", "Pictures that were encoded.", lambda: engine.features.misses),
            ("picture_bytes", "Bytes of cached picture features.", lambda: engine.features.nbytes),
            ("prompt_tokens_read", "Prompt tokens that were prefilled.", lambda: engine.prefilled_tokens),
            ("prompt_tokens_known", "Prompt tokens that were cached.", lambda: engine.cached_tokens),
            ("prefix_bytes", "Bytes of cached KV prefixes.", lambda: engine.prefixes.nbytes),
        ):
            gauge(name, help).set_function(read)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
