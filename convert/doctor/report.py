"""A doctor's report for a person to read, on stdout."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING

from .checks import Report

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# level -> mark, its style, the style of what is said beside it; the worst first
LOOKS = {"problem": ("✗", "bold red", ""), "note": ("!", "bold yellow", ""), "ok": ("✓", "green", "dim")}


def print_report(report: Report) -> None:
    """Facts, findings, verdict. Lines are wrapped in a terminal alone, so that a pipe gets them whole."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    width = max(map(len, (*report.facts, *(one.subject for one in report.findings)))) + 2
    for fact, value in report.facts.items():
        _print(console, Text(f"  {fact:<{width}}", "dim"), value)
    console.print()
    for finding in sorted(report.findings, key=lambda one: list(LOOKS).index(one.level)):
        mark, colour, style = LOOKS[finding.level]
        label = Text.assemble((mark, colour), (f" {finding.subject:<{width}}", style or "bold"))
        _print(console, label, finding.what, style)
        if finding.repair:
            _print(console, Text.assemble(" " * (width + 2), ("→ ", "cyan")), finding.repair)
    console.print()
    console.print(Text(verdict(report), "bold green" if report.healthy else "bold red"))


def verdict(report: Report) -> str:
    levels = Counter(finding.level for finding in report.findings)
    counts = [
        f"{levels[level]} {level}{'s' * (levels[level] > 1)}"
        for level in ("problem", "note")
        if levels[level]
    ]
    if report.healthy:
        return ", ".join(["healthy", *counts])
    return f"{', '.join(counts)}: it will not load, or would answer wrongly"


def _print(console: Console, label: Text, body: str, style: str = "") -> None:
    """The body beside its label, and further lines of it beneath its first. A long name stays whole."""
    from rich.text import Text

    lines, room = [body], max(20, console.width - label.cell_len)
    if console.is_terminal:
        lines = textwrap.wrap(body, room, break_long_words=False, break_on_hyphens=False)
    for line in lines:
        console.print(Text.assemble(label, (line, style)), soft_wrap=True)
        label = Text(" " * label.cell_len)
