"""Reads selected frames of a video with their times, one at a time; ignores sound.

    with opened(Video("clip.mp4", max_frames=4)) as reel:
        for frame in reel.frames(reel.times()):
            frame.time_s, frame.picture  # seconds from the start, an upright RGB picture

It chooses times first and then reads the nearest frame to each, seeking if that saves decoding. Memory does
not grow with a video's length, and the length in the header is not trusted. Not supported: HDR tone mapping,
mirrored videos, and deinterlacing.
"""

from __future__ import annotations

import heapq
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
from PIL import Image

from ..errors import ConfigError, ImageError
from .image import PICTURE_BRANDS, one_line, source_name
from .tiling import FRAME_CHOICES, MAX_FRAMES, MAX_PIXELS, SCENES, VIDEO_SUFFIXES, Sides

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

# FFmpeg's video formats; its others are pictures, texts, or playlists that open more files.
_FORMATS = "asf,avi,flv,matroska,mov,mpeg,mpegts,ogg"
_HEADS = (b"\x1aE\xdf\xa3", b"OggS", b"FLV", b"\x00\x00\x01\xba", b"0&\xb2u\x8ef\xcf\x11")
_ATOMS = (b"ftyp", b"moov", b"mdat")  # MP4 and QuickTime, at byte 4
_STEPS_BACK_S = (0.0, 10.0, 60.0)  # if a seek finds no frame before the requested time
_SCENE_S = 0.5  # minimum scene length; within it, only the largest change counts
_THUMBNAIL = 32
_UPRIGHT = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True, slots=True)
class Video:
    """A video and how to choose its frames.

    even: `max_frames` evenly spaced frames, or `fps` frames per second if that gives at most `max_frames`.
    scenes: the first frame and those that differ most from the frame before.
    """

    source: str | os.PathLike[str] | bytes
    fps: float | None = None
    max_frames: int = MAX_FRAMES
    frames: str = FRAME_CHOICES[0]

    def __post_init__(self) -> None:
        if self.frames not in FRAME_CHOICES:
            raise ConfigError(f"no frames {self.frames!r}; choose one of {', '.join(FRAME_CHOICES)}")
        if self.max_frames < 1:
            raise ConfigError(f"max-frames is {self.max_frames}; choose 1 or more, such as {MAX_FRAMES}")
        if self.fps is None:
            return
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ConfigError(f"fps is {self.fps}; choose more than 0, such as 1 or 0.2")
        if self.frames == SCENES:
            raise ConfigError("scenes are chosen from all frames; drop fps, or choose frames even")


@dataclass(frozen=True, slots=True)
class Frame:
    time_s: float
    picture: Image.Image


def is_video(source: object) -> TypeGuard[str | os.PathLike[str] | bytes]:
    """Whether the name or the first bytes are a video's; animated pictures are not videos."""
    if isinstance(source, bytes):
        head = source[:16]
    elif isinstance(source, (str, os.PathLike)):
        if os.fspath(source).lower().endswith(VIDEO_SUFFIXES):
            return True
        try:
            if not os.path.isfile(source):  # reading a pipe would lose its first bytes
                return False
            with open(source, "rb") as file:
                head = file.read(16)
        except (OSError, ValueError):
            return False
    else:
        return False
    if head[4:8] in _ATOMS:
        return head[8:12] not in PICTURE_BRANDS
    return head.startswith(_HEADS) or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")


def first_frame(video: Video) -> Image.Image:
    """The first frame; fails early if the video cannot be read."""
    with open_video(video) as reel:
        return next(reel.frames([0.0])).picture


Advance = Callable[[str, int, int], None]  # (activity, frames done, frames in total)


@contextmanager
def open_video(video: Video, progress: Advance = lambda what, done, total: None) -> Iterator[VideoReader]:
    name = source_name(video.source)
    try:
        import av
    except ImportError as error:
        raise ImageError(f"{name} is a video; run pip install 'fastvlm-mlx[video]'") from error
    file: str | io.BytesIO
    try:
        if isinstance(video.source, bytes):
            file, empty = io.BytesIO(video.source), not video.source
        else:
            with open(video.source, "rb"):  # fails with the reason
                file = f"file:{os.fspath(video.source)}"  # never a URL
            empty = os.path.isfile(video.source) and not os.path.getsize(video.source)
    except (OSError, ValueError) as error:
        reason = one_line(getattr(error, "strerror", None) or error)
        raise ImageError(f"cannot read {name} ({reason}); pass the path of a readable video") from error
    if empty:
        raise ImageError(f"{name} is empty (0 bytes); download or copy it again")
    try:
        container = av.open(
            file, "r", metadata_errors="ignore", container_options={"format_whitelist": _FORMATS}
        )
    except av.ArgumentError as error:  # not one of _FORMATS
        raise ImageError(f"{name} is not a video; pass an MP4, MOV, MKV or the like") from error
    except av.FFmpegError as error:
        reason = one_line(error.strerror or error)
        raise ImageError(
            f"{name} is not a video, or is damaged or cut short ({reason}); copy or download it again"
        ) from error
    with container:
        yield VideoReader(video, name, container, _stream(container, name), progress)


def _stream(container: InputContainer, name: str) -> VideoStream:
    from av.stream import Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise ImageError(f"{name} has no video stream; pass a video")
    stream = streams[0]
    codec = stream.codec_context
    if codec is None:
        raise ImageError(f"{name} uses a codec that PyAV cannot decode; convert it to H.264")
    if codec.width * codec.height > MAX_PIXELS:
        size = f"{codec.width}×{codec.height}"
        raise ImageError(f"{name} is {size}, more than {MAX_PIXELS} pixels; make it smaller")
    codec.thread_type = "AUTO"
    return stream


class VideoReader:
    """An open video."""

    def __init__(
        self, video: Video, name: str, container: InputContainer, stream: VideoStream, progress: Advance
    ) -> None:
        self._video, self._name, self._progress = video, name, progress
        self._container, self._stream = container, stream
        self._tick_s = float(stream.time_base or 1)
        self._start = stream.start_time or 0
        self._damaged: set[tuple[int | None, int | None]] = set()

    @property
    def sides(self) -> Sides:
        """Width and height as stored, before rotation."""
        return self._stream.codec_context.width, self._stream.codec_context.height

    @property
    def damaged(self) -> int:
        """Number of packets that failed to decode so far."""
        return len(self._damaged)

    def times(self, most: int | None = None) -> list[float]:
        """Times of the chosen frames in seconds, at most `most` of them."""
        asked = self._video.max_frames if most is None else min(most, self._video.max_frames)
        if self._video.frames == SCENES:
            return self._scenes(asked)
        end, fps = self._end_s(), self._video.fps
        if fps is not None and (count := int(end * fps + 1e-6) + 1) <= asked:
            return [number / fps for number in range(count)]
        return [end * (number + 0.5) / asked for number in range(asked)]  # the middle of each part

    def frames(self, times: Sequence[float]) -> Iterator[Frame]:
        """The nearest frame to each of these ascending times, without duplicates."""
        last = None
        for number, frame in enumerate(self._nearest(times), 1):
            self._progress("reading the video", number, len(times))
            if last is None or frame.pts != last:
                last = frame.pts
                yield Frame(self._time_s(frame), self._picture(frame))
        if last is None:
            found = f"{self.damaged} damaged packet(s)" if self._damaged else "it has none"
            raise ImageError(f"no frame of {self._name} can be decoded ({found}); copy or download it again")

    def _nearest(self, times: Sequence[float]) -> Iterator[VideoFrame]:
        before: VideoFrame | None = None
        after: VideoFrame | None = None
        coming: Iterator[VideoFrame] = iter(())
        seeking = True
        for wanted in times:
            if seeking and (after is None or self._time_s(after) < wanted):
                reached, (after, coming) = after, self._decoded_before(wanted)
                # Without a key frame in between, more seeks would decode the same frames again.
                seeking = reached is None or (
                    after is not None and self._time_s(after) > self._time_s(reached)
                )
                before = None
            while after is not None and self._time_s(after) < wanted:
                before, after = after, next(coming, None)
            if after is None:  # the end
                if before is not None:
                    yield before
                return
            near = before is not None and wanted - self._time_s(before) <= self._time_s(after) - wanted
            yield before if near and before is not None else after

    def _decoded_before(self, time_s: float) -> tuple[VideoFrame | None, Iterator[VideoFrame]]:
        """A frame at or before this time, and an iterator over the following frames."""
        best: float | None = None
        for back in _STEPS_BACK_S:
            if not self._seek(time_s - back):
                continue
            coming = self._decoded()
            frame = next(coming, None)
            if frame is not None and (self._time_s(frame) <= time_s or time_s - back <= 0):
                return frame, coming
            best = time_s - back if frame is not None else best
        self._seek(best or 0.0)
        coming = self._decoded()
        return next(coming, None), coming

    def _scenes(self, most: int) -> list[float]:
        """Compare gray thumbnails of all frames in one pass."""
        from av.video.reformatter import VideoReformatter

        scaled = VideoReformatter()
        chosen: list[tuple[float, float]] = []  # heap of (change, time)
        candidate: tuple[float, float] | None = None
        previous: np.ndarray | None = None
        self._seek(0.0)

        def choose(one: tuple[float, float]) -> None:
            heapq.heappush(chosen, one)
            if len(chosen) > most:
                heapq.heappop(chosen)

        for number, frame in enumerate(self._decoded(), 1):
            self._progress("finding scenes", number, max(number, self._stream.frames))
            small = scaled.reformat(frame, _THUMBNAIL, _THUMBNAIL, "gray").to_ndarray().astype(np.float32)
            change = math.inf if previous is None else float(np.sqrt(np.mean((small - previous) ** 2)))
            previous, time_s = small, self._time_s(frame)
            if candidate is not None and time_s - candidate[1] >= _SCENE_S:
                choose(candidate)
                candidate = None
            if change and (candidate is None or change > candidate[0]):
                candidate = change, time_s
        if candidate is not None:
            choose(candidate)
        return sorted(time_s for _, time_s in chosen)

    def _end_s(self) -> float:
        """Time of the last frame, from the last packets and not from the header."""
        claimed = 0.0
        if self._stream.duration:
            claimed = self._stream.duration * self._tick_s
        elif self._container.duration:
            claimed = self._container.duration / 1e6
        for start in (claimed, 0.0):
            if self._seek(start):
                stamps = (p.dts if p.pts is None else p.pts for p in self._packets())
                latest = max((stamp for stamp in stamps if stamp is not None), default=None)
                if latest is not None:
                    return max(0.0, (latest - self._start) * self._tick_s)
        return 0.0

    def _seek(self, time_s: float) -> bool:
        import av

        try:
            self._container.seek(
                self._start + round(max(0.0, time_s) / self._tick_s), stream=self._stream, backward=True
            )
        except (av.FFmpegError, OverflowError):  # OverflowError if a time in the header is absurd
            return False
        return True

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        import av

        coming = self._container.demux(self._stream)
        try:
            yield from coming
        except av.FFmpegError:  # cut short; keep the packets so far
            self._damaged.add((None, None))

    def _decoded(self) -> Iterator[VideoFrame]:
        import av

        for packet in self._packets():
            place = packet.pos, packet.dts
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self._damaged.add(place)
                continue
            yield from frames

    def _time_s(self, frame: VideoFrame) -> float:
        stamp = frame.dts if frame.pts is None else frame.pts
        return 0.0 if stamp is None else (stamp - self._start) * self._tick_s

    def _picture(self, frame: VideoFrame) -> Image.Image:
        picture: Image.Image = frame.to_image()
        aspect = self._stream.sample_aspect_ratio
        if aspect and aspect != 1 and 1 / 8 <= aspect <= 8:  # pixels are not square
            picture = picture.resize((max(1, round(picture.width * aspect)), picture.height))
        turn = round(frame.rotation / 90) * 90 % 360
        return picture.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else picture
