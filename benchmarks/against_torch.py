"""The vision tower against timm's in PyTorch (eager), full size, random weights, in alternation.

`python benchmarks/against_torch.py [--rounds N] [--sizes 256 512]`: both fused, in float32, with as many
threads; medians and ratios, and what a megapixel takes us at each size, as Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version

from fastvlm_mlx.bench.machine import this_machine  # isort: skip  - prefers OpenBLAS before mlx loads
import mlx.core as mx
import timm
import torch
from against_mlx_vlm import alternate, randomized

from fastvlm_mlx.config import VisionConfig
from fastvlm_mlx.kernels import run_parallel
from fastvlm_mlx.models.vision import FastViTHD

PEERS = ("torch", "timm")
ARCHITECTURE = "fastvit_mci3"  # what transformers takes for FastVLM's tower
HEADS = ("encode", "ours, s", "theirs, s", "ours / theirs", "ours, s a megapixel")


def towers(sizes: Sequence[int], rounds: int) -> None:
    ours = randomized(FastViTHD(VisionConfig()))
    theirs = timm.create_model(ARCHITECTURE, inference_mode=True, num_classes=0).eval()
    for size in sizes:
        pixels = torch.rand(1, 3, size, size)

        def features(pixels: torch.Tensor = pixels) -> mx.array:
            with torch.inference_mode():
                theirs.forward_features(pixels)
            return mx.zeros(())

        encode = partial(run_parallel, ours, mx.random.uniform(shape=(1, size, size, 3)))
        our, their = alternate(encode, features, rounds)
        each = our / size**2 * 1e6
        print(f"| {size} px | {our:.3f} | {their:.3f} | {our / their:.2f}× | {each:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=[256, 512])
    asked = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in PEERS)
    print(f"{this_machine().words}, {versions}; {torch.get_num_threads()} threads each\n")
    print(f"| {' | '.join(HEADS)} |\n|---|--:|--:|--:|--:|")
    towers(asked.sizes, asked.rounds)


if __name__ == "__main__":
    main()
