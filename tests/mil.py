"""A saved Core ML program, read back and run operation by operation in numpy: Core ML itself needs macOS.

Every operation is computed in float64 and rounded to the type that the program gives its result, so what is
seen of float16 is its rounding between operations; within one, Core ML may round more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastvlm_mlx.convert.export import coreml_program

Array = np.ndarray[Any, Any]
Inputs = dict[str, Any]
TOOLS = coreml_program.require()


def read(path: Path) -> tuple[Any, Any]:
    """(program, spec) of a package as it lies on the disk."""
    from coremltools.converters.mil.frontend.milproto.load import load

    model = TOOLS.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    built = load(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
    return built, spec


def run(program: Any, **inputs: Array) -> dict[str, Array]:
    from coremltools.converters.mil.mil import types

    function = program.functions["main"]
    known: dict[str, Any] = dict(inputs)

    def value(of: Any) -> Any:
        if isinstance(of, list | tuple):
            return [value(one) for one in of]
        return known.get(of.name, of.val)

    for operation in function.operations:
        kind = operation.op_type
        if kind == "const":
            continue
        given = {name: value(of) for name, of in operation.inputs.items() if of is not None}
        results = OPERATIONS[kind](given)
        for out, result in zip(
            operation.outputs, results if isinstance(results, list) else [results], strict=True
        ):
            assert result.shape == tuple(out.shape), f"{operation.name}: {result.shape} is not {out.shape}"
            known[out.name] = result.astype(types.nptype_from_builtin(out.dtype))
    return {out.name: known[out.name] for out in function.outputs}


def kinds(program: Any) -> set[str]:
    return {operation.op_type for operation in program.functions["main"].operations}


def _conv(given: Inputs) -> Array:
    """One place of the kernel after another: little memory, whatever the size."""
    x, weight = _wide(given["x"])[0], _wide(given["weight"])
    groups, (step, _) = int(given.get("groups", 1)), given.get("strides", (1, 1))
    assert given["pad_type"] in ("custom", "valid")
    top, bottom, left, right = given["pad"] if given["pad_type"] == "custom" else [0] * 4
    x = np.pad(x, ((0, 0), (top, bottom), (left, right)))
    out, per_group, height, width = weight.shape
    rows, columns = ((n - k) // step + 1 for n, k in zip(x.shape[1:], (height, width), strict=True))
    done = np.zeros((out, rows, columns))
    for i in range(height):
        for j in range(width):
            seen = x[:, i : i + step * rows : step, j : j + step * columns : step]
            if groups == 1:
                done += np.tensordot(weight[:, :, i, j], seen, 1)
            else:
                assert per_group == 1
                done += np.repeat(seen, out // groups, 0) * weight[:, 0, i, j, None, None]
    return (done + _wide(given["bias"])[:, None, None] if "bias" in given else done)[None]


def _avg_pool(given: Inputs) -> Array:
    x, (side, _) = _wide(given["x"]), given["kernel_sizes"]
    assert given["pad_type"] == "valid"
    assert list(given["strides"]) == [side, side]
    _, channels, height, width = x.shape
    return x.reshape(1, channels, height // side, side, width // side, side).mean((3, 5))


_erf = np.frompyfunc(math.erf, 1, 1)


def _gelu(given: Inputs) -> Array:
    assert given["mode"] == "EXACT"
    x = _wide(given["x"])
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)).astype(np.float64))


def _linear(given: Inputs) -> Array:
    return _wide(given["x"]) @ _wide(given["weight"]).T + _wide(given["bias"])


def _layer_norm(given: Inputs) -> Array:
    x, axes = _wide(given["x"]), tuple(given["axes"])
    assert given.keys() <= {"x", "axes", "epsilon"}
    x = x - x.mean(axes, keepdims=True)
    return x / np.sqrt((x**2).mean(axes, keepdims=True) + float(given["epsilon"]))


def _matmul(given: Inputs) -> Array:
    assert not given["transpose_x"]
    y = _wide(given["y"])
    return _wide(given["x"]) @ (y.swapaxes(-1, -2) if given["transpose_y"] else y)


def _softmax(given: Inputs) -> Array:
    x, axis = _wide(given["x"]), int(given["axis"])
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def _dequantized(given: Inputs) -> Array:
    data, axis = _wide(given["quantized_data"]), int(given["axis"])
    shape = [-1 if place == axis else 1 for place in range(data.ndim)]
    scale, zero = (np.reshape(_wide(given[name]), shape) for name in ("scale", "zero_point"))
    return (data - zero) * scale


def _looked_up(given: Inputs) -> Array:
    """Indices are stored as a stream of bits, each one's lowest first."""
    lut, shape = _wide(given["lut"]), tuple(given["shape"])
    width, count = int(math.log2(len(lut))), math.prod(shape)
    bits = np.unpackbits(given["indices"].view(np.uint8), bitorder="little")[: count * width]
    return lut[bits.reshape(count, width) @ (1 << np.arange(width))].reshape(shape)


def _wide(array: Any) -> Array:
    return np.asarray(array, np.float64)


OPERATIONS: dict[str, Callable[[Inputs], Any]] = {
    "conv": _conv,
    "avg_pool": _avg_pool,
    "concat": lambda given: np.concatenate(given["values"], int(given["axis"])),
    "gelu": _gelu,
    "relu": lambda given: np.maximum(_wide(given["x"]), 0),
    "sigmoid": lambda given: 1 / (1 + np.exp(-_wide(given["x"]))),
    "add": lambda given: _wide(given["x"]) + _wide(given["y"]),
    "mul": lambda given: _wide(given["x"]) * _wide(given["y"]),
    "reduce_mean": lambda given: _wide(given["x"]).mean(
        tuple(given["axes"]), keepdims=bool(given["keep_dims"])
    ),
    "reshape": lambda given: np.reshape(given["x"], given["shape"]),
    "transpose": lambda given: np.transpose(given["x"], given["perm"]),
    "linear": _linear,
    "layer_norm": _layer_norm,
    "split": lambda given: np.split(given["x"], int(given["num_splits"]), int(given["axis"])),
    "matmul": _matmul,
    "softmax": _softmax,
    "cast": lambda given: given["x"],
    "constexpr_affine_dequantize": _dequantized,
    "constexpr_lut_to_dense": _looked_up,
}
