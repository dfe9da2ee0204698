"""A new directory appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CheckpointError


@contextmanager
def new_directory(destination: Path, *, overwrite: bool = False, needs_bytes: int = 0) -> Iterator[Path]:
    """Yield a hidden sibling to fill; once the block ends well, sync it and rename it into place.

    Killed at any moment, `destination` is absent or whole. What a killed run left behind is removed
    by the next one to the same destination.
    """
    refuse(destination, overwrite)
    parent = destination.absolute().parent
    hidden = parent / f".{destination.name}.{os.getpid()}.partial"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent, destination.name)
        free = shutil.disk_usage(parent).free
        if needs_bytes > free:
            raise CheckpointError(
                f"{destination}: needs {_gib(needs_bytes)} and the disk has {_gib(free)} free; "
                "make room or choose another disk"
            )
        hidden.mkdir()
        yield hidden
        for path in sorted(hidden.rglob("*"), reverse=True):
            _sync(path)
        _sync(hidden)
        _swap_in(hidden, destination)
        _sync(parent)
    except OSError as error:
        raise CheckpointError(
            f"{destination}: cannot be written ({error.strerror or error}); nothing was changed. "
            "Check the free space and the permissions of its folder"
        ) from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def refuse(destination: Path, overwrite: bool) -> None:
    """Say early, before any work, that the destination is taken."""
    if os.path.lexists(destination) and not overwrite:
        raise CheckpointError(f"{destination}: exists already; choose another path or pass --overwrite")
    if overwrite and destination.exists() and not destination.is_dir():
        raise CheckpointError(f"{destination}: is a file, and a directory is to be written; remove it first")


def _swap_in(hidden: Path, destination: Path) -> None:
    if not os.path.lexists(destination):
        hidden.rename(destination)
        return
    old = hidden.with_suffix(".replaced")
    destination.rename(old)
    hidden.rename(destination)
    shutil.rmtree(old, ignore_errors=True)


def _sweep(parent: Path, name: str) -> None:
    for left in parent.glob(f".{name}.*.partial"):
        pid = left.name.removeprefix(f".{name}.").removesuffix(".partial")
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
