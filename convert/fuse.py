"""Raw weights to the run form's: every branch, norm and scale into the weight that follows or precedes it.

Everything here is lazy: the result is a graph per tensor, and a caller that evaluates them one by one
never holds more than a few.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import mlx.core as mx

from ..checkpoint import FusedWeights
from ..config import Quantization, TextConfig, VisionConfig
from ..errors import CheckpointError
from . import reparam
from .layouts import Layout, RawWeights
from .reparam import BatchNorm, Kernel

STAGES = 5


@dataclass(frozen=True)
class Fused:
    vision: VisionConfig
    weights: FusedWeights
    quantization: dict[str, Quantization]


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix (out, in), perhaps quantized."""

    weight: mx.array
    bias: mx.array | None
    scales: mx.array | None
    biases: mx.array | None

    def quantization(self, width: int) -> Quantization | None:
        """How a matrix whose rows have `width` inputs was packed."""
        if self.scales is None:
            return None
        return Quantization(self.weight.shape[-1] * 32 // width, width // self.scales.shape[-1])

    def dense(self, width: int) -> mx.array:
        how = self.quantization(width)
        if how is None or self.scales is None or self.biases is None:
            return self.weight
        scales, biases = self.scales.astype(mx.float32), self.biases.astype(mx.float32)
        return mx.dequantize(self.weight, scales, biases, how.group_size, how.bits)


class Raw:
    """Raw weights, taken one by one; what is missing or left over is an error in the stored names."""

    def __init__(self, weights: RawWeights, layout: Layout, where: Path):
        self._left = dict(weights)
        self._layout, self._where = layout, where

    def has(self, name: str) -> bool:
        return name in self._left

    def has_under(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self._left)

    def take(self, name: str) -> mx.array:
        if name not in self._left:
            raise CheckpointError(
                f"{self._where}: tensor {self._layout.stored_name(name)!r} is missing; the checkpoint is "
                f"incomplete, run `fastvlm-mlx doctor {self._where}`"
            )
        return self._left.pop(name)

    def shape(self, name: str) -> tuple[int, ...]:
        array = self.take(name)
        self._left[name] = array
        return tuple(array.shape)

    def float(self, name: str) -> mx.array:
        """In float64, so that a fused weight is rounded once, at the end."""
        return self.take(name).astype(mx.float64)

    def maybe(self, name: str) -> mx.array | None:
        return self._left.pop(name, None)

    def kernel(self, name: str) -> Kernel:
        return Kernel(self.float(f"{name}.weight"), self.float(f"{name}.bias"))

    def norm(self, name: str) -> BatchNorm:
        return BatchNorm(
            *(self.float(f"{name}.{part}") for part in ("weight", "bias", "running_mean", "running_var"))
        )

    def folded(self, name: str) -> Kernel:
        return reparam.fold(self.float(f"{name}.conv.weight"), self.norm(f"{name}.bn"))

    def linear(self, name: str, *, bias: bool) -> Linear:
        weight, scales = self.take(f"{name}.weight"), self.maybe(f"{name}.scales")
        biases = self.take(f"{name}.biases") if scales is not None else None
        return Linear(weight, self.take(f"{name}.bias") if bias else None, scales, biases)

    def matrix(self, name: str) -> mx.array:
        """A 1×1 convolution's weight, or a matrix's, as (out, in)."""
        return self.float(f"{name}.weight").flatten(1)

    def count(self, pattern: str) -> int:
        """How many numbered things there are: the highest number in the pattern's group, plus one."""
        found = [int(match[1]) for name in self._left if (match := re.match(pattern, name))]
        return max(found, default=-1) + 1

    def finish(self) -> None:
        if self._left:
            name = min(self._left)
            raise CheckpointError(
                f"{self._where}: tensor {self._layout.stored_name(name)!r} has no place in the model "
                f"({len(self._left)} such); run `fastvlm-mlx doctor {self._where}`"
            )


def fuse(weights: RawWeights, layout: Layout, text: TextConfig, where: Path) -> Fused:
    """Translate a whole checkpoint. The tower's widths and depths are read off its tensors."""
    raw = Raw(weights, layout, where)
    if not any(name.startswith("vision.") for name in weights):
        raise CheckpointError(
            f"{where}: the vision tower is missing ({layout.name} layout); use the original checkpoint, "
            "for example apple/FastVLM-0.5B"
        )
    vision = _vision_config(raw, where)
    fused: dict[str, mx.array] = {}
    quantization: dict[str, Quantization] = {}

    def put(name: str, linear: Linear, width: int) -> None:
        for part in ("weight", "scales", "biases", "bias"):
            if (array := getattr(linear, part)) is not None:
                fused[f"{name}.{part}"] = array
        if how := linear.quantization(width):
            quantization[name] = how

    _fuse_tower(raw, vision, fused)
    put("projector.fc1", raw.linear("projector.fc1", bias=True), vision.feature_dim)
    put("projector.fc2", raw.linear("projector.fc2", bias=True), text.hidden_size)
    put("language.embedding", raw.linear("language.embedding", bias=False), text.hidden_size)
    for index in range(text.layers):
        layer, width = f"language.layers.{index}", text.hidden_size
        fused[f"{layer}.attention_norm.weight"] = raw.take(f"{layer}.attention_norm.weight")
        q, k, v = (raw.linear(f"{layer}.attention.{x}", bias=True) for x in "qkv")
        put(f"{layer}.attention.qkv", _joined((q, k, v), width), width)
        put(
            f"{layer}.attention.out",
            raw.linear(f"{layer}.attention.out", bias=False),
            text.heads * text.head_dim,
        )
        fused[f"{layer}.mlp_norm.weight"] = raw.take(f"{layer}.mlp_norm.weight")
        gate, up = (raw.linear(f"{layer}.mlp.{x}", bias=False) for x in ("gate", "up"))
        put(f"{layer}.mlp.gate_up", _joined((gate, up), width), width)
        put(f"{layer}.mlp.down", raw.linear(f"{layer}.mlp.down", bias=False), text.intermediate_size)
    fused["language.norm.weight"] = raw.take("language.norm.weight")
    if text.tied:
        for part in ("weight", "scales", "biases"):
            raw.maybe(f"language.head.{part}")  # stored by some, ignored by the reference
    else:
        put("language.head", raw.linear("language.head", bias=False), text.hidden_size)
    raw.finish()
    return Fused(vision, FusedWeights(fused), quantization)


def _joined(parts: Sequence[Linear], width: int) -> Linear:
    """Rows of several matrices as one; packed alike they stay packed, otherwise they become dense."""
    if len({part.quantization(width) for part in parts}) > 1:
        parts = [Linear(part.dense(width), part.bias, None, None) for part in parts]

    def stacked(arrays: list[mx.array | None]) -> mx.array | None:
        present = [array for array in arrays if array is not None]
        return mx.concatenate(present) if len(present) == len(arrays) else None

    weight = mx.concatenate([part.weight for part in parts])
    return Linear(
        weight,
        stacked([part.bias for part in parts]),
        stacked([part.scales for part in parts]),
        stacked([part.biases for part in parts]),
    )


def _vision_config(raw: Raw, where: Path) -> VisionConfig:
    stages = [f"vision.stages.{stage}.blocks" for stage in range(STAGES)]
    layers = tuple(raw.count(rf"{re.escape(blocks)}\.(\d+)\.") for blocks in stages)
    if 0 in layers:
        raise CheckpointError(
            f"{where}: stage {layers.index(0)} of the vision tower has no blocks, and FastViTHD has {STAGES} "
            f"stages with some in each; run `fastvlm-mlx doctor {where}`"
        )
    dims = tuple(raw.shape(f"{blocks}.0.ffn.fc2.weight")[0] for blocks in stages)
    ratio = raw.shape(f"{stages[0]}.0.ffn.fc1.weight")[0] // dims[0]
    attention = [raw.has_under(f"{blocks}.0.attention.") for blocks in stages]
    if attention != sorted(attention):
        raise CheckpointError(
            f"{where}: a stage of the vision tower with attention comes before one without, and FastViTHD's come "
            f"last; run `fastvlm-mlx doctor {where}`"
        )
    squeeze = 2 * dims[-1] // raw.shape("vision.expand.squeeze.weight")[0]
    for narrow, wide in pairwise(dims):
        if wide % narrow:
            raise CheckpointError(
                f"{where}: a stage of {wide} channels follows one of {narrow}, which is no multiple; "
                "FastViTHD's stages widen by whole factors"
            )
    return VisionConfig(layers, dims, ratio, STAGES - sum(attention), squeeze=squeeze)


def _fuse_tower(raw: Raw, config: VisionConfig, fused: dict[str, mx.array]) -> None:
    def put(name: str, weight: mx.array, bias: mx.array | None) -> None:
        fused[f"{name}.weight"] = weight.astype(mx.float32)
        if bias is not None:
            fused[f"{name}.bias"] = bias.astype(mx.float32)

    stem = "vision.stem"
    for name in ("conv", "depthwise"):
        kernel = _mobile_one(raw, f"{stem}.{name}")
        put(f"{stem}.{name}", kernel.weight, kernel.bias)
    kernel = _mobile_one(raw, f"{stem}.pointwise", skip=True)
    put(f"{stem}.pointwise", kernel.weight.flatten(1), kernel.bias)

    for index, dim in enumerate(config.dims):
        stage = f"vision.stages.{index}"
        if index:
            step, times = f"{stage}.downsample", dim // config.dims[index - 1]
            kernel = _residues_first(_large_kernel(raw, f"{step}.depthwise"), times)
            put(f"{step}.depthwise", kernel.weight, kernel.bias)
            kernel = _mobile_one(raw, f"{step}.pointwise", skip=True)
            columns = [kernel.weight.flatten(1)[:, first::times] for first in range(times)]
            put(f"{step}.pointwise", mx.concatenate(columns, axis=1), kernel.bias)
        if index >= config.attention_from:
            name = f"{stage}.position"
            trained = raw.has_under(f"{name}.conv.")
            kernel = reparam.positional(raw.kernel(f"{name}.conv")) if trained else raw.kernel(name)
            put(name, kernel.weight, kernel.bias)
        for number in range(config.layers[index]):
            block = f"{stage}.blocks.{number}"
            if index >= config.attention_from:
                scale = raw.float(f"{block}.layer_scale_2").flatten()
                for name, weight, bias in _attention(raw, block, dim, config.head_dim):
                    put(f"{block}.attention.{name}", weight, bias)
            else:
                scale = raw.float(f"{block}.layer_scale").flatten()
                kernel = _rep_mixer(raw, f"{block}.mixer")
                put(f"{block}.mixer", kernel.weight, kernel.bias)
            norm = raw.norm(f"{block}.ffn.depthwise.bn")
            kernel = reparam.fold(raw.float(f"{block}.ffn.depthwise.conv.weight"), norm)
            put(f"{block}.ffn.depthwise", kernel.weight, None)
            fc1, fc2 = raw.matrix(f"{block}.ffn.fc1"), raw.matrix(f"{block}.ffn.fc2")
            put(f"{block}.ffn.fc1", fc1, raw.float(f"{block}.ffn.fc1.bias") + fc1 @ norm.shift)
            put(f"{block}.ffn.fc2", fc2 * scale[:, None], raw.float(f"{block}.ffn.fc2.bias") * scale)

    kernel = _residues_first(_mobile_one(raw, "vision.expand.depthwise", scale=True), 2)
    put("vision.expand.depthwise", kernel.weight, kernel.bias)
    for name in ("vision.expand.squeeze", "vision.expand.excite"):
        put(name, raw.matrix(name), raw.float(f"{name}.bias"))


def _mobile_one(raw: Raw, name: str, *, scale: bool = False, skip: bool = False) -> Kernel:
    """`scale` and `skip`: branches that FastViTHD has here; a checkpoint without them is incomplete."""
    branches = raw.count(rf"{re.escape(name)}\.kxk\.(\d+)\.")
    if not branches:
        return raw.kernel(name)
    return reparam.mobile_one(
        [raw.folded(f"{name}.kxk.{branch}") for branch in range(branches)],
        raw.folded(f"{name}.scale") if scale or raw.has(f"{name}.scale.conv.weight") else None,
        raw.norm(f"{name}.skip") if skip or raw.has(f"{name}.skip.weight") else None,
    )


def _large_kernel(raw: Raw, name: str) -> Kernel:
    if not raw.has_under(f"{name}.large."):
        return raw.kernel(name)
    return reparam.large_kernel(raw.folded(f"{name}.large"), raw.folded(f"{name}.small"))


def _rep_mixer(raw: Raw, name: str) -> Kernel:
    if not raw.has_under(f"{name}.mixer."):
        return raw.kernel(name)
    return reparam.rep_mixer(
        _mobile_one(raw, f"{name}.mixer", scale=True, skip=True),
        raw.norm(f"{name}.norm.skip"),
        raw.float(f"{name}.layer_scale").flatten(),
    )


def _residues_first(kernel: Kernel, times: int) -> Kernel:
    """Outputs 0, m, 2m, … then 1, m+1, …: what `DepthwiseConv` holds."""
    weight, bias = (
        mx.concatenate([part[first::times] for first in range(times)])
        for part in (kernel.weight, kernel.bias)
    )
    return Kernel(weight, bias)


def _attention(raw: Raw, block: str, dim: int, head_dim: int) -> list[tuple[str, mx.array, mx.array]]:
    gain, shift = raw.float(f"{block}.norm.weight"), raw.float(f"{block}.norm.bias")
    scale = raw.float(f"{block}.layer_scale_1").flatten()
    query_scale = mx.where(mx.arange(3 * dim) < dim, mx.array(head_dim**-0.5, mx.float64), 1)
    qkv = raw.linear(f"{block}.attention.qkv", bias=False).dense(dim).astype(mx.float64)
    qkv = qkv * query_scale[:, None]
    proj_bias = raw.float(f"{block}.attention.proj.bias")
    proj = raw.linear(f"{block}.attention.proj", bias=False).dense(dim).astype(mx.float64)
    return [
        ("qkv", qkv * gain, qkv @ shift),
        ("proj", proj * scale[:, None], proj_bias * scale),
    ]
