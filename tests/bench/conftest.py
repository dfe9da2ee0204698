"""Shared by the tests of the benchmark."""

from collections.abc import Iterator
from typing import Any

import pytest

from fastvlm_mlx.bench import measure as measuring


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes in the place of the fourth run."""
    whole = measuring.interleaved

    def broken_off(*arguments: Any) -> Iterator[object]:
        for number, told in enumerate(whole(*arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield told

    monkeypatch.setattr(measuring, "interleaved", broken_off)
