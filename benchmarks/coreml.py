"""How near the Core ML program of the full-size tower is to the tower in MLX: `python benchmarks/coreml.py`.

The saved package is read back and run in numpy (tests/mil.py), as Core ML needs macOS. Random weights, scaled
so that the signal neither dies nor grows; what is measured is rounding, not quality.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import mil

from fastvlm_mlx.bench.machine import this_machine  # isort: skip  - prefers OpenBLAS before mlx loads
import mlx.core as mx
import numpy as np

from fastvlm_mlx.config import VisionConfig
from fastvlm_mlx.convert.export import coreml_program
from fastvlm_mlx.models.vision import FastViTHD
from fastvlm_mlx.weights.checkpoint import parameters

SMALL = VisionConfig((1, 2, 2, 2, 1), (8, 16, 32, 64, 128))
# (precision, weights) -> largest relative error
LIMITS = {
    ("float32", None): 1e-5,
    ("float16", None): 2e-2,
    ("float16", "int8"): 5e-2,
    ("float16", "palettize6"): 0.4,
}


def tower(config: VisionConfig) -> FastViTHD:
    keys = iter(mx.random.split(mx.random.key(0), 10_000))
    model = FastViTHD(config)
    weights = []
    for name, array in parameters(model).items():  # type: ignore[arg-type]
        drawn = mx.random.normal(array.shape, key=next(keys))
        fan_in = array[0].size if array.ndim > 1 else 1
        quiet = 0.1 if ".fc2." in name or ".proj." in name else 1.0
        drawn = drawn * (quiet * fan_in**-0.5 if array.ndim > 1 else 0.02)
        if name.endswith("mixer.weight"):
            drawn = 0.1 * drawn
            drawn[:, 1, 1, 0] += 1.0  # the skip that is inside
        weights.append((name, drawn))
    model.load_weights(weights)
    return model


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--size", type=int, default=512)
    options.add_argument("--small", action="store_true", help="a tower of the tests' size")
    asked = options.parse_args()
    size, config = asked.size, SMALL if asked.small else VisionConfig()
    model = tower(config)
    weights = {f"vision.{name}": array for name, array in parameters(model).items()}  # type: ignore[arg-type]
    pixels = mx.random.uniform(shape=(1, size, size, 3), key=mx.random.key(1))
    expected = np.array(model(pixels).flatten(1, 2))
    print(f"{this_machine().words}; pictures of {size} px\n")
    print("| precision | weights | largest error | limit | package MB | seconds to build |")
    print("|---|---|---|---|---|---|")
    above = False
    for (precision, packing), limit in LIMITS.items():
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            built = coreml_program.program(weights, config, size)
            path = coreml_program.save(coreml_program.package(built, precision, packing, {}), Path(folder))
            seconds = time.perf_counter() - began
            del built
            count = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            program, _ = mil.read(path)
            found = mil.run(program, images=np.array(pixels).transpose(0, 3, 1, 2))["image_features"]
        error = float(np.abs(found - expected).max() / np.abs(expected).max())
        above |= not error <= limit
        row = f"| {precision} | {packing or 'as they are'} | {error:.1e} | {limit} "
        print(f"{row}| {count / 1e6:.1f} | {seconds:.0f} |", flush=True)
    if above:
        sys.exit("an error is above its limit")


if __name__ == "__main__":
    main()
