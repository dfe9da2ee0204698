"""A table of results, told as text or as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    heads: Row
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    def as_text(self) -> str:
        lines = [self.heads, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        told = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in lines
        ]
        return "\n".join([*([self.title, ""] if self.title else []), *told, "", *self.notes])

    def as_markdown(self) -> str:
        title = [f"### {self.title}", ""] if self.title else []
        heads, *rows = ["| " + " | ".join(row) + " |" for row in (self.heads, *self.rows)]
        return "\n".join([*title, heads, "|" + "--:|" * len(self.heads), *rows, "", *self.notes])


def ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.1f}"
