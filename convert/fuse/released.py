"""The form in which Apple releases checkpoints, and in which others run them: branches fused, all else apart.

Between the trained and the run form: one convolution per place, but ConvFFN's BatchNorm, the LayerNorms, the
layer scales and q, k, v are where training had them. `of_raw` fuses branches and leaves the rest as stored;
`of_run` takes the run form apart again. Names are the raw ones, 1×1 convolutions are (out, 1, 1, in).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ...config import ModelConfig, Quantization, VisionConfig
from ...errors import CheckpointError
from ..read.tensor_names import RawWeights
from . import fuse
from .arithmetic import BATCH_NORM_EPS, Kernel

# Of what the LayerNorm's bias must explain of the queries' bias: rounding in these types and no more.
_UNEXPLAINED = {mx.float32: 1e-4, mx.float16: 1e-2, mx.bfloat16: 5e-2}


@dataclass(frozen=True, slots=True)
class Released:
    weights: RawWeights
    packed: dict[str, Quantization]  # of the language model; tower and projector are dense


def of_raw(raw: RawWeights, config: ModelConfig, packed: fuse.Packed) -> Released:
    """Lazily; the raw weights have been checked against `tensor_shapes`."""
    done: dict[str, mx.array] = {}
    tower = _dense(raw, packed, "vision.")

    def put(name: str, kernel: Kernel, *, pointwise: bool = False) -> None:
        weight = _one_by_one(kernel.weight) if pointwise else kernel.weight
        done[f"{name}.weight"], done[f"{name}.bias"] = _single(weight), _single(kernel.bias)

    def keep(name: str, *parts: str) -> None:
        for part in parts:
            done[f"{name}.{part}"] = _single(tower[f"{name}.{part}"])

    def matrix(name: str) -> None:
        put(name, Kernel(tower[f"{name}.weight"], tower[f"{name}.bias"]), pointwise=True)

    put("vision.stem.conv", fuse.mobile_one(tower, "vision.stem.conv"))
    put("vision.stem.depthwise", fuse.mobile_one(tower, "vision.stem.depthwise"))
    put("vision.stem.pointwise", fuse.mobile_one(tower, "vision.stem.pointwise"), pointwise=True)
    for stage, block, attends in _blocks(config.vision):
        if not block:
            _, _, index = stage.rpartition(".")
            step = f"{stage}.downsample"
            if index != "0":
                put(f"{step}.depthwise", fuse.large_kernel(tower, f"{step}.depthwise"))
                put(f"{step}.pointwise", fuse.mobile_one(tower, f"{step}.pointwise"), pointwise=True)
            if attends:
                put(f"{stage}.position", fuse.positional(tower, f"{stage}.position"))
        elif attends:
            keep(f"{block}.norm", "weight", "bias")
            done[f"{block}.attention.qkv.weight"] = _single(tower[f"{block}.attention.qkv.weight"].flatten(1))
            keep(f"{block}.attention.proj", "weight", "bias")
            for scale in ("layer_scale_1", "layer_scale_2"):
                done[f"{block}.{scale}"] = _single(tower[f"{block}.{scale}"].reshape(1, 1, -1))
        else:
            put(f"{block}.mixer", fuse.rep_mixer(tower, f"{block}.mixer"))
            done[f"{block}.layer_scale"] = _single(tower[f"{block}.layer_scale"].reshape(1, 1, -1))
        if block:
            keep(f"{block}.ffn.depthwise.conv", "weight")
            keep(f"{block}.ffn.depthwise.bn", "weight", "bias", "running_mean", "running_var")
            matrix(f"{block}.ffn.fc1")
            matrix(f"{block}.ffn.fc2")
    put("vision.expand.depthwise", fuse.mobile_one(tower, "vision.expand.depthwise"))
    matrix("vision.expand.squeeze")
    matrix("vision.expand.excite")
    done |= _dense(raw, packed, "projector.")
    done |= {
        name: array
        for name, array in raw.items()
        if name.startswith("language.") and not (config.text.tied and name.startswith("language.head."))
    }
    kept = {path: how for path, how in packed.items() if f"{path}.scales" in done}
    return Released(RawWeights(done), kept)


def of_run(weights: Mapping[str, mx.array], config: ModelConfig, where: Path) -> Released:
    """What was folded stays folded: norms become identities, and scales ones.

    Lazy but for the attention blocks, whose LayerNorm biases are solved for. Raises where there is none.
    """
    done: dict[str, mx.array] = {}
    run = _dense(RawWeights(dict(weights)), config.quantization, "vision.")

    def put(name: str, weight: mx.array, bias: mx.array) -> None:
        done[f"{name}.weight"], done[f"{name}.bias"] = _single(weight), _single(bias)

    def matrix(name: str) -> None:
        put(name, _one_by_one(run[f"{name}.weight"]), run[f"{name}.bias"])

    def whole(name: str) -> None:
        put(name, run[f"{name}.weight"], run[f"{name}.bias"])

    dims, ones = config.vision.dims, lambda width: mx.ones((1, 1, width))
    whole("vision.stem.conv")
    whole("vision.stem.depthwise")
    matrix("vision.stem.pointwise")
    for stage, block, attends in _blocks(config.vision):
        index = int(stage.rpartition(".")[2])
        width = dims[index]
        if not block:
            step = f"{stage}.downsample"
            if index:
                times = width // dims[index - 1]
                weight, bias = (run[f"{step}.depthwise.{part}"] for part in ("weight", "bias"))
                put(f"{step}.depthwise", interleaved(weight, times), interleaved(bias, times))
                columns = interleaved(run[f"{step}.pointwise.weight"].T, times).T
                put(f"{step}.pointwise", _one_by_one(columns), run[f"{step}.pointwise.bias"])
            if attends:
                whole(f"{stage}.position")
        elif attends:
            done |= _attention(run, block, config.vision.head_dim, weights, where)
            done |= {f"{block}.{scale}": ones(width) for scale in ("layer_scale_1", "layer_scale_2")}
        else:
            whole(f"{block}.mixer")
            done[f"{block}.layer_scale"] = ones(width)
        if block:
            done[f"{block}.ffn.depthwise.conv.weight"] = _single(run[f"{block}.ffn.depthwise.weight"])
            done |= {f"{block}.ffn.depthwise.bn.{part}": array for part, array in _identity(width).items()}
            matrix(f"{block}.ffn.fc1")
            matrix(f"{block}.ffn.fc2")
    weight, bias = (run[f"vision.expand.depthwise.{part}"] for part in ("weight", "bias"))
    put("vision.expand.depthwise", interleaved(weight, 2), interleaved(bias, 2))
    matrix("vision.expand.squeeze")
    matrix("vision.expand.excite")
    done |= _dense(RawWeights(dict(weights)), config.quantization, "projector.")
    packed: dict[str, Quantization] = {}
    for name, array in weights.items():
        if name.startswith("language."):
            path, _, kind = name.rpartition(".")
            how = config.quantization.get(path)
            for piece, rows in _apart(path, array, config).items():
                done[f"{piece}.{kind}"] = rows
                if how:
                    packed[piece] = how
    return Released(RawWeights(done), packed)


def _blocks(vision: VisionConfig) -> list[tuple[str, str, bool]]:
    """(stage, block, whether it attends); first of each stage its way in, with no block's name."""
    return [
        (stage, f"{stage}.blocks.{number}" if number >= 0 else "", index >= vision.attention_from)
        for index, depth in enumerate(vision.layers)
        for stage in [f"vision.stages.{index}"]
        for number in range(-1, depth)
    ]


def _dense(raw: RawWeights, packed: fuse.Packed, prefix: str) -> RawWeights:
    """The tensors of a part, matrices unpacked; the tower's in the precision that folding takes."""
    exact = mx.float64 if prefix == "vision." else None
    done: dict[str, mx.array] = {}
    for name, array in raw.items():
        path, _, kind = name.rpartition(".")
        if not name.startswith(prefix) or (path in packed and kind in ("scales", "biases")):
            continue
        if path in packed and kind == "weight":
            array = fuse.linear_of(raw, path, packed).dense()
        done[name] = array.astype(exact) if exact else array
    return RawWeights(done)


def _single(array: mx.array) -> mx.array:
    return array.astype(mx.float32)


def _one_by_one(matrix: mx.array) -> mx.array:
    return matrix.flatten(1)[:, None, None, :]


def interleaved(array: mx.array, times: int) -> mx.array:
    """Rows 0, m, 2m… first, back in their order."""
    return mx.unflatten(array, 0, (times, -1)).swapaxes(0, 1).flatten(0, 1)


def _identity(width: int) -> dict[str, mx.array]:
    """A BatchNorm that changes nothing: in float32 var + eps is exactly one, in halves var is one."""
    return {
        "weight": mx.ones((width,)),
        "bias": mx.zeros((width,)),
        "running_mean": mx.zeros((width,)),
        "running_var": mx.full((width,), 1 - BATCH_NORM_EPS),
    }


def _attention(
    run: RawWeights, block: str, head_dim: int, stored: Mapping[str, mx.array], where: Path
) -> dict[str, mx.array]:
    """qkv has no bias there: it must come from the LayerNorm's, as it did once.

    Keys need none, since a softmax ignores what is the same for all of them. What the solution leaves of the
    values' goes into the projection's, since attention weights add up to one. The queries' must be explained.
    """
    names = ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")
    qkv, bias, proj, proj_bias = (np.array(run[f"{block}.attention.{name}"]) for name in names)
    width = qkv.shape[1]
    qkv[:width] *= math.sqrt(head_dim)
    bias[:width] *= math.sqrt(head_dim)
    shift = np.linalg.lstsq(qkv, bias, rcond=None)[0]
    left = bias - qkv @ shift
    size, unexplained = (float(np.linalg.norm(part[:width])) for part in (bias, left))
    if unexplained > _UNEXPLAINED[stored[f"{block}.attention.qkv.bias"].dtype] * size:
        raise CheckpointError(
            f"{where}: {block}.attention.qkv.bias is no LayerNorm's (of the queries' "
            f"{unexplained / size:.1%} is left over), and other programs have no place for it; "
            "export the checkpoint it came from"
        )
    named = {
        "norm.weight": np.ones(width),
        "norm.bias": shift,
        "attention.qkv.weight": qkv,
        "attention.proj.weight": proj,
        "attention.proj.bias": proj_bias + proj @ left[2 * width :],
    }
    return {f"{block}.{name}": mx.array(array.astype(np.float32)) for name, array in named.items()}


def _apart(path: str, array: mx.array, config: ModelConfig) -> dict[str, mx.array]:
    """Rows of joined matrices by the names of their pieces."""
    base, _, last = path.rpartition(".")
    narrow, wide = config.text.kv_heads * config.text.head_dim, config.text.hidden_size
    if last == "qkv":
        rows = mx.split(array, [wide, wide + narrow])
        return {f"{base}.{piece}": part for piece, part in zip("qkv", rows, strict=True)}
    if last == "gate_up":
        return {
            f"{base}.{piece}": part for piece, part in zip(("gate", "up"), mx.split(array, 2), strict=True)
        }
    return {path: array}
