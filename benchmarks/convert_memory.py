"""Peak memory and time of converting full-size checkpoints: `python benchmarks/convert_memory.py 7b`."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import synthetic

from fastvlm_mlx.bench.machine import this_machine

LIMIT_GIB = 3.0
WAYS = (
    ("as stored", ("convert",)),
    ("4 bit", ("convert", "-q")),
    ("float16", ("convert", "--dtype", "float16")),
    ("for Swift, float16", ("export",)),
    ("for Swift, 4 bit", ("export", "--bits", "4")),
)


def measure(source: Path, destination: Path, verb: tuple[str, ...]) -> tuple[float, float, int]:
    """Seconds, peak resident GiB and bytes written of one conversion in a process of its own."""
    command = [sys.executable, "-m", "fastvlm_mlx", *verb, str(source), "-o", str(destination)]
    began = time.perf_counter()
    with open(os.devnull, "w") as unread:  # an export tells what it checked
        child = os.posix_spawn(
            sys.executable, command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, unread.fileno(), 1)]
        )
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status):
        sys.exit("the conversion failed")
    written = sum(path.stat().st_size for path in destination.iterdir())
    return seconds, _gib(usage), written


def _gib(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def main() -> None:
    names = sys.argv[1:] or ["7b"]
    print(f"{this_machine().words}\n")
    print("| model | result | source GB | result GB | seconds | peak resident GiB |")
    print("|---|---|---|---|---|---|")
    worst = 0.0
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        for name in names:
            source, destination = Path(folder) / name, Path(folder) / "out"
            total = synthetic.write(source, name)
            for what, verb in WAYS:
                seconds, peak, written = measure(source, destination, verb)
                worst = max(worst, peak)
                sizes = f"{total / 1e9:.2f} | {written / 1e9:.2f}"
                print(f"| {name} | {what} | {sizes} | {seconds:.0f} | {peak:.2f} |", flush=True)
                shutil.rmtree(destination)
    if worst > LIMIT_GIB:
        sys.exit(f"peak of {worst:.2f} GiB is above the limit of {LIMIT_GIB}")


if __name__ == "__main__":
    main()
