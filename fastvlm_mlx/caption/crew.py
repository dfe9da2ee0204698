"""Who works on it together: the ranks that `mlx.launch` starts, or one process.

They meet once, at the start. After that nobody waits for anybody's message, so whoever dies stops no one.
"""

from __future__ import annotations

import secrets
import signal
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..errors import ConfigError
from . import ledger


@dataclass(frozen=True, slots=True)
class Crew:
    launch: int  # the same for all who were started together
    rank: int = 0
    size: int = 1
    one_folder: bool = True  # all see the same

    def order(self, parts: int) -> list[int]:
        """The parts to look at, first what others come to last. Without a common folder a fixed share."""
        if not self.one_folder:
            return list(range(self.rank, parts, self.size))
        first = self.rank * parts // self.size
        return [*range(first, parts), *range(first)]


def met(folder: Path) -> Crew:
    try:
        group = mx.distributed.init()
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"the other processes cannot be reached ({reason}); check mlx.launch's hosts"
        ) from None
    rank, size = group.rank(), group.size()
    launch = 1 + secrets.randbelow(2**30)
    if size == 1:
        return Crew(launch)
    if rank == 0:
        ledger.announce(folder, launch)
    launch = _sum(launch if rank == 0 else 0)
    seen = ledger.announced(folder) == launch
    one_folder = _sum(int(seen)) == size
    if not seen:
        ledger.announce(folder, launch)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # mlx.launch sends it to all once one has died
    return Crew(launch, rank, size, one_folder)


def _sum(value: int) -> int:
    added = mx.distributed.all_sum(mx.array(value, mx.int32), stream=mx.cpu)
    total: int = added.item()  # type: ignore[assignment]
    return total
