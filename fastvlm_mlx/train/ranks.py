"""Several processes of one machine as ranks of MLX's ring, each running this same command.

`mlx.launch` does the same across machines; its Linux watcher keeps a core busy, which on two cores is half
of them.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_RANK, _HOSTS = "MLX_RANK", "MLX_HOSTFILE"
_POLL_S = 0.5
_PATIENCE_S = 5.0


def is_one() -> bool:
    """Whether this process is a rank already."""
    return _RANK in os.environ


def supervise(count: int, module: str) -> int:
    """Run `count` ranks of this command, `python -m module`, and wait. The first that fails ends the others.

    Returns its exit status.
    """
    threads = max(1, (os.cpu_count() or 1) // count)
    with tempfile.TemporaryDirectory() as folder:
        hosts = Path(folder) / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(count)]))
        fixed = {_HOSTS: str(hosts), "OPENBLAS_NUM_THREADS": str(threads)}
        said = [Path(folder) / f"{rank}.txt" for rank in range(count)]
        ranks = [_started(module, rank, fixed, said[rank]) for rank in range(count)]
        try:
            while (failed := _first_failure(ranks)) is None and any(rank.poll() is None for rank in ranks):
                time.sleep(_POLL_S)
            if failed:
                sys.stderr.write(said[failed].read_text(errors="replace"))
            return 0 if failed is None else max(1, ranks[failed].returncode)
        finally:
            _end(ranks)


def _started(module: str, rank: int, fixed: dict[str, str], said: Path) -> subprocess.Popen[bytes]:
    """The first speaks for all; what another says is kept in `said` in case it fails alone."""
    command = [sys.executable, "-m", module, *sys.argv[1:]]
    environment = {**os.environ, **fixed, _RANK: str(rank)}
    with said.open("wb") as words:
        return subprocess.Popen(command, env=environment, stderr=words if rank else None)


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    """One that waits for another in the ring does not hear that it should end."""
    for rank in ranks:
        rank.terminate()
    for rank in ranks:
        try:
            rank.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


def _first_failure(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    return next((number for number, rank in enumerate(ranks) if rank.poll()), None)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
