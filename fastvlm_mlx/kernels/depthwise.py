"""Depthwise convolution, NHWC, odd kernel, same padding, stride 1 or 2.

Weights are (m·C, k, k, 1): m outputs per channel, all channels' first outputs before the second ones.
A candidate takes weight and stride, prepares what it can once, and returns the convolution.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

Convolution = Callable[[mx.array], mx.array]
_TILE = (4, 4)  # output pixels computed by one row of the matrix product


def stock(weight: mx.array, stride: int) -> Convolution:
    """MLX's own. Several outputs per channel are as many plain convolutions, as one with m outputs a
    group misses Metal's fast kernel."""
    padding = weight.shape[1] // 2

    def convolve(x: mx.array) -> mx.array:
        channels = x.shape[-1]
        parts = [
            mx.conv2d(x, part, stride, padding, groups=channels)
            for part in mx.split(weight, weight.shape[0] // channels)
        ]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)

    return convolve


def toeplitz(weight: mx.array, stride: int) -> Convolution:
    """For the CPU, whose stock convolution loops: per channel one product of input windows with a matrix
    that holds the kernel once for each output pixel of a tile."""
    size = weight.shape[1]
    prepared: dict[tuple[int, tuple[int, int]], mx.array] = {}

    def convolve(x: mx.array) -> mx.array:
        batch, height, width, channels = x.shape
        rows, columns = ((side - 1) // stride + 1 for side in (height, width))
        tile = (min(_TILE[0], rows), min(_TILE[1], columns))
        if (channels, tile) not in prepared:
            prepared[channels, tile] = _matrices(weight, channels, tile, stride)
        matrices = prepared[channels, tile]
        window = tuple((side - 1) * stride + size for side in tile)
        down, across = -(-rows // tile[0]), -(-columns // tile[1])

        margin = size // 2
        steps = (tile[0] * stride, tile[1] * stride)
        after = [
            max((count - 1) * step + side - length - margin, 0)
            for count, step, side, length in zip((down, across), steps, window, (height, width), strict=True)
        ]
        padded = mx.pad(x, [(0, 0), (margin, after[0]), (margin, after[1]), (0, 0)])
        line = padded.shape[2] * channels
        windows = mx.as_strided(
            padded,
            (channels, batch, down, across, *window),
            (1, padded.shape[1] * line, steps[0] * line, steps[1] * channels, line, channels),
        ).reshape(channels, batch * down * across, window[0] * window[1])
        y = (windows @ matrices).reshape(channels, batch, down, across, -1, *tile)
        y = y.transpose(1, 2, 5, 3, 6, 4, 0).reshape(batch, down * tile[0], across * tile[1], -1)
        return y if y.shape[1:3] == (rows, columns) else y[:, :rows, :columns]

    return convolve


def _matrices(weight: mx.array, channels: int, tile: tuple[int, int], stride: int) -> mx.array:
    """(channels, window, m · tile): entry is the kernel value that links an input pixel to an output.

    Moving an output by one pixel moves the kernel by `stride` within the window, so with enough zeros
    around it every entry is a strided view of the kernel.
    """
    size = weight.shape[1]
    slack = [(length - 1) * stride for length in tile]
    framed = mx.pad(weight.squeeze(-1), [(0, 0), *((margin, margin) for margin in slack)])
    line = framed.shape[2]
    plane = framed.shape[1] * line
    linked = mx.as_strided(
        framed,
        (channels, slack[0] + size, slack[1] + size, weight.shape[0] // channels, *tile),
        (plane, line, 1, channels * plane, -stride * line, -stride),
        slack[0] * line + slack[1],
    )
    return linked.reshape(channels, (slack[0] + size) * (slack[1] + size), -1)
