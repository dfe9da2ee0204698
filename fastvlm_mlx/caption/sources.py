"""Finds the pictures to caption in folders, glob patterns, tar files, tables and single files.

    photos                  every picture below, except hidden files and folders: "a/b.jpg"
    photos/*.jpg            a glob pattern, ** for nested folders: "photos/b.jpg"
    shards/000.tar          a WebDataset shard: "shards/000.tar/b.jpg"
    list.csv                one picture per row: "list.csv#12:b.jpg", with its row and path

The text after the colon is an item's key: the path below SOURCE if SOURCE is one folder, else the path as
given or found. Repeated keys get a number.
"""

from __future__ import annotations

import glob
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ..errors import DataError
from . import tables
from .items import Item, Span, Wrong, text_of
from .tables import Reading

PICTURES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".jfif", ".jp2", ".pgm", ".png", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
PACKED = (".gz", ".tgz", ".xz", ".bz2", ".zst", ".zip")
_END = tarfile.BLOCKSIZE  # a tar ends with a block of zeros
BESIDE = ("txt", "json", "cls")  # texts in a tar that templates can use


@dataclass(frozen=True, slots=True)
class Found:
    items: tuple[Item, ...]  # in a stable order
    files: frozenset[str]  # absolute paths of all files read now or later
    left_out: int  # files skipped for their suffix


def find(sources: Sequence[str], how: Reading, limit: int | None = None) -> Found:
    others: Counter[str] = Counter()
    items: list[Item] = []
    seen: Counter[str] = Counter()
    files: set[str] = set()
    for item in _items(sources, how, files, others):
        seen[item.key] += 1
        count = seen[item.key]
        items.append(item if count == 1 else replace(item, key=f"{item.key}#{count}"))
        if len(items) == limit:
            break
    if not items:
        raise DataError(_nothing(sources, others))
    return Found(tuple(items), frozenset(files), others.total())


def _items(sources: Sequence[str], how: Reading, given: set[str], others: Counter[str]) -> Iterator[Item]:
    alone = len(sources) == 1
    for source in sources:
        if os.path.isdir(source):
            yield from _below(source, source if alone else "", given, others)
        elif os.path.lexists(source):
            yield from _of_file(source, how, given)
        else:
            yield from _matching(source, how, given, others)


def _below(folder: str, root: str, given: set[str], others: Counter[str]) -> Iterator[Item]:
    """Every picture below a folder; for an unreadable subfolder, an item with the reason."""
    refused: list[OSError] = []
    for path, folders, files in os.walk(folder, onerror=refused.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            if name.lower().endswith(PICTURES):
                yield from _picture(os.path.join(path, name), root, given)
            else:
                others[os.path.splitext(name)[1].lower()] += 1
    for error in refused:
        if error.filename == folder:
            raise DataError(f"{folder}: cannot be read ({error.strerror}); check the permissions")
        yield Item(_key(str(error.filename), root), "", Wrong(f"cannot be read ({error.strerror})"))


def _matching(pattern: str, how: Reading, given: set[str], others: Counter[str]) -> Iterator[Item]:
    if not glob.has_magic(pattern):
        raise DataError(f"{pattern}: no such file or folder; check the path")
    for path in sorted(glob.iglob(pattern, recursive=True)):
        if os.path.isdir(path):
            continue
        if path.lower().endswith((*PICTURES, ".tar", *PACKED, *tables.READERS)):
            yield from _of_file(path, how, given)
        else:
            others[os.path.splitext(path)[1].lower()] += 1


def _of_file(source: str, how: Reading, given: set[str]) -> Iterator[Item]:
    suffix = os.path.splitext(source)[1].lower()
    if suffix in PACKED:
        raise DataError(
            f"{source}: is compressed, and compressed archives are not supported; unpack it first"
        )
    if suffix == ".tar":
        yield from _packed(source, given)
    elif suffix in tables.READERS:
        if not _again(source, given):
            for row in tables.rows(Path(source), how):
                name = f":{text_of(row.name)}" if row.name else ""
                yield Item(f"{_key(source)}#{row.number}{name}", row.name, row.place, row.columns)
    else:
        yield from _picture(source, "", given)


def _picture(path: str, root: str, given: set[str]) -> Iterator[Item]:
    if not _again(path, given):
        yield Item(_key(path, root), text_of(os.path.abspath(path)), Path(path))


def _packed(source: str, given: set[str]) -> Iterator[Item]:
    """The pictures in a tar; a damaged tar gives those before the damage and an item with the reason."""
    if _again(source, given):
        return
    members: list[tuple[PurePosixPath, int, int]] = []
    torn = ""
    try:
        with tarfile.open(source, "r:") as tar:
            for member in tar:
                if member.isfile():
                    members.append((PurePosixPath(member.name), member.offset_data, member.size))
            end = tar.offset
        with open(source, "rb") as archive:
            archive.seek(end)
            if archive.read(_END) != bytes(_END):  # tarfile accepts any end
                torn = "damaged or cut short (it has no end); copy or download it again"
    except (tarfile.TarError, EOFError, ValueError) as error:
        torn = f"damaged or cut short ({error}); copy or download it again"
    except OSError as error:
        torn = f"cannot be read ({error.strerror or error})"
    beside: dict[str, list[tuple[str, int, int]]] = {}
    for path, start, length in members:
        stem, suffix = _split(path)
        if suffix in BESIDE:
            beside.setdefault(stem, []).append((suffix, start, length))
    for path, start, length in members:
        if path.name.lower().endswith(PICTURES) and not path.name.startswith("."):
            texts = tuple(beside.get(_split(path)[0], ()))
            file = text_of(str(path))
            yield Item(f"{_key(source)}/{file}", file, Span(Path(source), start, length, texts))
    if torn:
        yield Item(_key(source), "", Wrong(torn))


def _split(path: PurePosixPath) -> tuple[str, str]:
    """
    >>> _split(PurePosixPath("a.b/0001.left.png"))
    ('a.b/0001', 'left.png')
    """
    stem, _, suffix = path.name.partition(".")
    return str(path.parent / stem), suffix


def _again(path: str, given: set[str]) -> bool:
    """Whether an earlier source already gave this file; records it."""
    whole = os.path.abspath(path)
    known = whole in given
    given.add(whole)
    return known


def _key(path: str, root: str = "") -> str:
    return text_of(os.path.relpath(path, root) if root else os.path.normpath(path)).replace(os.sep, "/")


def _nothing(sources: Sequence[str], others: Counter[str]) -> str:
    where = sources[0] if len(sources) == 1 else f"{len(sources)} sources"
    packed = next((s for s in (".tar", *tables.READERS) if others[s]), None)
    if packed:
        return f"{where}: no pictures, but {packed} files; to read them, give '{sources[0]}/*{packed}'"
    has = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.most_common(3))
    return f"{where}: no pictures{f', only other files ({has})' if has else ''}; check the path"
