"""A RepMixer's 3×3 and the 7×7 of the ConvFFN after it: (B, H, W, C) -> what fc2 adds to, what fc1 reads.

Apart they are two convolutions and a kernel that adds biases in between. On a GPU one kernel can do it all: a
group of threads computes a tile of the 3×3 with a margin into memory that it shares, and the 7×7 from there.
The margin is computed by several groups, and in return the map between is never written nor read. `FIRST` and
`SECOND` are what a thread does before and after all have written; a C++ compiler takes them too, so the tests
run them on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from . import blocks
from .activation import shifted
from .candidates import CUDA, GPUS, METAL, Candidate, Step, device, enlargement, noise, with_gradient_of
from .choice import decided
from .depthwise import Depthwise, depthwise, stock

Pair = tuple[mx.array, mx.array]
Mixer = Callable[[mx.array, mx.array, mx.array], Pair]  # x, the 3×3's bias, fc2's bias
Tile = tuple[int, int]  # rows and columns that a group of threads computes

_LANES, _LINES = 32, 8  # threads of a group: channels, and lines of a tile that they share

# x: (B, H, W, C), small: (9, C), bias: (C,), large: (49, C), shift: (C,). The tile with its margin of three
# is `mid`. Beyond the map it is 0, as the 7×7 pads what it reads.
WHERE = """
const int height = x_shape[1], width = x_shape[2], channels = x_shape[3];
const int down = (height + TALL - 1) / TALL;
const int lane = int(inside.x), line = int(inside.y), channel = int(group.x) * LANES + lane;
const int picture = int(group.z) / down, top = int(group.z) % down * TALL, left = int(group.y) * WIDE;
const bool real = channel < channels && picture < x_shape[0];
"""
FIRST = """
float near[9];
#pragma unroll
for (int tap = 0; tap < 9; ++tap) near[tap] = real ? float(small[tap * channels + channel]) : 0.0f;
const float more = real ? float(bias[channel]) : 0.0f;
for (int below = line; below < TALL + 6; below += LINES) {
  const int y = top + below - 3;
  float seen[3][3] = {{0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f}};
  #pragma unroll
  for (int beside = 0; beside < WIDE + 8; ++beside) {
    const int at = left + beside - 4;
    #pragma unroll
    for (int row = 0; row < 3; ++row) {
      const int from = y + row - 1;
      const bool there = real && from >= 0 && from < height && at >= 0 && at < width;
      const size_t pixel = (size_t(picture) * height + from) * width + at;
      seen[row][0] = seen[row][1];
      seen[row][1] = seen[row][2];
      seen[row][2] = there ? float(x[pixel * channels + channel]) : 0.0f;
    }
    if (beside >= 2) {
      float sum = more;
      #pragma unroll
      for (int tap = 0; tap < 9; ++tap) sum += near[tap] * seen[tap / 3][tap % 3];
      const bool there = y >= 0 && y < height && at >= 1 && at <= width;
      mid[(below * (WIDE + 6) + beside - 2) * LANES + lane] = T(there ? sum : 0.0f);
    }
  }
}
"""
SECOND = """
float found[TALL / LINES][WIDE];
const int own = line * (TALL / LINES);
#pragma unroll
for (int row = 0; row < TALL / LINES; ++row) {
  #pragma unroll
  for (int column = 0; column < WIDE; ++column) found[row][column] = 0.0f;
}
#pragma unroll
for (int below = 0; below < TALL / LINES + 6; ++below) {
  float seen[WIDE + 6];
  #pragma unroll
  for (int beside = 0; beside < WIDE + 6; ++beside)
    seen[beside] = float(mid[((own + below) * (WIDE + 6) + beside) * LANES + lane]);
  #pragma unroll
  for (int row = 0; row < TALL / LINES; ++row) {
    const int above = below - row;
    if (above >= 0 && above < 7) {
      #pragma unroll
      for (int along = 0; along < 7; ++along) {
        const float tap = real ? float(large[(above * 7 + along) * channels + channel]) : 0.0f;
        #pragma unroll
        for (int column = 0; column < WIDE; ++column) found[row][column] += tap * seen[column + along];
      }
    }
  }
}
const float later = real ? float(shift[channel]) : 0.0f;
#pragma unroll
for (int row = 0; row < TALL / LINES; ++row) {
  #pragma unroll
  for (int column = 0; column < WIDE; ++column) {
    const int y = top + own + row, at = left + column;
    if (real && y < height && at < width) {
      const size_t place = ((size_t(picture) * height + y) * width + at) * channels + channel;
      const float mixed = float(mid[((own + row + 3) * (WIDE + 6) + column + 3) * LANES + lane]);
      sums[place] = T(mixed + later);
      rows[place] = T(found[row][column]);
    }
  }
}
"""
_MID = "T mid[(TALL + 6) * (WIDE + 6) * LANES];\n"
_PLACES = {  # who a thread is, what it shares with its group, and how it waits for them
    METAL: (
        "const uint3 group = threadgroup_position_in_grid, inside = thread_position_in_threadgroup;\n"
        f"threadgroup {_MID}",
        "threadgroup_barrier(mem_flags::mem_threadgroup);\n",
    ),
    CUDA: (
        "const uint3 group = make_uint3(blockIdx.x, blockIdx.y, blockIdx.z);\n"
        "const uint3 inside = make_uint3(threadIdx.x, threadIdx.y, threadIdx.z);\n"
        f"__shared__ {_MID}",
        "__syncthreads();\n",
    ),
}


def grid(shape: tuple[int, ...], tile: Tile) -> tuple[int, int, int]:
    """How many threads there are of each kind for (B, H, W, C): whole groups."""
    batch, height, width, channels = shape
    groups = -(-channels // _LANES), -(-width // tile[1]), batch * -(-height // tile[0])
    return groups[0] * _LANES, groups[1] * _LINES, groups[2]


@cache
def _kernel(where: str) -> Any:
    begin, wait = _PLACES[where]
    make = mx.fast.metal_kernel if where == METAL else mx.fast.cuda_kernel
    return make(
        name="fastvlm_mixing",
        input_names=["x", "small", "bias", "large", "shift"],
        output_names=["sums", "rows"],
        source=begin + WHERE + FIRST + wait + SECOND,
    )


def convolve(x: mx.array, near: Pair, far: Pair, tile: Tile, where: str) -> Pair:
    """`near`: the 3×3's taps (from `blocks.taps`) and bias; `far`: the 7×7's taps, and fc2's bias"""
    names = ("TALL", "WIDE", "LANES", "LINES")
    sums, rows = _kernel(where)(
        inputs=[x, *near, *far],
        template=[("T", x.dtype), *zip(names, (*tile, _LANES, _LINES), strict=True)],
        grid=grid(x.shape, tile),
        threadgroup=(_LANES, _LINES, 1),
        output_shapes=[x.shape] * 2,
        output_dtypes=[x.dtype] * 2,
    )
    return sums, rows


def apart(small: mx.array, large: mx.array) -> Mixer:
    return _in_turn(depthwise(small, 1), depthwise(large, 1))


def _in_turn(near: Callable[[mx.array], mx.array], far: Callable[[mx.array], mx.array]) -> Mixer:
    def mix(x: mx.array, bias: mx.array, shift: mx.array) -> Pair:
        mixed, sums = shifted(near(x), bias, shift)
        return sums, far(mixed)

    return mix


def together(small: mx.array, large: mx.array, tile: Tile) -> Mixer:
    """For GPUs: one kernel."""
    where, taps = device(), (blocks.taps(small), blocks.taps(large))

    def quick(x: mx.array, small: mx.array, bias: mx.array, large: mx.array, shift: mx.array) -> Pair:
        return convolve(x, (taps[0], bias), (taps[1], shift), tile, where)

    def plain(x: mx.array, small: mx.array, bias: mx.array, large: mx.array, shift: mx.array) -> Pair:
        return _in_turn(stock(small, 1), stock(large, 1))(x, bias, shift)

    mix = with_gradient_of(plain, quick)
    return lambda x, bias, shift: mix(x, small, bias, large, shift)


_SOURCE = WHERE + FIRST + SECOND
TABLE = (
    Candidate("apart", apart),
    Candidate("one kernel 8x8", partial(together, tile=(8, 8)), GPUS, source=_SOURCE),
    Candidate(  # of wider floats the tile would not fit
        "one kernel 16x8", partial(together, tile=(16, 8)), GPUS, (mx.float16, mx.bfloat16), _SOURCE
    ),
)


@dataclass(frozen=True, slots=True)
class Mixing:
    """Both, of a map of so many rows and columns."""

    channels: int
    rows: int
    columns: int

    @property
    def table(self) -> tuple[Candidate, ...]:
        return TABLE

    @property
    def key(self) -> str:
        return f"3x3 and 7x7, {self.channels} channels"

    @property
    def shape(self) -> str:
        return f"{self.rows}x{self.columns}"

    @property
    def on_cpu(self) -> str:
        return "apart"

    def small(self) -> Mixing:
        return replace(self, rows=17, columns=9)  # whole tiles and parts of them

    def grown(self) -> Mixing:
        times = enlargement(self.rows * self.columns * self.channels)
        return replace(self, rows=times * self.rows, columns=times * self.columns)

    def inputs(self, dtype: mx.Dtype) -> tuple[mx.array, ...]:
        """x, then kernel and bias of each"""
        shapes = ((1, self.rows, self.columns, self.channels), *self._of(3), *self._of(7))
        return tuple(noise(seed, shape, dtype) for seed, shape in enumerate(shapes))

    def _of(self, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.channels, size, size, 1), (self.channels,)

    def expected(self, *inputs: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], ...]:
        x, small, bias, large, shift = inputs
        near, far = (Depthwise(self.channels, size, 1, 1, self.rows, self.columns) for size in (3, 7))
        mixed = near.expected(x, small) + bias
        return mixed + shift, far.expected(mixed, large)

    def step(self, candidate: Candidate, inputs: tuple[mx.array, ...]) -> Step:
        x, small, bias, large, shift = inputs
        mix = candidate.make(small, large)
        return lambda: mix(x, bias, shift)


def mixing(small: mx.array, large: mx.array) -> Mixer:
    """The best way to both on this device; which one it is is decided once."""
    return decided(lambda x: Mixing(x.shape[3], *x.shape[1:3]), small.dtype, small, large)
