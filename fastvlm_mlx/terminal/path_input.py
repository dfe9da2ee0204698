"""Finds the paths in a line: files dropped onto the terminal, typed or pasted.

>>> dropped("/tmp/My\\\\ Cat.jpg What is it?")  # where there is such a file
([Path('/tmp/My Cat.jpg')], 'What is it?')

Terminals escape spaces (macOS), quote (Linux) or write a file:// address; people type plain paths with
spaces."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..inputs.tiling import VIDEO_SUFFIXES

_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
    *VIDEO_SUFFIXES,
)


def split_paths(line: str) -> tuple[list[Path], str]:
    """The files at the start of a line, and the text after them. A bare word counts only with the suffix of a
    picture or a video."""
    found: list[Path] = []
    rest = line.strip()
    while (first := _first_path(rest)) is not None:
        path, rest = first
        found.append(path)
    return found, rest


def _first_path(text: str) -> tuple[Path, str] | None:
    typed = io.StringIO(text)
    lexer = shlex.shlex(typed, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        word = lexer.get_token()
    except ValueError:  # an apostrophe
        word = None
    if word and (path := _file(word)):
        return path, text[typed.tell() :].strip()
    ends = [place for place, character in enumerate(text) if character == " "]
    for end in (len(text), *reversed(ends)):  # the longest first
        if path := _file(text[:end]):
            return path, text[end:].strip()
    return None


def _file(word: str) -> Path | None:
    if word.startswith("file://"):
        word = unquote(urlsplit(word).path)
    try:
        path = Path(word).expanduser()
        meant = "/" in word or path.suffix.lower() in _SUFFIXES
        return path if word.strip() and meant and path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # too long a name, nobody's home, a null byte
        return None
