"""Raw weights to the run form's: every branch, norm and scale into the weight that follows or precedes it.

The raw weights have been checked against `tensor_shapes`: every name is there, in its shape. Everything here
is lazy: the result is a graph per tensor, and a caller that evaluates them one by one never holds more than a
few. Folding is done in float64 unless told otherwise, so that a fused weight is rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from ...config import Quantization, TextConfig, VisionConfig
from ...weights.checkpoint import FusedWeights
from ..read.tensor_names import RawWeights
from . import arithmetic
from .arithmetic import BatchNorm, Kernel

Packed = Mapping[str, Quantization]  # which matrices are stored quantized, and how


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix (out, in), perhaps quantized."""

    weight: mx.array
    bias: mx.array | None
    scales: mx.array | None = None
    biases: mx.array | None = None
    how: Quantization | None = None

    def dense(self) -> mx.array:
        if self.how is None or self.scales is None or self.biases is None:
            return self.weight
        scales, biases = self.scales.astype(mx.float32), self.biases.astype(mx.float32)
        return mx.dequantize(self.weight, scales, biases, self.how.group_size, self.how.bits)


def fuse(
    raw: RawWeights,
    vision: VisionConfig,
    text: TextConfig,
    packed: Packed,
    precision: mx.Dtype = mx.float64,
) -> tuple[FusedWeights, dict[str, Quantization]]:
    """The run form's weights, and which of its matrices are quantized.

    Differentiable: training folds in float32, which GPUs have, and runs the result.
    """
    fused: dict[str, mx.array] = {}
    quantization: dict[str, Quantization] = {}

    def put(name: str, linear: Linear) -> None:
        for part in ("weight", "scales", "biases", "bias"):
            if (array := getattr(linear, part)) is not None:
                fused[f"{name}.{part}"] = array
        if linear.how:
            quantization[name] = linear.how

    def take(name: str) -> Linear:
        return linear_of(raw, name, packed)

    _fuse_tower(raw, vision, packed, fused, precision)
    for name in ("projector.fc1", "projector.fc2", "language.embedding"):
        put(name, take(name))
    for layer in (f"language.layers.{index}" for index in range(text.layers)):
        fused[f"{layer}.attention_norm.weight"] = raw[f"{layer}.attention_norm.weight"]
        put(f"{layer}.attention.qkv", _joined([take(f"{layer}.attention.{x}") for x in "qkv"]))
        put(f"{layer}.attention.out", take(f"{layer}.attention.out"))
        fused[f"{layer}.mlp_norm.weight"] = raw[f"{layer}.mlp_norm.weight"]
        put(f"{layer}.mlp.gate_up", _joined([take(f"{layer}.mlp.{x}") for x in ("gate", "up")]))
        put(f"{layer}.mlp.down", take(f"{layer}.mlp.down"))
    fused["language.norm.weight"] = raw["language.norm.weight"]
    if not text.tied:
        put("language.head", take("language.head"))
    return FusedWeights(fused), quantization


def linear_of(raw: RawWeights, name: str, packed: Packed) -> Linear:
    bias, scales, biases = (raw.get(f"{name}.{part}") for part in ("bias", "scales", "biases"))
    return Linear(raw[f"{name}.weight"], bias, scales, biases, packed.get(name))


def _joined(parts: Sequence[Linear]) -> Linear:
    """Rows of several matrices as one; packed alike they stay packed, otherwise they become dense."""
    how = parts[0].how
    if any(part.how != how for part in parts):
        how, parts = None, [Linear(part.dense(), part.bias) for part in parts]

    def stacked(column: str) -> mx.array | None:
        arrays = [getattr(part, column) for part in parts]
        return None if arrays[0] is None else mx.concatenate(arrays)

    weight = mx.concatenate([part.weight for part in parts])
    return Linear(weight, stacked("bias"), stacked("scales"), stacked("biases"), how)


def _fuse_tower(
    stored: RawWeights, config: VisionConfig, packed: Packed, fused: dict[str, mx.array], precision: mx.Dtype
) -> None:
    packs = tuple(f"{name}." for name in packed)
    raw = RawWeights(
        {
            name: array if name.startswith(packs) else array.astype(precision)
            for name, array in stored.items()
            if name.startswith("vision.")
        }
    )

    def put(name: str, weight: mx.array, bias: mx.array | None) -> None:
        fused[f"{name}.weight"] = weight.astype(mx.float32)
        if bias is not None:
            fused[f"{name}.bias"] = bias.astype(mx.float32)

    stem = "vision.stem"
    for name in ("conv", "depthwise"):
        kernel = mobile_one(raw, f"{stem}.{name}")
        put(f"{stem}.{name}", kernel.weight, kernel.bias)
    kernel = mobile_one(raw, f"{stem}.pointwise")
    put(f"{stem}.pointwise", kernel.weight.flatten(1), kernel.bias)

    for index, dim in enumerate(config.dims):
        stage = f"vision.stages.{index}"
        if index:
            step, times = f"{stage}.downsample", dim // config.dims[index - 1]
            kernel = _residues_first(large_kernel(raw, f"{step}.depthwise"), times)
            put(f"{step}.depthwise", kernel.weight, kernel.bias)
            kernel = mobile_one(raw, f"{step}.pointwise")
            columns = [kernel.weight.flatten(1)[:, first::times] for first in range(times)]
            put(f"{step}.pointwise", mx.concatenate(columns, axis=1), kernel.bias)
        if index >= config.attention_from:
            kernel = positional(raw, f"{stage}.position")
            put(f"{stage}.position", kernel.weight, kernel.bias)
        for number in range(config.layers[index]):
            block = f"{stage}.blocks.{number}"
            if index >= config.attention_from:
                scale = raw[f"{block}.layer_scale_2"].flatten()
                for name, weight, bias in _attention(raw, block, packed, config.head_dim):
                    put(f"{block}.attention.{name}", weight, bias)
            else:
                scale = raw[f"{block}.layer_scale"].flatten()
                kernel = rep_mixer(raw, f"{block}.mixer")
                put(f"{block}.mixer", kernel.weight, kernel.bias)
            norm = _norm(raw, f"{block}.ffn.depthwise.bn")
            kernel = arithmetic.fold(raw[f"{block}.ffn.depthwise.conv.weight"], norm)
            put(f"{block}.ffn.depthwise", kernel.weight, None)
            fc1, fc2 = _matrix(raw, f"{block}.ffn.fc1"), _matrix(raw, f"{block}.ffn.fc2")
            put(f"{block}.ffn.fc1", fc1, raw[f"{block}.ffn.fc1.bias"] + fc1 @ norm.shift)
            put(f"{block}.ffn.fc2", fc2 * scale[:, None], raw[f"{block}.ffn.fc2.bias"] * scale)

    kernel = _residues_first(mobile_one(raw, "vision.expand.depthwise"), 2)
    put("vision.expand.depthwise", kernel.weight, kernel.bias)
    for name in ("vision.expand.squeeze", "vision.expand.excite"):
        put(name, _matrix(raw, name), raw[f"{name}.bias"])
    if config.multi_scale and config.multi_scale.pooling == "depthwise":
        for number in range(len(config.pools)):
            name = f"vision.multi_scale.pools.{number}"
            put(name, raw[f"{name}.weight"], None)


def _matrix(raw: RawWeights, name: str) -> mx.array:
    """A 1×1 convolution's weight as (out, in)"""
    return raw[f"{name}.weight"].flatten(1)


def kernel_of(raw: RawWeights, name: str) -> Kernel:
    return Kernel(raw[f"{name}.weight"], raw[f"{name}.bias"])


def _norm(raw: RawWeights, name: str) -> BatchNorm:
    return BatchNorm(*(raw[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")))


def _folded(raw: RawWeights, name: str) -> Kernel:
    return arithmetic.fold(raw[f"{name}.conv.weight"], _norm(raw, f"{name}.bn"))


def mobile_one(raw: RawWeights, name: str) -> Kernel:
    if f"{name}.weight" in raw:
        return kernel_of(raw, name)
    branches: list[Kernel] = []
    while f"{name}.kxk.{len(branches)}.conv.weight" in raw:
        branches.append(_folded(raw, f"{name}.kxk.{len(branches)}"))
    return arithmetic.mobile_one(
        branches,
        _folded(raw, f"{name}.scale") if f"{name}.scale.conv.weight" in raw else None,
        _norm(raw, f"{name}.skip") if f"{name}.skip.weight" in raw else None,
    )


def large_kernel(raw: RawWeights, name: str) -> Kernel:
    if f"{name}.weight" in raw:
        return kernel_of(raw, name)
    return arithmetic.large_kernel(_folded(raw, f"{name}.large"), _folded(raw, f"{name}.small"))


def rep_mixer(raw: RawWeights, name: str) -> Kernel:
    if f"{name}.weight" in raw:
        return kernel_of(raw, name)
    return arithmetic.rep_mixer(
        mobile_one(raw, f"{name}.mixer"),
        _norm(raw, f"{name}.norm.skip"),
        raw[f"{name}.layer_scale"].flatten(),
    )


def positional(raw: RawWeights, name: str) -> Kernel:
    if f"{name}.weight" in raw:
        return kernel_of(raw, name)
    return arithmetic.positional(kernel_of(raw, f"{name}.conv"))


def _residues_first(kernel: Kernel, times: int) -> Kernel:
    """Outputs 0, m, 2m, … then 1, m+1, …: the order of `DepthwiseConv`."""
    weight, bias = (
        mx.concatenate([part[first::times] for first in range(times)])
        for part in (kernel.weight, kernel.bias)
    )
    return Kernel(weight, bias)


def _attention(
    raw: RawWeights, block: str, packed: Packed, head_dim: int
) -> list[tuple[str, mx.array, mx.array]]:
    gain, shift = raw[f"{block}.norm.weight"], raw[f"{block}.norm.bias"]
    scale = raw[f"{block}.layer_scale_1"].flatten()
    qkv, proj = (
        linear_of(raw, f"{block}.attention.{name}", packed).dense().astype(gain.dtype)
        for name in ("qkv", "proj")
    )
    rows = mx.arange(qkv.shape[0])[:, None]
    qkv = qkv * mx.where(rows < qkv.shape[1], mx.array(head_dim**-0.5, gain.dtype), 1)
    proj_bias = raw[f"{block}.attention.proj.bias"]
    return [("qkv", qkv * gain, qkv @ shift), ("proj", proj * scale[:, None], proj_bias * scale)]
