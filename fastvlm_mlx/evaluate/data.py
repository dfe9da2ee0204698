"""Reads a data set of questions about pictures; `fastvlm_mlx.inputs.dataset` documents the formats.

In a conversation, the last answer is the expected one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ..config import IMAGE_MARK
from ..errors import DataError
from ..inputs import dataset
from ..inputs.dataset import Raw, Unreadable
from ..inputs.prompt import conversation

NAME = ("id", "question_id", "questionId", "qid")
CATEGORY = ("category", "question_type")


@dataclass(frozen=True, slots=True)
class EvalRow:
    line: int  # in the file, from 1; identifies the row
    name: str  # the data set's id, or else the line
    question: str  # as `VLM.prompt` takes it
    pictures: tuple[Path, ...]
    answers: tuple[str, ...]
    category: str = ""
    system: str | None = None


@dataclass(frozen=True, slots=True)
class DataSet:
    path: Path
    digest: str  # SHA-256 of the file
    rows: tuple[EvalRow, ...]

    def error(self, row: EvalRow, found: str) -> DataError:
        return dataset.line_error(self.path, row.line, found)


def read(path: Path, folder: Path | None = None) -> DataSet:
    """Read every row; picture paths are relative to `folder`, by default the file's folder."""
    folder = path.parent if folder is None else folder
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of pictures; check --images")
    return DataSet(path, *dataset.read(path, lambda number, raw: _row(number, raw, folder)))


def locate_pictures(data: DataSet) -> DataSet:
    """The data set with every picture's path resolved; fails if one is missing."""
    find = cache(dataset.require_picture)
    rows = []
    for row in data.rows:
        found = []
        for picture in row.pictures:
            path = find(picture)
            if path is None:
                raise data.error(row, f"no picture {picture}; set the folder of the pictures with --images")
            found.append(path)
        rows.append(replace(row, pictures=tuple(found)))
    return replace(data, rows=tuple(rows))


def shuffle_pictures(data: DataSet) -> DataSet:
    """The data set with pictures swapped: a model that scores as well does not use the pictures.

    Swaps each row's pictures with those half the data set away, among rows with the same number of pictures.
    """
    rows = list(data.rows)
    for count in {len(row.pictures) for row in rows} - {0}:
        places = [place for place, row in enumerate(rows) if len(row.pictures) == count]
        distinct = list(dict.fromkeys(rows[place].pictures for place in places))
        if len(distinct) == 1:
            raise data.error(
                rows[places[0]],
                f"no other row has {count} other picture{'s' * (count > 1)} to swap with; drop --blind",
            )
        half = len(distinct) // 2
        others = dict(zip(distinct, distinct[half:] + distinct[:half], strict=True))
        for place in places:
            rows[place] = replace(rows[place], pictures=others[rows[place].pictures])
    return replace(data, rows=tuple(rows))


def _row(number: int, raw: Raw, folder: Path) -> EvalRow:
    turns = dataset.turns(raw)
    if turns:
        system, texts = turns
        question, answers = conversation(texts[:-1]), texts[-1:]
    else:
        system, question, answers = None, dataset.question(raw), dataset.answers(raw)
    pictures = dataset.pictures(raw, folder)
    if not question.replace(IMAGE_MARK, "").strip():
        raise Unreadable("the question is empty; remove the line")
    marks = question.count(IMAGE_MARK)
    if marks not in (0, len(pictures)):
        raise Unreadable(
            f"{marks} place(s) marked with {IMAGE_MARK} for {len(pictures)} picture(s); "
            "give one picture for each mark, or remove the marks"
        )
    name = next((raw[key] for key in NAME if key in raw), number)
    category = next((raw[key] for key in CATEGORY if isinstance(raw.get(key), str)), "")
    return EvalRow(number, str(name), question, pictures, answers, category, system)
