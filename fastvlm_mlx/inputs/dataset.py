"""Data sets about pictures: JSONL in the forms that are about. Who reads one says what a row is.

    {"image": "a.png", "question": "What is it?", "answer": "a cat", "category": "animals"}
    {"images": ["a.png", "b.png"], "query": "<image> or <image>?", "answers": ["left", "the left one"]}
    {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat?"}, {"from": "gpt", ...}]}
    {"images": ["a.png"], "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", ...}]}

Names of fields are looked for in the order of the tables below: those of TextVQA, DocVQA, ChartQA, POPE, GQA
and VQAv2. Not covered: pictures inside the file, and pictures at addresses (a data set is a stranger's).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..config import IMAGE_MARK
from ..errors import DataError

QUESTION = ("question", "query", "text", "prompt")
ANSWER = ("answers", "answer", "label", "labels")
PICTURE = ("images", "image", "image_path", "img", "img_path", "imgname", "imageId", "image_id")
TURNS = {"messages": ("role", "content"), "conversations": ("from", "value")}
ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt"), "assistant"),
}
SUFFIXES = ("", ".jpg", ".png", ".jpeg", ".webp")  # GQA and TextVQA name pictures without

Raw = Mapping[str, Any]
Row = TypeVar("Row")


class Unreadable(Exception):
    """What is wrong with a line; whose line it is is said by `read`."""


def read(path: Path, row: Callable[[int, Raw], Row]) -> tuple[str, tuple[Row, ...]]:
    """-> the file's digest, and what `row` makes of each line's number and object"""
    content = _content(path)
    rows = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(row(number, _object(line, number)))
        except Unreadable as error:
            raise line_error(path, number, str(error)) from None
    if not rows:
        raise DataError(f"{path}: holds no rows; one JSON object a line is expected")
    return hashlib.sha256(content).hexdigest(), tuple(rows)


def digest(path: Path) -> str:
    return hashlib.sha256(_content(path)).hexdigest()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a JSONL file") from None


def line_error(path: Path, number: int, found: str) -> DataError:
    return DataError(f"{path}, line {number}: {found}")


def require_picture(picture: Path) -> Path | None:
    """The file that is meant, if there is one."""
    tried = (f"{picture}{suffix}" for suffix in SUFFIXES)
    return next((Path(path) for path in tried if os.path.isfile(path)), None)


def first(raw: Raw, names: Sequence[str], repair: str) -> tuple[str, Any]:
    for name in names:
        if name in raw:
            return name, raw[name]
    has = ", ".join(map(repr, list(raw)[:12])) or "nothing"
    raise Unreadable(f"none of {', '.join(names)} is there, only {has}; {repair}")


def question(raw: Raw) -> str:
    return _text(*first(raw, QUESTION, "name the question's field so"))


def answers(raw: Raw) -> tuple[str, ...]:
    """A text, a list of them, or VQAv2's list of {"answer": text, ...}."""
    name, value = first(raw, ANSWER, "name the answer's field so")
    values = value if isinstance(value, list) else [value]
    if not values:
        raise Unreadable(f"{name} is an empty list; give an answer to compare with")
    return tuple(
        _text(name, one["answer"] if isinstance(one, dict) and "answer" in one else one) for one in values
    )


def pictures(raw: Raw, folder: Path) -> tuple[Path, ...]:
    """A name, a list of them; null or [] for a question without a picture."""
    name, value = first(raw, PICTURE, 'write "images": [] for a question without a picture')
    values = value if isinstance(value, list) else [] if value is None else [value]
    for one in values:
        if not isinstance(one, str) or not one or "\0" in one:
            raise Unreadable(f"{name} is {_short(one)} where the name of a picture file belongs")
    return tuple(folder / one for one in values)


def turns(raw: Raw) -> tuple[str | None, tuple[str, ...]] | None:
    """Of a conversation: the system prompt, and what user and assistant said in turn, the assistant last."""
    name = next((name for name in TURNS if name in raw), None)
    if name is None:
        return None
    said = list(_turns(raw[name], *TURNS[name]))
    system = said.pop(0)[1] if said and said[0][0] == "system" else None
    if len(said) < 2 or [who for who, _ in said] != ["user", "assistant"] * (len(said) // 2):
        has = ", ".join(who for who, _ in said) or "nothing"
        raise Unreadable(f"its turns are {has}; user and assistant take turns, the assistant answers last")
    return system, tuple(text for _, text in said)


def _turns(value: Any, role: str, content: str) -> Iterator[tuple[str, str]]:
    for turn in value if isinstance(value, list) else [value]:
        if not isinstance(turn, dict) or role not in turn or content not in turn:
            raise Unreadable(f"{_short(turn)} is no turn with {role!r} and {content!r}")
        if not isinstance(turn[role], str) or turn[role] not in ROLES:
            raise Unreadable(f"{role} is {_short(turn[role])}; one of {', '.join(ROLES)} is expected")
        body = turn[content]
        yield ROLES[turn[role]], _joined(body) if isinstance(body, list) else _text(content, body)


def _joined(parts: Sequence[Any]) -> str:
    """[{"type": "image"}, {"type": "text", "text": "What?"}] -> "<image>\\nWhat?", as in Apple's template"""
    texts = []
    for part in parts:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "image"}:
                texts.append(IMAGE_MARK)
            case _:
                raise Unreadable(f"{_short(part)} is neither a text nor an image")
    return "\n".join(texts)


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise Unreadable(f"{name} is {_short(value)} where a text belongs")


def _object(line: bytes, number: int) -> Raw:
    try:
        value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        hint = "; the file is one JSON array, write an object a line" if line.lstrip()[:1] == b"[" else ""
        raise Unreadable(f"not JSON ({error}){hint or '; mend or remove it'}") from None
    if not isinstance(value, dict):
        raise Unreadable(f"a JSON {type(value).__name__} where an object belongs; write one object a line")
    return value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"
