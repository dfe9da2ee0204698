"""Writes the result when all pictures are done: captions in source order, and the failures.

jsonl       one {"key", "caption", "tokens", "reason"} per line
parquet     the same fields as columns
metadata    one {"file_name", "text"} per line, for Hugging Face's ImageFolder; paths relative to OUT's folder
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ..errors import ConfigError, DataError
from ..files import journal
from ..files.atomic import new_file
from .items import Item, parquet, text_of
from .ledger import Ledger

ROWS_AT_ONCE = 10_000
FAILED = "failed.jsonl"

Captioned = Iterator[tuple[Item, journal.Record]]


def format_of(out: Path, requested: str | None) -> str:
    """The requested format, or the one that the file's name implies."""
    if requested is not None and requested not in FORMATS:
        raise ConfigError(f"no format {requested!r}; choose one of {', '.join(FORMATS)}")
    if requested is not None:
        return requested
    return {"metadata.jsonl": "metadata"}.get(out.name, "parquet" if out.suffix == ".parquet" else "jsonl")


def check(form: str, out: Path, items: Sequence[Item]) -> None:
    """Fail early if the result could not be written in this format."""
    if form == "parquet":
        parquet()
    for item in items if form == "metadata" else ():
        if not isinstance(item.place, Path) or _from(out, item).startswith("../"):
            raise ConfigError(
                f"{item.key}: metadata covers only picture files in its own folder or below; "
                "put --out next to the pictures, or choose --format jsonl"
            )


@dataclass(frozen=True, slots=True)
class Tally:
    captions: int
    failed: int
    why: Path  # the list of failures


def settle(form: str, out: Path, items: Sequence[Item], ledger: Ledger) -> Tally:
    """Write captions and failures to their files."""
    records = ledger.records()
    why = ledger.folder / FAILED
    failed = [records[item.key] for item in items if "error" in records[item.key]]
    with ledger.merging():
        if failed:
            with new_file(why) as hidden, hidden.open("wb") as file:
                file.writelines(journal.line({"key": one["key"], "error": one["error"]}) for one in failed)
        else:
            why.unlink(missing_ok=True)
        if items and len(failed) == len(items):
            raise DataError(
                f"none of {len(items):,} pictures could be captioned; {why} lists the reasons, "
                f"the first for {failed[0]['key']}: {failed[0]['error']}"
            )
        with new_file(out) as hidden:
            pairs = ((item, records[item.key]) for item in items)
            FORMATS[form](hidden, out, ((item, record) for item, record in pairs if "caption" in record))
    return Tally(len(items) - len(failed), len(failed), why)


def _jsonl(path: Path, out: Path, captioned: Captioned) -> None:
    with path.open("wb") as file:
        file.writelines(journal.line(record) for _, record in captioned)


def _metadata(path: Path, out: Path, captioned: Captioned) -> None:
    with path.open("wb") as file:
        for item, record in captioned:
            file.write(journal.line({"file_name": _from(out, item), "text": record["caption"]}))


def _parquet(path: Path, out: Path, captioned: Captioned) -> None:
    import pyarrow

    kinds = {"key": pyarrow.string(), "caption": pyarrow.string(), "tokens": pyarrow.int32()}
    schema = pyarrow.schema({**kinds, "reason": pyarrow.string()})
    with parquet().ParquetWriter(path, schema) as writer:
        while rows := [record for _, record in islice(captioned, ROWS_AT_ONCE)]:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def _from(out: Path, item: Item) -> str:
    """The picture's path relative to the result's folder."""
    return text_of(os.path.relpath(str(item.place), out.absolute().parent)).replace(os.sep, "/")


FORMATS: dict[str, Callable[[Path, Path, Captioned], None]] = {
    "jsonl": _jsonl,
    "parquet": _parquet,
    "metadata": _metadata,
}
