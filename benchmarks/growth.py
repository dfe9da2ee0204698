"""How the tower's time grows with the picture, attention apart: full size, random weights, no peers.

`python benchmarks/growth.py [--sizes 512 1024 1536] [--rounds 3]`: all sizes in turn, medians, a megapixel's
time as Markdown. Attention is one layer's of each kind, timed by itself, times the layers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

from fastvlm_mlx.bench.machine import this_machine  # isort: skip  - prefers OpenBLAS before mlx loads
import mlx.core as mx
from against_mlx_vlm import randomized

from fastvlm_mlx.config import VisionConfig
from fastvlm_mlx.kernels import run_parallel
from fastvlm_mlx.models.vision import FastViTHD, TowerAttention

HEADS = ("picture", "encode, s", "s a megapixel", "of it attention", "the rest", "the rest against the first")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[512, 1024, 1536])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    config = VisionConfig()
    tower = randomized(FastViTHD(config))
    attending = {
        index: randomized(TowerAttention(config.dims[index], config.head_dim))
        for index in range(config.attention_from, len(config.dims))
    }
    times: dict[int, list[tuple[float, float]]] = {size: [] for size in asked.sizes}
    for number in range(asked.rounds + 1):
        for size, taken in times.items():
            whole = timed(tower, (1, size, size, 3))
            attended = 0.0
            for index, layer in attending.items():
                side = size // 2 ** (index + 2)
                shape = (1, side, side, config.dims[index])
                attended += config.layers[index] * timed(partial(attend, layer), shape)
            if number:  # the first prepares kernels
                taken.append((whole, attended))
    print(f"{this_machine().words}\n")
    print(f"| {' | '.join(HEADS)} |\n|---|{'--:|' * (len(HEADS) - 1)}")
    first = None
    for size, taken in times.items():
        whole, attended = (statistics.median(column) / size**2 * 1e6 for column in zip(*taken, strict=True))
        rest = whole - attended
        first = first or rest
        told = [f"{value:.2f}" for value in (whole, attended, rest, rest / first)]
        print(f"| {size} px | {whole * size**2 / 1e6:.3f} | {' | '.join(told)}× |")


def attend(layer: TowerAttention, x: mx.array) -> mx.array:
    return layer(x)[0]


def timed(layer: Callable[[mx.array], mx.array], shape: tuple[int, ...]) -> float:
    x = mx.random.uniform(shape=shape)
    mx.eval(x)
    start = time.perf_counter()
    mx.eval(run_parallel(layer, x))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
