"""Operations whose best form differs by device."""

from .activation import gelu, swiglu

__all__ = ["gelu", "swiglu"]
