"""Which candidates are right, and how long they take."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import mlx.core as mx
import numpy as np

from .candidates import CPU, Candidate, Problem, Step, able

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")
# Of the largest value. More is allowed where the stock one has more: on some chips float32 products are not.
_LIMITS = {mx.float32: 5e-6, mx.float16: 3e-3, mx.bfloat16: 2e-2}
_HOPELESS = 3  # times as slow as the quickest at first sight: not timed again
_AT_ONCE = 8  # on a GPU, where setting one going and waiting for it would be most of the time
# What MLX raises: a kernel that does not compile, a grid that does not fit, a name that is not there.
_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, ArithmeticError, LookupError, MemoryError)


@dataclass(frozen=True, slots=True)
class Trial:
    candidate: Candidate
    error: float | None  # of the largest value; None if it failed
    seconds: float | None  # None: wrong, or failed
    why: str = ""  # it was dropped

    @property
    def right(self) -> bool:
        return self.seconds is not None


def trials(problem: Problem, where: str, dtype: mx.Dtype, rounds: int = 5) -> list[Trial]:
    """All that may run there, the stock one first, which is right by definition."""
    entrants = able(problem, where, dtype)
    errors = _errors(problem, entrants, dtype)
    limit = max(_LIMITS[dtype], 2 * (errors[0] or 0))
    found: dict[Candidate, Trial] = {}
    for candidate, error in zip(entrants, errors, strict=True):
        if error is None:
            found[candidate] = Trial(candidate, None, None, "failed")
        elif candidate is not entrants[0] and not error <= limit:  # not a number is wrong as well
            found[candidate] = Trial(candidate, error, None, "wrong")
            _LOG.debug("%s: %s is off by %.1e of the largest value", problem.key, candidate.name, error)
    inputs = problem.inputs(dtype)
    mx.eval(inputs)
    steps = {c: problem.step(c, inputs) for c in entrants if c not in found}
    for candidate, seconds in _times(problem, steps, 1 if where == CPU else _AT_ONCE, rounds).items():
        error = errors[entrants.index(candidate)]
        found[candidate] = Trial(candidate, error, seconds, "" if seconds else "failed")
    return [found[candidate] for candidate in entrants]


def best(tried: Sequence[Trial]) -> Candidate:
    return min((t for t in tried if t.right), key=lambda t: t.seconds or 0.0, default=tried[0]).candidate


def _errors(problem: Problem, entrants: Sequence[Candidate], dtype: mx.Dtype) -> list[float | None]:
    small = problem.small()
    inputs = small.inputs(dtype)
    expected = _each(small.expected(*(np.array(one.astype(mx.float32), np.float64) for one in inputs)))

    def error(candidate: Candidate) -> float | None:
        try:
            outputs = _each(small.step(candidate, inputs)())
            found = [np.array(one.astype(mx.float32), np.float64) for one in outputs]
        except _FAILURES as failure:
            _told(problem, candidate, failure)
            return None
        if [one.shape for one in found] != [one.shape for one in expected]:
            return float("inf")
        errors = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, expected, strict=True)]
        return float(np.max(errors))  # which keeps what is no number

    return [error(candidate) for candidate in entrants]


def _each(outputs: _T | tuple[_T, ...]) -> tuple[_T, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _times(
    problem: Problem, steps: dict[Candidate, Step], at_once: int, rounds: int
) -> dict[Candidate, float | None]:
    """Medians, in turns, after one that does not count."""
    taken: dict[Candidate, list[float]] = {candidate: [] for candidate in steps}
    failed: dict[Candidate, float | None] = {}
    for number in range(rounds + 1):
        quickest = min((min(times) for times in taken.values() if times), default=0.0)
        for candidate in list(taken):
            if number > 1 and taken[candidate][0] > _HOPELESS * quickest:
                continue
            began = time.perf_counter()
            try:
                mx.eval([steps[candidate]() for _ in range(at_once)])
            except _FAILURES as failure:
                _told(problem, candidate, failure)
                failed[candidate] = None
                del taken[candidate]
                continue
            if number:
                taken[candidate].append((time.perf_counter() - began) / at_once)
    return failed | {candidate: statistics.median(times) for candidate, times in taken.items()}


def _told(problem: Problem, candidate: Candidate, failure: Exception) -> None:
    _LOG.debug("%s: %s failed: %s", problem.key, candidate.name, " ".join(str(failure).split())[:300])
