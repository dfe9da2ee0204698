"""Apple's FastVLM in pure MLX.

>>> import fastvlm_mlx
>>> vlm = fastvlm_mlx.load("0.5b")
>>> vlm.generate(vlm.prompt("What is this?", images=["cat.jpg"])).text
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .blas import prefer_fast_blas

prefer_fast_blas()  # before anything loads mlx.core

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .errors import (
        CheckpointError,
        ConfigError,
        DataError,
        FastVLMError,
        HubError,
        ImageError,
        PromptError,
    )
    from .inference.caches import Features
    from .inference.decoding import Event, Finished, Prefilled, Token
    from .inference.generate import Answer
    from .inference.sampling import Sampling
    from .inference.session import Session
    from .inputs.prompt import Clip, Picture, Prompt, Text
    from .inputs.tiling import ImageOptions
    from .inputs.video import Video
    from .vlm import VLM, load

# Resolved on first use, so that `fastvlm-mlx --help` need not load MLX.
_HOMES = {
    "inference.decoding": ("Event", "Finished", "Prefilled", "Token"),
    "errors": (
        *("CheckpointError", "ConfigError", "DataError", "FastVLMError"),
        *("HubError", "ImageError", "PromptError"),
    ),
    "inference.generate": ("Answer",),
    "inference.caches": ("Features",),
    "inputs.prompt": ("Clip", "Picture", "Prompt", "Text"),
    "inputs.tiling": ("ImageOptions",),
    "inference.sampling": ("Sampling",),
    "inference.session": ("Session",),
    "inputs.video": ("Video",),
    "vlm": ("VLM", "load"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "VLM",
    "Answer",
    "CheckpointError",
    "Clip",
    "ConfigError",
    "DataError",
    "Event",
    "FastVLMError",
    "Features",
    "Finished",
    "HubError",
    "ImageError",
    "ImageOptions",
    "Picture",
    "Prefilled",
    "Prompt",
    "PromptError",
    "Sampling",
    "Session",
    "Text",
    "Token",
    "Video",
    "load",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
