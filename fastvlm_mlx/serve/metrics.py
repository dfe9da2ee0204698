"""What the server tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .engine import Engine

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS_PER_S = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics:
    """Of one server; several in a process do not mix."""

    def __init__(self, engine: Engine) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"fastvlm_{name}", help, labels, registry=registry)

        def gauge(name: str, help: str) -> Gauge:
            return Gauge(f"fastvlm_{name}", help, registry=registry)

        self.requests = counter("requests", "Requests by how they ended.", "status")
        self.answer_tokens = counter("answer_tokens", "Tokens said.")
        self.first_token = Histogram(
            "fastvlm_first_token_seconds",
            "From a request to its first token, waiting included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.speed = Histogram(
            "fastvlm_tokens_per_second",
            "Of one answer, after its first token.",
            buckets=_TOKENS_PER_S,
            registry=registry,
        )
        for name, help, read in (
            ("waiting", "Questions that have no place yet.", lambda: engine.waiting),
            ("answering", "Questions that are being answered.", lambda: engine.answering),
            ("places", "How many may be answered side by side.", lambda: engine.places),
            ("picture_hits", "Pictures that had been encoded before.", lambda: engine.features.hits),
            ("picture_misses", "Pictures that had to be encoded.", lambda: engine.features.misses),
            ("picture_bytes", "Encoded pictures held.", lambda: engine.features.nbytes),
            ("prompt_tokens_read", "Positions of prompts that were read.", lambda: engine.read_tokens),
            ("prompt_tokens_known", "Positions that were known before.", lambda: engine.reused_tokens),
            ("prefix_bytes", "Keys and values held for later.", lambda: engine.prefixes.nbytes),
        ):
            gauge(name, help).set_function(read)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
