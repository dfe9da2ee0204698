"""The candidates for each operation of a tower, tried on this machine at the tower's own shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..config import VisionConfig
from ..kernels import choice, measure
from ..kernels.candidates import Candidate, Problem, able, device
from ..models.vision import FastViTHD
from .table import Table, ms

_HEADS = ("operation", "at", "candidate", "error", "ms", "stock ÷ it", "")


@dataclass(frozen=True, slots=True)
class Tried:
    problem: Problem
    trials: Sequence[measure.Trial]  # the stock one first

    @property
    def best(self) -> Candidate:
        return measure.best(self.trials)

    def ratio(self, trial: measure.Trial) -> float | None:
        """How many times as fast as the stock one."""
        stock_s = self.trials[0].seconds
        return stock_s / trial.seconds if stock_s and trial.seconds else None


def problems(config: VisionConfig, size: int, dtype: mx.Dtype) -> list[Problem]:
    """What the tower's layers ask for at this picture size, where there is a choice; nothing is computed."""
    with choice.watch() as seen:
        FastViTHD(config)(mx.zeros((1, size, size, 3)))
    return [problem for problem in seen.values() if len(able(problem, device(), dtype)) > 1]


def tried(problem: Problem, dtype: mx.Dtype, rounds: int) -> Tried:
    return Tried(problem, measure.trials(problem, device(), dtype, rounds))


def table(found: Sequence[Tried], size: int) -> Table:
    rows = [
        (
            each.problem.key,
            each.problem.shape,
            trial.candidate.name,
            "" if trial.error is None else f"{trial.error:.0e}",
            ms(trial.seconds),
            trial.why if (ratio := each.ratio(trial)) is None else f"{ratio:.2f}",
            "chosen" if trial.candidate is each.best else "",
        )
        for each in found
        for trial in each.trials
    ]
    note = "Errors are of the largest value, from the plain definition on a small input; times are medians."
    return Table(f"Candidates, pictures of {size} px", _HEADS, rows, (note,))


def records(found: Sequence[Tried], size: int) -> list[dict[str, object]]:
    return [
        {
            "operation": each.problem.key,
            "shape": each.problem.shape,
            "size": size,
            "candidate": trial.candidate.name,
            "error": trial.error,
            "seconds": trial.seconds,
            "ratio": each.ratio(trial),
            "dropped": trial.why or None,
            "chosen": trial.candidate is each.best,
        }
        for each in found
        for trial in each.trials
    ]
