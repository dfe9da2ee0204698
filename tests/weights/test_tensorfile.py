import json
import struct
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fastvlm_mlx.errors import CheckpointError
from fastvlm_mlx.weights import tensorfile


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)
    return path


def test_what_is_written_is_read_by_the_reference_library(tmp_path: Path) -> None:
    arrays = {
        "turned": mx.arange(6, dtype=mx.float32).reshape(2, 3).T,
        "half": mx.array([1.5, -2.0], dtype=mx.float16),
        "packed": mx.array([1, 2**32 - 1], dtype=mx.uint32),
        "empty": mx.zeros((0, 4)),
    }
    expected = {name: np.array(array) for name, array in arrays.items()}
    counted: list[int] = []
    tensorfile.write(tmp_path / "m.safetensors", arrays, list(arrays), {"format": "mlx"}, counted.append)
    assert arrays == {}, "each array is let go of once it is written"
    assert sum(counted) == sum(value.nbytes for value in expected.values())
    found = load_file(tmp_path / "m.safetensors")
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_bfloat16_survives(tmp_path: Path) -> None:
    value = mx.array([1.0, 1e30, -3.25], dtype=mx.bfloat16)
    tensorfile.write(tmp_path / "m.safetensors", {"x": value}, ["x"], {}, lambda count: None)
    assert mx.array_equal(tensorfile.lazy_arrays(tmp_path / "m.safetensors")["x"], value)


def test_the_header_says_what_the_reference_library_wrote(tmp_path: Path) -> None:
    save_file({"a": np.zeros((2, 3), np.float16), "b": np.zeros((5,), np.int64)}, tmp_path / "m.safetensors")
    infos = tensorfile.read_header(tmp_path / "m.safetensors")
    assert {name: (info.shape, info.nbytes) for name, info in infos.items()} == {
        "a": ((2, 3), 12),
        "b": ((5,), 40),
    }


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        (b"", b"", "do not hold a safetensors header"),
        (b"{not json", b"", "not JSON"),
        ([1, 2], b"", "not an object"),
        ({"x": {"dtype": "F32"}}, b"", "not well formed"),
        ({"x": ENTRY | {"shape": [-2]}}, bytes(8), "not well formed"),
        ({"x": ENTRY | {"dtype": "F8_E4M3"}}, bytes(8), "F8_E4M3"),
        ({"x": ENTRY | {"shape": [3]}}, bytes(8), "not those of its shape"),
        ({"x": ENTRY, "y": ENTRY}, bytes(8), "gap or overlap"),
        ({"x": ENTRY | {"data_offsets": [8, 16]}}, bytes(16), "gap or overlap"),
        ({"x": ENTRY}, bytes(7), "the file has"),
        ({"x": ENTRY}, bytes(9), "the file has"),
    ],
)
def test_a_header_that_lies_is_found_before_anything_is_read(
    tmp_path: Path, header: object, data: bytes, says: str
) -> None:
    path = write_raw(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError, match=says) as caught:
        tensorfile.lazy_arrays(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_header_length_beyond_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(CheckpointError, match="do not hold"):
        tensorfile.read_header(path)
