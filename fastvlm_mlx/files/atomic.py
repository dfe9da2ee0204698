"""A new directory, or a new file, appears whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError, DataError

ADAPTER_CONFIG = "adapter_config.json"
TOWER_PACKAGE = "fastvithd.mlpackage"  # Xcode names the class of an app after it
# A directory without any of them is not ours to replace.
_OURS = ("config.json", ADAPTER_CONFIG, TOWER_PACKAGE)
_PARTIAL, _REPLACED = ".partial", ".replaced"


@contextmanager
def new_directory(destination: Path, *, overwrite: bool = False, needs_bytes: int = 0) -> Iterator[Path]:
    """Yield a hidden sibling to fill; once the block ends well, sync it and rename it into place.

    Killed at any moment, `destination` is absent or whole. What a killed run left behind is removed
    by the next one to the same destination.
    """
    parent = destination.absolute().parent
    hidden = parent / f".{destination.name}.{os.getpid()}{_PARTIAL}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent, destination.name)
        refuse(destination, overwrite)
        free = shutil.disk_usage(parent).free
        if needs_bytes > free:
            raise CheckpointError(
                f"{destination}: needs {_size(needs_bytes)} and the disk has {_size(free)} free; "
                "make room or choose another disk"
            )
        hidden.mkdir()
        yield hidden
        for path in sorted(hidden.rglob("*"), reverse=True):
            _sync(path)
        _sync(hidden)
        _swap_in(hidden, destination)
        _sync(parent)
    except (FileExistsError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{destination}: {error.filename} is a file where a folder is needed; choose another path"
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{destination}: cannot be written ({error.strerror or error}); nothing was changed. "
            "Check the free space and the permissions of its folder"
        ) from None
    finally:
        _remove(hidden)
        _settle(hidden.with_suffix(_REPLACED), destination)  # again, in case ctrl-C came during the first


@contextmanager
def new_file(destination: Path) -> Iterator[Path]:
    """Yield a hidden sibling to write; once the block ends well, it takes the destination's place."""
    require_writable(destination)
    _sweep(destination.absolute().parent, destination.name)
    hidden = destination.with_name(f".{destination.name}.{os.getpid()}{_PARTIAL}")
    try:
        yield hidden
        _sync(hidden)
        hidden.replace(destination)
    except OSError as error:
        raise DataError(
            f"{destination}: cannot be written ({error.strerror}); check the free space"
        ) from None
    finally:
        hidden.unlink(missing_ok=True)


def write_file(destination: Path, content: str | bytes) -> None:
    """Replace a file of results."""
    with new_file(destination) as hidden:
        hidden.write_bytes(content.encode() if isinstance(content, str) else content)


def require_writable(destination: Path) -> None:
    """Say early, before any work, that a file of results cannot be written there."""
    folder = destination.absolute().parent
    if os.path.exists(destination) and not os.path.isfile(destination):  # a folder, /dev/null
        raise DataError(f"{destination}: is no ordinary file; give a file's name")
    if not os.path.isdir(folder):
        raise DataError(f"{destination}: there is no folder {folder}; make it first")
    if not os.access(destination if os.path.exists(destination) else folder, os.W_OK):
        raise DataError(f"{destination}: may not be written; check the permissions, or choose another place")


def refuse(destination: Path, overwrite: bool) -> None:
    """Say early, before any work, that the destination is taken, or not something to replace."""
    if not os.path.lexists(destination):
        return
    if not overwrite:
        raise CheckpointError(f"{destination}: exists already; choose another path or pass --overwrite")
    if destination.is_symlink():
        return  # replaces the link, not its target
    if not destination.is_dir():
        raise CheckpointError(f"{destination}: is a file, and a directory is to be written; remove it first")
    if any(destination.iterdir()) and not any((destination / name).exists() for name in _OURS):
        raise CheckpointError(
            f"{destination}: has no config.json, so it is no model and not overwritten; choose another path"
        )


def refuse_overlap(destination: Path, source: Path) -> None:
    ours, theirs = destination.absolute().resolve(), source.absolute().resolve()
    if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
        raise CheckpointError(
            f"{destination}: overlaps the source {source}, which is only read; choose another path"
        )


def _swap_in(hidden: Path, destination: Path) -> None:
    if not os.path.lexists(destination):
        hidden.rename(destination)
        return
    old = hidden.with_suffix(_REPLACED)
    try:
        destination.rename(old)
        hidden.rename(destination)
    finally:
        _settle(old, destination)


def _settle(old: Path, destination: Path) -> None:
    """Finish an interrupted exchange: remove the old directory, or restore it if nothing replaced it."""
    if os.path.lexists(old):
        if os.path.lexists(destination):
            _remove(old)
        else:
            old.rename(destination)


def _sweep(parent: Path, name: str) -> None:
    for left in parent.glob(f".{glob.escape(name)}.*"):
        pid = left.stem.removeprefix(f".{name}.")
        if left.suffix in (_PARTIAL, _REPLACED) and pid.isdigit() and not _alive(int(pid)):
            if left.suffix == _REPLACED:
                _settle(left, parent / name)
            else:
                _remove(left)


def _remove(path: Path) -> None:
    if os.path.islink(path) or os.path.isfile(path):
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


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


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
