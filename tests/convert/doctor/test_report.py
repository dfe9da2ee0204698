"""A report reads well in a terminal, and whole in a pipe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastvlm_mlx.convert.doctor.checks import Finding, Report
from fastvlm_mlx.convert.doctor.report import print_report, verdict

OK = Finding("ok", "weights", "every file whole", "")
NOTE = Finding("note", "output head", "[b]not markup[/b]: " + "word " * 30 + "end", "say :+1: the same")
PROBLEM = Finding("problem", "tensors", "missing: " + "vision.blocks." * 12 + "weight", "download it again")


def report(*findings: Finding) -> Report:
    return Report(Path("there"), "apple-llava", {"layout": "apple-llava", "size on disk": "2.4 MB"}, findings)


def test_a_pipe_gets_every_line_whole_and_plain(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(OK, NOTE, PROBLEM))
    assert capsys.readouterr().out.splitlines() == [
        "  layout        apple-llava",
        "  size on disk  2.4 MB",
        "",
        f"✗ tensors       {PROBLEM.what}",
        "                → download it again",
        f"! output head   {NOTE.what}",
        "                → say :+1: the same",
        "✓ weights       every file whole",
        "",
        "1 problem, 1 note: it will not load, or would answer wrongly",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_breaks_lines_between_words_alone(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color"), ("COLUMNS", str(width))):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_report(report(OK, NOTE, PROBLEM))
    shown = capsys.readouterr().out
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert "\x1b[1;31m✗" in shown
    whole = [line for line in lines if "vision.blocks." in line]
    name = PROBLEM.what.removeprefix("missing: ")
    assert whole == [" " * 16 + name]  # broken by the terminal, so that a copy is one line
    assert all(len(line) <= width and line == line.rstrip() for line in lines if line not in whole)
    assert NOTE.what in re.sub(r"\s+", " ", "".join(lines))


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        ((OK,), "healthy"),
        ((OK, NOTE), "healthy, 1 note"),
        ((NOTE, OK, NOTE), "healthy, 2 notes"),
        ((PROBLEM, PROBLEM), "2 problems: it will not load, or would answer wrongly"),
    ],
)
def test_the_verdict_counts(findings: tuple[Finding, ...], words: str) -> None:
    assert verdict(report(*findings)) == words
