"""Pictures in a terminal."""

from PIL import Image

from fastvlm_mlx.preview import blocks


def test_a_character_shows_two_pixels() -> None:
    picture = Image.new("RGB", (2, 2), (255, 0, 0))
    picture.putpixel((0, 1), (0, 0, 255))
    first, second = "\x1b[38;2;255;0;0m\x1b[48;2;0;0;255m▀", "\x1b[38;2;255;0;0m\x1b[48;2;255;0;0m▀"
    assert blocks(picture, 2) == f"{first}{second}\x1b[0m"


def test_proportions_are_kept() -> None:
    wide, tall = (blocks(Image.new("RGB", size), 8).splitlines() for size in ((64, 16), (16, 64)))
    assert (len(wide), len(tall)) == (1, 16)
    assert {line.count("▀") for line in wide + tall} == {8}
