"""Pictures: what the reference does, bit for bit, and what a person expects."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from pictures import IMAGES, RED, WHITE, chunk, encoded, noise, palette_picture, png
from PIL import Image
from safetensors.numpy import load_file

from fastvlm_mlx.config import SQUARE_MODES
from fastvlm_mlx.errors import ConfigError, ImageError
from fastvlm_mlx.inputs import image
from fastvlm_mlx.inputs.image import (
    open_image,
    preprocess,
    preprocess_all,
    split_image,
    stored_size,
    to_square,
)
from fastvlm_mlx.inputs.tiling import ImageOptions

EXPECTED = load_file(IMAGES / "expected.safetensors")
TILES = json.loads((IMAGES / "tiles.json").read_text())["pieces"]
NAMES = sorted(json.loads((IMAGES / "images.json").read_text())["images"])


# The reference


@pytest.mark.parametrize("name", NAMES)
def test_reference_mode_is_bit_exact(name: str) -> None:
    file = "exif_rot6.decoded.png" if name == "exif_rot6.jpg" else name
    found = preprocess(IMAGES / file, 128, reference=True)
    assert found.dtype == np.float32
    assert found.shape == (128, 128, 3)
    np.testing.assert_array_equal(found.transpose(2, 0, 1), EXPECTED[name].reshape(3, 128, 128))


def test_reference_mode_ignores_orientation_up_to_the_decoder() -> None:
    found = preprocess(IMAGES / "exif_rot6.jpg", 128, reference=True).transpose(2, 0, 1)
    assert np.abs(found - EXPECTED["exif_rot6.jpg"].reshape(3, 128, 128)).max() <= 4 / 255


def test_reference_mode_is_pillows_convert() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, *RED])
    data = encoded(palette, transparency=bytes([255, 0]))
    assert open_image(data, reference=True).getpixel((0, 0)) == RED
    wide = Image.fromarray(np.full((2, 2), 300, np.uint16))
    assert open_image(wide, reference=True).getpixel((0, 0)) == wide.convert("RGB").getpixel((0, 0))


@pytest.mark.parametrize("name", ["tall.png", "wide_odd_pad.png", "square_up.png", "gray.png"])
def test_plain_pictures_agree_with_the_reference_in_both_modes(name: str) -> None:
    np.testing.assert_array_equal(
        preprocess(IMAGES / name, 128), preprocess(IMAGES / name, 128, reference=True)
    )


@pytest.mark.parametrize("case", TILES, ids=lambda case: "-".join(map(str, case[:4])))
@pytest.mark.parametrize("reference", [True, False])
def test_overview_and_tiles_are_the_references_bit_for_bit(
    case: tuple[str, int, int, int, list[str]], reference: bool
) -> None:
    name, columns, rows, size, digests = case
    opened = open_image(IMAGES / name, reference=reference)
    found = split_image(opened, ImageOptions(size, "tiles", (columns, rows), reference=reference))
    assert [hashlib.sha256(piece.tobytes()).hexdigest()[:16] for piece in found] == digests


# What a person expects


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_every_orientation_comes_out_upright(orientation: int, kind: str) -> None:
    upright = noise(3, 5)
    stored = {  # how a camera stores an upright picture under each orientation
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(data)), upright)


def test_reading_what_was_read_changes_nothing() -> None:
    once = open_image(IMAGES / "exif_rot6.jpg")
    again = open_image(once)
    assert once.size == (80, 140)
    assert again.size == once.size
    assert again.tobytes() == once.tobytes()


def test_a_torn_exif_block_does_not_lose_the_picture() -> None:
    data = encoded(Image.new("RGB", (2, 2), RED), exif=b"Exif\0\0not a header")
    assert open_image(data).getpixel((0, 0)) == RED


def two_pixels(mode: str, opaque: object, clear: object) -> Image.Image:
    picture = Image.new(mode, (2, 1), opaque)
    picture.putpixel((1, 0), clear)
    return picture


GRAY = (100, 100, 100)
SIXTEEN = chunk(b"tRNS", struct.pack(">H", 5000))
TRANSPARENT = {
    "RGBA": (encoded(two_pixels("RGBA", (*RED, 255), (0, 0, 9, 0))), RED),
    "LA": (encoded(two_pixels("LA", (100, 255), (9, 0))), GRAY),
    "palette, one index": (encoded(palette_picture("P"), transparency=1), RED),
    "palette, alpha bytes": (encoded(palette_picture("P"), transparency=bytes([255, 0])), RED),
    "PA in memory": (palette_picture("PA"), RED),
    "tRNS in RGB": (encoded(two_pixels("RGB", RED, (0, 0, 9)), transparency=(0, 0, 9)), RED),
    "tRNS in L": (encoded(two_pixels("L", 100, 9), transparency=9), GRAY),
    "tRNS in 16-bit gray": (png(2, 1, 16, 0, struct.pack(">BHH", 0, 25700, 5000), SIXTEEN), GRAY),
    "GIF": (encoded(palette_picture("P"), "GIF", transparency=1), RED),
    "WebP": (encoded(two_pixels("RGBA", (*RED, 255), (0, 0, 9, 0)), "WEBP", lossless=True), RED),
    "premultiplied": (two_pixels("RGBa", (*RED, 255), (0, 0, 0, 0)), RED),
    "premultiplied gray": (two_pixels("La", (100, 255), (0, 0)), GRAY),
    "array": (np.array([[[*RED, 255], [0, 0, 9, 0]]], np.uint8), RED),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparency_lies_over_white(kind: str) -> None:
    source, opaque = TRANSPARENT[kind]
    found = open_image(source)
    assert found.mode == "RGB"
    assert [found.getpixel((0, 0)), found.getpixel((1, 0))] == [opaque, WHITE]


def test_half_transparent_is_half_white() -> None:
    assert open_image(Image.new("RGBA", (1, 1), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)


DEEP = np.array([[0, 128, 129, 257, 25700, 65535]], np.uint16)
DEEP_8 = [0, 0, 1, 1, 100, 255]
WIDE_GRAY = {
    "16-bit PNG": (png(6, 1, 16, 0, b"\0" + DEEP.astype(">u2").tobytes()), DEEP_8),
    "16-bit TIFF": (encoded(Image.fromarray(DEEP), "TIFF"), DEEP_8),
    "16-bit PGM": (b"P5 6 1 65535\n" + DEEP.astype(">u2").tobytes(), DEEP_8),
    "16-bit in memory": (Image.fromarray(DEEP), DEEP_8),
    "32-bit integers by their own range": (
        Image.fromarray(np.array([[-10, 0, 245]], np.int32)),
        [0, 10, 255],
    ),
    "floats by their own range": (Image.fromarray(np.array([[-1, 0, 1]], np.float32)), [0, 128, 255]),
    "floats that are not numbers": (
        Image.fromarray(np.array([[np.nan, -np.inf, 2, 3, np.inf]], np.float32)),
        [0, 0, 0, 255, 255],
    ),
    "no numbers at all": (Image.fromarray(np.full((1, 2), np.nan, np.float32)), [0, 0]),
    "a constant": (Image.fromarray(np.full((1, 2), 7, np.float32)), [0, 0]),
}


@pytest.mark.parametrize("kind", WIDE_GRAY)
def test_wide_gray_is_scaled_not_clipped(kind: str) -> None:
    source, expected = WIDE_GRAY[kind]
    found = np.asarray(open_image(source))
    assert found.shape == (1, len(expected), 3)
    assert found[0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"])
def test_other_modes_become_rgb(mode: str) -> None:
    picture = Image.new(mode, (3, 2))
    np.testing.assert_array_equal(np.asarray(open_image(picture)), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_of_several_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, WHITE)]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert open_image(data).getpixel((0, 0)) == RED


def test_every_kind_of_source_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(4, 6)
    data = encoded(Image.fromarray(pixels))
    (tmp_path / "a.png").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    for source in ("a.png", tmp_path / "a.png", data, Image.open("a.png"), Image.fromarray(pixels), pixels):
        np.testing.assert_array_equal(np.asarray(open_image(source)), pixels)
    turned = pixels[::-1, ::2]  # not contiguous
    np.testing.assert_array_equal(np.asarray(open_image(turned)), turned)
    gray = pixels[:, :, 0]
    np.testing.assert_array_equal(np.asarray(open_image(gray))[:, :, 1], gray)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("name", ["exif_rot6.jpg", "rgba_alpha.png"])
def test_an_open_picture_is_not_opened_again(
    name: str, reference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ImageOptions(64, "pad", reference=reference)
    [expected] = preprocess_all(IMAGES / name, options)
    opened = open_image(IMAGES / name, reference=reference)
    before = opened.tobytes()
    monkeypatch.setattr(image, "open_image", None)
    [found] = preprocess_all(opened, options)
    np.testing.assert_array_equal(found, expected)
    assert opened.tobytes() == before


def test_a_picture_with_an_orientation_is_opened_whatever_made_it() -> None:
    picture = Image.fromarray(noise(40, 20))
    picture.getexif()[0x0112] = 6
    [found] = preprocess_all(picture, ImageOptions(64, "stretch"))
    [expected] = preprocess_all(picture.transpose(Image.Transpose.ROTATE_270), ImageOptions(64, "stretch"))
    np.testing.assert_array_equal(found, expected)


def test_the_callers_picture_is_left_alone() -> None:
    picture = palette_picture("P")
    picture.info["transparency"] = 1
    for reference in (False, True):
        result = open_image(picture, reference=reference)
        result.putpixel((0, 0), WHITE)
    assert (picture.mode, picture.info["transparency"], picture.getpixel((0, 0))) == ("P", 1, 0)


# Squares


@pytest.mark.parametrize(("width", "height"), [(301, 200), (90, 241), (64, 64), (129, 128), (1, 3)])
def test_crop_is_what_transformers_does(width: int, height: int) -> None:
    picture = Image.fromarray(noise(height, width))
    scaled = int(64 * max(width, height) / min(width, height))
    shape = (64, scaled) if width <= height else (scaled, 64)
    full = np.asarray(picture.resize(shape, Image.Resampling.BICUBIC))
    top, left = (full.shape[0] - 64) // 2, (full.shape[1] - 64) // 2
    np.testing.assert_array_equal(
        np.asarray(to_square(picture, 64, "crop")), full[top : top + 64, left : left + 64]
    )


def test_stretch_fills_the_square() -> None:
    assert np.all(preprocess(Image.new("RGB", (30, 7), WHITE), 64, "stretch") == 1.0)


@pytest.mark.parametrize("mode", [*SQUARE_MODES, "native"])
def test_one_pixel_is_a_picture(mode: str) -> None:
    assert np.all(preprocess(Image.new("RGB", (1, 1), WHITE), 64, mode) == 1.0)


@pytest.mark.parametrize("shape", [(100_000, 1, 3), (1, 100_000, 3)])
def test_an_extreme_strip_is_refused_when_padded_and_served_otherwise(shape: tuple[int, ...]) -> None:
    strip = np.full(shape, 255, np.uint8)
    with pytest.raises(ImageError, match="mode crop or stretch"):
        preprocess(strip, 1024)
    for mode in ("crop", "stretch", "native"):
        assert np.all(preprocess(strip, 1024, mode) == 1.0)


@pytest.mark.parametrize(
    ("size", "mode", "says"),
    [
        (1000, "pad", "choose 960 or 1024"),
        (10, "pad", "choose 64 or more"),
        (0, "pad", "choose 64 or more"),
        (-64, "pad", "choose 64 or more"),
        (2**30, "pad", "too large"),
        (128, "fit", "choose one of pad, crop, stretch"),
        (128, "tiles", "call image.pieces, or choose another mode"),
    ],
)
def test_bad_options_name_the_good_ones(size: int, mode: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        preprocess("there is no such file", size, mode)


@pytest.mark.parametrize("mode", ["native", "tiles", "fit"])
def test_what_makes_no_square_is_refused(mode: str) -> None:
    with pytest.raises(ConfigError, match="choose one of pad, crop, stretch"):
        to_square(Image.new("RGB", (2, 1)), 64, mode)


# Other shapes


def test_native_is_the_picture_itself_and_no_bars() -> None:
    picture = Image.fromarray(noise(90, 160))
    found = preprocess(picture, 256, "native")
    assert found.shape == (128, 256, 3)  # 2.25 cells of 4: 2
    expected = np.asarray(picture.resize((256, 128), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(np.rint(found * 255), expected)


def test_native_of_a_square_is_the_padded_square() -> None:
    picture = Image.fromarray(noise(70, 70))
    np.testing.assert_array_equal(preprocess(picture, 128, "native"), preprocess(picture, 128, "pad"))


def test_tiles_laid_side_by_side_are_the_picture_in_front_of_black() -> None:
    colour = Image.new("RGB", (300, 200), RED)
    overview, *tiles = split_image(colour, ImageOptions(64, "tiles", (2, 2)))
    assert np.all(np.asarray(overview) == RED)
    rows = [np.concatenate([np.asarray(tile) for tile in tiles[first : first + 2]], 1) for first in (0, 2)]
    whole = np.concatenate(rows)
    assert whole.shape == (128, 128, 3)
    assert np.all(whole[21:107] == RED)  # 86 of 128 rows, in the middle
    assert not whole[:21].any()
    assert not whole[107:].any()


def test_tiles_go_row_by_row_after_the_overview() -> None:
    colours = [(40 * n, 0, 255 - 40 * n) for n in range(6)]
    grid = np.repeat(np.repeat(np.array(colours, np.uint8).reshape(2, 3, 3), 64, 0), 64, 1)
    _, *tiles = split_image(Image.fromarray(grid), ImageOptions(64, "tiles", (3, 2)))
    assert [tile.getpixel((30, 30)) for tile in tiles] == colours


@pytest.mark.parametrize("reading", [ImageOptions(64, "tiles"), ImageOptions(64, "tiles", (1, 1))])
def test_what_one_tile_shows_whole_is_one_padded_square(reading: ImageOptions) -> None:
    picture = Image.fromarray(noise(30, 60))
    [found] = preprocess_all(picture, reading)
    np.testing.assert_array_equal(found, preprocess(picture, 64))


@pytest.mark.parametrize("reading", [ImageOptions(64, "native"), ImageOptions(64, "tiles", max_tiles=6)])
def test_pieces_have_the_sides_that_were_worked_out(reading: ImageOptions) -> None:
    for height, width in ((1, 1), (100, 300), (301, 99), (64, 65), (1, 700), (50, 64)):
        found = [
            piece.shape[1::-1] for piece in preprocess_all(Image.fromarray(noise(height, width)), reading)
        ]
        assert found == list(reading.sides(width, height))


def test_a_picture_of_fewer_pixels_than_tiles_is_refused() -> None:
    with pytest.raises(ImageError, match="1×5 has too few pixels for 2x2 tiles; leave the grid out"):
        preprocess_all(Image.new("RGB", (1, 5)), ImageOptions(64, "tiles", (2, 2)))


def test_stored_sides_are_those_of_the_file(tmp_path: Path) -> None:
    assert stored_size(IMAGES / "exif_rot6.jpg") == (140, 80)  # upright it is 80×140
    (tmp_path / "cut.png").write_bytes((IMAGES / "tall.png").read_bytes()[:100])
    assert stored_size(tmp_path / "cut.png") == (90, 241)  # what follows is not looked at
    with pytest.raises(ImageError, match=r"gone\.png.*pass the path of a readable picture"):
        stored_size(tmp_path / "gone.png")
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(ImageError, match="is not a picture"):
        stored_size(tmp_path / "no.png")
