"""What models say, whole or divided. Run in several processes by the tests: FOLDER NAME=DIRECTORY…"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import fastvlm_mlx  # isort: skip  - prefers OpenBLAS before mlx loads
import mlx.core as mx
import numpy as np
import numpy.typing as npt

from fastvlm_mlx import Sampling
from fastvlm_mlx.weights import checkpoint

PACKED = "packed"  # names that begin so are computed from packed matrices, on the CPU too
Found = Mapping[str, npt.NDArray[np.float32]]


def load(name: str, directory: str | Path, group: mx.distributed.Group | None = None) -> fastvlm_mlx.VLM:
    kept = checkpoint.dequantize
    if name.startswith(PACKED):
        checkpoint.dequantize = lambda config, weights: (config, weights)
    try:
        return fastvlm_mlx.load(directory, "float32", group=group)
    finally:
        checkpoint.dequantize = kept


def found(name: str, vlm: fastvlm_mlx.VLM) -> dict[str, npt.NDArray[np.float32]]:
    pixels = mx.random.uniform(shape=(128, 192, 3), key=mx.random.key(1))
    prompt = vlm.prompt("What is in <image>?", [pixels])
    said = {
        "greedy": vlm.generate(prompt, max_tokens=8).ids,
        "repetitions": vlm.generate(prompt, max_tokens=8, repetitions=True).ids,
        "sampled": vlm.generate(prompt, max_tokens=8, sampling=Sampling(1.5)).ids,
        "seeded": vlm.generate(prompt, max_tokens=8, sampling=Sampling(1.5, top_p=0.9, seed=7)).ids,
    }
    arrays = {"logits": np.array(vlm.logits(prompt)), **{how: np.array(ids) for how, ids in said.items()}}
    return {f"{name}.{what}": array for what, array in arrays.items()}


def resident_peak() -> int:
    """Bytes that this process has held at once; 0 where it cannot be known."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def main(folder: str, *models: str) -> None:
    group = mx.distributed.init(strict=True)
    told: dict[str, npt.NDArray[np.float32]] = {}
    for model in models:
        name, _, directory = model.partition("=")
        before = resident_peak()
        mx.reset_peak_memory()
        vlm = load(name, directory, group)
        memory = np.array([mx.get_peak_memory(), mx.get_active_memory(), resident_peak() - before])
        told |= found(name, vlm) | {f"{name}.memory": memory}
        del vlm
    np.savez(f"{folder}/{group.rank()}.npz", **told)


if __name__ == "__main__":
    main(*sys.argv[1:])
