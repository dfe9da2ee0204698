"""Videos that are none, or that nothing can be read of."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command import MODEL, Run
from pictures import TALL, encoded, noise
from PIL import Image
from refusals import Case, assert_refused, cut
from videos import COLOURS, flat, only_sound, write

AGAIN = "copy or download it again|download or copy it again"
LIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n"


def asking(name: str, content: bytes | None, *options: object) -> Callable[[Path], list[object]]:
    def make(at: Path) -> list[object]:
        if content is not None:
            (at / name).write_bytes(content)
        return ["generate", at / name, "-m", MODEL, *options]

    return make


def short(at: Path, *options: object) -> list[object]:
    path = write(at / "clip.mp4", [flat(COLOURS[0])] * 3)
    return ["generate", path, "-m", MODEL, "--image-size", 64, *options]


def cut_short(at: Path) -> list[object]:
    path = write(at / "cut.mp4", [noise(64, 96)] * 6)
    path.write_bytes(cut(path.read_bytes()))
    return ["generate", path, "-m", MODEL]


def directory(at: Path) -> list[object]:
    (at / "folder.mp4").mkdir()
    return ["generate", at / "folder.mp4", "-m", MODEL]


VIDEOS = {
    "sound alone": Case(
        lambda at: ["generate", only_sound(at / "song.m4a"), "-m", MODEL], r"song\.m4a", "pass a video"
    ),
    "cut short": Case(cut_short, r"cut\.mp4", AGAIN),
    "no bytes": Case(asking("empty.mp4", b""), r"empty\.mp4.*0 bytes", AGAIN),
    "a text": Case(asking("notes.mp4", b"Buy milk.\n" * 50), r"notes\.mp4", f"{AGAIN}|pass an MP4"),
    "a list of addresses": Case(asking("list.mp4", LIST), r"list\.mp4", f"{AGAIN}|pass an MP4"),
    "a picture": Case(
        asking("cat.mp4", encoded(Image.fromarray(noise(64, 64)), "JPEG")), r"cat\.mp4", "pass an MP4"
    ),
    "no such file": Case(asking("gone.mp4", None), r"gone\.mp4", "pass the path of a readable video"),
    "a directory": Case(directory, r"folder\.mp4", "pass the path of a readable video"),
    "options of a video for a picture": Case(
        lambda at: ["generate", TALL, "-m", MODEL, "--fps", 1], "--fps", "drop them"
    ),
    "no frames": Case(lambda at: short(at, "--max-frames", 0), "max-frames is 0", "choose 1 or more"),
    "no rate": Case(lambda at: short(at, "--fps", -1), "fps is -1", "choose more than 0"),
    "no such choice": Case(lambda at: short(at, "--frames", "odd"), "odd", "even, scenes"),
}


@pytest.mark.parametrize("case", VIDEOS.values(), ids=VIDEOS)
def test_a_bad_video_is_one_line_and_changes_nothing(
    expect_refusal: Callable[[Case], None], case: Case
) -> None:
    expect_refusal(case)


@pytest.mark.parametrize("name", ["clip.mp4", "clip"])
def test_without_pyav_it_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / name).write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    done = run("generate", tmp_path / name, "-m", MODEL)
    assert_refused(done, rf"{name}' is a video", r"pip install 'fastvlm-mlx\[video\]'")
