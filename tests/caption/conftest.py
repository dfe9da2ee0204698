"""The command that captions, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from albums import OPTIONS
from command import Ran, Run


@pytest.fixture
def captioned(run: Run, tmp_path: Path) -> Callable[..., Ran]:
    """It writes captions.jsonl unless told otherwise, and must succeed."""

    def captioned(*arguments: object, out: object = None) -> Ran:
        done = run("caption", *arguments, "-o", out or tmp_path / "captions.jsonl", *OPTIONS)
        assert done.code == 0, done.err
        assert done.out == ""
        return done

    return captioned
