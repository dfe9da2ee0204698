"""Times to the first token that the FastVLM paper publishes (arXiv 2412.13303), and ours beside them.

Its method: vision tower and projector, then the prefill of the visual tokens alone; the picture's file, its
preprocessing and the text are left out. Measured there on an M1 Max, the tower on the Neural Engine and the
language model in float16 by MLX.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import ModelConfig
from .report import Cases, median
from .table import Table, ms
from .variants import VARIANTS


@dataclass(frozen=True, slots=True)
class Published:
    variant: str
    size: int
    vision_s: float
    prefill_s: float

    @property
    def ttft_s(self) -> float:
        return self.vision_s + self.prefill_s


PUBLISHED = (
    Published("1.5b", 768, 0.0548, 0.0971),
    Published("7b", 768, 0.0548, 0.3912),
    Published("0.5b", 1024, 0.1163, 0.0505),
    Published("1.5b", 1024, 0.1163, 0.1161),
    Published("7b", 1024, 0.1163, 0.5245),
)
# In per cent, at 1024 px: GQA, ScienceQA, TextVQA, POPE, DocVQA, MMMU, SeedBench, ChartQA, OCRBench, InfoVQA.
ACCURACY = {
    "0.5b": (62.7, 82.0, 65.8, 86.2, 79.1, 33.6, 69.3, 71.4, 55.8, 43.3),
    "1.5b": (64.3, 92.9, 71.2, 87.8, 84.2, 38.0, 72.6, 69.5, 61.2, 49.6),
    "7b": (64.1, 96.8, 76.1, 87.2, 88.0, 44.0, 74.5, 78.1, 67.3, 55.1),
}
ACCURACY_SIZE = 1024


@dataclass(frozen=True, slots=True)
class Compared:
    variant: str
    size: int
    paper_vision_s: float
    paper_prefill_s: float
    paper_ttft_s: float
    vision_s: float | None = None  # None where this model was not timed
    prefill_s: float | None = None
    ttft_s: float | None = None
    ratio: float | None = None  # ours over the paper's


def variant_of(config: ModelConfig) -> str | None:
    """Which released model has these sizes."""
    fitting = (
        name
        for name, known in VARIANTS.items()
        if known.vision == config.vision
        and (known.text.hidden_size, known.text.layers) == (config.text.hidden_size, config.text.layers)
    )
    return next(fitting, None)


def sizes(variant: str) -> list[int]:
    return [row.size for row in PUBLISHED if row.variant == variant]


def compare(variant: str | None, cases: Cases) -> list[Compared]:
    """`cases` without text; those of other sizes than the paper's are left aside."""
    timed = {case.size: runs for case, runs in cases.items() if not case.asks and case.batch == 1 and runs}
    rows = []
    for row in PUBLISHED:
        theirs = (row.variant, row.size, row.vision_s, row.prefill_s, row.ttft_s)
        runs = timed.get(row.size) if row.variant == variant else None
        if runs:
            vision = median(runs, "vision_s") + median(runs, "projector_s")
            prefill = median(runs, "prefill_s")
            whole = vision + prefill
            rows.append(Compared(*theirs, vision, prefill, whole, whole / row.ttft_s))
        else:
            rows.append(Compared(*theirs))
    return rows


def table(rows: Sequence[Compared], machine: str) -> Table:
    heads = (
        "model",
        "px",
        "paper vision",
        "prefill",
        "TTFT ms",
        "here vision",
        "prefill",
        "TTFT ms",
        "ratio",
    )
    told = [
        (
            row.variant,
            str(row.size),
            *map(ms, (row.paper_vision_s, row.paper_prefill_s, row.paper_ttft_s)),
            *map(ms, (row.vision_s, row.prefill_s, row.ttft_s)),
            "" if row.ratio is None else f"{row.ratio:.2f}×",
        )
        for row in rows
    ]
    return Table(
        "The paper's times to the first token, and ours by its method",
        heads,
        told,
        (
            "Method: vision (with projector) + prefill of the visual tokens, without text or preprocessing. "
            f"Paper: M1 Max, tower on the Neural Engine, float16. Here: {machine}. Ratio: here ÷ paper.",
        ),
    )
