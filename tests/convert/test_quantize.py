import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from fastvlm_mlx.config import from_json, read_json
from fastvlm_mlx.convert.quantize import RECIPES, Recipe, uniform
from fastvlm_mlx.convert.run import Converted, convert
from fastvlm_mlx.errors import CheckpointError, ConfigError
from fastvlm_mlx.weights import checkpoint

Convert = Callable[..., Converted]
GROUPS_OF_64 = {64: 64, 192: 64}


@pytest.fixture
def converted(directory_of: Callable[[str], Path], tmp_path: Path) -> Convert:
    def run(recipe: Recipe | None, group_size: int = 64, **options: object) -> Converted:
        destination = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        return convert(
            directory_of("apple-fused"), destination, recipe=recipe, group_size=group_size, **options
        )  # type: ignore[arg-type]

    return run


def test_the_first_matching_row_decides() -> None:
    recipe = RECIPES["mixed-4-8"]
    assert recipe.bits("language.embedding") == 8
    assert recipe.bits("language.layers.11.attention.qkv") == 8
    assert recipe.bits("language.layers.11.mlp.down") == 8
    assert recipe.bits("language.layers.11.mlp.gate_up") == 4
    assert recipe.bits("vision.stem.pointwise") is None
    assert recipe.with_pictures().bits("vision.stem.pointwise") == 8
    assert RECIPES["4bit"].with_pictures().bits("projector.fc1") == 4


@pytest.mark.parametrize("name", RECIPES)
def test_pictures_stay_dense_unless_asked(converted: Convert, name: str) -> None:
    plain, all_of_it = converted(RECIPES[name]), converted(RECIPES[name].with_pictures())
    assert {path.split(".")[0] for path in plain.config.quantization} == {"language"}
    assert {path.split(".")[0] for path in all_of_it.config.quantization} == {
        "language",
        "projector",
        "vision",
    }


def test_a_quantized_model_is_the_dense_model_of_its_dequantized_weights(
    converted: Convert, pixels: dict[str, mx.array], relative_error: Callable[[object, object], float]
) -> None:
    done = converted(RECIPES["mixed-4-8"].with_pictures())
    config = from_json(read_json(done.destination / "config.json"), done.destination)
    assert config == done.config
    weights = checkpoint.FusedWeights(checkpoint.lazy_weights(done.destination))
    checkpoint.check(config, weights, done.destination)
    quantized = checkpoint.FastVLM(config)
    quantized.load_weights(list(weights.items()))
    dense = checkpoint.load(done.destination, mx.float32).model  # the CPU dequantizes on load
    assert relative_error(quantized.encode_image(pixels["A"]), dense.encode_image(pixels["A"])) < 2e-5
    rows, caches = dense.encode_image(pixels["A"]), dense.language.new_caches
    outputs = [m.language.logits(m.language(rows, caches())) for m in (quantized, dense)]
    assert relative_error(*outputs) < 2e-5


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_values_lie_within_half_a_step(converted: Convert, bits: int) -> None:
    dense = checkpoint.lazy_weights(converted(None).destination)
    done = converted(uniform(bits))
    _, back = checkpoint.dequantize(
        done.config, checkpoint.FusedWeights(checkpoint.lazy_weights(done.destination))
    )
    for path in done.config.quantization:
        before, after = (np.array(w[f"{path}.weight"]).reshape(-1, 64) for w in (dense, back))
        step = (before.max(-1) - before.min(-1)) / (2**bits - 1)
        # Zero is kept exact, which may move the grid by up to one step.
        assert (np.abs(after - before).max(-1) <= 1.01 * step + 1e-7).all(), path


@pytest.mark.parametrize(
    ("asked", "groups"), [(128, {64: 64, 192: 64}), (64, {64: 64, 192: 64}), (32, {64: 32, 192: 32})]
)
def test_a_width_that_does_not_divide_takes_a_smaller_group_and_says_so(
    converted: Convert, asked: int, groups: dict[int, int]
) -> None:
    done = converted(uniform(4), asked)
    found = {}
    for path, how in done.config.quantization.items():
        found[192 if path.endswith("mlp.down") else 64] = how.group_size
    assert found == groups
    assert bool(done.remarks) == (asked == 128)


def test_what_no_group_divides_stays_dense_and_is_reported(converted: Convert) -> None:
    done = converted(uniform(4).with_pictures())
    assert "vision.stem.pointwise" not in done.config.quantization  # 8 inputs
    assert any("8 inputs: dense" in remark for remark in done.remarks)


def test_quantizing_twice_is_refused_and_copying_is_not(converted: Convert, tmp_path: Path) -> None:
    done = converted(uniform(4))
    with pytest.raises(ConfigError, match="quantized already"):
        convert(done.destination, tmp_path / "again", recipe=uniform(8))
    copied = convert(done.destination, tmp_path / "copy")
    assert copied.config == done.config
    for name, array in checkpoint.lazy_weights(done.destination).items():
        assert mx.array_equal(array, checkpoint.lazy_weights(copied.destination)[name]), name


def test_bits_per_weight_counts_scales_too(converted: Convert) -> None:
    assert converted(None, dtype=mx.float16).bits_per_weight == 16
    assert 4.5 < converted(uniform(4), dtype=mx.float16).bits_per_weight < 4.7


def test_a_result_too_narrow_for_its_weights_is_told_as_that(
    directory_of: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(directory_of("apple-fused"), source)
    weights = dict(mx.load(str(source / "model.safetensors")))  # type: ignore[arg-type]
    weights["model.embed_tokens.weight"] *= 1e6  # finite, and beyond float16
    mx.save_safetensors(str(source / "model.safetensors"), weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"the result: logits are not finite.*--dtype bfloat16"):
        convert(source, tmp_path / "out", dtype=mx.float16, verify=True)
    assert not (tmp_path / "out").exists()
