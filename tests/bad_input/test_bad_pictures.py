"""Pictures that are none, or that cannot be had."""

from __future__ import annotations

import http.server
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from command import MODEL, Run
from pictures import TALL, encoded, noise, png
from PIL import Image
from refusals import Case, Make, assert_refused, cut


def asking(name: str, content: bytes | None = None) -> Make:
    """A question about a file with this content."""

    def make(at: Path) -> list[object]:
        if content is not None:
            (at / name).write_bytes(content)
        return ["generate", at / name, "-m", MODEL]

    return make


def directory_as_picture(at: Path) -> list[object]:
    (at / "folder.png").mkdir()
    return ["generate", at / "folder.png", "-m", MODEL]


PHOTO = Image.fromarray(noise(96, 128))
HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><circle r="4"/></svg>'
AGAIN = "copy or download it again"

PICTURES = {
    "not a picture": Case(asking("notes.txt", b"Buy milk.\n"), r"notes\.txt", "pass a PNG, JPEG"),
    "a cut JPEG": Case(asking("cut.jpg", cut(encoded(PHOTO, "JPEG"))), r"cut\.jpg", AGAIN),
    "a cut PNG": Case(asking("cut.png", cut(encoded(PHOTO))), r"cut\.png", AGAIN),
    "a PNG of a header alone": Case(asking("head.png", encoded(PHOTO)[:40]), r"head\.png", AGAIN),
    "an empty file": Case(asking("empty.png", b""), r"empty\.png", "download or copy it again"),
    "a directory": Case(directory_as_picture, r"folder\.png", "pass the path of a readable picture"),
    "no such file": Case(asking("gone.png"), r"gone\.png", "pass the path of a readable picture"),
    "a name of two lines": Case(asking("one\ntwo.png"), r"one\\ntwo\.png", "pass the path"),
    "20,000×20,000": Case(
        asking("vast.png", png(20_000, 20_000, 8, 2, bytes(1000))), r"vast\.png.*20000", "make it smaller"
    ),
    "no pixels": Case(
        asking("none.png", png(0, 0, 8, 2, bytes(1000))), r"none\.png", "again|another picture"
    ),
    "SVG": Case(asking("drawing.svg", SVG), r"drawing\.svg", "pass a PNG, JPEG"),
    "the second of two": Case(
        lambda at: ["generate", TALL, "--image", at / "gone.png", "-m", MODEL],
        r"gone\.png",
        "pass the path",
    ),
    "standard input twice": Case(
        lambda at: ["generate", "-", "-", "-m", MODEL], r"standard input \(-\)", "give paths for the others"
    ),
    "standard input, empty": Case(
        lambda at: ["generate", "-", "-m", MODEL], "standard input", "download or copy it again"
    ),
    "an address of nobody": Case(
        lambda at: ["generate", f"http://127.0.0.1:{closed_port()}/cat.png", "-m", MODEL],
        r"http://127\.0\.0\.1:\d+/cat\.png",
        "check the address",
    ),
    "an address that is none": Case(
        lambda at: ["generate", "http://", "-m", MODEL], "http://", "check the address"
    ),
}


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("case", PICTURES.values(), ids=PICTURES)
def test_a_bad_picture_is_one_line_and_changes_nothing(
    expect_refusal: Callable[[Case], None], case: Case
) -> None:
    expect_refusal(case)


def test_heic_without_its_plugin_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    done = run(*asking("photo.heic", HEIC)(tmp_path))
    assert_refused(done, r"photo\.heic", r"pip install 'fastvlm-mlx\[heic\]'")


def test_an_address_without_the_picture_names_the_answer(run: Run) -> None:
    class Absent(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Absent) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        done = run("generate", f"http://127.0.0.1:{server.server_port}/cat.png", "-m", MODEL)
        thread.join()
    assert_refused(done, r"/cat\.png.* 404", "check the address")


@pytest.mark.parametrize("options", [("-n", 4), ("-n", 0)], ids=["four tokens", "none"])
def test_a_picture_of_one_pixel_is_a_picture(run: Run, tmp_path: Path, options: tuple[object, ...]) -> None:
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    done = run("generate", tmp_path / "dot.png", "-m", MODEL, *options)
    assert (done.code, done.err) == (0, "")
