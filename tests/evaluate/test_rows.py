"""Data sets in the forms that are about, read into rows; pictures exchanged and found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastvlm_mlx.errors import DataError
from fastvlm_mlx.evaluate.data import DataSet, EvalRow, locate_pictures, read, shuffle_pictures

AT = Path("pictures")
TEN = [f"answer {number}" for number in range(10)]


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def only(tmp_path: Path) -> Any:
    def only(row: Any) -> EvalRow:
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (found,) = read(written(tmp_path, row), tmp_path / "pictures").rows
        return found

    return only


FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": (
        {"image": "a.png", "question": "What?", "answer": "cat", "category": "animals", "id": 7},
        {"name": "7", "category": "animals"},
    ),
    "several pictures and answers": (
        {"images": ["a.png", "b.png"], "question": "<image> or <image>?", "answers": ["cat", "a cat"]},
        {"question": "<image> or <image>?", "pictures": ("a.png", "b.png"), "answers": ("cat", "a cat")},
    ),
    "no picture": ({"images": [], "question": "What?", "answer": "cat"}, {"pictures": ()}),
    "null for a picture": ({"image": None, "question": "What?", "answer": "cat"}, {"pictures": ()}),
    "a number for an answer": ({"image": "a.png", "question": "What?", "answer": 3}, {"answers": ("3",)}),
    "TextVQA": (
        {"image_id": "a", "question_id": 34602, "question": "What?", "answers": TEN, "set_name": "val"},
        {"name": "34602", "pictures": ("a",), "answers": tuple(TEN)},
    ),
    "DocVQA": (
        {"questionId": 49153, "question": "What?", "image": "documents/a.png", "answers": ["1", "1.0"]},
        {"name": "49153", "pictures": ("documents/a.png",), "answers": ("1", "1.0")},
    ),
    "ChartQA": ({"imgname": "a.png", "query": "What?", "label": "cat"}, {}),
    "POPE": (
        {"question_id": 1, "image": "a.png", "text": "Is there a cat?", "label": "yes"},
        {"question": "Is there a cat?", "answers": ("yes",)},
    ),
    "GQA": (
        {"imageId": "23", "question": "What?", "answer": "cat", "fullAnswer": "A cat.", "types": {"a": 1}},
        {"pictures": ("23",)},
    ),
    "VQAv2": (
        {
            "image": "a.png",
            "question": "What?",
            "question_type": "what",
            "answers": [{"answer": one, "answer_confidence": "yes", "answer_id": 1} for one in TEN],
        },
        {"answers": tuple(TEN), "category": "what"},
    ),
    "LLaVA": (
        {
            "id": "000",
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": "cat"},
            ],
        },
        {"name": "000", "question": "<image>\nWhat?"},
    ),
    "LLaVA, the last answer of several": (
        {
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWho?"},
                {"from": "gpt", "value": "I"},
                {"from": "human", "value": "What?"},
                {"from": "gpt", "value": "cat"},
            ],
        },
        {"question": "<image>\nWho?<|im_end|>\n<|im_start|>assistant\nI<|im_end|>\n<|im_start|>user\nWhat?"},
    ),
    "messages": (
        {
            "images": ["a.png"],
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What?"},
                {"role": "assistant", "content": "cat"},
            ],
        },
        {"system": "Be brief."},
    ),
    "messages in parts": (
        {
            "images": ["a.png"],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "cat"}]},
            ],
        },
        {"question": "<image>\nWhat?"},
    ),
}
USUAL = {"name": "1", "question": "What?", "pictures": ("a.png",), "answers": ("cat",), "category": ""}


@pytest.mark.parametrize(("raw", "differs"), FORMS.values(), ids=FORMS)
def test_every_form_is_read(only: Any, tmp_path: Path, raw: Any, differs: dict[str, Any]) -> None:
    expected = {"system": None, **USUAL, **differs}
    expected["pictures"] = tuple(tmp_path / "pictures" / name for name in expected["pictures"])
    assert only(raw) == EvalRow(line=1, **expected)


def test_lines_are_counted_and_empty_ones_skipped(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    row = json.dumps({"image": "é.png", "question": "What?", "answer": "cat"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{row}\r\n\r\n{row}".encode())  # Windows' own
    found = read(path)
    assert [row.line for row in found.rows] == [1, 3]
    assert found.rows[0].pictures == (tmp_path / "é.png",)


def test_the_digest_is_the_file_s(tmp_path: Path) -> None:
    row = {"image": "a.png", "question": "What?", "answer": "cat"}
    first, again = read(written(tmp_path, row)).digest, read(written(tmp_path, row)).digest
    assert first == again != read(written(tmp_path, row, row)).digest


def data_of(*pictures: tuple[str, ...]) -> DataSet:
    rows = (
        EvalRow(number, str(number), "What?", tuple(map(Path, names)), ("cat",))
        for number, names in enumerate(pictures, 1)
    )
    return DataSet(Path("data.jsonl"), "", tuple(rows))


def pictures_of(data: DataSet) -> list[tuple[str, ...]]:
    return [tuple(map(str, row.pictures)) for row in data.rows]


def test_the_blind_get_other_pictures_from_half_the_set_on() -> None:
    assert pictures_of(shuffle_pictures(data_of(("a",), ("b",), ("c",), ("d",)))) == [
        ("c",),
        ("d",),
        ("a",),
        ("b",),
    ]
    assert pictures_of(shuffle_pictures(data_of(("a",), ("b",), ("c",)))) == [("b",), ("c",), ("a",)]


def test_the_blind_never_get_their_own_picture_nor_another_number_of_them() -> None:
    given = [("a",), ("a",), ("x", "y"), ("b",), (), ("a",), ("y", "x"), ("b",)]
    for before, after in zip(given, pictures_of(shuffle_pictures(data_of(*given))), strict=True):
        assert len(before) == len(after)
        assert before != after or not before


def test_without_another_picture_nobody_can_be_blind() -> None:
    with pytest.raises(DataError, match="line 1: no other row has 1 other picture to swap with"):
        shuffle_pictures(data_of(("a",), ("a",)))


def test_pictures_are_found_with_their_suffix_or_without(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c"):
        (tmp_path / name).touch()
    names = ("a.png", "a", "b", "c")
    found = locate_pictures(data_of(*((str(tmp_path / name),) for name in names)))
    assert [Path(one).name for (one,) in pictures_of(found)] == ["a.png", "a.png", "b.jpg", "c"]
    with pytest.raises(DataError, match=r"line 1: no picture .*gone"):
        locate_pictures(data_of((str(tmp_path / "gone"),)))
    with pytest.raises(DataError, match="no picture"):
        locate_pictures(data_of(("x" * 5000,)))
