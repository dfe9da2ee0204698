"""A file of JSON lines, appended one by one. After a kill, the complete lines count."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection, Mapping
from io import FileIO
from typing import Any

Record = Mapping[str, Any]


def line(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def append(file: FileIO, line: bytes) -> None:
    """Write the whole line or raise: a full disk would keep only its first part."""
    if file.write(line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def whole(content: bytes) -> int:
    """The bytes up to the end of the last complete line."""
    return content.rfind(b"\n") + 1


def parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def first_difference(found: Record, wanted: Record, aside: Collection[str] = ()) -> str:
    """The first setting that differs from an earlier run's, in words; such a run must not be resumed.

    >>> first_difference({"model": "a"}, {"model": "b"})
    "was begun with model 'a', and now it is 'b'"
    """
    for name, value in wanted.items():
        if found[name] != value and name not in aside:
            return f"was begun with {name} {found[name]!r}, and now it is {value!r}"
    return ""
