"""Shows a picture in a terminal: by the terminal's own protocol, or as two pixels a character in 24-bit
color."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

COLUMNS = 32
_SIDE = 640  # pixels; larger pictures are scaled down
_CHUNK = 4096  # kitty's limit for one escape sequence


def blocks(picture: Image.Image, columns: int = COLUMNS) -> str:
    """Lines of colored blocks that show the picture, `columns` wide, in its proportions."""
    rows = max(1, round(columns * picture.height / picture.width / 2))
    small = picture.convert("RGB").resize((columns, 2 * rows), Image.Resampling.BOX)
    pixels = np.asarray(small).tolist()
    return "\n".join(
        "".join(map(_block, pixels[row], pixels[row + 1])) + "\x1b[0m" for row in range(0, 2 * rows, 2)
    )


def inline(picture: Image.Image, environment: Mapping[str, str]) -> str | None:
    """The escape sequence that shows the picture in this terminal, None if it has none."""
    within = environment.get("TMUX") or environment.get("TERM", "").startswith(("screen", "tmux"))
    for variable, values, show in _TERMINALS:
        said = environment.get(variable)
        if said and (said in values or not values) and (show is blocks or not within):
            return show(picture)
    return None


def _iterm(picture: Image.Image) -> str:
    data = _png(picture)
    about = f"inline=1;size={len(data)};width={COLUMNS};preserveAspectRatio=1"
    return f"\x1b]1337;File={about}:{base64.b64encode(data).decode()}\x07"


def _kitty(picture: Image.Image) -> str:
    text = base64.b64encode(_png(picture)).decode()
    chunks = [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)]
    first = f"a=T,f=100,q=2,c={COLUMNS},"  # shown at once, PNG, no reply
    return "".join(
        f"\x1b_G{'' if number else first}m={int(number + 1 < len(chunks))};{chunk}\x1b\\"
        for number, chunk in enumerate(chunks)
    )


_TERMINALS: tuple[tuple[str, tuple[str, ...], Callable[[Image.Image], str]], ...] = (
    ("TERM", ("xterm-kitty", "xterm-ghostty"), _kitty),
    ("KITTY_WINDOW_ID", (), _kitty),
    ("TERM_PROGRAM", ("ghostty",), _kitty),
    ("TERM_PROGRAM", ("iTerm.app", "WezTerm", "mintty"), _iterm),
    ("LC_TERMINAL", ("iTerm2",), _iterm),
    ("COLORTERM", ("truecolor", "24bit"), blocks),
)


def _png(picture: Image.Image) -> bytes:
    small = picture.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    held = io.BytesIO()
    small.save(held, "PNG")
    return held.getvalue()


def _block(above: list[int], below: list[int]) -> str:
    front, back = (";".join(map(str, colour)) for colour in (above, below))
    return f"\x1b[38;2;{front}m\x1b[48;2;{back}m▀"
