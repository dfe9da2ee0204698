"""Logits to the next token id."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import mlx.core as mx

from ..errors import ConfigError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose. Temperature 0 is greedy and ignores top_p, top_k and min_p.

    Filters apply in this order, as in transformers: repetition penalty (over the answer so far),
    temperature, top_k, top_p, min_p.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 (off) to 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0 (1 is off)"),
            ("seed", self.seed is None or 0 <= self.seed < 2**64, "from 0 to 2^64 - 1"),
        ):
            if not good:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {wanted}")


class Sampler:
    """The sampling state of one answer: its random key and the ids generated so far."""

    def __init__(self, sampling: Sampling, vocabulary: int):
        self._how = sampling
        seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
        self._key = mx.random.key(seed)
        self._said = mx.zeros((vocabulary,), mx.bool_)

    @property
    def greedy(self) -> bool:
        """Whether it always takes the likeliest token, whatever came before."""
        return self._how.temperature == 0 and self._how.repetition_penalty == 1

    def __call__(self, logits: mx.array) -> mx.array:
        """(vocabulary,) -> a scalar id, lazily"""
        how = self._how
        logits = logits.astype(mx.float32)
        if how.repetition_penalty != 1:
            penalised = mx.where(logits > 0, logits / how.repetition_penalty, logits * how.repetition_penalty)
            logits = mx.where(self._said, penalised, logits)
        if how.temperature == 0:
            chosen = mx.argmax(logits)
        else:
            self._key, now = mx.random.split(self._key)
            chosen = mx.random.categorical(filter_logits(logits / how.temperature, how), key=now)
        if how.repetition_penalty != 1:
            self._said = self._said | (mx.arange(self._said.size) == chosen)
        return chosen


def filter_logits(logits: mx.array, how: Sampling) -> mx.array:
    """Logits with the ids that the filters exclude at -inf; the most probable id always stays."""
    never = mx.array(-mx.inf, logits.dtype)
    if 0 < how.top_k < logits.size:
        least = mx.topk(logits, how.top_k).min()
        logits = mx.where(logits < least, never, logits)
    if how.top_p < 1:
        order = mx.argsort(-logits)
        probabilities = mx.softmax(logits[order])
        before = mx.cumsum(probabilities) - probabilities
        kept = mx.put_along_axis(mx.zeros_like(logits, dtype=mx.bool_), order, before < how.top_p, axis=0)
        logits = mx.where(kept, logits, never)
    if how.min_p > 0:
        probabilities = mx.softmax(logits)
        logits = mx.where(probabilities < how.min_p * probabilities.max(), never, logits)
    return logits
