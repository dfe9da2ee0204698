"""Many pictures: batches against one at a time, killed and gone on with, two ranks.

    python benchmarks/captioning.py MODEL [--pictures 2000] [--batch 16] [--tokens 64] [--kills 20]

Draws scenes, captions them in batches and one at a time, then in batches again while it is killed (SIGKILL)
at random moments and started again, then with `mlx.launch -n 2` on this machine. Every run must come to the
same bytes. Throughput is the command's own: from the first picture to the last, without loading.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fastvlm_mlx.bench.machine import this_machine

COMMAND = (sys.executable, "-m", "fastvlm_mlx")
POLL_S = 0.01
RANKS = 2


def count(out: Path) -> int:
    """Lines written so far, of all parts."""
    parts = out.with_name(f"{out.name}.run").glob("part-*.jsonl")
    return sum(part.read_bytes().count(b"\n") for part in parts)


def killed(begin: Callable[[], subprocess.Popen[bytes]], out: Path, whole: int, kills: int) -> int:
    """Start it and kill it so often, at moments spread over the work; -> how often it was still running."""
    moments, times = random.Random(kills), 0
    for kill in range(kills):
        with begin() as process:
            share = (whole - count(out)) / (kills - kill + 1)
            goal = count(out) + moments.uniform(0, 1.5) * share
            while process.poll() is None and count(out) < goal:
                time.sleep(POLL_S)
            time.sleep(moments.uniform(0, 0.05))
            times += process.poll() is None
            process.kill()
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--kills", type=int, default=20)
    asked = parser.parse_args()
    print(f"{this_machine().words}; {asked.pictures} scenes, {asked.model}")
    with tempfile.TemporaryDirectory() as folder:
        return measure(asked, Path(folder))


def measure(asked: argparse.Namespace, at: Path) -> int:
    options = ("--count", str(asked.pictures), "--questions", "1")
    drawing = (sys.executable, "-m", "tiny.scenes", at / "scenes", *options)
    subprocess.run(drawing, check=True, capture_output=True)

    def command(out: Path, batch: int) -> Sequence[str]:
        what = ("caption", at / "scenes" / "pictures", "-o", out, "-m", asked.model, "-n", asked.tokens)
        return (*COMMAND, *map(str, what), "--batch", str(batch))

    together, alone = at / "together.jsonl", at / "alone.jsonl"
    rates = {batch: rate(command(out, batch)) for batch, out in ((asked.batch, together), (1, alone))}
    for batch, each in rates.items():
        print(f"batches of {batch:<3} {each:8.2f} pictures a second", flush=True)
    print(f"ratio          {rates[asked.batch] / rates[1]:8.2f}")

    again = at / "again.jsonl"
    begin = command(again, asked.batch)
    times = killed(
        lambda: subprocess.Popen(begin, stderr=subprocess.DEVNULL), again, asked.pictures, asked.kills
    )
    subprocess.run(begin, check=True, capture_output=True)
    print(f"killed {times} times and gone on with: {count(again)} lines written down", flush=True)

    ranked = at / "ranked.jsonl"
    launcher = (Path(sys.executable).with_name("mlx.launch"), "-n", str(RANKS), "--backend", "ring", "--")
    subprocess.run(
        [*launcher, *command(ranked, asked.batch)], check=True, capture_output=True, stdin=subprocess.PIPE
    )
    results = {out.name: out.read_bytes() for out in (together, alone, again, ranked)}
    same = len(set(results.values())) == 1 and count(again) == asked.pictures == count(ranked)
    print(f"{', '.join(results)}: {'the same bytes' if same else 'DIFFERENT'}")
    return 0 if same else 1


def rate(command: Sequence[str]) -> float:
    told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    found = re.search(r"([\d.]+) a second", told)
    assert found, told
    return float(found[1])


if __name__ == "__main__":
    sys.exit(main())
