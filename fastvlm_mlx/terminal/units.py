"""Times and sizes as people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import ConfigError


def parse_seconds(text: str, option: str) -> float:
    """
    >>> seconds("200ms", "--ttft"), seconds("1.5 s", "--ttft")
    (0.2, 1.5)
    """
    return _parse_amount(text, option, {"ms": 1e-3, "s": 1.0}, "200ms or 1.5s")


def parse_bytes(text: str, option: str) -> float:
    """
    >>> size_bytes("4GB", "--memory"), size_bytes("512 MB", "--memory")
    (4000000000.0, 512000000.0)
    """
    return _parse_amount(text, option, {"GB": 1e9, "MB": 1e6, "GiB": 2.0**30, "MiB": 2.0**20}, "4GB or 512MB")


def _parse_amount(text: str, option: str, units: Mapping[str, float], example: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if not found or found[2] not in units or float(found[1]) <= 0:
        raise ConfigError(f"{option} {text!r}: is no amount; give a number with its unit, such as {example}")
    return float(found[1]) * units[found[2]]
