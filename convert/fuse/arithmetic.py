"""The fusing arithmetic: training branches to one convolution. Pure functions on NHWC kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

BATCH_NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class BatchNorm:
    weight: mx.array
    bias: mx.array
    running_mean: mx.array
    running_var: mx.array

    @property
    def gain(self) -> mx.array:
        return self.weight / mx.sqrt(self.running_var + BATCH_NORM_EPS)

    @property
    def shift(self) -> mx.array:
        return self.bias - self.running_mean * self.gain


@dataclass(frozen=True, slots=True)
class Kernel:
    """A convolution: weight (out, kh, kw, in/groups) and bias (out,)."""

    weight: mx.array
    bias: mx.array

    def __add__(self, other: Kernel) -> Kernel:
        return Kernel(self.weight + other.weight, self.bias + other.bias)

    def scaled(self, gain: mx.array) -> Kernel:
        """Every output channel times its gain."""
        return Kernel(self.weight * gain[:, None, None, None], self.bias * gain)


def fold(weight: mx.array, norm: BatchNorm) -> Kernel:
    """A convolution without bias, followed by BatchNorm."""
    return Kernel(weight * norm.gain[:, None, None, None], norm.shift)


def identity(channels: int, size: int, per_group: int) -> Kernel:
    """The convolution that changes nothing."""
    middle = mx.arange(size) == size // 2
    own = mx.arange(channels)[:, None] % per_group == mx.arange(per_group)
    weight = own[:, None, None, :] & middle[None, :, None, None] & middle[None, None, :, None]
    return Kernel(weight.astype(mx.float32), mx.zeros((channels,)))


def padded(kernel: Kernel, size: int) -> Kernel:
    """The same convolution with a larger kernel, zeros around."""
    margin = (size - kernel.weight.shape[1]) // 2
    return Kernel(mx.pad(kernel.weight, [(0, 0), (margin, margin), (margin, margin), (0, 0)]), kernel.bias)


def mobile_one(branches: Sequence[Kernel], scale: Kernel | None, skip: BatchNorm | None) -> Kernel:
    """The sum of k×k branches, a 1×1 branch and a normalized skip."""
    fused = branches[0]
    for branch in branches[1:]:
        fused += branch
    _, size, _, per_group = fused.weight.shape
    if scale is not None:
        fused += padded(scale, size)
    if skip is not None:
        fused += normalized_skip(skip, size, per_group)
    return fused


def normalized_skip(norm: BatchNorm, size: int, per_group: int) -> Kernel:
    return fold(identity(norm.weight.size, size, per_group).weight, norm)


def rep_mixer(mixer: Kernel, norm: BatchNorm, layer_scale: mx.array) -> Kernel:
    """x + layer_scale · (mixer(x) − norm(x)) as one depthwise convolution"""
    channels, size, _, per_group = mixer.weight.shape
    skip = normalized_skip(norm, size, per_group).scaled(mx.full((channels,), -1.0))
    return identity(channels, size, per_group) + (mixer + skip).scaled(layer_scale)


def large_kernel(large: Kernel, small: Kernel) -> Kernel:
    return large + padded(small, large.weight.shape[1])


def positional(conv: Kernel) -> Kernel:
    """x + conv(x) as one depthwise convolution"""
    channels, size, _, per_group = conv.weight.shape
    return conv + identity(channels, size, per_group)
