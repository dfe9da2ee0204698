import io
import sys

import pytest

from fastvlm_mlx.terminal.progress import bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_stays_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    with bar("answering", "rows") as advance:
        advance(1, 2)
    assert pipe.getvalue() == ""


@pytest.mark.parametrize(("of", "count"), [("bytes", "1.5/3.0 MB"), ("rows", "1500000/3000000 rows")])
def test_a_terminal_is_told_how_far(monkeypatch: pytest.MonkeyPatch, of: str, count: str) -> None:
    for name, value in (("TERM", "xterm"), ("COLUMNS", "100"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with bar("working", of) as advance:
        advance(1_500_000, 3_000_000)
    assert "working" in terminal.getvalue()
    assert count in terminal.getvalue()
