"""FastViTHD in run form: one convolution in place of each set of training branches, no BatchNorm, no layer
scale.

Folded into the weights at conversion: every BatchNorm (the ConvFFN's shift into fc1's bias), every
layer scale (into fc2 and the attention projection), the attention's 1/√d and LayerNorm's affine
(into qkv). Activations are NHWC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Generic, TypeVar

import mlx.core as mx
import mlx.nn as nn

from .. import kernels
from ..config import VisionConfig
from ..kernels import gelu
from .linear import add_linear

_LAYER_NORM_EPS = 1e-5
_T = TypeVar("_T")


class Prepared(Generic[_T]):
    """Caches what `make` returns for some weights; calls it again when the weights change."""

    def __init__(self, make: Callable[..., _T]):
        self._make = make
        self._made: tuple[tuple[mx.array, ...], _T] | None = None

    def __call__(self, *weights: mx.array) -> _T:
        if self._made is None or any(a is not b for a, b in zip(self._made[0], weights, strict=True)):
            self._made = weights, self._make(*weights)
        return self._made[1]


class DepthwiseConv(nn.Module):
    """Depthwise convolution with `widening` outputs a channel: all first outputs, then all second ones.

    Callers may add the bias themselves: on a GPU it is free inside the next operation.
    """

    def __init__(self, channels: int, kernel: int, *, stride: int = 1, widening: int = 1, bias: bool = True):
        super().__init__()
        self.weight = mx.zeros((widening * channels, kernel, kernel, 1))
        if bias:
            self.bias = mx.zeros((widening * channels,))
        self._convolution = Prepared(partial(kernels.depthwise, stride=stride))

    def unbiased(self, x: mx.array) -> mx.array:
        return self._convolution(self.weight)(x)

    def __call__(self, x: mx.array) -> mx.array:
        return self.unbiased(x) + self.bias


def pointwise(matrix: nn.Linear, before: DepthwiseConv, x: mx.array) -> mx.array:
    """A depthwise convolution, GELU, a 1×1 convolution, GELU."""
    rows = before.unbiased(x)
    return kernels.by_rows(lambda rows: gelu(matrix(gelu(rows, before.bias))), rows.shape[-1], rows)


class Stem(nn.Module):
    """(B, H, W, 3) -> (B, H/4, W/4, C)"""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(3, dim, 3, 2, 1)
        self.depthwise = DepthwiseConv(dim, 3, stride=2)
        self.pointwise = nn.Linear(dim, dim)

    def __call__(self, x: mx.array) -> mx.array:
        x = mx.conv2d(x, self.conv.weight, self.conv.stride, self.conv.padding)
        x = kernels.by_rows(lambda rows: gelu(rows, self.conv.bias), x.shape[-1], x)
        return pointwise(self.pointwise, self.depthwise, x)


class PatchEmbed(nn.Module):
    """(B, H, W, C) -> (B, H/2, W/2, D): a widening 7×7, then a 1×1."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.depthwise = DepthwiseConv(dim_in, 7, stride=2, widening=dim_out // dim_in)
        self.pointwise = nn.Linear(dim_out, dim_out)

    def __call__(self, x: mx.array) -> mx.array:
        return pointwise(self.pointwise, self.depthwise, x)


class ConvFFN(nn.Module):
    def __init__(self, dim: int, ratio: int):
        super().__init__()
        self.depthwise = DepthwiseConv(dim, 7, bias=False)  # the norm's shift is in fc1.bias
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        """The block's output for x and a bias that is not added to it yet."""
        x, sums = kernels.shifted(x, bias, self.fc2.bias)
        rows = self.depthwise.unbiased(x)
        wide = self.fc1.weight.shape[0]
        return kernels.by_rows(
            lambda sums, rows: add_linear(sums, self.fc2, gelu(self.fc1(rows))), wide, sums, rows
        )


class RepMixerBlock(nn.Module):
    def __init__(self, dim: int, ratio: int):
        super().__init__()
        self.mixer = DepthwiseConv(dim, 3)  # skip, norm and scale are inside its weights
        self.ffn = ConvFFN(dim, ratio)

    def __call__(self, x: mx.array) -> mx.array:
        return self.ffn(self.mixer.unbiased(x), self.mixer.bias)


class TowerAttention(nn.Module):
    def __init__(self, dim: int, head_dim: int):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)  # 1/√d and the norm's affine are inside
        self.proj = nn.Linear(dim, dim)
        self._head_dim = head_dim

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """x + attention, and the bias that is not added yet"""
        batch, height, width, dim = x.shape
        rows = x.reshape(batch, height * width, dim)
        qkv = kernels.by_rows(
            lambda rows: self.qkv(mx.fast.layer_norm(rows, None, None, _LAYER_NORM_EPS)), 3 * dim, rows
        ).reshape(batch, height * width, 3, -1, self._head_dim)
        q, k, v = (part.squeeze(2).swapaxes(1, 2) for part in mx.split(qkv, 3, axis=2))
        seen = kernels.attend(q, k, v).swapaxes(1, 2).flatten(2)  # (B, N, dim)
        sums = kernels.by_rows(lambda rows, seen: add_linear(rows, self.proj, seen), dim, rows, seen)
        return sums.reshape(x.shape), self.proj.bias


class AttentionBlock(nn.Module):
    def __init__(self, dim: int, ratio: int, head_dim: int):
        super().__init__()
        self.attention = TowerAttention(dim, head_dim)
        self.ffn = ConvFFN(dim, ratio)

    def __call__(self, x: mx.array) -> mx.array:
        return self.ffn(*self.attention(x))


class Stage(nn.Module):
    def __init__(self, config: VisionConfig, index: int):
        super().__init__()
        dim, ratio = config.dims[index], config.mlp_ratio
        if index:
            self.downsample = PatchEmbed(config.dims[index - 1], dim)
        attends = index >= config.attention_from
        if attends:
            self.position = DepthwiseConv(dim, 7)  # RepCPE: its skip is inside
        self.blocks = [
            AttentionBlock(dim, ratio, config.head_dim) if attends else RepMixerBlock(dim, ratio)
            for _ in range(config.layers[index])
        ]

    def trace(self, x: mx.array) -> Iterator[tuple[str, mx.array]]:
        for name in ("downsample", "position"):
            if name in self:
                x = self[name](x)
                yield name, x
        for block in self.blocks:
            x = block(x)
        yield "blocks", x


class Expand(nn.Module):
    """(B, h, w, C) -> (B, h, w, 2C): a widening 3×3, then squeeze-and-excite."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        dim, narrow = config.expanded_dim, config.expanded_dim // config.squeeze
        self.depthwise = DepthwiseConv(config.dims[-1], 3, widening=2)
        self.squeeze = nn.Linear(dim, narrow)
        self.excite = nn.Linear(narrow, dim)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.depthwise(x)
        x = mx.unflatten(x, -1, (2, -1)).swapaxes(-1, -2).flatten(-2)  # the order of the reference
        gate = nn.relu(self.squeeze(x.mean((1, 2), keepdims=True)))
        return gelu(x * mx.sigmoid(self.excite(gate)))


def pooled(x: mx.array, factor: int, weight: mx.array | None = None) -> mx.array:
    """(B, f·h, f·w, C) -> (B, h, w, C): each window's mean, or its sum by a weight (C, f, f, 1)"""
    batch, height, width, channels = x.shape
    windows = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
    if weight is None:
        return windows.mean((2, 4))
    return (windows * weight.squeeze(-1).transpose(1, 2, 0)[:, None]).sum((2, 4))


class Pooling(nn.Module):
    def __init__(self, dim: int, factor: int, learned: bool):
        super().__init__()
        if learned:
            self.weight = mx.zeros((dim, factor, factor, 1))  # no bias: the projector's does the same
        self._factor = factor

    def __call__(self, x: mx.array) -> mx.array:
        return pooled(x, self._factor, self.get("weight"))


class MultiScale(nn.Module):
    """Outputs of earlier stages on the last one's grid, then its features: (B, h, w, sum of widths)"""

    def __init__(self, config: VisionConfig, learned: bool):
        super().__init__()
        self.pools = [Pooling(pool.dim, pool.factor, learned) for pool in config.pools]
        self._stages = [pool.stage for pool in config.pools]

    def __call__(self, stages: Sequence[mx.array], features: mx.array) -> mx.array:
        earlier = [pool(stages[index]) for pool, index in zip(self.pools, self._stages, strict=True)]
        return mx.concatenate([*earlier, features], axis=-1)


class FastViTHD(nn.Module):
    """(B, H, W, 3) pixels in [0, 1], sides multiples of 64 -> (B, H/64, W/64, features)"""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.stem = Stem(config.dims[0])
        self.stages = [Stage(config, index) for index in range(len(config.dims))]
        self.expand = Expand(config)
        if config.multi_scale:
            self.multi_scale = MultiScale(config, config.multi_scale.pooling == "depthwise")

    def __call__(self, pixels: mx.array) -> mx.array:
        *_, (_, features) = self.trace(pixels)
        return features

    def trace(self, pixels: mx.array) -> Iterator[tuple[str, mx.array]]:
        """Every stage's output by name, the features last; for parity tests."""
        x = self.stem(pixels.astype(self.stem.conv.weight.dtype))
        yield "stem", x
        outputs = []
        for index, stage in enumerate(self.stages):
            for name, after in stage.trace(x):
                x = after
                yield f"stages.{index}.{name}", x
            outputs.append(x)
        x = self.expand(x)
        yield "expand", x
        if "multi_scale" in self:
            yield "multi_scale", self.multi_scale(outputs, x)
