"""Several real processes of this machine in a ring of MLX's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from command import Ran, clean_environment

from fastvlm_mlx.train.ranks import _free_ports

WAIT_S = 240


def started(
    count: int, command: Sequence[object], folder: Path, apart: bool = False
) -> list[subprocess.Popen[str]]:
    """The same command `count` times; `apart`, all but the first in an empty directory."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(count)]))
    fixed = clean_environment() | {"MLX_HOSTFILE": str(hosts), "OPENBLAS_NUM_THREADS": "1"}
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    return [
        subprocess.Popen(
            [*map(str, command)],
            env=fixed | {"MLX_RANK": str(rank)},
            cwd=elsewhere if apart and rank else folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def ended(ranks: Sequence[subprocess.Popen[str]]) -> list[Ran]:
    try:
        told = [rank.communicate(timeout=WAIT_S) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [Ran(rank.returncode, *words) for rank, words in zip(ranks, told, strict=True)]


def run(count: int, command: Sequence[object], folder: Path, apart: bool = False) -> list[Ran]:
    return ended(started(count, command, folder, apart))
