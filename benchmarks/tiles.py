"""One large picture against an overview and tiles of it: python benchmarks/tiles.py [--size PX] [--small]

A picture of 1920×1080 is read as one square of PX, of twice and of three times as many, in its own shape as
large as those, and as 2×2 and 3×3 tiles of PX with an overview; in turn, after a round that is not measured.
A model of the 0.5B's size with random weights; --small takes the tests' one. Prints Markdown.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastvlm_mlx import VLM, load
from fastvlm_mlx.bench import fitting, untrained
from fastvlm_mlx.bench.machine import this_machine
from fastvlm_mlx.bench.measure import Case, Run, interleaved
from fastvlm_mlx.bench.report import median
from fastvlm_mlx.bench.table import Table
from fastvlm_mlx.bench.variants import VARIANTS
from fastvlm_mlx.inference.allocator import memory_bytes

import mlx.core as mx  # isort: skip  - after fastvlm_mlx, which prefers OpenBLAS

SMALL = Path(__file__).parent.parent / "tests" / "golden" / "checkpoints" / "apple-fused" / "untied"
HEADS = ("read as", "picture tokens", "vision s", "prefill s", "TTFT s", "peak GiB")


def cases(size: int) -> list[Case]:
    found = [Case(size, 1)]
    for times in (2, 3):
        found += [
            Case(times * size, 1),
            Case(times * size, 1, image_mode="native"),
            Case(size, 1, image_mode="tiles", grid=(times, times)),
        ]
    return found


def true_size(variant: str, size: int) -> VLM:
    config = VARIANTS[variant]
    dtype = mx.float32 if mx.default_device() == mx.Device(mx.cpu) else mx.float16
    fitting.refuse_beyond(config, variant, 3 * size, 1, dtype.size, memory_bytes())
    return untrained.build(config, dtype)


def row(case: Case, runs: list[Run]) -> tuple[str, ...]:
    vision = median(runs, "vision_s") + median(runs, "projector_s")
    seconds = (vision, median(runs, "prefill_s"), median(runs, "ttft_s"))
    peak = max(run.peak_bytes for run in runs) / 2**30
    told = (f"{value:.3g}" for value in (*seconds, peak))
    return (case.options().label, str(runs[0].image_tokens), *told)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512, help="of a tile, in pixels")
    parser.add_argument("--variant", default="0.5b", choices=VARIANTS)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    vlm = load(SMALL, "float32") if asked.small else true_size(asked.variant, asked.size)
    listed = cases(asked.size)
    measured: dict[Case, list[Run]] = {case: [] for case in listed}
    for index, run in interleaved([(vlm, case) for case in listed], asked.runs, 2):
        measured[listed[index]].extend([run] if run else [])
        sys.stderr.write(f"{listed[index].options().label}: {'measured' if run else 'warm'}\n")
    name = "a small model" if asked.small else asked.variant
    dtype = str(vlm.dtype).rpartition(".")[2]
    print(f"{this_machine().words}; {name}, random weights, {dtype}\n")
    rows = [row(case, runs) for case, runs in measured.items()]
    print(Table("", HEADS, rows, (f"Medians of {asked.runs} runs.",)).as_markdown())


if __name__ == "__main__":
    main()
