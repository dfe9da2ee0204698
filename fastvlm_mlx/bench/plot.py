"""Results as pictures, by matplotlib, which is loaded here alone."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files.atomic import require_writable, write_file
from .measure import PARTS, Case, Run
from .planning import Point, on_front
from .report import Cases, Setting, facts, median

KINDS = (".png", ".svg")
_DPI = 100
_INCHES = (12.0, 6.75)  # 1200 px wide
_LABELS = dict(
    zip(
        PARTS,
        ("read the file", "preprocess", "prompt", "vision", "projector", "prefill", "first token"),
        strict=True,
    )
)
_COLOURS = (
    "#8c8c8c",
    "#c7a252",
    "#b8b8b8",
    "#3b6fb6",
    "#7fb2e5",
    "#d9643a",
    "#7a3b8f",
)  # told apart in gray too
_PLAN_COLOURS = ("#3b6fb6", "#d9643a", "#7a3b8f")  # by model
_STYLES = {None: ("o", "-"), 8: ("s", "--"), 4: ("^", ":")}  # by bits: marker and line
_FONT = 13
_LONG_S = 5.0  # from here on in seconds


def require(destination: Path) -> None:
    """Say early that no picture can be written there, or that nothing can draw it."""
    if destination.suffix.lower() not in KINDS:
        raise ConfigError(f"--plot {destination}: draws {' or '.join(KINDS)}; give a name that ends so")
    require_writable(destination)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("--plot needs matplotlib; run pip install 'fastvlm-mlx[plot]'") from None


def breakdown(setting: Setting, measured: Cases, destination: Path) -> None:
    """A bar for each case, of the parts of its time to the first token. Without runs nothing is drawn."""
    cases = {case: runs for case, runs in measured.items() if runs}
    if not cases:
        return
    figure, axes = _axes()
    names = [_name(case, runs) for case, runs in cases.items()]
    below = [0.0] * len(cases)
    whole = max(sum(median(runs, part) for part in PARTS) for runs in cases.values())
    unit, scale = ("s", 1.0) if whole >= _LONG_S else ("ms", 1e3)
    for part, colour in zip(PARTS, _COLOURS, strict=True):
        heights = [scale * median(runs, part) for runs in cases.values()]
        axes.bar(names, heights, 0.6, bottom=below, color=colour, label=_LABELS[part])
        below = [sum(pair) for pair in zip(below, heights, strict=True)]
    for place, top in enumerate(below):
        axes.annotate(
            f"{top:.3g} {unit}" if top < 100 else f"{top:.0f} {unit}", (place, top), (0, 5), **_ABOVE
        )
    axes.set_ylim(0, 1.1 * max(below))
    axes.set_ylabel(f"time to the first token, {unit}", fontsize=_FONT)
    machine = textwrap.fill(facts(setting)[0], 100)  # what fits above the axes
    axes.set_title(f"{setting.model}, {setting.dtype}\n{machine}", fontsize=_FONT, loc="left")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper left", **_LEGEND)
    _write(figure, destination)


def plan(points: Sequence[Point], budget_s: float, title: str, destination: Path) -> None:
    """Picture size against time to the first token, a line for each language model; the front is filled."""
    if not points:
        return
    figure, axes = _axes()
    variants = list(dict.fromkeys(point.choice.variant for point in points))
    for variant, bits in dict.fromkeys((point.choice.variant, point.choice.bits) for point in points):
        mine = [one for one in points if (one.choice.variant, one.choice.bits) == (variant, bits)]
        colour = _PLAN_COLOURS[variants.index(variant)]
        marker, line = _STYLES[bits]
        for chosen, fill in ((mine, "white"), ([one for one in mine if on_front(one, points)], colour)):
            axes.plot(
                [1e3 * one.ttft_s for one in chosen],
                [one.choice.size for one in chosen],
                marker=marker,
                linestyle=line if chosen is mine else "",
                color=colour,
                markerfacecolor=fill,
                markersize=11,
                linewidth=2,
                label=f"{variant}, {mine[0].choice.weights}" if chosen is mine else None,
            )
    axes.axvline(1e3 * budget_s, color="black", linestyle="--", label=f"asked for: {1e3 * budget_s:.0f} ms")
    axes.set_xscale("log")
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        ticks(lambda value, _: f"{value:g}")
    axes.tick_params(which="minor", labelsize=_FONT)
    axes.set_yticks(sorted({point.choice.size for point in points}))
    axes.set_xlabel("time to the first token, ms", fontsize=_FONT)
    axes.set_ylabel("picture, px", fontsize=_FONT)
    axes.set_title(
        f"{title}\nfilled: none is faster with as large a picture and model", fontsize=_FONT, loc="left"
    )
    axes.legend(loc="upper left", **_LEGEND)
    _write(figure, destination)


_LEGEND: dict[str, Any] = {"fontsize": _FONT, "edgecolor": "white", "framealpha": 1.0}
_ABOVE: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": _FONT}


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no window, no global state

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_FONT)
    axes.grid(axis="y", color="#dddddd")
    axes.set_axisbelow(True)
    return figure, axes


def _name(case: Case, runs: Sequence[Run]) -> str:
    tokens = f"{runs[0].image_tokens} + {runs[0].text_tokens} tokens"
    size, _, how = case.options().label.partition(" ")
    return f"{size} px {how}".strip() + (f" × {case.batch}" if case.batch > 1 else "") + f"\n{tokens}"


def _write(figure: Any, destination: Path) -> None:
    held = io.BytesIO()
    figure.savefig(held, format=destination.suffix.lower()[1:])
    write_file(destination, held.getvalue())
