"""From the start of a process to its end with one token: ours, and `mlx_vlm.generate` if it is at hand.

`python benchmarks/cold_start.py [--peer PYTHON] [--size 256] [--rounds 5]`: checkpoints of zeros of the
0.5B's size in float32, with a vocabulary of Qwen2's size, each command reading what was written for it, in
turns, with the same BLAS; then the built-in model. Medians, the files in memory. PYTHON is that of an
environment with mlx-vlm and all that it needs, or BENCH_PEER names it; without, ours stands alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import shapes
import synthetic

from fastvlm_mlx import blas
from fastvlm_mlx.bench.machine import this_machine
from fastvlm_mlx.bench.measure import picture

QUESTION = "What is in the picture?"
VOCABULARY = 151_643


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    peer = os.environ.get("BENCH_PEER")
    parser.add_argument("--peer", metavar="PYTHON", default=peer, help="of an environment with mlx-vlm")
    parser.add_argument("--size", type=int, default=256, help="of the picture, in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    print(f"{this_machine().words}; pictures of {asked.size} px\n")
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        commands = written(Path(folder), asked.size, asked.peer)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(asked.rounds + 1):
            for name, command in commands.items():
                taken = timed(command, preloaded() if name.startswith("mlx_vlm") else {})
                if number:  # the first reads files and compiles Python
                    times[name].append(taken)
    print("| | seconds | × the first |\n|---|--:|--:|")
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    first = next(iter(medians.values()))
    for name, taken in medians.items():
        print(f"| {name} | {taken:.2f} | {taken / first:.2f} |")


def written(folder: Path, size: int, peer: str | None) -> dict[str, list[object]]:
    """The commands by name, and all that they read."""
    shown, source, own, theirs = (folder / name for name in ("picture.jpg", "source", "own", "theirs"))
    shown.write_bytes(picture())
    synthetic.write(source, "0.5b")
    for file in synthetic.TOKENIZER:
        (source / file).unlink()
    (source / "tokenizer.json").write_text(shapes.state_of(VOCABULARY), encoding="utf-8")
    ours = [sys.executable, "-m", "fastvlm_mlx"]
    asked = [shown, "-p", QUESTION, "-n", 1]
    timed([*ours, "convert", source, "-o", own, "--dtype", "float32"])
    commands: dict[str, list[object]] = {
        "fastvlm-mlx generate, 0.5B": [*ours, "generate", *asked, "-m", own, "--image-size", size],
        "fastvlm-mlx generate, tiny": [*ours, "generate", *asked],
    }
    if peer:
        timed([*ours, "export", source, "-o", theirs, "--dtype", "float32"])
        resize(theirs / "preprocessor_config.json", size)
        command = [peer, "-m", "mlx_vlm.generate", "--model", theirs, "--image", shown]
        commands["mlx_vlm.generate, 0.5B"] = [*command, "--prompt", QUESTION, "--max-tokens", 1]
    return commands


def resize(file: Path, size: int) -> None:
    about = json.loads(file.read_text(encoding="utf-8"))
    about |= {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    file.write_text(json.dumps(about), encoding="utf-8")


def timed(command: list[object], more: Mapping[str, str] | None = None) -> float:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | dict(more or {})
    began = time.perf_counter()
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, check=False
    )
    taken = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr[-2000:]}")
    return taken


def preloaded() -> dict[str, str]:
    """Theirs gets the BLAS and the kernels that ours takes by itself."""
    library = blas.library()
    return {"LD_PRELOAD": library, blas.CORETYPE: blas.kernels()} if library else {}


if __name__ == "__main__":
    main()
