"""A picture in a terminal: two pixels a character, as upper half blocks in 24-bit colour."""

from __future__ import annotations

import numpy as np
from PIL import Image

COLUMNS = 32


def blocks(picture: Image.Image, columns: int = COLUMNS) -> str:
    """Lines of text that show the picture, `columns` wide, its proportions kept."""
    rows = max(1, round(columns * picture.height / picture.width / 2))
    small = picture.convert("RGB").resize((columns, 2 * rows), Image.Resampling.BOX)
    pixels = np.asarray(small).tolist()
    return "\n".join(
        "".join(map(_block, pixels[row], pixels[row + 1])) + "\x1b[0m" for row in range(0, 2 * rows, 2)
    )


def _block(above: list[int], below: list[int]) -> str:
    front, back = (";".join(map(str, colour)) for colour in (above, below))
    return f"\x1b[38;2;{front}m\x1b[48;2;{back}m▀"
