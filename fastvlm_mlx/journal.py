"""Lines of JSON that are added as they come. Of a file whose writer was killed, the whole lines count."""

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
    """All of it, or an error: a disk that fills up takes the first part of a line."""
    if file.write(line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def whole(content: bytes) -> int:
    """Bytes up to the end of the last line that is not torn."""
    return content.rfind(b"\n") + 1


def parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def first_difference(found: Record, wanted: Record, aside: Collection[str] = ()) -> str:
    """What was begun with other settings must not be gone on with.

    >>> first_difference({"model": "a"}, {"model": "b"})
    "was begun with model 'a', and now it is 'b'"
    """
    for name, value in wanted.items():
        if found[name] != value and name not in aside:
            return f"was begun with {name} {found[name]!r}, and now it is {value!r}"
    return ""
