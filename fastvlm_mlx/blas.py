"""Linux without a GPU: let OpenBLAS stand in for the reference BLAS that MLX's wheel bundles.

Loaded with global visibility before ``mlx.core``, its ``sgemm`` takes the place of the bundled one and is
many times faster. Nothing depends on its being there.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = ("libopenblas.so.0", "libopenblas.so")
_loaded: list[ctypes.CDLL] = []
_MALLOC = ((-4, 0), (-1, 2**31 - 1), (-2, 2**28))  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD


def prefer_openblas() -> bool:
    """Load OpenBLAS if this is Linux and MLX is not loaded yet; say whether it took place."""
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return False
    for name in LIBRARIES:
        try:
            _loaded.append(ctypes.CDLL(name, ctypes.RTLD_GLOBAL))
        except OSError:
            continue
        return True
    return False


def loaded() -> bool:
    """Whether OpenBLAS took the place of MLX's own."""
    return bool(_loaded)


def threads() -> int:
    """Among how many OpenBLAS divides a product; 1 where it is not there, or does not tell."""
    tell = getattr(_loaded[0], "openblas_get_num_threads", None) if _loaded else None
    return int(tell()) if tell else 1


@contextmanager
def single() -> Iterator[None]:
    """Every product in the thread that asks for it."""
    before = threads()
    if before > 1:
        _divide(1)
    try:
        yield
    finally:
        if before > 1:
            _divide(before)


def _divide(number: int) -> None:
    _loaded[0].openblas_set_num_threads(number)


def keep_freed_memory() -> None:
    """glibc hands large freed blocks back to the kernel and faults them in anew, page by page, for the next
    array: slower than the arithmetic on them. What is freed is kept, for jobs that repeat the same shapes."""
    if sys.platform == "linux":
        tune = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if tune is not None:
            for option, value in _MALLOC:
                tune(option, value)
