"""Runs the vision tower as a Core ML package, on a Mac's Neural Engine, with the language model on the GPU.

Core ML decides where it runs. Nothing here was timed: it needs macOS.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import STRIDE, VisionConfig
from ..errors import CheckpointError, ConfigError, ImageError
from ..files.atomic import TOWER_PACKAGE

INPUT, FEATURES = "images", "image_features"
EXPORT = "`fastvlm-mlx export MODEL --target coreml -o DIR`"


def require() -> Any:
    """Import coremltools, or raise before a model is loaded."""
    if sys.platform != "darwin":
        raise ConfigError("Core ML runs on macOS alone; leave --vision-backend out to run the tower in MLX")
    try:
        import coremltools
    except ImportError as error:
        raise ConfigError(f"Core ML needs coremltools ({error}); pip install 'fastvlm-mlx[coreml]'") from None
    return coremltools


def load(path: Path, dtype: mx.Dtype) -> CoreMLTower:
    """Load a package, or the one in a directory. `dtype` is the projector's type."""
    coremltools = require()
    package = path if path.suffix == ".mlpackage" else path / TOWER_PACKAGE
    if not package.exists():
        raise CheckpointError(f"{package}: not there; write it with {EXPORT} and pass --vision-package DIR")
    try:
        model = coremltools.models.MLModel(str(package), compute_units=coremltools.ComputeUnit.CPU_AND_NE)
    except (OSError, RuntimeError, ValueError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{package}: cannot be loaded ({first}); write it again with {EXPORT}"
        ) from None
    described = model.get_spec().description
    outputs = [one.name for one in described.output]
    if [one.name for one in described.input] != [INPUT] or outputs != [FEATURES]:
        raise CheckpointError(
            f"{package}: gives {', '.join(outputs)}, and {FEATURES} is needed; write it with {EXPORT}, "
            "without --projector"
        )
    return CoreMLTower(
        model,
        int(described.input[0].type.multiArrayType.shape[-1]),
        int(described.output[0].type.multiArrayType.shape[-1]),
        dtype,
    )


class CoreMLTower(nn.Module):
    """Replaces `models.vision.FastViTHD`, for pictures of one size."""

    def __init__(self, model: Any, size: int, features: int, dtype: mx.Dtype):
        super().__init__()
        self.size, self.features = size, features
        self._model, self._dtype = model, dtype

    def check(self, config: VisionConfig) -> None:
        if self.features != config.feature_dim:
            raise CheckpointError(
                f"the Core ML package gives {self.features} features and the model's projector takes "
                f"{config.feature_dim}; write one of this model with {EXPORT}"
            )

    def __call__(self, pixels: mx.array) -> mx.array:
        """(B, size, size, 3) -> (B, size/64, size/64, features)"""
        _, height, width, _ = pixels.shape
        if (height, width) != (self.size, self.size):
            raise ImageError(
                f"the Core ML package takes pictures of {self.size}×{self.size}, and this one is "
                f"{height}×{width}; export another with --image-size, or leave --image-size and native out"
            )
        planes = np.array(pixels.astype(mx.float32)).transpose(0, 3, 1, 2)
        rows = [self._model.predict({INPUT: np.ascontiguousarray(one[None])})[FEATURES] for one in planes]
        features = mx.array(np.concatenate(rows)).astype(self._dtype)
        side = self.size // STRIDE
        return features.reshape(len(rows), side, side, -1)
