"""The command in a terminal of its own: what a person types, and what they see."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from command import PYTHON, clean_environment

_SCRIPT = (
    "import fcntl, signal, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs start without it
    "from fastvlm_mlx.cli import main\n"
    "main()"
)
_PLAIN = dict.fromkeys(("COLORTERM", "KITTY_WINDOW_ID", "LC_TERMINAL", "TERM_PROGRAM", "TMUX"), "")
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


class Terminal:
    def __init__(self, *arguments: object, history: Path, **environment: str) -> None:
        self._screen, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 250, 0, 0))
        known = clean_environment() | _PLAIN | {"TERM": "xterm", "FASTVLM_MLX_HISTORY": str(history)}
        self.process = subprocess.Popen(
            [*PYTHON, "-c", _SCRIPT, *map(str, arguments)],
            stdin=there,
            stdout=there,
            stderr=there,
            start_new_session=True,
            env=known | environment,
        )
        os.close(there)
        self._unread = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._screen)

    def see(self, pattern: str, seconds: float = 120) -> str:
        """Wait until it is on the screen; return what came up to and with it."""
        until = time.monotonic() + seconds
        while not (found := re.search(pattern, self._unread, re.DOTALL)):
            if not select.select([self._screen], [], [], max(0, until - time.monotonic()))[0]:
                raise AssertionError(f"{pattern!r} is not in {self._unread!r}")
            try:
                self._unread += os.read(self._screen, 65536).decode(errors="replace")
            except OSError:  # the other side has closed
                raise AssertionError(f"{pattern!r} is not in {self._unread!r}, and it ended") from None
        seen, self._unread = self._unread[: found.end()], self._unread[found.end() :]
        return seen

    def type(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def asked(self, line: str) -> str:
        """Type a line once there is a prompt; return what the screen shows until the next."""
        self.prompt()
        self.type(line + "\r")
        self.see(re.escape(line[-8:]) + r"[^\n]*\n")  # the line itself, echoed
        shown = self.prompt()
        self._unread = "> "
        return shown

    def prompt(self) -> str:
        return self.see(r"> \Z")

    def left(self) -> int:
        return self.process.wait(60)
