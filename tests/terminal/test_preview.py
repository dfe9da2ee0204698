"""Pictures in a terminal."""

import base64
import io
import re

import pytest
from pictures import noise
from PIL import Image

from fastvlm_mlx.terminal.preview import blocks, inline


def test_a_character_shows_two_pixels() -> None:
    picture = Image.new("RGB", (2, 2), (255, 0, 0))
    picture.putpixel((0, 1), (0, 0, 255))
    first, second = "\x1b[38;2;255;0;0m\x1b[48;2;0;0;255m▀", "\x1b[38;2;255;0;0m\x1b[48;2;255;0;0m▀"
    assert blocks(picture, 2) == f"{first}{second}\x1b[0m"


def test_proportions_are_kept() -> None:
    wide, tall = (blocks(Image.new("RGB", size), 8).splitlines() for size in ((64, 16), (16, 64)))
    assert (len(wide), len(tall)) == (1, 16)
    assert {line.count("▀") for line in wide + tall} == {8}


def decoded(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_kitty_gets_a_picture_in_pieces() -> None:
    picture = Image.fromarray(noise(900, 1200))
    shown = inline(picture, {"TERM": "xterm-kitty"})
    assert shown is not None
    pieces = re.findall(r"\x1b_G([^;]*?)m=([01]);([^\x1b]*)\x1b\\", shown)
    assert "".join(f"\x1b_G{keys}m={more};{data}\x1b\\" for keys, more, data in pieces) == shown
    assert [more for _, more, _ in pieces] == ["1"] * (len(pieces) - 1) + ["0"]
    assert [keys for keys, _, _ in pieces[1:]] == [""] * (len(pieces) - 1)
    assert "q=2" in pieces[0][0]  # or the terminal would answer into what is typed
    assert max(len(data) for *_, data in pieces) <= 4096
    assert decoded("".join(data for *_, data in pieces)).size == (640, 480)


def test_iterm_gets_it_whole() -> None:
    shown = inline(Image.new("RGB", (40, 30)), {"TERM_PROGRAM": "iTerm.app"})
    assert shown is not None
    about, data = re.fullmatch(r"\x1b\]1337;File=(.*):(.*)\x07", shown).groups()  # type: ignore[union-attr]
    assert f"size={len(base64.b64decode(data))}" in about
    assert decoded(data).size == (40, 30)


@pytest.mark.parametrize(
    ("environment", "begins"),
    [
        ({}, None),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "dumb", "TERM_PROGRAM": "Apple_Terminal"}, None),
        ({"KITTY_WINDOW_ID": "1", "TERM": "xterm-256color"}, "\x1b_G"),
        ({"KITTY_WINDOW_ID": ""}, None),
        ({"LC_TERMINAL": "iTerm2"}, "\x1b]1337"),
        ({"COLORTERM": "truecolor"}, "\x1b[38;2;"),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "iTerm.app"}, None),  # it would not let it through
        ({"TMUX": "/tmp/x", "TERM": "xterm-kitty", "COLORTERM": "truecolor"}, "\x1b[38;2;"),
    ],
)
def test_a_terminal_is_known_by_what_it_says(environment: dict[str, str], begins: str | None) -> None:
    shown = inline(Image.new("RGB", (4, 4)), environment)
    assert shown is None if begins is None else str(shown).startswith(begins)
