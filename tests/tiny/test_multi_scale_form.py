"""Features of several stages while they are trained: both forms alike, saved, read back and converted."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Literal

import mlx.core as mx
import pytest
import speck

import fastvlm_mlx
from fastvlm_mlx.config import ImageConfig, ModelConfig, MultiScaleConfig, TextConfig, VisionConfig
from fastvlm_mlx.convert.doctor.checks import examine
from fastvlm_mlx.convert.export import swift as export_swift
from fastvlm_mlx.convert.fuse import reference
from fastvlm_mlx.convert.read.tensor_names import RawWeights
from fastvlm_mlx.convert.run import convert
from fastvlm_mlx.models.fastvlm import FastVLM
from fastvlm_mlx.train import export, form
from tiny import losses, scenes, vocabulary
from tiny import recipe as recipes
from tiny.train import fingerprint, run

Pooling = Literal["average", "depthwise"]
PLAIN = ModelConfig(
    VisionConfig((1, 1, 2, 1, 1), (4, 8, 16, 32, 32), 2),
    TextConfig(32, 1, 2, 1, 48, 320, True, context=256),
    ImageConfig(128),
    (317, 319),
)
POOLS = [f"vision.multi_scale.pools.{number}.weight" for number in range(3)]


def with_scales(pooling: Pooling) -> ModelConfig:
    scales = MultiScaleConfig((2, 3, 4), pooling)
    return dataclasses.replace(PLAIN, vision=dataclasses.replace(PLAIN.vision, multi_scale=scales))


@pytest.fixture(params=["average", "depthwise"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return with_scales(request.param)


def disturbed(config: ModelConfig) -> RawWeights:
    """Fresh, with statistics, norms, scales and pools that are not what they start as."""
    fresh = form.initial(config, mx.random.key(1), layer_scale=0.5)
    keys = mx.random.split(mx.random.key(2), len(fresh))
    return RawWeights(
        {
            name: array + 0.2 * mx.random.uniform(shape=array.shape, key=key)
            if array.ndim == 1 or name in POOLS
            else array
            for (name, array), key in zip(fresh.items(), keys, strict=True)
        }
    )


def distance(found: mx.array, wanted: mx.array) -> float:
    assert found.shape == wanted.shape
    return (mx.abs(found - wanted).max() / mx.abs(wanted).max()).item()


@pytest.fixture
def pixels() -> mx.array:
    return mx.random.uniform(shape=(2, 128, 192, 3), key=mx.random.key(3))


def test_the_training_form_equals_the_run_form(config: ModelConfig, pixels: mx.array) -> None:
    raw, model = disturbed(config), FastVLM(config)
    form.run_form(model, raw, config)
    found = model.vision(pixels)
    assert found.shape == (2, 2, 3, config.vision.feature_dim)
    assert distance(found, reference.features_of(raw, config, pixels)) < 2e-5


def test_training_begins_with_averages_and_for_the_rest_as_without(pixels: mx.array) -> None:
    plain, average, learned = (
        form.initial(config, mx.random.key(1), layer_scale=0.1)
        for config in (PLAIN, with_scales("average"), with_scales("depthwise"))
    )
    assert learned.keys() - average.keys() == set(POOLS)
    assert plain.keys() == average.keys()
    for name, array in plain.items():
        if name != "projector.fc1.weight":  # wider
            assert mx.array_equal(array, average[name]), name
            assert mx.array_equal(array, learned[name]), name
    features = (
        reference.features_of(raw, with_scales(pooling), pixels)
        for raw, pooling in ((average, "average"), (learned, "depthwise"))
    )
    assert distance(*features) < 1e-6


@pytest.mark.parametrize("statistics", ["batch", "stored"])
def test_pools_learn_from_what_tokens_say(pixels: mx.array, statistics: str) -> None:
    config = with_scales("depthwise")
    raw, vision = disturbed(config), config.vision
    heads = losses.cell_heads(vision.feature_dim, vision.dims[2], 32, mx.random.key(4))
    targets = {
        name: mx.random.randint(0, classes, (2, 6, slots), key=mx.random.key(5))
        for name, (slots, classes) in scenes.HEADS.items()
    }

    def loss(pools: dict[str, mx.array]) -> mx.array:
        params = {**raw, **heads, **pools}
        if statistics == "batch":
            outputs = reference.observe(params, config, pixels, {})
        else:
            model = FastVLM(config)
            form.run_form(model, params, config)
            outputs = dict(model.vision.trace(pixels))
        return losses.cells(outputs, params, targets)[0]

    given = {name: raw[name] for name in POOLS}
    gradients = mx.grad(loss)(given)
    assert gradients.keys() == set(POOLS)
    for name, gradient in gradients.items():
        assert mx.abs(gradient).max().item() > 0, name
        step = 1e-2 * gradient / mx.abs(gradient).max()
        ends = (loss({**given, name: given[name] + sign * step}).item() for sign in (1, -1))
        slope = (gradient * step).sum().item()
        up, down = ends
        assert (up - down) / 2 == pytest.approx(slope, rel=0.05), name


def test_what_is_written_is_read_and_converted(config: ModelConfig, pixels: mx.array, tmp_path: Path) -> None:
    raw = disturbed(config)
    vocabulary.learn(["a red circle", "a blue ring"] * 9, 320, 256, tmp_path / "tokenizer")
    export.write(raw, config, tmp_path / "tokenizer", tmp_path / "model")
    report = examine(tmp_path / "model")
    assert report.healthy, report.findings
    assert config.vision.multi_scale
    assert config.vision.multi_scale.listed in report.facts["vision"]
    with pytest.raises(fastvlm_mlx.ConfigError, match="mlx-vlm cannot hold multi-scale features"):
        export_swift.export(tmp_path / "model", tmp_path / "swift")
    convert(tmp_path / "model", tmp_path / "converted")
    wanted = reference.features_of(raw, config, pixels)
    for name, layout in (("model", "apple-llava"), ("converted", "fastvlm-mlx")):
        vlm = fastvlm_mlx.load(tmp_path / name, "float32")
        assert (vlm.layout, vlm.config.vision) == (layout, config.vision)
        assert distance(vlm.vision(pixels), wanted) < 2e-5


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"stages": [', '"stages": [5, ', "no stage 5 to add.*take it from the training run's recipe"),
        ('"pooling": "depthwise"', '"pooling": "max"', r"vision_config\.multi_scale\.pooling is 'max'"),
        ('"pooling": "depthwise"', '"pooling": "average"', r"multi_scale\.0\.weight' has no place"),
        ('"multi_scale"', '"scales"', r"multi_scale\.0\.weight' has no place"),
    ],
)
def test_a_configuration_that_its_tensors_contradict_is_one_line(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    config = with_scales("depthwise")
    vocabulary.learn(["a red circle", "a blue ring"] * 9, 320, 256, tmp_path / "tokenizer")
    export.write(disturbed(config), config, tmp_path / "tokenizer", tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(fastvlm_mlx.FastVLMError, match=says) as caught:
        fastvlm_mlx.load(tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not examine(tmp_path / "model").healthy


# --- in a recipe ---

SCALED = speck.MODEL.replace(
    "mlp_ratio = 1", 'mlp_ratio = 1\nmulti_scale = { stages = [2, 3, 4], pooling = "depthwise" }'
)
RECIPE = f"""
name = "speck"
seed = 3
save_every = 1
log_every = 1
{SCALED}
[[stages]]
name = "cells"
kind = "cells"
steps = 2
batch = 2
rate = 1e-3
train = ["vision\\\\.", "cells\\\\."]
statistics = "batch"
[[stages]]
name = "answers"
kind = "answers"
steps = 1
batch = 2
questions = 2
rate = 1e-3
"""


def test_a_recipe_can_ask_for_it(tmp_path: Path) -> None:
    file = tmp_path / "speck.toml"
    file.write_text(RECIPE, encoding="utf-8")
    run(recipes.read(file), tmp_path / "run")
    vlm = fastvlm_mlx.load(convert(tmp_path / "run" / "model", tmp_path / "converted").destination)
    assert vlm.config.vision.multi_scale == MultiScaleConfig((2, 3, 4), "depthwise")
    pools = vlm.model.vision.multi_scale.pools
    for pool, factor in zip(pools, (8, 4, 2), strict=True):
        assert mx.abs(pool.weight - factor**-2.0).max().item() > 0, "it has moved"
    picture = mx.zeros((256, 256, 3))
    assert vlm.generate(vlm.prompt("What is it?", [picture]), max_tokens=2).image_tokens == 16


def test_a_bad_one_is_one_line_that_names_the_place(tmp_path: Path) -> None:
    file = tmp_path / "speck.toml"
    file.write_text(RECIPE.replace("[2, 3, 4]", "[2, 3, 3]"), encoding="utf-8")
    with pytest.raises(fastvlm_mlx.ConfigError, match="names stage 3 twice; mend the recipe") as caught:
        recipes.read(file)
    assert str(file) in str(caught.value)


def test_runs_from_before_it_was_there_go_on() -> None:
    """What identifies a run is what did then; with it a run is another."""
    found = recipes.read()
    vision, text, image = (
        tuple(getattr(part, name) for name in part.__slots__)
        for part in (found.model.vision, found.model.text, found.model.image)
    )
    told = repr((found.name, found.seed, (vision[:6], text, image, found.model.layer_scale)))
    assert fingerprint(found) == hashlib.sha256(told.encode()).hexdigest()[:16]
    scaled = dataclasses.replace(found.model.vision, multi_scale=MultiScaleConfig((4,), "average"))
    other = dataclasses.replace(found, model=dataclasses.replace(found.model, vision=scaled))
    assert fingerprint(other) != fingerprint(found)
