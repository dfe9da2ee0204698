"""What the tests of wrong input share. Limits, signals and other users have processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command import MODEL, Run
from refusals import Case, assert_refused, snapshot

from fastvlm_mlx.convert.run import convert


@pytest.fixture
def expect_refusal(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Case], None]:
    """Runs a case in a folder of its own, which stays as it was."""

    def expect_refusal(case: Case) -> None:
        arguments = case.make(tmp_path)
        monkeypatch.chdir(tmp_path)
        before = snapshot(tmp_path)
        done = run(*arguments)
        assert snapshot(tmp_path) == before
        assert_refused(done, case.names, case.repair, case.code)

    return expect_refusal


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint as `convert` writes it."""
    out = tmp_path_factory.mktemp("converted") / "out"
    convert(MODEL, out)
    return out
