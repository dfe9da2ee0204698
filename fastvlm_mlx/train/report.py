"""Where a run stands: for its progress bar, its log lines and its curve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import curve
from .recipe import Plan
from .state import Logged


@dataclass
class Report:
    plan: Plan
    out: Path
    progress: Callable[[int, int], None]
    say: Callable[[str], None]
    place: str = "its beginning"

    def __call__(self, logged: Logged) -> None:
        names = [stage.name for stage in self.plan.stages]
        lengths = [stage.steps for stage in self.plan.stages]
        self.progress(sum(lengths[: names.index(logged.stage)]) + logged.step, sum(lengths))
        self.place = f"stage {logged.stage}, step {logged.step} of {logged.steps}"
        measures = "  ".join(f"{name} {value:.3f}" for name, value in logged.measures.items())
        self.say(f"{self.place}: loss {logged.loss:.4f}  {measures}  ({logged.s_per_step:.2f} s a step)")
        curve.draw(self.out / "log.jsonl", self.out / "curve.png")
