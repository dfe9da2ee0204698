"""Which frames of a video are read, and how they stand in a prompt. The videos are made by PyAV as well."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from command import MODEL, Ran, Run
from pictures import TALL, encoded, noise
from PIL import Image
from videos import COLOURS, counted, flat, number_of, write

from fastvlm_mlx import VLM, ImageOptions, Picture, Session, Text, Video
from fastvlm_mlx.errors import ConfigError, ImageError, PromptError
from fastvlm_mlx.inputs.prompt import insert_marks, timestamps
from fastvlm_mlx.inputs.video import Frame, VideoReader, first_frame, is_video, open_video

COUNT = 24
KINDS = {
    "a.mp4": {"codec": "mpeg4"},
    "a.avi": {"codec": "mpeg4"},
    "a.mkv": {"codec": "libx264"},
    "a.ts": {"codec": "mpeg4"},
    "a.mov": {"codec": "mjpeg"},
    "sound.mp4": {"codec": "libx264", "sound": True},
    "ahead.mp4": {"codec": "libx264", "b_frames": 2, "every": 12},
    "one group.mp4": {"codec": "libx264", "every": 1000},
}


@pytest.fixture
def ten_a_second(tmp_path: Path) -> Callable[[str], Path]:
    """24 frames that tell their number."""

    def make(name: str) -> Path:
        return write(tmp_path / name, [counted(n, COUNT) for n in range(COUNT)], **KINDS[name])

    return make


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times of all frames that are decoded."""
    times: list[float] = []
    run = VideoReader._decoded

    def spied(self: VideoReader) -> Iterator[av.VideoFrame]:
        for frame in run(self):
            times.append(self._time_s(frame))
            yield frame

    monkeypatch.setattr(VideoReader, "_decoded", spied)
    return times


def taken(video: Video) -> list[Frame]:
    with open_video(video) as reel:
        return list(reel.frames(reel.times()))


def times(video: Video) -> list[float]:
    return [round(frame.time_s, 3) for frame in taken(video)]


def numbers(video: Video) -> list[int]:
    return [number_of(frame.picture, COUNT) for frame in taken(video)]


# --- which frames ---


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_those_of_their_times(ten_a_second: Callable[[str], Path], name: str) -> None:
    path = ten_a_second(name)
    for video, expected in [
        (Video(path, max_frames=3), [4, 12, 19]),  # of 2.3 s the middles of thirds: 0.38, 1.15, 1.92
        (Video(path, max_frames=2), [6, 17]),
        (Video(path, fps=2), [0, 5, 10, 15, 20]),
        (Video(path, fps=4, max_frames=3), [4, 12, 19]),
        (Video(path, max_frames=100), list(range(COUNT))),
        (Video(path.read_bytes(), fps=1, max_frames=100), [0, 10, 20]),
    ]:
        found = taken(video)
        assert [number_of(frame.picture, COUNT) for frame in found] == expected
        assert [round(frame.time_s, 3) for frame in found] == [number / 10 for number in expected]


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    path = write(tmp_path / "one.mp4", [flat(COLOURS[0])])
    assert times(Video(path)) == times(Video(path, fps=5)) == times(Video(path, frames="scenes")) == [0.0]


def test_frames_of_unequal_length_are_taken_by_time(tmp_path: Path) -> None:
    shown = [0, 0.1, 0.2, 0.3, 0.4, 5, 9, 9.1, 9.2, 10]
    path = write(tmp_path / "uneven.mkv", [counted(n, COUNT) for n in range(10)], shown)
    assert times(Video(path, max_frames=4)) == [0.4, 5, 9]  # nearest to 1.25, 3.75, 6.25 and 8.75
    assert numbers(Video(path, max_frames=4)) == [4, 5, 6]
    assert times(Video(path, max_frames=1000)) == shown


def test_what_a_container_claims_about_its_length_decides_nothing(
    tmp_path: Path, decoded: list[float]
) -> None:
    path = write(tmp_path / "long.mkv", [counted(n, COUNT) for n in range(COUNT)])
    content = bytearray(path.read_bytes())
    at = content.index(b"\x44\x89\x88") + 3  # the length, in milliseconds
    content[at : at + 8] = struct.pack(">d", 1e9)
    path.write_bytes(content)
    with av.open(str(path)) as container:
        assert container.duration == 1e12
    assert numbers(Video(path, max_frames=3)) == [4, 12, 19]
    assert len(decoded) < COUNT


def test_of_three_hours_little_is_decoded(tmp_path: Path, decoded: list[float]) -> None:
    small = [flat(COLOURS[n % 6], 32, 32) for n in range(1080)]
    path = write(tmp_path / "hours.mp4", small, [10.0 * n for n in range(1080)], every=12)
    found = times(Video(path))
    assert [time // 60 for time in found] == [11, 33, 56, 78, 101, 123, 146, 168]
    assert len(decoded) <= 8 * (12 + 2)
    decoded.clear()
    first_frame(Video(path))
    assert len(decoded) <= 4  # some are decoded ahead
    decoded.clear()
    assert len(times(Video(path, max_frames=500))) == 500
    assert len(decoded) <= 1080 + 500  # seeks end where they save nothing


def test_a_film_that_is_turned_stands_upright(tmp_path: Path) -> None:
    lying = flat(COLOURS[5])
    lying[:, :48] = COLOURS[2]  # the left half; a quarter to the right, it is the upper one
    path = write(tmp_path / "telephone.mp4", [lying] * 3)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    content[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    path.write_bytes(content)
    picture = first_frame(Video(path))
    assert picture.size == (64, 96)
    np.testing.assert_allclose(picture.getpixel((32, 20)), COLOURS[2], atol=12)
    np.testing.assert_allclose(picture.getpixel((32, 80)), COLOURS[5], atol=12)
    assert first_frame(Video(write(tmp_path / "over.mp4", [lying], rotation=180))).getpixel((80, 32))[0] < 80


def test_pixels_that_are_no_squares_are_widened(tmp_path: Path) -> None:
    path = write(tmp_path / "wide.mkv", [flat(COLOURS[1])], aspect=Fraction(3, 2))
    assert first_frame(Video(path)).size == (144, 64)


# --- scenes ---


def test_scenes_begin_where_the_picture_changes(tmp_path: Path) -> None:
    lengths = (7, 13, 6, 21, 9)
    shown = [flat(COLOURS[scene]) for scene, length in enumerate(lengths) for _ in range(length)]
    path = write(tmp_path / "scenes.mp4", shown, every=30)
    starts = [0, 0.7, 2.0, 2.6, 4.7]
    found = taken(Video(path, frames="scenes"))
    assert [round(frame.time_s, 3) for frame in found] == starts
    for frame, colour in zip(found, COLOURS[: len(starts)], strict=True):
        np.testing.assert_allclose(frame.picture.getpixel((40, 30)), colour, atol=12)
    fewer = times(Video(path, frames="scenes", max_frames=3))
    assert len(fewer) == 3
    assert set(fewer) < set(starts)


def test_the_largest_changes_are_taken_and_a_flash_is_one_scene(tmp_path: Path) -> None:
    greys = [40] * 10 + [60] * 10 + [200] * 10 + [250, 20] + [180] * 10
    path = write(tmp_path / "flash.mp4", [flat((grey,) * 3) for grey in greys])
    assert times(Video(path, frames="scenes", max_frames=1)) == [0]
    assert times(Video(path, frames="scenes", max_frames=2)) == [0, 3.1]
    assert times(Video(path, frames="scenes", max_frames=3)) == [0, 2, 3.1]
    assert times(Video(path, frames="scenes")) == [0, 1, 2, 3.1]


# --- what is damaged ---


def test_damaged_packets_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "torn.avi", [counted(n, COUNT) for n in range(COUNT)], codec="mjpeg")
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    for pos, size in packets[6:9]:
        content[pos + 8 : pos + 8 + size] = bytes(size)
    path.write_bytes(content)
    with open_video(Video(path, max_frames=100)) as reel:
        found = [number_of(frame.picture, COUNT) for frame in reel.frames(reel.times())]
        assert reel.damaged == 3
    assert found == [*range(6), *range(9, COUNT)]
    for pos, size in packets:
        content[pos + 8 : pos + 8 + size] = bytes(size)
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"no frame of .*torn\.avi' can be decoded \(\d+ damaged"):
        taken(Video(path))


def test_of_a_film_cut_short_what_is_there_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.mkv", [noise(64, 96)] * 12 + [noise(64, 128)[:, :96]] * 12)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    found = times(Video(path, max_frames=100))
    assert 4 < len(found) < COUNT
    assert found == [number / 10 for number in range(len(found))]


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv", "a.ts"])
def test_bytes_that_are_wrong_are_left_out_or_refused(ten_a_second: Callable[[str], Path], name: str) -> None:
    whole = ten_a_second(name).read_bytes()
    for seed in range(12):
        chance, content = random.Random(seed), bytearray(whole)
        for _ in range(4 ** (seed % 4)):
            content[chance.randrange(len(content) if seed % 2 else 600)] = chance.randrange(256)
        for choice in ("even", "scenes"):
            refusal = ""
            try:
                assert taken(Video(bytes(content), frames=choice))
            except ImageError as error:
                refusal = str(error)
            assert "\n" not in refusal


# --- what is a video ---


@pytest.mark.parametrize(
    ("source", "video"),
    [
        (b"\x00\x00\x00\x20ftypisom....", True),
        (b"\x00\x00\x00\x14ftypqt  ....", True),
        (b"\x00\x00\x00\x18ftypheic....", False),
        (b"\x00\x00\x00\x18ftypavif....", False),
        (b"\x1aE\xdf\xa3..............", True),
        (b"RIFF....AVI LIST", True),
        (b"RIFF....WEBPVP8 ", False),
        (b"GIF89a..........", False),
        (encoded(Image.new("RGB", (1, 1))), False),
        (b"", False),
        ("gone/clip.MP4", True),
        ("gone/clip", False),
        ("a\0b", False),
        (TALL, False),
        (Image.new("RGB", (1, 1)), False),
    ],
    ids=lambda value: None if isinstance(value, Image.Image) else str(value),
)
def test_films_are_told_from_pictures(source: object, video: bool) -> None:
    assert is_video(source) is video


def test_a_film_needs_no_suffix(ten_a_second: Callable[[str], Path]) -> None:
    for name in ("a.mp4", "a.avi", "a.mkv", "a.mov"):
        path = ten_a_second(name)
        assert is_video(path.rename(path.with_name("film")))
        assert is_video((path.with_name("film")).read_bytes())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fps": 0.0}, "fps is 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"max_frames": 0}, "max-frames is 0"),
        ({"frames": "odd"}, "even, scenes"),
        ({"frames": "scenes", "fps": 1.0}, "drop fps"),
    ],
)
def test_options_that_cannot_be_acted_upon_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Video("clip.mp4", **options)


# --- in a prompt ---


@pytest.mark.parametrize(
    ("times_s", "written"),
    [
        ([0.0, 4.0], "[0:00] [0:04]"),
        ([59.999, 60.0, 3599.9], "[0:59] [1:00] [59:59]"),
        ([0.0, 7322.0], "[0:00] [2:02:02]"),
        ([0.0, 0.5, 61.0], "[0:00.0] [0:00.5] [1:01.0]"),
        ([0.1, 0.12], "[0:00.10] [0:00.12]"),
        ([0.3], "[0:00]"),
        ([], ""),
    ],
)
def test_times_are_as_fine_as_they_need_to_be(times_s: list[float], written: str) -> None:
    assert " ".join(timestamps(times_s)) == written


def test_lines_stand_where_the_mark_is() -> None:
    clip = "[0:00] <image>\n[0:04] <image>"
    assert insert_marks("What?", [clip, "<image>"]) == f"{clip}\n<image>\nWhat?"
    assert insert_marks("<image>: what is in <image>?", ["<image>", clip]) == f"<image>: what is in {clip}?"
    assert insert_marks("What?", ["<image>"]) == "What?"


@pytest.fixture
def vlm(vlm_of: Callable[[str], VLM]) -> VLM:
    return vlm_of("apple-fused")


def test_a_video_is_its_frames_each_after_its_time(vlm: VLM, ten_a_second: Callable[[str], Path]) -> None:
    path = ten_a_second("a.mp4")
    video = Video(path, fps=1, max_frames=8)
    found = vlm.prompt("From <image> to <image>?", [video, TALL], options=ImageOptions(64))
    frames = [frame.picture for frame in taken(video)]
    text = "From [0:00] <image>\n[0:01] <image>\n[0:02] <image> to <image>?"
    expected = vlm.prompt(text, [*frames, TALL], options=ImageOptions(64))
    assert [type(part) for part in found] == [Text, *[Picture, Text] * 4]
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, Picture):
            assert one.key == other.key
        else:
            assert one == other
    clip = vlm.clip(Video(path), ImageOptions(64))
    assert len(clip.frames) == 8
    whole = vlm.prompt("What?", [path], options=ImageOptions(64))  # a path is enough, and a clip is read once
    assert [p.positions for p in whole] == [p.positions for p in vlm.prompt("What?", [clip])]


def test_frames_may_be_tiles(vlm: VLM, ten_a_second: Callable[[str], Path]) -> None:
    video = Video(ten_a_second("a.mp4"), max_frames=2)
    prompt = vlm.prompt("What?", [video], options=ImageOptions(64, "tiles", (2, 1)))
    kinds = "".join("t" if isinstance(part, Text) else "p" for part in prompt)
    assert kinds == "tppptpppt"


def test_a_conversation_takes_a_video_as_a_prompt_does(
    vlm: VLM, ten_a_second: Callable[[str], Path], tmp_path: Path
) -> None:
    path, options = ten_a_second("a.mp4"), ImageOptions(64)
    clip = vlm.clip(Video(path, max_frames=3), options)
    session = Session(vlm)
    for number, video in enumerate((Video(path, max_frames=3), clip, path)):
        asked = "From <image> to <image>?"
        session.clear()
        said = session.generate(asked, [TALL, video], max_tokens=6, options=options)
        assert said.ids == vlm.generate(vlm.prompt(asked, [TALL, video], options=options), max_tokens=6).ids
        assert len(session.turns[0].pictures) == 1 + (8 if number == 2 else 3)
    session.generate("And?", max_tokens=4)
    expected = vlm.generate(session.prompt("Then?"), max_tokens=4).ids
    session.save(tmp_path / "talk")
    again = Session.restore(vlm, tmp_path / "talk")
    assert again.turns[0].question == session.turns[0].question
    assert again.generate("Then?", max_tokens=4).ids == expected


@pytest.mark.parametrize("count", [1, 2])
def test_too_many_frames_are_refused_with_how_many_fit(vlm: VLM, tmp_path: Path, count: int) -> None:
    shown = [flat(COLOURS[n % 6], 32, 32) for n in range(60)]
    path = write(tmp_path / "many.mp4", shown, fps=1)

    def prompt(most: int) -> object:
        return vlm.prompt("What?", [Video(path, max_frames=most)] * count, options=ImageOptions(1024))

    with pytest.raises(PromptError, match=r"the model reads 8192 in all.*--max-frames") as refused:
        prompt(1000)
    fit = int(str(refused.value).split("--max-frames ")[1].split()[0])
    assert 8192 * 3 / 4 < fit * count * 256 < 8192
    prompt(fit)


# --- the command ---


@pytest.fixture
def ask(run: Run) -> Run:
    def ask(*arguments: object, stdin: bytes = b"") -> Ran:
        done = run("generate", "-m", MODEL, "-n", 8, "--image-size", 64, *arguments, stdin=stdin)
        assert done.code == 0, done.err
        return done

    return ask


def test_the_command_reads_videos_wherever_pictures_go(
    ask: Run, ten_a_second: Callable[[str], Path], vlm: VLM
) -> None:
    path = ten_a_second("a.mp4")
    answer = json.loads(ask(path, "--json").out)
    assert answer["image_tokens"] == 8
    assert len(answer["frames_s"][0]) == 8
    prompt = vlm.prompt("Describe the video.", [path], options=ImageOptions(64))
    assert answer["text"] == vlm.generate(prompt, max_tokens=8).text
    mixed = json.loads(ask(TALL, path, "--json", "--fps", 1, "-p", "Is <image> in <image>?").out)
    assert (mixed["image_tokens"], mixed["frames_s"]) == (4, [[0.0, 1.0, 2.0]])
    piped = ask("-", "--max-frames", 2, "--stats", "--frames", "scenes", stdin=path.read_bytes())
    assert "2 picture tokens of 2 frames" in piped.err


def test_the_command_says_how_much_was_damaged(ask: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "torn.avi", [counted(n, COUNT) for n in range(COUNT)], codec="mjpeg")
    with av.open(str(path)) as container:
        pos, size = [(p.pos, p.size) for p in container.demux(video=0) if p.size][6]
    content = bytearray(path.read_bytes())
    content[pos + 8 : pos + 8 + size] = bytes(size)
    path.write_bytes(content)
    assert ask(path, "--max-frames", 24).err == f"note: {path}: skipped 1 damaged packet(s)\n"


def test_the_library_tells_progress_and_draws_nothing(
    ten_a_second: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    vlm: VLM,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    told: list[tuple[str, int, int]] = []
    video = Video(ten_a_second("a.mp4"), max_frames=3, frames="scenes")
    vlm.clip(video, ImageOptions(64), progress=lambda *done: told.append(done))
    assert {what for what, *_ in told} == {"finding scenes", "reading the video"}
    assert told[-1] == ("reading the video", 3, 3)
    assert capfd.readouterr() == ("", "")
