"""Limits on MLX's memory: its cache of freed buffers, and memory that the system may not page out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from ..vlm import VLM

_CACHE_SHARE = 1 / 16  # of the device's memory


def limit_cache(limit_bytes: int | None) -> None:
    """Bound the buffers that MLX keeps for reuse after they are freed.

    None takes a sixteenth of the device's memory, and leaves a lower limit as it is: MLX's own on the CPU is
    32 MiB."""
    limit = int(_device_bytes() * _CACHE_SHARE) if limit_bytes is None else limit_bytes
    before = mx.set_cache_limit(limit)
    if limit_bytes is None and before < limit:
        mx.set_cache_limit(before)


def working_set_bytes() -> int:
    """The most memory that the device recommends to wire; 0 where it reports none. Macs report one."""
    return int(mx.device_info().get("max_recommended_working_set_size", 0))


@contextmanager
def wired(vlm: VLM, enabled: bool = True) -> Iterator[None]:
    """Keep memory wired while `vlm` answers inside. The limit is the whole process's: use one thread."""
    most = working_set_bytes() if enabled else 0
    if not most:
        yield
        return
    before = mx.set_wired_limit(most)
    try:
        yield
    finally:
        with vlm.turns.mine():
            mx.synchronize()  # an answer that was left may still compute
        mx.set_wired_limit(before)


def memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _device_bytes() -> int:
    info = mx.device_info()  # "memory_size" is Metal's name, "total_memory" CUDA's; the CPU has neither
    return int(info.get("memory_size") or info.get("total_memory") or memory_bytes())
