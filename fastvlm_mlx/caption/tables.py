"""Tables of pictures: CSV, TSV, JSONL and Parquet, one picture per row.

Paths are relative to the table's folder, or to `Reading.folder`. Parquet may contain the pictures themselves,
in a column of binary values or of {"bytes", "path"}, as Hugging Face stores them.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import journal
from ..inputs.dataset import PICTURE, line_error
from .items import Cell, Place, Wrong, parquet

COLUMNS = ("file_name", "path", "file", "filename", "filepath", *PICTURE)


@dataclass(frozen=True, slots=True)
class TableRow:
    number: int  # from 1; the line in JSONL
    name: str  # the picture's path as the table gives it
    place: Place
    columns: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read a table."""

    folder: Path | None  # base for relative paths
    column: str | None  # with the pictures
    wanted: frozenset[str]  # other columns that a template needs


def rows(path: Path, how: Reading) -> Iterator[TableRow]:
    try:
        yield from READERS[path.suffix.lower()](path, how)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None


def _jsonl(path: Path, how: Reading) -> Iterator[TableRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            raw = journal.parsed(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
            if raw is None:
                yield TableRow(number, "", Wrong("the line is not a JSON object"), {})
                continue
            names = COLUMNS if how.column is None else (how.column,)
            name = next((name for name in names if name in raw), None)
            if name is None:
                has = ", ".join(map(repr, list(raw)[:12])) or "nothing"
                yield TableRow(number, "", Wrong(f"no field {' or '.join(names)}, only {has}"), {})
                continue
            yield _row(number, raw[name], path, how, raw)


def _separated(separator: str) -> Callable[[Path, Reading], Iterator[TableRow]]:
    def read(path: Path, how: Reading) -> Iterator[TableRow]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=separator)
            try:
                column = _chosen(path, how, reader.fieldnames or ())
                for number, raw in enumerate(reader, 1):
                    yield _row(number, raw[column], path, how, raw)
            except csv.Error as error:
                raise line_error(path, reader.line_num, f"{error}; fix or remove the line") from None

    return read


def _parquet(path: Path, how: Reading) -> Iterator[TableRow]:
    open_file = parquet().ParquetFile
    import pyarrow

    try:
        file = open_file(path)
        schema = file.schema_arrow
        column = _chosen(path, how, schema.names)
        kind = schema.field(column).type
        pairs = pyarrow.types.is_struct(kind) and {"bytes", "path"} <= {part.name for part in kind}
        binary = pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)
        shown = f"{column}.path" if pairs else column
        others = [name for name in schema.names if name in how.wanted and name != column]
        before = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            read = [*others] if binary else [shown, *others]
            names = file.read_row_group(group, columns=read).to_pylist() if read else ()
            for row in range(count):
                number = 1 + before + row
                raw = names[row] if names else {}
                value = raw.get(column)
                if not pairs and not binary:
                    yield _row(number, value, path, how, raw)
                    continue
                name = (value or {}).get("path") if pairs else None
                meant = _folder(path, how) / name if name and "\0" not in name else None
                cell = Cell(path, f"{column}.bytes" if pairs else column, group, row, meant)
                yield TableRow(number, name or "", cell, _wanted(raw, how))
            before += count
    except (pyarrow.ArrowException, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as Parquet ({reason}); copy or download it again") from None


def _chosen(path: Path, how: Reading, names: Sequence[str]) -> str:
    """The name of the column with the pictures."""
    has = ", ".join(map(repr, names[:20])) or "nothing"
    looked_for = COLUMNS if how.column is None else (how.column,)
    column = next((name for name in looked_for if name in names), None)
    if column is None:
        raise DataError(f"{path}: no column {' or '.join(looked_for)}, only {has}; name it with --column")
    return column


def _row(number: int, value: Any, path: Path, how: Reading, raw: Mapping[str, Any]) -> TableRow:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or not value or "\0" in value:
        reason = f"{value!r:.60} is not the path of one picture file"
        return TableRow(number, "", Wrong(reason), _wanted(raw, how))
    return TableRow(number, value, _folder(path, how) / value, _wanted(raw, how))


def _folder(path: Path, how: Reading) -> Path:
    return path.parent if how.folder is None else how.folder


def _wanted(raw: Mapping[str, Any], how: Reading) -> Mapping[str, Any]:
    return {name: raw[name] for name in how.wanted if raw.get(name) is not None}


READERS: dict[str, Callable[[Path, Reading], Iterator[TableRow]]] = {
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}
