"""One safetensors file: a strictly checked header, lazy arrays, and a writer that holds one tensor."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError

_DTYPES: dict[str, tuple[mx.Dtype, int]] = {
    "F32": (mx.float32, 4),
    "F16": (mx.float16, 2),
    "BF16": (mx.bfloat16, 2),
    "U32": (mx.uint32, 4),
    "I64": (mx.int64, 8),
    "I32": (mx.int32, 4),
    "U8": (mx.uint8, 1),
    "BOOL": (mx.bool_, 1),
}
_CODES = {dtype: code for code, (dtype, _) in _DTYPES.items()}
_HEADER_LIMIT = 100 * 2**20


@dataclass(frozen=True, slots=True)
class TensorInfo:
    dtype: mx.Dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Names, dtypes and shapes; the offsets must tile the file exactly."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
                raise _torn(path, f"{size} bytes do not hold a safetensors header")
            raw = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise _torn(path, "its header is not JSON") from None
    if not isinstance(raw, dict):
        raise _torn(path, "its header is not an object")
    raw.pop("__metadata__", None)

    infos: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in raw.items():
        try:
            code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            if type(code) is not str or not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise _torn(path, f"the header's entry for {name!r} is not well formed") from None
        if code not in _DTYPES:
            raise CheckpointError(
                f"{path}: {name!r} is stored as {code!r}, which FastVLM never is; "
                "save it again as F32, F16 or BF16"
            )
        infos[name] = TensorInfo(_DTYPES[code][0], shape)
        if end - begin != math.prod(shape) * _DTYPES[code][1]:
            raise _torn(path, f"the header gives {name!r} {end - begin} bytes, not those of its shape")
        spans.append((begin, end, name))
    place = 0
    for begin, end, name in sorted(spans):
        if begin != place:
            raise _torn(path, f"the header's offsets of {name!r} leave a gap or overlap")
        place = end
    if 8 + length + place != size:
        raise _torn(path, f"the header speaks of {8 + length + place} bytes, the file has {size}")
    return infos


def read_metadata(path: Path) -> dict[str, str]:
    """The header's metadata; the header has been checked."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return dict(json.loads(file.read(length)).get("__metadata__") or {})


def lazy_arrays(path: Path) -> dict[str, mx.array]:
    """Arrays whose bytes are read when they are evaluated."""
    read_header(path)
    try:
        arrays = mx.load(str(path), format="safetensors")
    except RuntimeError as error:
        raise _torn(path, str(error).splitlines()[0]) from None
    assert isinstance(arrays, dict)
    return arrays


def write(
    path: Path,
    arrays: dict[str, mx.array],
    names: Sequence[str],
    metadata: Mapping[str, str],
    wrote: Callable[[int], None],
) -> None:
    """Evaluate, write and free one array at a time; removes `names` from `arrays` as they are written."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    place = 0
    for name in names:
        array = arrays[name]
        header[name] = {
            "dtype": _CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [place, place + array.nbytes],
        }
        place += array.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name in names:
            array = arrays.pop(name)
            mx.eval(array)
            file.write(_bytes(array))
            wrote(array.nbytes)
            del array
            mx.clear_cache()


def _bytes(array: mx.array) -> memoryview:
    if array.dtype == mx.bfloat16:  # numpy has no such type
        array = array.view(mx.uint16)
    return np.ascontiguousarray(np.array(array, copy=False)).reshape(-1).view(np.uint8).data


def _torn(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: {what}; the file is damaged or incomplete, download it again")
