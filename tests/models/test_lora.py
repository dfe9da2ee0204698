"""LoRA: nothing changes at first, the pairs alone move, and added into the matrices they do the same."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest

import fastvlm_mlx
from fastvlm_mlx.convert.quantize import quantize, uniform
from fastvlm_mlx.convert.run import convert, read
from fastvlm_mlx.errors import CheckpointError
from fastvlm_mlx.inputs.tokenizer import Tokenizer
from fastvlm_mlx.models import lora
from fastvlm_mlx.models.fastvlm import FastVLM
from fastvlm_mlx.models.lora import Adapter, LoRASettings
from fastvlm_mlx.train.finetune import fused
from fastvlm_mlx.weights import checkpoint

MODEL = "apple-fused, converted"
EVERYWHERE = LoRASettings(rank=4, alpha=8, patterns=("",))
Directory = Callable[[str], Path]
Error = Callable[[object, object], float]


@pytest.fixture
def base(directory_of: Directory) -> Path:
    return directory_of(MODEL)


@pytest.fixture(scope="module")
def packed(directory_of: Directory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in 8 bits."""
    out = tmp_path_factory.mktemp("packed") / "8bit"
    convert(directory_of(MODEL), out, recipe=uniform(8), group_size=32)
    return out


@pytest.fixture
def kept_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: packed matrices are not unpacked on load."""
    monkeypatch.setattr(checkpoint, "dequantize", lambda config, weights: (config, weights))


def trained(directory: Path, settings: LoRASettings = EVERYWHERE) -> Adapter:
    """An adapter that changes something."""
    model = checkpoint.load(directory).model
    lora.attach(model, settings, mx.random.key(0))
    weights = lora.parameters(model)
    keys = mx.random.split(mx.random.key(1), len(weights))
    drawn = {n: 0.1 * mx.random.normal(weights[n].shape, key=k) for n, k in zip(weights, keys, strict=True)}
    return Adapter("the golden model", settings, drawn)


def outputs(model: FastVLM) -> tuple[mx.array, mx.array]:
    """What the language model says about a picture, and what the tower sees."""
    pixels = mx.random.uniform(shape=(1, 64, 128, 3), key=mx.random.key(5))
    rows = mx.concatenate([model.encode_image(pixels), model.language.embedding(mx.arange(5, 12))[None]], 1)
    hidden = model.language(rows, model.language.new_caches())
    return model.language.logits(hidden), model.vision(pixels)


def test_a_fresh_adapter_changes_nothing(base: Path) -> None:
    model = checkpoint.load(base).model
    before = outputs(model)
    lora.attach(model, EVERYWHERE, mx.random.key(0))
    assert all(mx.array_equal(a, b) for a, b in zip(before, outputs(model), strict=True))


@pytest.mark.usefixtures("kept_packed")
def test_a_fresh_adapter_beside_packed_matrices_changes_nothing(packed: Path) -> None:
    model = checkpoint.load(packed).model
    before = outputs(model)
    lora.attach(model, EVERYWHERE, mx.random.key(0))
    assert "language.layers.0.mlp.down.scales" in checkpoint.parameters(model)
    assert all(mx.array_equal(a, b) for a, b in zip(before, outputs(model), strict=True))


def test_the_model_s_own_tensors_keep_their_names(base: Path) -> None:
    model = checkpoint.load(base).model
    before = set(checkpoint.parameters(model))
    lora.attach(model, EVERYWHERE, mx.random.key(0))
    assert checkpoint.parameters(model).keys() - lora.parameters(model).keys() == before


@pytest.mark.parametrize(
    ("patterns", "paths"),
    [
        (LoRASettings().patterns, r"language\.layers\.[01]\.(attention\.(qkv|out)|mlp\.(gate_up|down))"),
        ((r"language\.layers\.1\..*qkv",), r"language\.layers\.1\.attention\.qkv"),
        (
            ("projector", r"vision\.stages\.3"),
            r"projector\.fc[12]|vision\.stages\.3\..*(pointwise|qkv|proj|fc[12])",
        ),
    ],
)
def test_patterns_choose_matrices(base: Path, patterns: tuple[str, ...], paths: str) -> None:
    model = checkpoint.load(base).model
    matrices = lora._matrices(model)
    lora.attach(model, LoRASettings(patterns=patterns), mx.random.key(0))
    widened = {path for path, module in model.named_modules() if isinstance(module, lora.LoRALinear)}
    assert widened == {path for path in matrices if re.fullmatch(paths, path)} != set()


def test_by_default_the_decoder_s_attention_and_mlp_are_widened(base: Path) -> None:
    model = checkpoint.load(base).model
    lora.attach(model, LoRASettings(), mx.random.key(0))
    assert len(lora.parameters(model)) == 2 * 4 * 2  # pairs, matrices a layer, layers


def test_beside_a_matrix_is_the_scaled_product() -> None:
    layer = lora.LoRALinear(nn.Linear(6, 5), LoRASettings(2, 8.0))
    layer.lora_a, layer.lora_b = mx.random.normal((6, 2)), mx.random.normal((2, 5))
    x = mx.random.normal((3, 6))
    expected = x @ layer.weight.T + layer.bias + 4.0 * (x @ layer.lora_a @ layer.lora_b)
    assert mx.allclose(layer(x), expected, atol=1e-6)


def test_an_adapter_survives_the_disk(base: Path, tmp_path: Path) -> None:
    adapter = trained(base)
    lora.write(tmp_path / "adapter", adapter)
    lora.write(tmp_path / "adapter", adapter)  # over itself
    found = lora.read(tmp_path / "adapter")
    assert (found.base, found.settings) == (adapter.base, adapter.settings)
    assert found.weights.keys() == adapter.weights.keys()
    assert all(mx.array_equal(found.weights[name], array) for name, array in adapter.weights.items())
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapters.safetensors",
    ]


def attached(directory: Path, adapter: Adapter) -> FastVLM:
    model = checkpoint.load(directory).model
    lora.apply(model, adapter, adapter.paths)
    return model


def saved(directory: Path, adapter: Adapter, out: Path) -> Path:
    tokenizer = Tokenizer.load(directory)
    _, config, weights = read(directory, tokenizer)
    checkpoint.save(out, config, fused(config, weights, adapter), tokenizer, {})
    return out


def test_added_on_load_attached_and_fused_are_the_same(
    base: Path, tmp_path: Path, relative_error: Error
) -> None:
    adapter = trained(base)
    wanted = outputs(attached(base, adapter))
    plain = outputs(checkpoint.load(base).model)
    assert relative_error(plain[0], wanted[0]) > 1e-2
    lora.write(tmp_path / "adapter", adapter)
    loaded = fastvlm_mlx.load(base, adapter=tmp_path / "adapter").model
    assert not lora.parameters(loaded)
    for model in (loaded, checkpoint.load(saved(base, adapter, tmp_path / "fused")).model):
        for found, expected in zip(outputs(model), wanted, strict=True):
            assert relative_error(found, expected) < 1e-5


@pytest.mark.usefixtures("kept_packed")
def test_beside_packed_matrices_an_adapter_stays_apart_and_exact(
    packed: Path, tmp_path: Path, relative_error: Error
) -> None:
    adapter = trained(packed)
    lora.write(tmp_path / "adapter", adapter)
    model = fastvlm_mlx.load(packed, adapter=tmp_path / "adapter").model
    assert {name.rpartition(".")[0] for name in lora.parameters(model)} == {
        path for path in adapter.paths if path.startswith("language.")
    }
    for found, expected in zip(outputs(model), outputs(attached(packed, adapter)), strict=True):
        assert relative_error(found, expected) < 1e-5


def test_unpacked_for_the_cpu_an_adapter_is_added(
    packed: Path, tmp_path: Path, relative_error: Error
) -> None:
    adapter = trained(packed)
    lora.write(tmp_path / "adapter", adapter)
    model = fastvlm_mlx.load(packed, adapter=tmp_path / "adapter").model
    assert not lora.parameters(model)
    for found, expected in zip(outputs(model), outputs(attached(packed, adapter)), strict=True):
        assert relative_error(found, expected) < 1e-5


def test_fused_into_packed_matrices_they_are_packed_alike(
    packed: Path, tmp_path: Path, relative_error: Error
) -> None:
    adapter = trained(packed)
    out = saved(packed, adapter, tmp_path / "fused")
    before, after = (checkpoint.load(path) for path in (packed, out))
    assert after.quantization == before.quantization != {}
    (found, _), (expected, _) = outputs(after.model), outputs(attached(packed, adapter))
    assert relative_error(found, expected) < 0.03  # 8 bits round
    assert relative_error(outputs(before.model)[0], expected) > 0.1


def test_fused_weights_keep_their_types(base: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(base)
    _, config, weights = read(base, tokenizer)
    half = checkpoint.cast(weights, mx.bfloat16)
    config, half = (made := quantize(config, half, uniform(4), 32)).config, made.weights
    adapter = trained(base)
    new = fused(config, half, adapter)
    assert {n: (a.dtype, a.shape) for n, a in new.items()} == {n: (a.dtype, a.shape) for n, a in half.items()}
    assert list(new) == list(half)


def test_a_model_of_another_width_refuses_an_adapter(base: Path) -> None:
    adapter = trained(base)
    name = "language.layers.1.mlp.down.lora_a"
    wide = dataclasses.replace(adapter, weights={**adapter.weights, name: mx.zeros((100, 4))})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down of 100→64, .* has 192→64; .*the golden"):
        checkpoint.load(base, adapter=wide)
