"""Commands that several processes run together, started by `mlx.launch`: the first speaks for all."""

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
    """The processes that were started with this one.

    From here on signals end this one at once: it may be waiting inside MLX for one that is gone, where Python
    does not hear them.
    """
    import mlx.core as mx

    try:
        group = mx.distributed.init()
    except RuntimeError as error:
        raise ConfigError(f"the processes did not find each other: {error}; check the hostfile") from None
    if group.size() == 1:
        raise ConfigError(
            "--shard divides a model between processes, and this is the only one; start several with "
            "`mlx.launch --hostfile hosts.json -- fastvlm-mlx generate …`, or leave --shard out"
        )
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    return group


@contextmanager
def agreed(group: mx.distributed.Group | None) -> Iterator[None]:
    """What fails in any process ends all of them; the first of those it failed in says why."""
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
    """A process that is gone ends the others; of what is wrong in all of them the first speaks.

    None leaves before all have come to the end: a token that was computed ahead may still be under way.
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
            "see what that one said, and start all again"
        ) from None


def _meet(group: mx.distributed.Group) -> None:
    import mlx.core as mx

    mx.distributed.all_sum(mx.zeros(1), group=group).item()
