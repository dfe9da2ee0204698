"""A JSONL file of a model's answers, from which an interrupted run resumes.

The first line holds the settings, so that answers of different models or options never mix. Every other line
is {"line", "id", "question", "answers", "prediction", "score"}.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from ..config import Quantization
from ..errors import DataError
from ..files import journal
from ..inputs.tiling import ImageOptions, parse_grid
from .data import EvalRow


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """Everything that determines the answers and their scores."""

    model: str
    dtype: str
    weights: str  # fingerprint, adapter included, of `dtype`, which is therefore compared first
    quantization: str
    data: str
    data_sha256: str
    metric: str
    image_size: int
    max_tokens: int
    prompt_suffix: str
    blind: bool
    image_mode: str
    grid: str | None = None
    max_tiles: int | None = None

    @property
    def options(self) -> ImageOptions:
        return ImageOptions(self.image_size, self.image_mode, parse_grid(self.grid), self.max_tiles)


def described(quantization: Mapping[str, Quantization]) -> str:
    """
    >>> described({"language.a": Quantization(4, 64), "language.b": Quantization(4, 64)})
    '4 bit in groups of 64: 2 matrices'
    """
    kinds = Counter((how.bits, how.group_size) for how in quantization.values())
    counts = (
        f"{bits} bit in groups of {size}: {count} matrices" for (bits, size), count in sorted(kinds.items())
    )
    return ", ".join(counts) or "none"


class Predictions:
    """Generated answers by the row's line; in memory only if there is no path."""

    def __init__(self, path: Path | None, settings: EvalSettings):
        self.said: dict[int, str] = {}
        self._path = path
        self._file: FileIO | None = None
        self._head = journal.line(asdict(settings))
        self._whole = 0  # bytes up to the end of the last complete line
        try:
            content = path.read_bytes() if path and path.exists() else b""
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); choose another file") from None
        self._whole = journal.whole(content)
        if path and self._whole:
            self.said = _read(path, content[: self._whole], json.loads(self._head))
        elif path and not self._head.startswith(content):
            raise _foreign(path)

    def add(self, row: EvalRow, generated: str, score: float) -> None:
        self.said[row.line] = generated
        if self._path is None:
            return
        line = journal.line(
            {
                "line": row.line,
                "id": row.name,
                "question": row.question,
                "answers": row.answers,
                "prediction": generated,
                "score": round(score, 6),
            }
        )
        try:
            if self._file is None:  # opened late: a run without answers leaves no file
                self._file = self._path.open("ab", buffering=0)
                self._file.truncate(self._whole)
                line = line if self._whole else self._head + line
            journal.append(self._file, line)
        except OSError as error:
            raise DataError(
                f"{self._path}: cannot be written ({error.strerror}); check the free space and the "
                "permissions. The file keeps its answers, and the same command resumes"
            ) from None

    def __enter__(self) -> Predictions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()


def _read(path: Path, whole: bytes, settings: Mapping[str, Any]) -> dict[int, str]:
    head, *lines = whole.split(b"\n")[:-1]
    found = journal.parsed(head)
    if found is None or found.keys() != settings.keys():
        raise _foreign(path)
    if difference := journal.first_difference(found, settings, aside=("data",)):  # its digest counts
        raise DataError(f"{path}: {difference}; give the same options to resume, or another --predictions")
    generated = {}
    for number, line in enumerate(lines, 2):
        match journal.parsed(line):
            case {"line": int(row), "prediction": str(text)}:
                generated[row] = text
            case _:
                raise DataError(
                    f"{path}, line {number}: not a prediction; remove the line to answer it again"
                )
    return generated


def _foreign(path: Path) -> DataError:
    return DataError(f"{path}: was not written by `fastvlm-mlx eval --predictions`; choose another file")
