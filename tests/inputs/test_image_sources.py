"""Where pictures come from, and what is no picture: one line that says so."""

import io
import os
import struct
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from pictures import RED, encoded, noise, palette_picture, png
from PIL import Image

from fastvlm_mlx.errors import ImageError
from fastvlm_mlx.inputs import image as room
from fastvlm_mlx.inputs.image import open_image, open_source


def ftyp(brand: bytes, *compatible: bytes) -> bytes:
    return struct.pack(">I", 16 + 4 * len(compatible)) + b"ftyp" + brand + bytes(4) + b"".join(compatible)


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
    with pytest.raises(ImageError, match="make it smaller"):
        open_image(HUGE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
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
    assert open_image(PNG, most_pixels=64 * 64).size == (64, 64)
    with pytest.raises(ImageError, match="more than 4095 pixels"):
        open_image(PNG)
    with pytest.raises(ImageError, match="more than 9 pixels"):
        open_image(PNG, most_pixels=9)


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
        assert open_source(url + path) == PNG


def test_a_downloads_address_is_in_later_errors(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PNG", b"<html>")
    with pytest.raises(ImageError, match=f"'{url}/unsized.png' is not a picture"):
        open_image(open_source(f"{url}/unsized.png"))


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
        open_source(url + path)
    assert url in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("path", ["/a%20b.png", "/unsized.png"])
def test_a_download_has_a_size_limit(url: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_DOWNLOAD_BYTES", len(PNG))
    assert open_source(url + path) == PNG
    monkeypatch.setattr(room, "MAX_DOWNLOAD_BYTES", len(PNG) - 1)
    with pytest.raises(ImageError, match="larger than"):
        open_source(url + path)


def test_a_dead_connection_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(room, "DOWNLOAD_TIMEOUT_S", 0.1)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as silent:  # listens, never answers
        silent_url = f"http://127.0.0.1:{silent.server_port}/a.png"
        with pytest.raises(ImageError, match=r"cannot download .*timed out"):
            open_source(silent_url)
    for address in (silent_url, "http://no-such-host.invalid/a.png", "http://[/a.png", "http://"):
        with pytest.raises(ImageError, match="cannot download"):
            open_source(address)


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PNG)))
    assert open_source("-") == PNG
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(ImageError, match="'standard input' is empty"):
        open_image(open_source("-"))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ImageError, match="none is piped in"):
        open_source("-")


def test_anything_else_is_a_path() -> None:
    assert open_source("a/b.png") == Path("a/b.png")
