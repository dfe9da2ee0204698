"""Reports a run's scores, overall and by category, as text, Markdown or JSON; deterministic."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from .data import EvalRow
from .metrics import METRICS, YesNo, is_yes_or_no
from .predictions import EvalSettings

ALL = "all"
NO_CATEGORY = "without a category"
YES_NO = (
    ("accuracy", "accuracy"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("F1", "f1"),
    ("said yes", "yes_share"),
)


@dataclass(frozen=True, slots=True)
class Score:
    rows: int
    score: float  # from 0 to 1


@dataclass(frozen=True, slots=True)
class Report:
    settings: EvalSettings
    overall: Score
    categories: Mapping[str, Score]  # empty if no row has one
    yes_no: YesNo | None  # if every answer is yes or no


def summarize(settings: EvalSettings, rows: Sequence[EvalRow], generated: Mapping[int, str]) -> Report:
    """Score `generated`, the model's answer for each row's line."""
    metric = METRICS[settings.metric]
    scores = [metric(generated[row.line], row.answers) for row in rows]
    by_category: dict[str, list[float]] = {}
    for row, score in zip(rows, scores, strict=True):
        by_category.setdefault(row.category, []).append(score)
    named = {name or NO_CATEGORY: _mean(by_category[name]) for name in sorted(by_category)}
    yes_no = None
    if all(is_yes_or_no(row.answers) for row in rows):
        yes_no = YesNo.of((generated[row.line], row.answers[0].strip().lower()) for row in rows)
    return Report(settings, _mean(scores), {} if set(by_category) == {""} else named, yes_no)


def _mean(scores: Sequence[float]) -> Score:
    return Score(len(scores), sum(scores) / len(scores))


def as_json(report: Report) -> str:
    body = {
        **asdict(report.settings),
        **_rounded(asdict(report.overall)),
        "categories": {name: _rounded(asdict(score)) for name, score in report.categories.items()},
        "yes_no": _rounded(asdict(report.yes_no)) if report.yes_no else None,
    }
    return json.dumps(body, ensure_ascii=False, indent=2) + "\n"


def as_text(report: Report) -> str:
    lines = [f"{name:<8} {value}" for name, value in _facts(report)]
    table = _table(report)
    width = max(len(name) for name, *_ in (*table, *YES_NO))
    lines += ["", *(f"{name:<{width}}  {rows:>8}  {score:>7}" for name, rows, score in table)]
    if report.yes_no:
        lines += ["", *(f"{name:<{width}}  {value:>17}" for name, value in _yes_no(report.yes_no))]
    return "\n".join(lines)


def as_markdown(report: Report) -> str:
    lines = [f"- {name}: {value}" for name, value in _facts(report)]
    (heads, *body) = _table(report)
    lines += ["", _markdown(heads), "|---|--:|--:|", *map(_markdown, body)]
    if report.yes_no:
        lines += ["", "| yes or no | % |", "|---|--:|", *map(_markdown, _yes_no(report.yes_no))]
    return "\n".join(lines) + "\n"


def _facts(report: Report) -> list[tuple[str, str]]:
    how = report.settings
    precision = how.dtype if how.quantization == "none" else f"{how.dtype}, quantized ({how.quantization})"
    options = [f"pictures of {how.options.label}", f"up to {how.max_tokens} tokens"]
    if how.prompt_suffix:
        options.append(f"each with {json.dumps(how.prompt_suffix, ensure_ascii=False)}")
    if how.blind:
        options.append("blind (with other pictures)")
    return [
        ("model", f"{how.model}, {precision}"),
        ("data", f"{how.data}, sha256 {how.data_sha256[:12]}"),
        ("options", ", ".join(options)),
    ]


def _table(report: Report) -> list[tuple[str, str, str]]:
    """Table rows: header, categories, total; scores in percent."""
    scores = {**report.categories, ALL: report.overall}
    return [
        ("category" if report.categories else "", "rows", report.settings.metric),
        *((name, f"{score.rows:,}", _percent(score.score)) for name, score in scores.items()),
    ]


def _yes_no(found: YesNo) -> list[tuple[str, str]]:
    return [(name, _percent(getattr(found, field))) for name, field in YES_NO]


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _markdown(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in values.items()}
