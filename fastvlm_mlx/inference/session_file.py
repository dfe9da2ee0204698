"""A conversation as a file: its words and pictures, and what has been worked out for them.

A safetensors file. Its metadata hold the words as JSON; its tensors are `picture.N` (8 bits where that is all
there is to it), `features.N`, and `seen.L`, a layer's keys and values of the first `known` positions, with
`.scales` and `.biases` where those are packed.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..config import STRIDE, Quantization
from ..errors import CheckpointError, ConfigError, DataError
from ..files.atomic import new_file
from ..files.strict import parse
from ..inputs.image import to_floats, to_uint8
from ..inputs.prompt import Picture
from ..weights import tensorfile

FORMAT, VERSION = "fastvlm-mlx-conversation", 2


@dataclass(frozen=True, slots=True)
class SavedTurn:
    question: str
    pictures: tuple[int, ...]  # by number
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Saved:
    model: str  # its fingerprint
    system: str | None
    turns: tuple[SavedTurn, ...]
    known: int  # positions whose keys and values are here
    packing: Quantization | None = None  # of those
    version: int = VERSION


def write(path: Path, saved: Saved, pictures: Sequence[Picture], tensors: Mapping[str, mx.array]) -> None:
    """Replaces an earlier conversation, and no other file."""
    if os.path.isfile(path) and not _is_session_file(path):
        raise DataError(f"{path}: exists and is no saved conversation; choose another name")
    arrays = {f"picture.{number}": _stored(picture) for number, picture in enumerate(pictures)}
    arrays |= tensors
    about = {"format": FORMAT, "conversation": json.dumps(dataclasses.asdict(saved))}
    with new_file(path) as hidden:
        tensorfile.write(hidden, arrays, list(arrays), about, lambda count: None)


def read(path: Path) -> tuple[Saved, list[Picture], dict[str, mx.array]]:
    """What was told, the pictures by number, and what was worked out."""
    if not _is_session_file(path):
        raise DataError(f"{path}: is no saved conversation, or a damaged one; name a file that was saved")
    repair = "save the conversation again"
    try:
        body = json.loads(tensorfile.read_metadata(path).get("conversation", ""))
        told = parse(Saved, body, path, repair=repair)
    except (ConfigError, ValueError) as error:
        raise DataError(
            str(error) if isinstance(error, ConfigError) else f"{path}: {error}; {repair}"
        ) from None
    if told.version != VERSION:
        repair = "upgrade" if told.version > VERSION else "begin anew, or use the release that saved it"
        raise DataError(f"{path}: is of version {told.version}, and this release reads {VERSION}; {repair}")
    arrays = tensorfile.lazy_arrays(path)
    mx.eval(arrays)
    pictures: list[Picture] = []
    while (stored := arrays.pop(f"picture.{len(pictures)}", None)) is not None:
        pixels = stored if stored.dtype != mx.uint8 else mx.array(to_floats(np.array(stored)))[None]
        sides = pixels.shape[1:3] if pixels.ndim == 4 and pixels.shape[::3] == (1, 3) else (0,)
        if not all(side and side % STRIDE == 0 for side in sides) or not mx.issubdtype(
            pixels.dtype, mx.floating
        ):
            raise DataError(f"{path}: picture {len(pictures)} has shape {tuple(stored.shape)}; {repair}")
        pictures.append(Picture(pixels))
    for turn in told.turns:
        if not all(0 <= number < len(pictures) for number in turn.pictures):
            raise DataError(f"{path}: a turn shows pictures {turn.pictures} of {len(pictures)}; {repair}")
    return told, pictures, arrays


def _is_session_file(path: Path) -> bool:
    """Absent and unreadable files are told by what is done with them next."""
    try:
        tensorfile.read_header(path)
        return tensorfile.read_metadata(path).get("format") == FORMAT
    except CheckpointError:
        return False


def _stored(picture: Picture) -> mx.array:
    pixels = picture.pixels
    whole = to_uint8(np.array(pixels)) if pixels.dtype == mx.float32 else None
    return pixels if whole is None else mx.array(whole[0])
