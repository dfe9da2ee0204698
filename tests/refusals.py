"""Wrong input, and what a refusal is: one line that names it and the repair; nothing printed or written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from command import MODEL, Ran

FC1 = "model.mm_projector.0.weight"
DOCTOR = r"[Rr]un `fastvlm-mlx doctor \S*damaged`"

Snapshot = dict[str, tuple[int, int, str]]
Make = Callable[[Path], list[object]]  # builds its input in an empty folder and returns the arguments


@dataclass(frozen=True)
class Case:
    make: Make
    names: str  # what the message must name, a pattern
    repair: str  # what it must advise, a pattern
    code: int = 1


def snapshot(folder: Path) -> Snapshot:
    """Every entry's mode, time and content."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(folder.rglob("*"))
    }


def assert_refused(done: Ran, names: str, repair: str, code: int = 1) -> None:
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert "Traceback" not in done.err
    assert len(lines) == 1, done.err
    assert lines[0].startswith("fastvlm-mlx: ")
    assert done.code == code
    assert done.out == ""
    assert re.search(names, lines[0]), lines[0]
    assert re.search(repair, lines[0]), lines[0]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def filled(at: Path, *options: object) -> list[object]:
    (at / "out").mkdir()
    (at / "out" / "mine.txt").write_text("precious")
    (at / "out" / "config.json").write_text("{}")  # what is no model is not replaced at all
    return ["convert", MODEL, "-o", at / "out", *options]
