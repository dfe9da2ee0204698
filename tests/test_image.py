"""Pictures: what the reference does, bit for bit, and what a person expects."""

import io
import json
import os
import struct
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from fastvlm_mlx import image as room
from fastvlm_mlx.errors import ConfigError, ImageError
from fastvlm_mlx.image import fetch, open_image, preprocess, squared

GOLDEN = Path(__file__).parent / "golden" / "images"
EXPECTED = load_file(GOLDEN / "expected.safetensors")
NAMES = sorted(json.loads((GOLDEN / "images.json").read_text())["images"])
WHITE, RED = (255, 255, 255), (200, 0, 0)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(tag: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def ftyp(brand: bytes, *compatible: bytes) -> bytes:
    return struct.pack(">I", 16 + 4 * len(compatible)) + b"ftyp" + brand + bytes(4) + b"".join(compatible)


# The reference


@pytest.mark.parametrize("name", NAMES)
def test_reference_mode_is_bit_exact(name: str) -> None:
    file = "exif_rot6.decoded.png" if name == "exif_rot6.jpg" else name
    found = preprocess(GOLDEN / file, 128, reference=True)
    assert found.dtype == np.float32
    assert found.shape == (128, 128, 3)
    np.testing.assert_array_equal(found.transpose(2, 0, 1), EXPECTED[name].reshape(3, 128, 128))


def test_reference_mode_ignores_orientation_up_to_the_decoder() -> None:
    found = preprocess(GOLDEN / "exif_rot6.jpg", 128, reference=True).transpose(2, 0, 1)
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
        preprocess(GOLDEN / name, 128), preprocess(GOLDEN / name, 128, reference=True)
    )


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


def test_a_torn_exif_block_does_not_lose_the_picture() -> None:
    data = encoded(Image.new("RGB", (2, 2), RED), exif=b"Exif\0\0not a header")
    assert open_image(data).getpixel((0, 0)) == RED


def palette_picture(mode: str) -> Image.Image:
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, 0, 0, 9])
    picture.putpixel((1, 0), 1)
    if mode == "PA":
        picture.info["transparency"] = 1
    return picture.convert(mode)


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
        np.asarray(squared(picture, 64, "crop")), full[top : top + 64, left : left + 64]
    )


def test_stretch_fills_the_square() -> None:
    assert np.all(preprocess(Image.new("RGB", (30, 7), WHITE), 64, "stretch") == 1.0)


@pytest.mark.parametrize("mode", room.MODES)
def test_one_pixel_is_a_picture(mode: str) -> None:
    assert np.all(preprocess(Image.new("RGB", (1, 1), WHITE), 64, mode) == 1.0)


@pytest.mark.parametrize("shape", [(100_000, 1, 3), (1, 100_000, 3)])
def test_an_extreme_strip_is_refused_when_padded_and_served_otherwise(shape: tuple[int, ...]) -> None:
    strip = np.full(shape, 255, np.uint8)
    with pytest.raises(ImageError, match="mode crop or stretch"):
        preprocess(strip, 1024)
    for mode in ("crop", "stretch"):
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
    ],
)
def test_bad_options_name_the_good_ones(size: int, mode: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        preprocess("there is no such file", size, mode)


# Bad input

JPEG = encoded(Image.fromarray(noise(64, 64)), "JPEG")
PNG = encoded(Image.fromarray(noise(64, 64)))
HUGE = png(20_000, 20_000, 8, 2, b"")
BAD_BYTES = {
    "empty": (b"", "empty"),
    "text": (b"hello, I am not a picture", "not a picture.*hello"),
    "one byte": (b"x", "not a picture"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not a picture"),
    "cut JPEG": (JPEG[: len(JPEG) // 2], "damaged or cut short"),
    "cut JPEG header": (JPEG[:20], "damaged"),
    "cut PNG": (PNG[: len(PNG) // 2], "damaged or cut short"),
    "PNG of nothing but a signature": (PNG[:8], "damaged"),
    "PNG with a wrong header": (PNG[:16] + b"\xff" * 8 + PNG[24:], "damaged"),
    "PNG with damaged data": (PNG[:60] + bytes(200) + PNG[260:], "damaged or cut short"),
    "cut GIF": (encoded(palette_picture("P"), "GIF")[:20], "damaged"),
    "cut BMP": (b"BM" + bytes(9), "damaged"),
    "cut TIFF": (b"II*\0\x08\0\0\0", "damaged"),
    "cut WebP": (encoded(Image.fromarray(noise(9, 9)), "WEBP")[:30], "damaged"),
    "too many pixels": (HUGE, "20000×20000.*make it smaller"),
}


@pytest.mark.parametrize("kind", BAD_BYTES)
@pytest.mark.parametrize("reference", [False, True])
def test_bad_files_say_so_in_one_line(kind: str, reference: bool, tmp_path: Path) -> None:
    data, says = BAD_BYTES[kind]
    file = tmp_path / "holiday.png"
    file.write_bytes(data)
    for source, name in ((data, "the picture"), (file, "holiday.png")):
        with pytest.raises(ImageError, match=says) as caught:
            open_image(source, reference=reference)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis"])
def test_heic_without_its_plugin_names_the_repair(brand: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"pip install 'fastvlm-mlx\[heic\]'"):
        open_image(ftyp(brand, b"mif1", b"heic") + bytes(100))


def test_heic_is_read_where_its_plugin_is() -> None:
    plugin = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    plugin.from_pillow(Image.new("RGB", (64, 64), RED)).save(buffer)
    np.testing.assert_allclose(np.asarray(open_image(buffer.getvalue()))[32, 32], RED, atol=6)


def test_avif_is_pillows_or_names_the_repair() -> None:
    Image.init()
    if "AVIF" in Image.SAVE:
        data = encoded(Image.new("RGB", (64, 64), RED), "AVIF")
        np.testing.assert_allclose(np.asarray(open_image(data))[32, 32], RED, atol=6)
    else:
        with pytest.raises(ImageError, match="pip install -U pillow"):
            open_image(ftyp(b"avif") + bytes(100))


def test_bad_paths_say_so(tmp_path: Path) -> None:
    for source, says in (
        (tmp_path / "none.png", r"cannot read '.*none\.png' \(No such file"),
        (tmp_path, "Is a directory.*pass the path"),
        ("a\0b.png", "cannot read"),
        ("x" * 5000, "cannot read"),
        ("two\nlines.png", r"two\\nlines.png"),
    ):
        with pytest.raises(ImageError, match=says) as caught:
            open_image(source)
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 500


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_a_locked_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch(mode=0)
    with pytest.raises(ImageError, match=r"cannot read .*a\.png. \(Permission denied"):
        open_image(tmp_path / "a.png")


def test_a_refused_file_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(room, "open", refuse, raising=False)
    with pytest.raises(ImageError, match=r"cannot read 'a\.png' \(Permission denied"):
        open_image("a.png")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint16),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((3, 4, 4), np.uint8)[..., None],
        np.zeros(4, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_arrays_that_are_not_pictures_say_so(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"pass uint8 of shape"):
        open_image(array)


def test_other_things_that_are_not_pictures_say_so() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        open_image(Image.new("RGB", (0, 3)))
    with pytest.raises(ImageError, match="a list; pass a path"):
        open_image([1, 2])  # type: ignore[arg-type]


def test_a_lazy_picture_cut_short_says_so() -> None:
    with pytest.raises(ImageError, match="damaged or cut short"):
        open_image(Image.open(io.BytesIO(JPEG[: len(JPEG) // 2])))


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    open_image(PNG)  # plugins loaded
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(ImageError, match="make it smaller"):
        open_image(HUGE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - start < 1
    assert peak < 2**20


def test_pillows_own_limit_is_neither_used_nor_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Image.open(PNG) would raise
    for data in (PNG, JPEG):
        assert open_image(data).size == (64, 64)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_our_limit_counts_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_PIXELS", 64 * 64)
    assert open_image(PNG).size == (64, 64)
    monkeypatch.setattr(room, "MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(ImageError, match="more than 4095 pixels"):
        open_image(PNG)


@pytest.mark.filterwarnings("ignore")  # Pillow's remarks on what it finds
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "ICO", "PPM", "TGA"])
def test_damage_anywhere_gives_a_picture_or_an_image_error(kind: str) -> None:
    rng = np.random.default_rng(0)
    whole = np.frombuffer(encoded(Image.fromarray(noise(16, 16)), kind), np.uint8)
    for _ in range(60):
        data = whole.copy()
        where = rng.integers(0, min(len(data), 120), rng.integers(1, 5))
        data[where] = rng.integers(0, 256, len(where))
        room_left = data[: rng.integers(1, len(data) + 1)].tobytes()
        try:
            open_image(room_left)
        except ImageError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017


# The command line's sources


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        found = self.path in ("/a%20b.png", "/unsized.png")
        self.send_response(200 if found else 404)
        if found and "unsized" not in self.path:
            self.send_header("Content-Length", str(len(PNG)))
        self.end_headers()
        if found:
            self.wfile.write(PNG)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_address_is_downloaded(url: str) -> None:
    for path in ("/a b.png", "/a%20b.png", "/unsized.png", f"/to/{url}/unsized.png"):
        assert fetch(url + path) == PNG


def test_a_downloads_address_is_in_later_errors(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PNG", b"<html>")
    with pytest.raises(ImageError, match=f"'{url}/unsized.png' is not a picture"):
        open_image(fetch(f"{url}/unsized.png"))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/none.png", "answered 404"),
        ("/to/file:///etc/hostname", "answered 302"),
        ("/to/ftp://127.0.0.1/a.png", "unknown url type"),
    ],
)
def test_a_refused_download_says_so(url: str, path: str, says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        fetch(url + path)
    assert url in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("path", ["/a%20b.png", "/unsized.png"])
def test_a_download_has_a_size_limit(url: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_DOWNLOAD_BYTES", len(PNG))
    assert fetch(url + path) == PNG
    monkeypatch.setattr(room, "MAX_DOWNLOAD_BYTES", len(PNG) - 1)
    with pytest.raises(ImageError, match="larger than"):
        fetch(url + path)


def test_a_dead_connection_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(room, "DOWNLOAD_TIMEOUT_S", 0.1)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as silent:  # listens, never answers
        silent_url = f"http://127.0.0.1:{silent.server_port}/a.png"
        with pytest.raises(ImageError, match=r"cannot download .*timed out"):
            fetch(silent_url)
    for address in (silent_url, "http://no-such-host.invalid/a.png", "http://[/a.png", "http://"):
        with pytest.raises(ImageError, match="cannot download"):
            fetch(address)


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PNG)))
    assert fetch("-") == PNG
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(ImageError, match="'standard input' is empty"):
        open_image(fetch("-"))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ImageError, match="none is piped in"):
        fetch("-")


def test_anything_else_is_a_path() -> None:
    assert fetch("a/b.png") == Path("a/b.png")
