"""Commands that several processes of `mlx.launch` run together; only rank 0 prints."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from ..errors import ConfigError, FastVLMError

if TYPE_CHECKING:
    import mlx.core as mx

_TRANSPORTS = ("[ring]", "[jaccl]", "[mpi]", "[nccl]")  # how MLX's errors about them begin


def joined() -> mx.distributed.Group:
    """Join the group of processes that `mlx.launch` started.

    From here on, signals end this process at once: Python handles no signal while MLX waits for a process
    that is gone.
    """
    import mlx.core as mx

    try:
        group = mx.distributed.init()
    except RuntimeError as error:
        raise ConfigError(f"cannot connect to the other processes: {error}; check the hostfile") from None
    if group.size() == 1:
        raise ConfigError(
            "--shard needs several processes, and this is the only one; start several with "
            "`mlx.launch --hostfile hosts.json -- fastvlm-mlx generate …`, or drop --shard"
        )
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    return group


@contextmanager
def agreed(group: mx.distributed.Group | None) -> Iterator[None]:
    """End all processes if any fails; the failed one with the lowest rank prints the error."""
    if group is None:
        yield
        return
    import mlx.core as mx

    failure: FastVLMError | None = None
    try:
        yield
    except FastVLMError as error:
        failure = error
    with together(group):
        every: list[bool] = mx.distributed.all_gather(mx.array([failure is not None]), group=group).tolist()  # type: ignore[assignment]
    if failure is not None and every.index(True) == group.rank():
        raise failure
    if any(every):
        raise typer.Exit(1)


@contextmanager
def together(group: mx.distributed.Group | None) -> Iterator[None]:
    """End all processes if one is lost; rank 0 prints an error that occurs in all of them.

    Processes leave together, because a token computed ahead may still need all of them.
    """
    try:
        yield
        if group is not None:
            _meet(group)
    except FastVLMError:
        if group is None or group.rank() == 0:
            raise
        raise typer.Exit(1) from None
    except RuntimeError as error:
        if group is None or not str(error).startswith(_TRANSPORTS):
            raise
        raise ConfigError(
            f"process {group.rank()} of {group.size()} lost another ({error}); "
            "check the output of that process, and restart all of them"
        ) from None


def _meet(group: mx.distributed.Group) -> None:
    import mlx.core as mx

    mx.distributed.all_sum(mx.zeros(1), group=group).item()
