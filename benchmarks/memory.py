"""Peak memory of an answer, with and without --low-memory: `python benchmarks/memory.py`.

Checkpoints of zeros of the 0.5B's size, each answer in a process of its own. Computed `as stored` is as on a
GPU: in the stored types, packed matrices packed, which takes minutes on a CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import synthetic

from fastvlm_mlx.bench.machine import this_machine
from fastvlm_mlx.bench.measure import picture

AS_STORED = """
from fastvlm_mlx.cli import main
import mlx.core as mx
mx.default_device = lambda: mx.Device(mx.gpu)
main()
"""
WAYS = {"as stored": ("-c", AS_STORED), "float32": ("-m", "fastvlm_mlx")}
STORED = {"float16": ("--dtype", "float16"), "4 bit": ("--dtype", "float16", "-q")}
CASES = (("float16", "float32", 256), ("float16", "as stored", 256), ("4 bit", "as stored", 256))


def said(way: str, *arguments: object) -> bytes:
    command = [sys.executable, *WAYS[way], *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def main() -> None:
    print(f"{this_machine().words}\n")
    print("| stored | computed | px | | GiB in MLX | GiB resident |\n|---|---|--:|---|--:|--:|")
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        shown, source = Path(folder) / "picture.jpg", Path(folder) / "source"
        shown.write_bytes(picture())
        synthetic.write(source, "0.5b")
        for stored, way, size in CASES:
            if not (Path(folder) / stored).exists():
                said("float32", "convert", source, "-o", Path(folder) / stored, *STORED[stored])
            for how in ("whole", "--low-memory"):
                asked = (
                    "generate",
                    shown,
                    "-m",
                    Path(folder) / stored,
                    "-n",
                    2,
                    "--image-size",
                    size,
                    "--json",
                )
                told: dict[str, Any] = json.loads(said(way, *asked, *([how] if how.startswith("--") else [])))
                peaks = " | ".join(f"{told[f'{kind}_bytes'] / 2**30:.2f}" for kind in ("peak", "resident"))
                print(f"| {stored} | {way} | {size} | {how} | {peaks} |", flush=True)


if __name__ == "__main__":
    main()
