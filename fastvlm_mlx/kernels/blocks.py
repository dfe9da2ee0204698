"""Depthwise convolution for GPUs: each thread keeps a block of one channel's outputs in registers.

MLX's own takes an output a thread, so that every product reads its two factors from memory. Here a line of
inputs is read once for all outputs of the block that it touches. Neighbouring threads have neighbouring
channels and so read neighbouring values; no memory is shared between threads. One body serves Metal and CUDA,
and a C++ compiler: the tests run it on the CPU.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx

from .candidates import CUDA, METAL

Block = tuple[int, int]  # rows and columns of outputs that a thread computes

_GROUP = (32, 4, 1)  # threads: channels, blocks side by side, blocks below each other
_POSITION = {
    METAL: "const uint3 position = thread_position_in_grid;\n",
    CUDA: (
        "const uint3 position = make_uint3(blockIdx.x * blockDim.x + threadIdx.x,\n"
        "    blockIdx.y * blockDim.y + threadIdx.y, blockIdx.z * blockDim.z + threadIdx.z);\n"
    ),
}
# x: (B, H, W, C), taps: (KERNEL · KERNEL, m · C), all channels' first outputs before the second ones.
BODY = """
const int height = x_shape[1], width = x_shape[2], channels = x_shape[3], outputs = taps_shape[1];
const int rows = (height - 1) / STRIDE + 1, columns = (width - 1) / STRIDE + 1;
const int down = (rows + ROWS - 1) / ROWS;
const int output = int(position.x), left = int(position.y) * COLUMNS;
const int picture = int(position.z) / down, top = int(position.z) % down * ROWS;
if (output >= outputs || left >= columns || picture >= x_shape[0]) return;
const int channel = output % channels;

float sums[ROWS][COLUMNS];
#pragma unroll
for (int row = 0; row < ROWS; ++row) {
  #pragma unroll
  for (int column = 0; column < COLUMNS; ++column) sums[row][column] = 0.0f;
}
#pragma unroll
for (int below = 0; below < (ROWS - 1) * STRIDE + KERNEL; ++below) {
  const int y = top * STRIDE + below - KERNEL / 2;
  float line[(COLUMNS - 1) * STRIDE + KERNEL];
  #pragma unroll
  for (int beside = 0; beside < (COLUMNS - 1) * STRIDE + KERNEL; ++beside) {
    const int at = left * STRIDE + beside - KERNEL / 2;
    const bool inside = y >= 0 && y < height && at >= 0 && at < width;
    const size_t pixel = (size_t(picture) * height + y) * width + at;
    line[beside] = inside ? float(x[pixel * channels + channel]) : 0.0f;
  }
  #pragma unroll
  for (int row = 0; row < ROWS; ++row) {
    const int above = below - row * STRIDE;
    if (above >= 0 && above < KERNEL) {
      #pragma unroll
      for (int along = 0; along < KERNEL; ++along) {
        const float tap = float(taps[(above * KERNEL + along) * outputs + output]);
        #pragma unroll
        for (int column = 0; column < COLUMNS; ++column)
          sums[row][column] += tap * line[column * STRIDE + along];
      }
    }
  }
}
#pragma unroll
for (int row = 0; row < ROWS; ++row) {
  #pragma unroll
  for (int column = 0; column < COLUMNS; ++column) {
    if (top + row < rows && left + column < columns) {
      const size_t line = (size_t(picture) * rows + top + row) * columns + left + column;
      out[line * outputs + output] = T(sums[row][column]);
    }
  }
}
"""


def grid(batch: int, rows: int, columns: int, outputs: int, block: Block) -> tuple[int, int, int]:
    """How many threads there are of each kind, for so many rows and columns of outputs."""
    return outputs, -(-columns // block[1]), batch * -(-rows // block[0])


def taps(weight: mx.array) -> mx.array:
    """(m · C, k, k, 1) -> (k · k, m · C), so that neighbouring threads read neighbours"""
    return mx.contiguous(weight.reshape(weight.shape[0], -1).T)


@cache
def _kernel(where: str) -> Any:
    make = mx.fast.metal_kernel if where == METAL else mx.fast.cuda_kernel
    return make(
        name="fastvlm_depthwise",
        input_names=["x", "taps"],
        output_names=["out"],
        source=_POSITION[where] + BODY,
    )


def convolve(x: mx.array, arranged: mx.array, kernel: int, stride: int, block: Block, where: str) -> mx.array:
    """`arranged`: from `taps`"""
    batch, height, width, _ = x.shape
    rows, columns = ((side - 1) // stride + 1 for side in (height, width))
    outputs = arranged.shape[1]
    names = ("KERNEL", "STRIDE", "ROWS", "COLUMNS")
    y: mx.array = _kernel(where)(
        inputs=[x, arranged],
        template=[("T", x.dtype), *zip(names, (kernel, stride, *block), strict=True)],
        grid=grid(batch, rows, columns, outputs, block),
        threadgroup=_GROUP,
        output_shapes=[(batch, rows, columns, outputs)],
        output_dtypes=[x.dtype],
    )[0]
    return y
