"""Pictures to test with: the golden ones, and bytes of every kind."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from checkpoints import GOLDEN
from PIL import Image

IMAGES = GOLDEN / "images"
TALL, WIDE = IMAGES / "tall.png", IMAGES / "wide_odd_pad.png"
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


def palette_picture(mode: str) -> Image.Image:
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, 0, 0, 9])
    picture.putpixel((1, 0), 1)
    if mode == "PA":
        picture.info["transparency"] = 1
    return picture.convert(mode)
