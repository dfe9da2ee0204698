"""Reads lines that are typed or piped; in a terminal with editing and a persistent history."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

HISTORY_VARIABLE = "FASTVLM_MLX_HISTORY"
_LINES = 1000


def reader(prompt: str) -> Callable[[], str]:
    """A function that returns the next line and raises EOFError after the last."""
    if sys.stdin is None:
        return _no_input
    if not sys.stdin.isatty():
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        return _read_piped
    try:
        import readline
    except ImportError:  # a Python built without it
        return lambda: _ask(prompt)

    history = _history_file()
    if history is not None:
        with suppress(OSError):
            readline.read_history_file(history)

    def read() -> str:
        line = _ask(prompt)
        if history is not None:
            readline.set_history_length(_LINES)
            with suppress(OSError):  # a history is a convenience
                readline.write_history_file(history)
                os.chmod(history, 0o600)
        return line

    return read


def _ask(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    sys.stderr.write(prompt)  # stdout is a file for the answers
    sys.stderr.flush()
    return input()


def _read_piped() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _no_input() -> str:
    raise EOFError


def _history_file() -> Path | None:
    """The path in the environment variable, None if that is empty, else one in the user's state folder."""
    named = os.environ.get(HISTORY_VARIABLE)
    if named is not None:
        return Path(named).expanduser() if named else None
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    with suppress(OSError, RuntimeError):  # nobody's home
        folder = Path(state).expanduser() / "fastvlm-mlx"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder / "history"
    return None
