"""Features of several stages, held against their definition in numpy, position by position."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import pytest
import scales

import fastvlm_mlx
from fastvlm_mlx.config import MultiScaleConfig, VisionConfig
from fastvlm_mlx.convert.quantize import RECIPES
from fastvlm_mlx.convert.run import convert

Array = np.ndarray[Any, Any]
Pooling = Literal["average", "depthwise"]


def pooled(x: Array, weight: Array | None, height: int, width: int) -> Array:
    """A convolution of each channel alone whose kernel is as large as its stride, one output at a time."""
    factor = x.shape[1] // height
    kernel = np.full((x.shape[-1], factor, factor), factor**-2.0) if weight is None else weight[..., 0]
    out = np.zeros((len(x), height, width, x.shape[-1]))
    for row in range(height):
        for column in range(width):
            window = x[:, factor * row : factor * (row + 1), factor * column : factor * (column + 1)]
            out[:, row, column] = np.einsum("bijc,cij->bc", window.astype(np.float64), kernel)
    return out


@pytest.mark.parametrize("pooling", ["average", "depthwise"])
@pytest.mark.parametrize("stages", [(2, 3, 4), (1,), (4, 1)])
def test_features_are_the_stages_pooled_and_then_the_last_one_s(
    pooling: Pooling,
    stages: tuple[int, ...],
    pixels: dict[str, mx.array],
    relative_error: Callable[[Any, Any], float],
    tmp_path: Path,
) -> None:
    vlm = fastvlm_mlx.load(scales.write(tmp_path / "model", pooling, stages), "float32")
    trace = {name: np.array(array) for name, array in vlm.model.vision.trace(pixels["B"])}
    expanded = trace["expand"]
    _, height, width, _ = expanded.shape
    assert (height, width) == (3, 5)
    learned = [np.array(pool.get("weight")) for pool in vlm.model.vision.multi_scale.pools]
    parts = [
        pooled(trace[f"stages.{stage - 1}.blocks"], weight if weight.ndim else None, height, width)
        for stage, weight in zip(stages, learned, strict=True)
    ]
    features = vlm.vision(pixels["B"])
    assert features.shape[-1] == vlm.config.vision.feature_dim == vlm.model.projector.fc1.weight.shape[1]
    assert relative_error(features, np.concatenate([*parts, expanded], axis=-1)) <= 1e-6


def test_the_rest_of_the_tower_is_as_it_was(
    vlm_of: Callable[[str], fastvlm_mlx.VLM], pixels: dict[str, mx.array], tmp_path: Path
) -> None:
    plain = vlm_of("apple-fused")
    vlm = fastvlm_mlx.load(scales.write(tmp_path / "model", "average"), "float32")
    width = plain.config.vision.feature_dim
    assert mx.array_equal(vlm.vision(pixels["A"])[..., -width:], plain.vision(pixels["A"]))
    assert dict(plain.model.vision.trace(pixels["A"])).keys().isdisjoint({"multi_scale"})


@pytest.mark.parametrize("pooling", ["average", "depthwise"])
def test_a_model_with_it_answers_quantized_and_in_halves(pooling: Pooling, tmp_path: Path) -> None:
    source = scales.write(tmp_path / "model", pooling)
    recipe = RECIPES["8bit"].with_pictures()
    done = convert(source, tmp_path / "packed", recipe=recipe, dtype=mx.float16).destination
    whole, packed = fastvlm_mlx.load(source, "float32"), fastvlm_mlx.load(done, "float16")
    assert packed.config.vision == whole.config.vision
    picture = mx.random.uniform(shape=(256, 256, 3), key=mx.random.key(1))
    told, kept = (vlm.generate(vlm.prompt("What?", [picture]), max_tokens=1) for vlm in (whole, packed))
    assert told.image_tokens == kept.image_tokens == 16
    close = mx.abs(whole.vision(picture[None]) - packed.vision(picture[None])).max()
    assert close.item() < 0.1 * mx.abs(whole.vision(picture[None])).max().item()


def test_widths_follow_from_the_stages() -> None:
    scaled = VisionConfig(multi_scale=MultiScaleConfig((2, 3, 4), "average"))
    assert scaled.feature_dim == 192 + 384 + 768 + VisionConfig().feature_dim
    assert [pool.factor for pool in scaled.pools] == [8, 4, 2]


def test_a_checkpoint_without_its_pools_is_refused(tmp_path: Path) -> None:
    model = scales.write(tmp_path / "model", "average")
    file = model / "config.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"average"', '"depthwise"'), encoding="utf-8")
    with pytest.raises(fastvlm_mlx.CheckpointError, match=r"3 tensor\(s\) missing.*multi_scale\.pools\.0"):
        fastvlm_mlx.load(model)
