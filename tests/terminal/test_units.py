"""Times and sizes as people write them."""

import pytest

from fastvlm_mlx import ConfigError
from fastvlm_mlx.terminal.units import parse_bytes, parse_seconds


@pytest.mark.parametrize(("text", "expected"), [("200ms", 0.2), ("1.5s", 1.5), (" 3 s ", 3.0)])
def test_times_have_units(text: str, expected: float) -> None:
    assert parse_seconds(text, "--ttft") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"), [("4GB", 4e9), ("512 MB", 512e6), ("2GiB", 2**31), ("1.5MiB", 1.5 * 2**20)]
)
def test_memories_have_units(text: str, expected: float) -> None:
    assert parse_bytes(text, "--memory") == expected


@pytest.mark.parametrize("text", ["", "ms", "200", "-1s", "0ms", "1h", "4 GB"])
def test_other_amounts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--ttft"):
        parse_seconds(text, "--ttft")
