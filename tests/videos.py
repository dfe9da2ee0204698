"""Tiny videos to test with, made by PyAV: flat colours, or scenes of a colour, at times given exactly."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

TICKS = 1000  # of a second
COLOURS = ((200, 30, 30), (30, 160, 60), (40, 60, 200), (230, 220, 60), (120, 40, 160), (240, 240, 240))


def flat(colour: tuple[int, int, int], width: int = 96, height: int = 64) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def counted(number: int, of: int) -> np.ndarray:
    """Grey that tells a frame's number; `number_of` reads it."""
    return flat((round(20 + 210 * number / of),) * 3)


def number_of(picture: Image.Image, of: int) -> int:
    return round((float(np.asarray(picture).mean()) - 20) * of / 210)


def write(
    path: Path,
    frames: Sequence[np.ndarray],
    times_s: Sequence[float] | None = None,
    *,
    fps: int = 10,
    codec: str = "mpeg4",
    every: int = 4,  # a key frame
    b_frames: int = 0,
    rotation: int = 0,
    aspect: Fraction | None = None,
    sound: bool = False,
) -> Path:
    times = [n / fps for n in range(len(frames))] if times_s is None else times_s
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        stream.codec_context.gop_size = every
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.bit_rate = 4_000_000
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        noise = container.add_stream("aac", rate=16_000) if sound else None
        for time, frame in zip(times, frames, strict=True):
            shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
            shown.pts, shown.time_base = round(time * TICKS), Fraction(1, TICKS)
            container.mux(stream.encode(shown))
        container.mux(stream.encode())
        if noise is not None:
            for start in range(0, 16_000, 1024):
                heard = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                heard.pts, heard.sample_rate = start, 16_000
                container.mux(noise.encode(heard))
            container.mux(noise.encode())
    return path


def only_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        for start in range(0, 16_000, 1024):
            heard = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            heard.pts, heard.sample_rate = start, 16_000
            container.mux(stream.encode(heard))
        container.mux(stream.encode())
    return path
