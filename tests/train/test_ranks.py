"""Ranks on one machine: the first that fails ends the others, and none outlives the command."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastvlm_mlx.train import ranks

WAITING = "import time; time.sleep(60)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); {WAITING}"


def command(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def supervised(monkeypatch: pytest.MonkeyPatch, *programs: str) -> tuple[int, list[subprocess.Popen[bytes]]]:
    begun: list[subprocess.Popen[bytes]] = []

    def one(_: str, rank: int, __: dict[str, str], said: Path) -> subprocess.Popen[bytes]:
        with said.open("wb") as words:
            begun.append(subprocess.Popen(command(programs[rank]), stderr=words))
        return begun[-1]

    monkeypatch.setattr(ranks, "_POLL_S", 0.01)
    monkeypatch.setattr(ranks, "_started", one)
    return ranks.supervise(len(programs), "any"), begun


def test_all_done_is_success(monkeypatch: pytest.MonkeyPatch) -> None:
    assert supervised(monkeypatch, "pass", "pass")[0] == 0


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_ends_the_others_and_is_heard(
    failing: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = [WAITING, WAITING]
    programs[failing] = "import sys; sys.exit('no room')"
    status, begun = supervised(monkeypatch, *programs)
    assert status == 1
    assert begun[1 - failing].returncode == -signal.SIGTERM
    assert capsys.readouterr().err == ("no room\n" if failing else "")  # the first speaks for itself


def test_one_that_does_not_hear_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_PATIENCE_S", 0.2)
    with subprocess.Popen(command(DEAF), stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        began = time.monotonic()
        ranks._end([deaf])
        assert deaf.returncode == -signal.SIGKILL
        assert time.monotonic() - began < 20
