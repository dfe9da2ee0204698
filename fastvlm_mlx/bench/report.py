"""What was measured, as text, Markdown or JSON: medians, and how far runs lie apart."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from .machine import Machine
from .measure import PARTS, TIMES, TOLERANCE, Case, Run
from .table import Table, ms

Cases = Mapping[Case, Sequence[Run]]

_HEADS = (
    *("px", "batch", "picture + text tokens", "read", "preprocess", "prompt", "vision", "projector"),
    *("prefill", "first token", "TTFT ms", "± ms", "tokens/s", "peak GiB"),
)
_STOPPED = "Interrupted: not every run was made."


@dataclass(frozen=True, slots=True)
class Setting:
    """What was measured, and on what."""

    machine: Machine
    model: str
    dtype: str
    quantization: str
    load_s: float | None  # None for random weights, which are not read
    cold_start_s: float | None  # a fresh process: start, load, one token, end
    resident_bytes: int
    complete: bool  # False where it was interrupted


def median(runs: Sequence[Run], name: str) -> float:
    return statistics.median(getattr(run, name) for run in runs)


def spread(runs: Sequence[Run], name: str) -> float:
    """Half of what lies between the fastest and the slowest."""
    values = [getattr(run, name) for run in runs]
    return (max(values) - min(values)) / 2


def tokens_per_s(case: Case, runs: Sequence[Run]) -> float:
    """Of all prompts of the batch; the first token belongs to the prefill."""
    return case.batch * (runs[0].tokens - 1) / median(runs, "decode_s")


def as_json(setting: Setting, sections: Mapping[str, object]) -> str:
    return json.dumps(asdict(setting) | dict(sections), ensure_ascii=False, indent=2) + "\n"


def as_text(setting: Setting, tables: Sequence[Table]) -> str:
    return "\n\n".join(
        ["\n".join(facts(setting)), *(table.as_text() for table in tables), *_stopped(setting)]
    )


def as_markdown(setting: Setting, tables: Sequence[Table]) -> str:
    listed = "\n".join(f"- {fact}" for fact in facts(setting))
    return "\n\n".join([listed, *(table.as_markdown() for table in tables), *_stopped(setting)]) + "\n"


def _stopped(setting: Setting) -> list[str]:
    return [] if setting.complete else [_STOPPED]


def facts(setting: Setting) -> list[str]:
    started = [
        f"{what} {taken:.2f} s"
        for what, taken in (("load", setting.load_s), ("cold start", setting.cold_start_s))
        if taken is not None
    ]
    return [
        setting.machine.words,
        f"{setting.model}, {setting.dtype}, quantization {setting.quantization}",
        ", ".join([*started, f"at most {setting.resident_bytes / 2**30:.2f} GiB resident"]),
    ]


def records(cases: Cases) -> list[dict[str, object]]:
    """Every run, for JSON."""
    return [
        {
            **asdict(case),
            **{name: getattr(runs[0], name) for name in ("image_tokens", "text_tokens", "tokens")},
            "median": {name: median(runs, name) for name in TIMES},
            "spread": {name: spread(runs, name) for name in TIMES},
            "tokens_per_s": tokens_per_s(case, runs),
            "peak_bytes": max(run.peak_bytes for run in runs),
            "runs": [asdict(run) | {"unaccounted": run.unaccounted} for run in runs],
        }
        for case, runs in cases.items()
        if runs
    ]


def table(cases: Cases) -> Table:
    rows = [
        (
            case.options().label,
            str(case.batch),
            f"{runs[0].image_tokens} + {runs[0].text_tokens}",
            *(ms(median(runs, name)) for name in (*PARTS, "ttft_s")),
            ms(spread(runs, "ttft_s")),
            f"{tokens_per_s(case, runs):.1f}",
            f"{max(run.peak_bytes for run in runs) / 2**30:.2f}",
        )
        for case, runs in cases.items()
        if runs
    ]
    runs = [run for runs in cases.values() for run in runs]
    most = max((abs(run.unaccounted) for run in runs), default=0.0)
    beyond = "" if most <= TOLERANCE else f", more than {TOLERANCE:.0%}: something else had the machine"
    counted = min((len(runs) for runs in cases.values()), default=0)
    note = (
        f"Medians of {counted} runs in turn after a warm-up, in ms; ± is half the range. TTFT is from "
        f"encoded picture to first token; its parts leave out {most:.1%} of it at most{beyond}."
    )
    return Table("", _HEADS, rows, (note,))
