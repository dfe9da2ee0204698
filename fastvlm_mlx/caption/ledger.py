"""What is done, on disk beside the result: a folder that any number of processes work in at once.

    captions.jsonl.run/settings.json      what decides a caption, and how many parts there are
    captions.jsonl.run/part-0012.jsonl    {"key", "caption", "tokens", "reason"} or {"key", "error", "launch"}
    captions.jsonl.run/launch             the newest start of several processes

A picture belongs to a part by its key. Who holds the lock of a part's file works on it and nobody else, and
the system takes the lock from whoever dies: there are no claims to forget. A whole line is a picture done.
"""

from __future__ import annotations

import fcntl
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import journal
from .items import Item

PARTS = 256  # files at most, and how finely the work can be divided
SYNC_S = 1.0  # what a power cut may take; a kill takes nothing
FORMAT = "fastvlm-mlx-captions"

Records = dict[str, dict[str, Any]]  # by key


@dataclass(frozen=True, slots=True)
class CaptionSettings:
    """What decides the captions. Nothing of when and where."""

    dtype: str
    weights: str  # their fingerprint
    prompt: str
    template: bool
    system: str | None
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int | None
    image_size: int
    image_mode: str
    reference: bool


class Part:
    """One that is held: what it says, and what is added."""

    def __init__(self, file: FileIO, path: Path):
        content = file.readall()
        kept = journal.whole(content)
        if kept < len(content):
            file.truncate(kept)
        file.seek(kept)
        self.records = _records(content[:kept], path)
        self.left = 0  # items to come
        self._file, self._path, self._synced = file, path, time.monotonic()

    def add(self, record: journal.Record) -> None:
        try:
            journal.append(self._file, journal.line(record))
            self.left -= 1
            if self.left <= 0 or time.monotonic() - self._synced > SYNC_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise DataError(
                f"{self._path}: cannot be written ({error.strerror}); check the free space and the "
                "permissions. What is there is kept, and the same command goes on from there"
            ) from None
        if self.left <= 0:
            self.close()

    def close(self) -> None:
        self._file.close()


class Ledger:
    """The folder, opened for one set of settings."""

    def __init__(self, folder: Path, parts: int, launch: int):
        self.folder, self.parts, self.launch = folder, parts, launch

    def part_of(self, item: Item) -> int:
        return zlib.crc32(item.together.encode()) % self.parts

    def claim(self, number: int) -> Part | None:
        """None where somebody else holds it."""
        path = self._path(number)
        with _said_of(path):
            file = FileIO(path, "a+")
            if not locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                file.close()
                return None
            file.seek(0)
            return Part(file, path)

    def is_done(self, record: dict[str, Any] | None, retry: bool) -> bool:
        """Failures are tried again if asked for, once a launch."""
        return record is not None and not (
            retry and "error" in record and record.get("launch") != self.launch
        )

    def records(self) -> Records:
        """All that is said so far, whoever said it."""
        said: Records = {}
        for number in range(self.parts):
            path = self._path(number)
            with _said_of(path):
                if path.exists():
                    content = path.read_bytes()
                    said |= _records(content[: journal.whole(content)], path)
        return said

    @contextmanager
    def merging(self) -> Iterator[None]:
        """One process at a time writes the result; another waits, since the first may die on the way."""
        path = self.folder / "merging.lock"
        with _said_of(path):
            file = FileIO(path, "a+")
        with file:
            locked(file, fcntl.LOCK_EX)
            yield

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:04}.jsonl"


def folder_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.run")


def announce(folder: Path, launch: int) -> None:
    """Leave a sign that others, if they see this folder, can tell this launch by."""
    with _said_of(folder):
        folder.mkdir(exist_ok=True)
        (folder / "launch").write_text(f"{launch}\n")


def announced(folder: Path) -> int | None:
    try:
        return int((folder / "launch").read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def opened(out: Path, settings: CaptionSettings, launch: int, overwrite: bool) -> Iterator[Ledger]:
    """Begin, or go on with what was begun alike."""
    folder = folder_of(out)
    with _said_of(folder):
        folder.mkdir(exist_ok=True)
        lifetime = FileIO(folder / "launch", "a+")
    with lifetime:  # its lock says that somebody is at work here
        with _said_of(folder), FileIO(folder / "settings.json", "a+") as file:
            locked(file, fcntl.LOCK_EX)
            begun = _begun(file)
            if overwrite and (begun is None or begun["launch"] != launch):
                if not locked(lifetime, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    raise DataError(f"{folder}: another process is at work on it; wait for it or stop it")
                for old in (*folder.glob("part-*.jsonl"), folder / "failed.jsonl"):
                    old.unlink(missing_ok=True)
                begun = None
            if begun is None:
                begun = {"format": FORMAT, "launch": launch, "parts": PARTS, "settings": asdict(settings)}
                file.truncate(0)
                journal.append(file, journal.line(begun))
                os.fsync(file.fileno())
            locked(lifetime, fcntl.LOCK_SH)
        if difference := journal.first_difference(begun["settings"], asdict(settings)):
            raise DataError(
                f"{out}: {difference}; give the same options to go on, another --out, or --overwrite"
            )
        yield Ledger(folder, begun["parts"], launch)


def refuse(out: Path, overwrite: bool) -> None:
    """Say early that the result's place is taken by something else."""
    if out.exists() and not folder_of(out).is_dir() and not overwrite:
        raise DataError(f"{out}: exists already; choose another --out, or pass --overwrite")


def locked(file: FileIO, how: int) -> bool:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        raise DataError(
            f"{file.name!s}: its file system has no locks ({error.strerror}); choose an --out elsewhere"
        ) from None
    return True


def _begun(file: FileIO) -> dict[str, Any] | None:
    """None of a file that is new, or torn: nothing was begun then."""
    file.seek(0)
    content = file.readall()
    if not content.endswith(b"\n"):
        return None
    begun = journal.parsed(content)
    match begun:
        case {"format": str(form), "launch": int(), "parts": int(parts), "settings": dict(settings)}:
            if form == FORMAT and parts > 0 and settings.keys() == set(CaptionSettings.__slots__):
                return begun
    raise DataError(
        f"{file.name!s}: was not written by this version; choose another --out, or remove its folder"
    )


def _records(whole: bytes, path: Path) -> Records:
    """By key; what is said later replaces what was said earlier."""
    said: Records = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        record = journal.parsed(line) or {}
        match record:
            case {"key": str(key), "caption": str(), "tokens": int(), "reason": str()}:
                said[key] = record
            case {"key": str(key), "error": str()}:
                said[key] = record
            case _:
                raise DataError(f"{path}, line {number}: no caption; remove that line to have it made again")
    return said


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); check the free space and the permissions"
        ) from None
