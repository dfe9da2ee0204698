"""Depthwise convolution, NHWC, odd kernel, same padding, stride 1 or 2.

Weights are (m·C, k, k, 1): m outputs per channel, all channels' first outputs before the second ones.
A candidate takes weight and stride, prepares what it can once, and returns the convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from . import blocks, lanes
from .candidates import CPU, GPUS, Candidate, Step, device, noise, with_gradient_of
from .choice import deferred

Convolution = Callable[[mx.array], mx.array]
Tile = tuple[int, int]  # rows and columns of outputs
_TILE = (4, 4)  # output pixels computed by one row of the matrix product
_LINE = 16  # channels that lie together in a cache
_CACHED = 2**19  # outputs that are computed at a time
_FEW = 384  # channels, up to which maps are large, and copying windows costs more than larger matrices


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

    def sized(rows: int, columns: int) -> Tile:
        return min(_TILE[0], rows), min(_TILE[1], columns)

    def prepare(channels: int, tile: Tile) -> tuple[mx.array, ...]:
        return (_matrices(weight, channels, tile, stride),)

    def multiply(x: mx.array, tile: Tile, matrix: mx.array) -> mx.array:
        return _windows(x, size, stride, tile) @ matrix

    return _by_tiles(weight, stride, sized, prepare, multiply)


def bands(weight: mx.array, stride: int, wide: int) -> Convolution:
    """The same with an input copied into a band of rows once, instead of into all windows above each other:
    a tile has so few rows that all it sees is in its band and the next, and is the sum of two products."""
    size = weight.shape[1]
    tall = max(-(-(size - stride) // stride), 1)

    def sized(_: int, columns: int) -> Tile:
        return tall, min(wide, columns)

    def area(tile: Tile) -> tuple[int, int]:
        """Of a tile's part in one band"""
        return tile[0] * stride, (tile[1] - 1) * stride + size

    def prepare(channels: int, tile: Tile) -> tuple[mx.array, ...]:
        both = _matrices(weight, channels, tile, stride)
        rows, columns = area(tile)
        both = mx.pad(both, [(0, 0), (0, 2 * rows * columns - both.shape[1]), (0, 0)])
        return tuple(mx.split(both, 2, axis=1))

    def multiply(x: mx.array, tile: Tile, upper: mx.array, lower: mx.array) -> mx.array:
        batch, height, width, channels = x.shape
        down, across = _tiles(x, stride, tile)
        rows, columns = area(tile)
        margin = size // 2
        after = (
            (down + 1) * rows - height - margin,
            max((across - 1) * tile[1] * stride + columns - width - margin, 0),
        )
        padded = mx.pad(x.transpose(3, 0, 1, 2), [(0, 0), (0, 0), (margin, after[0]), (margin, after[1])])
        line, plane = padded.shape[3], padded.shape[2] * padded.shape[3]
        banded = mx.as_strided(
            padded,
            (channels, batch, down + 1, across, rows, columns),
            (batch * plane, plane, rows * line, tile[1] * stride, line, 1),
        ).reshape(channels, batch, down + 1, across, rows * columns)
        first, second = (
            part.reshape(channels, batch * down * across, rows * columns)
            for part in (banded[:, :, :-1], banded[:, :, 1:])
        )
        return mx.addmm(first @ upper, second, lower)

    return _by_tiles(weight, stride, sized, prepare, multiply)


def _by_tiles(
    weight: mx.array,
    stride: int,
    sized: Callable[[int, int], Tile],
    prepare: Callable[[int, Tile], tuple[mx.array, ...]],
    multiply: Callable[..., mx.array],
) -> Convolution:
    """`sized`: rows and columns of outputs -> of a tile; `prepare`: matrices by channel; `multiply` computes
    all tiles of some channels with theirs, (C, tiles, m · tile)."""
    prepared: dict[tuple[int, Tile], tuple[mx.array, ...]] = {}

    @mx.custom_function
    def convolve(x: mx.array, weight: mx.array) -> mx.array:
        batch, channels = x.shape[0], x.shape[-1]
        rows, columns = _outputs(x, stride)
        tile = sized(rows, columns)
        down, across = _tiles(x, stride, tile)
        matrices = prepared.get((channels, tile))
        if matrices is None:
            matrices = prepare(channels, tile)
            if evaluated(matrices):
                prepared[channels, tile] = matrices

        def part(few: slice) -> mx.array:
            y = multiply(x[..., few], tile, *(matrix[few] for matrix in matrices))
            y = y.reshape(y.shape[0], batch, down, across, -1, *tile).transpose(1, 2, 5, 3, 6, 4, 0)
            y = y.reshape(batch, down * tile[0], across * tile[1], -1, y.shape[-1])
            return y if y.shape[1:3] == (rows, columns) else y[:, :rows, :columns]

        each = _together(channels, batch * rows * columns)
        return lanes.map_slices(part, channels, each, axis=-1).flatten(3)

    @convolve.vjp
    def _(primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
        return _gradients(*primals, cotangent, stride)

    def prepared_convolution(x: mx.array) -> mx.array:
        y: mx.array = convolve(x, weight)  # type: ignore[assignment]
        return y

    return prepared_convolution


def evaluated(arrays: Sequence[mx.array]) -> bool:
    """Evaluate what is kept: a later call may come from another thread, or after a failure in this one.
    Inside of `mx.compile` and exports arrays have no values, and nothing may be kept."""
    try:
        mx.eval(arrays)
    except ValueError:
        return False
    return True


def _together(channels: int, pixels: int) -> int:
    """How many channels at a time: a fair share of a lane's, and no more than stay in its cache."""
    shares = lanes.part_count(channels * pixels)
    fair = -(-channels // (_LINE * shares))
    return min(fair, max(1, _CACHED // (_LINE * pixels))) * _LINE


def _outputs(x: mx.array, stride: int) -> tuple[int, int]:
    """Rows and columns"""
    return (x.shape[1] - 1) // stride + 1, (x.shape[2] - 1) // stride + 1


def _tiles(x: mx.array, stride: int, tile: tuple[int, int]) -> tuple[int, int]:
    """Down and across"""
    rows, columns = _outputs(x, stride)
    return -(-rows // tile[0]), -(-columns // tile[1])


def _windows(x: mx.array, size: int, stride: int, tile: tuple[int, int]) -> mx.array:
    """(B, H, W, C) -> (C, tiles, window): what a tile of outputs looks at, zeros beyond the edge"""
    batch, height, width, channels = x.shape
    window = tuple((side - 1) * stride + size for side in tile)
    down, across = _tiles(x, stride, tile)
    margin = size // 2
    steps = (tile[0] * stride, tile[1] * stride)
    after = [
        max((count - 1) * step + side - length - margin, 0)
        for count, step, side, length in zip((down, across), steps, window, (height, width), strict=True)
    ]
    padded = mx.pad(x.transpose(3, 0, 1, 2), [(0, 0), (0, 0), (margin, after[0]), (margin, after[1])])
    line, plane = padded.shape[3], padded.shape[2] * padded.shape[3]  # a channel's pixels lie together
    return mx.as_strided(
        padded,
        (channels, batch, down, across, *window),
        (batch * plane, plane, steps[0] * line, steps[1], line, 1),
    ).reshape(channels, batch * down * across, window[0] * window[1])


def _gradients(x: mx.array, weight: mx.array, dy: mx.array, stride: int) -> tuple[mx.array, mx.array]:
    """Autodiff would scatter every window's gradient value by value; both are products again."""
    batch, height, width, channels = x.shape
    size, widening = weight.shape[1], weight.shape[0] // channels
    rows, columns = dy.shape[1:3]

    # To the input: the flipped kernel over the output's gradient, zeros between its pixels if strided.
    spread = dy
    if stride > 1:
        between = (0, stride - 1)
        spread = mx.pad(dy[:, :, None, :, None], [(0, 0), (0, 0), between, (0, 0), between, (0, 0)])
        spread = spread.reshape(batch, rows * stride, columns * stride, -1)[:, :height, :width]
    parts = [
        toeplitz(kernel[:, ::-1, ::-1], 1)(part)
        for kernel, part in zip(mx.split(weight, widening), mx.split(spread, widening, axis=-1), strict=True)
    ]

    # To the kernel: per channel, input windows times the tiles of outputs they made.
    tile = (min(_TILE[0], rows), min(_TILE[1], columns))
    down, across = -(-rows // tile[0]), -(-columns // tile[1])
    fill = (down * tile[0] - rows, across * tile[1] - columns)
    tiles = mx.pad(dy, [(0, 0), (0, fill[0]), (0, fill[1]), (0, 0)])
    tiles = tiles.reshape(batch, down, tile[0], across, tile[1], widening, channels)
    tiles = tiles.transpose(6, 0, 1, 3, 5, 2, 4).reshape(channels, batch * down * across, -1)
    linked = _windows(x, size, stride, tile).swapaxes(1, 2) @ tiles
    window = tuple((side - 1) * stride + size for side in tile)
    linked = linked.reshape(channels, *window, widening, *tile)
    dw = mx.zeros((channels, size, size, widening))
    for row in range(tile[0]):
        for column in range(tile[1]):
            above, left = row * stride, column * stride
            dw = dw + linked[:, above : above + size, left : left + size, :, row, column]
    return sum(parts[1:], parts[0]), dw.transpose(3, 0, 1, 2).reshape(weight.shape)


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


def registers(weight: mx.array, stride: int, block: blocks.Block = (4, 4)) -> Convolution:
    """For GPUs: see `blocks`."""
    kernel, where, arranged = weight.shape[1], device(), blocks.taps(weight)
    evaluated([arranged])

    def quick(x: mx.array, weight: mx.array) -> mx.array:
        return blocks.convolve(x, arranged, kernel, stride, block, where)

    def plain(x: mx.array, weight: mx.array) -> mx.array:
        return stock(weight, stride)(x)

    convolve = with_gradient_of(plain, quick)
    return lambda x: convolve(x, weight)


TABLE = (
    Candidate("stock", stock),
    Candidate("toeplitz 4x4", toeplitz, (CPU,), (mx.float32,)),
    Candidate("bands of 4", partial(bands, wide=4), (CPU,), (mx.float32,)),
    Candidate("bands of 8", partial(bands, wide=8), (CPU,), (mx.float32,)),
    Candidate("registers 2x4", partial(registers, block=(2, 4)), GPUS, source=blocks.BODY),
    Candidate("registers 4x4", partial(registers, block=(4, 4)), GPUS, source=blocks.BODY),
)


@dataclass(frozen=True, slots=True)
class DepthwiseProblem:
    """A convolution of that layer, of a picture of so many rows and columns."""

    channels: int
    kernel: int
    stride: int
    widening: int
    rows: int
    columns: int

    @property
    def table(self) -> tuple[Candidate, ...]:
        return TABLE

    @property
    def key(self) -> str:
        widened = f", {self.widening} outputs each" if self.widening > 1 else ""
        return f"depthwise {self.kernel}x{self.kernel}/{self.stride}, {self.channels} channels{widened}"

    @property
    def shape(self) -> str:
        return f"{self.rows}x{self.columns}"

    @property
    def on_cpu(self) -> str:
        # By the layer's own sizes: the picture that happens to come first must not decide for others.
        return "bands of 4" if self.channels <= _FEW else "toeplitz 4x4"

    def small(self) -> DepthwiseProblem:
        # 5 × 9 outputs: whole blocks and parts of them
        return replace(self, rows=4 * self.stride + 1, columns=8 * self.stride + 1)

    def inputs(self, dtype: mx.Dtype) -> tuple[mx.array, ...]:
        weight = noise(1, (self.widening * self.channels, self.kernel, self.kernel, 1), dtype)
        return noise(0, (1, self.rows, self.columns, self.channels), dtype), weight

    def expected(self, *inputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, weight = inputs
        margin = self.kernel // 2
        padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (self.kernel, self.kernel), (1, 2))
        windows = windows[:, :: self.stride, :: self.stride]  # (B, rows, columns, C, k, k)
        parts = np.split(weight[..., 0], self.widening)
        return np.concatenate([np.einsum("brcxij,xij->brcx", windows, part) for part in parts], axis=-1)

    def step(self, candidate: Candidate, inputs: tuple[mx.array, ...]) -> Step:
        x, weight = inputs
        convolve = candidate.make(weight, self.stride)
        return lambda: convolve(x)


def depthwise(weight: mx.array, stride: int) -> Convolution:
    """The best one for these weights on this device; which one it is is decided once."""

    def problem(x: mx.array) -> DepthwiseProblem:
        rows, columns, channels = x.shape[1:]
        return DepthwiseProblem(channels, weight.shape[1], stride, len(weight) // channels, rows, columns)

    return deferred(problem, weight.dtype, weight, stride)
