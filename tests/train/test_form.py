"""The training form, held against the run form that it becomes."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import fastvlm_mlx
from fastvlm_mlx.config import ImageConfig, ModelConfig, TextConfig, VisionConfig
from fastvlm_mlx.convert.fuse import reference
from fastvlm_mlx.convert.read.tensor_names import RawWeights
from fastvlm_mlx.models.fastvlm import FastVLM
from fastvlm_mlx.train import export, form
from tiny import vocabulary

SMALL = ModelConfig(
    VisionConfig((1, 1, 2, 1, 1), (4, 8, 16, 32, 32), 2),
    TextConfig(32, 1, 2, 1, 48, 320, True, context=256),
    ImageConfig(128),
    (317, 319),
)


@pytest.fixture(scope="module")
def raw() -> RawWeights:
    """Fresh, with statistics, norms and scales that are not what they start as."""
    fresh = form.initial(SMALL, mx.random.key(1), layer_scale=0.5)
    keys = mx.random.split(mx.random.key(2), len(fresh))
    return RawWeights(
        {
            name: array + 0.2 * mx.random.uniform(shape=array.shape, key=key) if array.ndim == 1 else array
            for (name, array), key in zip(fresh.items(), keys, strict=True)
        }
    )


@pytest.fixture(scope="module")
def pixels() -> mx.array:
    return mx.random.uniform(shape=(2, 128, 128, 3), key=mx.random.key(3))


def features(raw: RawWeights, pixels: mx.array) -> mx.array:
    model = FastVLM(SMALL)
    form.run_form(model, raw, SMALL)
    return model.vision(pixels)


def distance(found: mx.array, wanted: mx.array) -> float:
    return (mx.abs(found - wanted).max() / mx.abs(wanted).max()).item()


def test_the_training_form_equals_the_run_form(raw: RawWeights, pixels: mx.array) -> None:
    assert distance(features(raw, pixels), reference.features_of(raw, SMALL, pixels)) < 2e-5


@pytest.mark.parametrize(("height", "width"), [(128, 192), (192, 128), (64, 320), (384, 64)])
def test_the_forms_are_equal_on_pictures_that_are_no_squares(
    raw: RawWeights, height: int, width: int
) -> None:
    pixels = mx.random.uniform(shape=(2, height, width, 3), key=mx.random.key(4))
    found = features(raw, pixels)
    assert found.shape[1:3] == (height // 64, width // 64)
    assert distance(found, reference.features_of(raw, SMALL, pixels)) < 2e-5


def test_gradients_through_the_fusing_are_those_of_the_branches(raw: RawWeights, pixels: mx.array) -> None:
    moving = {
        name: array
        for name, array in raw.items()
        if name.startswith("vision.") and not name.endswith(reference.STATISTICS)
    }

    def fused(moved: dict[str, mx.array]) -> mx.array:
        return (features(RawWeights({**raw, **moved}), pixels) ** 2).mean()

    def apart(moved: dict[str, mx.array]) -> mx.array:
        return (reference.features_of({**raw, **moved}, SMALL, pixels) ** 2).mean()

    found, wanted = mx.grad(fused)(moving), mx.grad(apart)(moving)
    largest = max(mx.abs(gradient).max().item() for gradient in wanted.values())
    for name, gradient in wanted.items():  # some are sums that all but vanish: rounding is all that they are
        scale = mx.abs(gradient).max().item() + 1e-4 * largest
        assert mx.abs(found[name] - gradient).max().item() < 2e-3 * scale, name


def test_the_statistics_of_a_batch_are_noted(raw: RawWeights, pixels: mx.array) -> None:
    seen: dict[str, mx.array] = {}
    by_batch = reference.features_of(raw, SMALL, pixels, seen)
    assert distance(features(RawWeights({**raw, **seen}), pixels), by_batch) < 2e-5
    stem = mx.conv2d(pixels, raw["vision.stem.conv.kxk.0.conv.weight"], 2, 1)
    found = seen["vision.stem.conv.kxk.0.bn.running_var"]
    assert np.allclose(np.array(found), np.array(stem).var((0, 1, 2)), rtol=1e-4)


def test_what_is_written_is_what_convert_reads(raw: RawWeights, pixels: mx.array, tmp_path: Path) -> None:
    vocabulary.learn(["a red circle", "a blue ring"] * 9, 320, 256, tmp_path / "tokenizer")
    export.write(raw, SMALL, tmp_path / "tokenizer", tmp_path / "model")
    vlm = fastvlm_mlx.load(tmp_path / "model", "float32")
    assert vlm.layout == "apple-llava"
    assert vlm.config.vision == SMALL.vision
    assert vlm.config.text == SMALL.text
    assert vlm.config.image == SMALL.image
    assert distance(vlm.vision(pixels), reference.features_of(raw, SMALL, pixels)) < 2e-5
