"""Linux without a GPU: let OpenBLAS stand in for the reference BLAS that MLX's wheel bundles.

Loaded with global visibility before ``mlx.core``, its ``sgemm`` takes the place of the bundled one and is
many times faster. Nothing depends on its being there.
"""

import ctypes
import sys

_NAMES = ("libopenblas.so.0", "libopenblas.so")


def prefer_openblas() -> bool:
    """Load OpenBLAS if this is Linux and MLX is not loaded yet; say whether it took place."""
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return False
    for name in _NAMES:
        try:
            ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False
