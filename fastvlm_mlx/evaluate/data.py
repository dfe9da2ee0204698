"""A data set of questions about pictures, read into rows: `fastvlm_mlx.inputs.dataset` says in which forms.

Of a conversation the last answer is the one asked for.
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
class Row:
    line: int  # in the file, from 1: what a row is known by
    name: str  # the data set's own, its line where it has none
    question: str  # as `VLM.prompt` takes it
    pictures: tuple[Path, ...]
    answers: tuple[str, ...]
    category: str = ""
    system: str | None = None


@dataclass(frozen=True, slots=True)
class DataSet:
    path: Path
    digest: str  # of the file's bytes
    rows: tuple[Row, ...]

    def error(self, row: Row, found: str) -> DataError:
        return dataset.at_line(self.path, row.line, found)


def read(path: Path, folder: Path | None = None) -> DataSet:
    """Every row; pictures' paths are relative to `folder`, or else to where the file lies."""
    folder = path.parent if folder is None else folder
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of pictures; check --images")
    return DataSet(path, *dataset.read(path, lambda number, raw: _row(number, raw, folder)))


def located(data: DataSet) -> DataSet:
    """The same with every picture found on disk."""
    find = cache(dataset.found)
    rows = []
    for row in data.rows:
        found = []
        for picture in row.pictures:
            path = find(picture)
            if path is None:
                raise data.error(row, f"no picture {picture}; --images names the folder they are in")
            found.append(path)
        rows.append(replace(row, pictures=tuple(found)))
    return replace(data, rows=tuple(rows))


def blinded(data: DataSet) -> DataSet:
    """Every question with other pictures: whoever answers as well has not looked.

    Pictures are exchanged over half of the data set among rows with as many.
    """
    rows = list(data.rows)
    for count in {len(row.pictures) for row in rows} - {0}:
        places = [place for place, row in enumerate(rows) if len(row.pictures) == count]
        distinct = list(dict.fromkeys(rows[place].pictures for place in places))
        if len(distinct) == 1:
            raise data.error(
                rows[places[0]],
                f"no other row has {count} other picture{'s' * (count > 1)} to ask about; leave --blind out",
            )
        half = len(distinct) // 2
        others = dict(zip(distinct, distinct[half:] + distinct[:half], strict=True))
        for place in places:
            rows[place] = replace(rows[place], pictures=others[rows[place].pictures])
    return replace(data, rows=tuple(rows))


def _row(number: int, raw: Raw, folder: Path) -> Row:
    turns = dataset.turns(raw)
    if turns:
        system, said = turns
        question, answers = conversation(said[:-1]), said[-1:]
    else:
        system, question, answers = None, dataset.question(raw), dataset.answers(raw)
    pictures = dataset.pictures(raw, folder)
    if not question.replace(IMAGE_MARK, "").strip():
        raise Unreadable("the question is empty; remove the line")
    marks = question.count(IMAGE_MARK)
    if marks not in (0, len(pictures)):
        raise Unreadable(
            f"{marks} place(s) marked with {IMAGE_MARK} for {len(pictures)} picture(s); "
            "give one picture for each mark, or leave the marks out"
        )
    name = next((raw[key] for key in NAME if key in raw), number)
    category = next((raw[key] for key in CATEGORY if isinstance(raw.get(key), str)), "")
    return Row(number, str(name), question, pictures, answers, category, system)
