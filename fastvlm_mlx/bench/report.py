"""What was measured, as text, Markdown or JSON: medians, and how far runs lie apart."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from .machine import Machine
from .measure import PARTS, TIMES, TOLERANCE, Case, Run

_HEADS = (
    *("px", "batch", "picture + text tokens", "read", "preprocess", "prompt", "vision", "projector"),
    *("prefill", "first token", "TTFT ms", "± ms", "tokens/s", "peak GiB"),
)


@dataclass(frozen=True, slots=True)
class Report:
    machine: Machine
    model: str
    dtype: str
    quantization: str
    load_s: float | None  # None for random weights, which are not read
    cold_start_s: float | None  # a fresh process: start, load, one token, end
    resident_bytes: int
    complete: bool  # False where it was interrupted
    cases: Mapping[Case, Sequence[Run]]


def median(runs: Sequence[Run], name: str) -> float:
    return statistics.median(getattr(run, name) for run in runs)


def spread(runs: Sequence[Run], name: str) -> float:
    """Half of what lies between the fastest and the slowest."""
    values = [getattr(run, name) for run in runs]
    return (max(values) - min(values)) / 2


def tokens_per_s(case: Case, runs: Sequence[Run]) -> float:
    """Of all prompts of the batch; the first token belongs to the prefill."""
    return case.batch * (runs[0].tokens - 1) / median(runs, "decode_s")


def as_json(report: Report) -> str:
    cases = [
        {
            **asdict(case),
            **{name: getattr(runs[0], name) for name in ("image_tokens", "text_tokens", "tokens")},
            "median": {name: median(runs, name) for name in TIMES},
            "spread": {name: spread(runs, name) for name in TIMES},
            "tokens_per_s": tokens_per_s(case, runs),
            "peak_bytes": max(run.peak_bytes for run in runs),
            "runs": [asdict(run) | {"unaccounted": run.unaccounted} for run in runs],
        }
        for case, runs in report.cases.items()
        if runs
    ]
    kept = ("model", "dtype", "quantization", "load_s", "cold_start_s", "resident_bytes", "complete")
    body = {"machine": asdict(report.machine), **{name: getattr(report, name) for name in kept}}
    return json.dumps(body | {"cases": cases}, ensure_ascii=False, indent=2) + "\n"


def as_text(report: Report) -> str:
    table = _table(report)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join([*_facts(report), "", *rows, "", *_remarks(report)])


def as_markdown(report: Report) -> str:
    heads, *rows = ["| " + " | ".join(row) + " |" for row in _table(report)]
    facts = [f"- {fact}" for fact in _facts(report)]
    rule = "|" + "--:|" * len(_HEADS)
    return "\n".join([*facts, "", heads, rule, *rows, "", *_remarks(report)]) + "\n"


def _facts(report: Report) -> list[str]:
    on = report.machine
    cores = f", {on.gpu_cores} GPU cores" if on.gpu_cores else ""
    started = [
        f"{what} {taken:.2f} s"
        for what, taken in (("load", report.load_s), ("cold start", report.cold_start_s))
        if taken is not None
    ]
    return [
        f"{on.chip}{cores}, {on.memory_bytes / 2**30:.0f} GiB, {on.os}, MLX {on.mlx} on the {on.device}, "
        f"fastvlm-mlx {on.fastvlm_mlx}",
        f"{report.model}, {report.dtype}, quantization {report.quantization}",
        ", ".join([*started, f"at most {report.resident_bytes / 2**30:.2f} GiB resident"]),
    ]


def _table(report: Report) -> list[tuple[str, ...]]:
    return [
        _HEADS,
        *(
            (
                str(case.size),
                str(case.batch),
                f"{runs[0].image_tokens} + {runs[0].text_tokens}",
                *(_ms(median(runs, name)) for name in (*PARTS, "ttft_s")),
                _ms(spread(runs, "ttft_s")),
                f"{tokens_per_s(case, runs):.1f}",
                f"{max(run.peak_bytes for run in runs) / 2**30:.2f}",
            )
            for case, runs in report.cases.items()
            if runs
        ),
    ]


def _remarks(report: Report) -> list[str]:
    runs = [run for runs in report.cases.values() for run in runs]
    most = max((abs(run.unaccounted) for run in runs), default=0.0)
    beyond = "" if most <= TOLERANCE else f", more than {TOLERANCE:.0%}: something else had the machine"
    counted = min((len(runs) for runs in report.cases.values()), default=0)
    stopped = [] if report.complete else ["Interrupted: not every run was made."]
    return [
        f"Medians of {counted} runs in turn after a warm-up, in ms; ± is half the range. TTFT is from "
        f"encoded picture to first token; its parts leave out {most:.1%} of it at most{beyond}.",
        *stopped,
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"
