"""Reads JSONL data sets of questions about pictures, in the common formats. The caller builds the rows.

    {"image": "a.png", "question": "What is it?", "answer": "a cat", "category": "animals"}
    {"images": ["a.png", "b.png"], "query": "<image> or <image>?", "answers": ["left", "the left one"]}
    {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat?"}, {"from": "gpt", ...}]}
    {"images": ["a.png"], "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", ...}]}

The tables below list the field names in order of precedence: those of TextVQA, DocVQA, ChartQA, POPE, GQA and
VQAv2. Not supported: pictures inside the file, and pictures at URLs (data sets are untrusted).
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
SUFFIXES = ("", ".jpg", ".png", ".jpeg", ".webp")  # GQA and TextVQA omit the suffix

Raw = Mapping[str, Any]
Row = TypeVar("Row")


class Unreadable(Exception):
    """What is wrong with a line; `read` adds the file and the line number."""


def read(path: Path, row: Callable[[int, Raw], Row]) -> tuple[str, tuple[Row, ...]]:
    """Return the file's SHA-256 and the rows that `row` builds from each line's number and object."""
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
        raise DataError(f"{path}: has no rows; write one JSON object per line")
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
    """The existing file for this path, with one of SUFFIXES if needed, or None."""
    tried = (f"{picture}{suffix}" for suffix in SUFFIXES)
    return next((Path(path) for path in tried if os.path.isfile(path)), None)


def first(raw: Raw, names: Sequence[str], repair: str) -> tuple[str, Any]:
    for name in names:
        if name in raw:
            return name, raw[name]
    has = ", ".join(map(repr, list(raw)[:12])) or "nothing"
    raise Unreadable(f"no field {' or '.join(names)}, only {has}; {repair}")


def question(raw: Raw) -> str:
    return _text(*first(raw, QUESTION, "rename the question's field"))


def answers(raw: Raw) -> tuple[str, ...]:
    """The answers, from a text, a list of texts, or VQAv2's list of {"answer": text, ...}."""
    name, value = first(raw, ANSWER, "rename the answer's field")
    values = value if isinstance(value, list) else [value]
    if not values:
        raise Unreadable(f"{name} is an empty list; give at least one answer")
    return tuple(
        _text(name, one["answer"] if isinstance(one, dict) and "answer" in one else one) for one in values
    )


def pictures(raw: Raw, folder: Path) -> tuple[Path, ...]:
    """Picture paths, from a path or a list of paths; null or [] means no picture."""
    name, value = first(raw, PICTURE, 'write "images": [] for a question without a picture')
    values = value if isinstance(value, list) else [] if value is None else [value]
    for one in values:
        if not isinstance(one, str) or not one or "\0" in one:
            raise Unreadable(f"{name} is {_short(one)}; give the path of a picture file")
    return tuple(folder / one for one in values)


def turns(raw: Raw) -> tuple[str | None, tuple[str, ...]] | None:
    """A conversation's system prompt and alternating user and assistant texts; None if there is none."""
    name = next((name for name in TURNS if name in raw), None)
    if name is None:
        return None
    exchange = list(_turns(raw[name], *TURNS[name]))
    system = exchange.pop(0)[1] if exchange and exchange[0][0] == "system" else None
    if len(exchange) < 2 or [who for who, _ in exchange] != ["user", "assistant"] * (len(exchange) // 2):
        has = ", ".join(who for who, _ in exchange) or "nothing"
        raise Unreadable(f"its turns are {has}; alternate user and assistant, with the assistant last")
    return system, tuple(text for _, text in exchange)


def _turns(value: Any, role: str, content: str) -> Iterator[tuple[str, str]]:
    for turn in value if isinstance(value, list) else [value]:
        if not isinstance(turn, dict) or role not in turn or content not in turn:
            raise Unreadable(f"{_short(turn)} is not a turn; give {role!r} and {content!r}")
        if not isinstance(turn[role], str) or turn[role] not in ROLES:
            raise Unreadable(f"{role} is {_short(turn[role])}; choose one of {', '.join(ROLES)}")
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
                raise Unreadable(f"{_short(part)} is neither a text nor an image; remove it")
    return "\n".join(texts)


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise Unreadable(f"{name} is {_short(value)}; give a text")


def _object(line: bytes, number: int) -> Raw:
    try:
        value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        hint = "; the file is one JSON array; write one object per line" if line.lstrip()[:1] == b"[" else ""
        raise Unreadable(f"not JSON ({error}){hint or '; fix or remove it'}") from None
    if not isinstance(value, dict):
        raise Unreadable(f"a JSON {type(value).__name__}, not an object; write one object per line")
    return value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"
