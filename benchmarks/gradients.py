"""A training step of the `tiny` recipe's tower on the CPU: our kernels' gradients against MLX's own.

    python benchmarks/gradients.py

Both compute the same loss and gradients; they run in turn, and the median of each and their ratio is told.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from unittest import mock

from fastvlm_mlx import kernels  # isort: skip  - prefers OpenBLAS before mlx loads
import mlx.core as mx

from fastvlm_mlx.blas import keep_freed_memory
from fastvlm_mlx.config import ModelConfig
from fastvlm_mlx.convert.fuse import reference
from fastvlm_mlx.train import form
from tiny import recipe as recipes

PICTURES, ROUNDS = 16, 5


def plain_gelu(x: mx.array) -> mx.array:
    return x * (1 + mx.erf(x * 0.5**0.5)) * 0.5


def main() -> None:
    keep_freed_memory()
    sizes = recipes.read().model
    config = ModelConfig(sizes.vision, sizes.text, sizes.image)
    raw = form.initial(config, mx.random.key(0), layer_scale=0.1)
    moving = {
        n: a for n, a in raw.items() if n.startswith("vision.") and not n.endswith(reference.STATISTICS)
    }
    pixels = mx.random.uniform(shape=(PICTURES, config.image.size, config.image.size, 3))

    def loss(moved: dict[str, mx.array]) -> mx.array:
        return (reference.features_of({**raw, **moved}, config, pixels, {}) ** 2).mean()

    gradient = mx.value_and_grad(loss)

    def ours() -> object:
        return gradient(moving)

    def stock() -> object:
        with mock.patch.object(form, "depthwise", kernels.stock), mock.patch.object(form, "gelu", plain_gelu):
            return gradient(moving)

    contenders: dict[str, Callable[[], object]] = {"ours": ours, "stock": stock}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(ROUNDS + 1):
        for name, step in contenders.items():
            began = time.perf_counter()
            mx.eval(step())
            if round_:  # the first compiles
                times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, median in medians.items():
        print(f"{name:<10} {1000 * median / PICTURES:6.1f} ms a picture, forward and backward")
    print(f"{medians['stock'] / medians['ours']:.2f}× as fast")


if __name__ == "__main__":
    main()
