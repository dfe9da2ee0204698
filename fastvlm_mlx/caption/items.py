"""One picture to caption: its key, the location of its bytes, and the fields for a template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ConfigError, ImageError
from ..inputs.dataset import require_picture
from ..inputs.image import SourceBytes


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes inside an archive, and the texts next to them with the same stem."""

    path: Path
    start: int
    length: int
    beside: tuple[tuple[str, int, int], ...] = ()  # (suffix, start, length)


@dataclass(frozen=True, slots=True)
class Cell:
    """Bytes in a Parquet file; if they are null, `file` is used."""

    path: Path
    column: str  # holds the bytes
    group: int
    row: int  # within the group
    file: Path | None


@dataclass(frozen=True, slots=True)
class Wrong:
    """A picture that cannot be opened, with the reason."""

    reason: str


Place = Path | Span | Cell | Wrong


@dataclass(frozen=True, slots=True)
class Item:
    key: str  # unique, and the same in every run
    file: str  # the picture's path, or "" if it has none
    place: Place
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def together(self) -> str:
        """Items with the same value go to one process, because they are read at once."""
        return f"{self.place.path} {self.place.group}" if isinstance(self.place, Cell) else self.key


def opened(item: Item) -> Path | SourceBytes:
    """The item's source for `image.preprocess`."""
    match item.place:
        case Path() as path:
            return require_picture(path) or path
        case Span(path, start, length):
            data = _bytes(path, start, length)
        case Cell(path, column, group, row, file):
            cell = _column(path, column, group)[row]
            if cell is None and file is not None:
                return require_picture(file) or file
            data = cell or b""
        case Wrong(reason):
            raise ImageError(reason)
    fetched = SourceBytes(data)
    fetched.origin = item.key
    return fetched


def fields(item: Item) -> dict[str, Any]:
    """Fields for a template: a file's name and folder, a table's columns, the texts next to a tar member."""
    path = PurePosixPath(item.file)
    values: dict[str, Any] = {"name": path.stem, "folder": path.parent.name, "key": item.key}
    if isinstance(item.place, Span):
        for suffix, start, length in item.place.beside:
            text = _bytes(item.place.path, start, length).decode("utf-8", "replace").strip()
            values |= _object(text) if suffix == "json" else {suffix: text}
    return values | dict(item.columns)


def text_of(path: str) -> str:
    """A file name as valid UTF-8 text; undecodable bytes become escapes."""
    return path.encode("utf-8", "backslashreplace").decode()


def parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("Parquet needs pyarrow; run pip install 'fastvlm-mlx[parquet]'") from None
    return pyarrow.parquet


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _bytes(path: Path, start: int, length: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(length)
    except OSError as error:
        raise ImageError(f"cannot read {path} ({error.strerror}); check the file") from None
    if len(data) < length:
        raise ImageError(f"{path} is cut short; copy or download it again")
    return data


@lru_cache(maxsize=2)
def _column(path: Path, column: str, group: int) -> list[bytes | None]:
    try:
        table = parquet().ParquetFile(path).read_row_group(group, columns=[column])
    except (
        OSError,
        ValueError,
        NotImplementedError,
        KeyError,
    ) as error:  # the base classes of pyarrow's errors
        reason = " ".join(str(error).split())
        raise ImageError(f"cannot read {path} ({reason}); copy or download it again") from None
    values = table.column(0).to_pylist()
    return [value["bytes"] if isinstance(value, dict) else value for value in values]
