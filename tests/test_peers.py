"""The real mlx-lm and mlx-vlm, on the same weights, say the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import peers
import pytest
from checkpoints import LAYOUT_OF, PACKINGS, Config, Weights, golden, stored
from mlx.utils import tree_flatten

from fastvlm_mlx import VLM, Text, load
from fastvlm_mlx.config import TextConfig
from fastvlm_mlx.convert.export.swift import export
from fastvlm_mlx.models.qwen2 import Qwen2
from fastvlm_mlx.weights import hub

ErrorOf = Callable[[Any, Any], float]


@pytest.fixture(scope="module")
def peer() -> Iterator[Callable[[str], ModuleType]]:
    """Import a peer's module without running the `__init__` of the packages around it."""
    before = set(sys.modules)

    def load(module: str) -> ModuleType:
        package = module.partition(".")[0]
        if not peers.installed(package):  # for people who run the tests without `make`
            pytest.skip(f"pip install --no-deps {package.replace('_', '-')}")
        return peers.load(module)

    yield load
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("mlx_lm", "mlx_vlm"):
            del sys.modules[name]


# --- mlx-lm's Qwen2 ---


@dataclass(frozen=True)
class Pair:
    ours: Qwen2
    theirs: Any
    new_caches: Callable[[], list[Any]]


# (hidden size, heads, key-value heads, tied)
DECODERS = {
    "every head its own keys": (64, 4, 4, False),
    "two queries a key": (64, 4, 2, False),
    "seven queries a key, as 0.5B": (448, 14, 2, True),
    "one key for all": (64, 4, 1, True),
}


@pytest.fixture(scope="module", params=DECODERS, ids=lambda name: name.replace(" ", "-"))
def pair(request: pytest.FixtureRequest, peer: Callable[[str], ModuleType]) -> Pair:
    width, heads, kv_heads, tied = DECODERS[request.param]
    qwen2, cache = peer("mlx_lm.models.qwen2"), peer("mlx_lm.models.cache")
    theirs = qwen2.Model(
        qwen2.ModelArgs(
            model_type="qwen2",
            hidden_size=width,
            num_hidden_layers=3,
            intermediate_size=160,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            rms_norm_eps=1e-6,
            vocab_size=200,
            rope_theta=1e6,
            tie_word_embeddings=tied,
        )
    )
    keys = iter(mx.random.split(mx.random.key(len(request.param)), 100))
    weights = {
        name: mx.random.normal(array.shape, key=next(keys)) * (1.0 if array.ndim == 1 else 2 / width**0.5)
        for name, array in tree_flatten(theirs.parameters())
    }
    theirs.load_weights(list(weights.items()))
    ours = Qwen2(TextConfig(width, 3, heads, kv_heads, 160, 200, tied=tied))
    ours.load_weights(list(joined(weights).items()))
    return Pair(ours, theirs, lambda: cache.make_prompt_cache(theirs))


def joined(theirs: Weights) -> Weights:
    ours = {
        "embedding.weight": theirs["model.embed_tokens.weight"],
        "norm.weight": theirs["model.norm.weight"],
    }
    if "lm_head.weight" in theirs:
        ours["head.weight"] = theirs["lm_head.weight"]
    for index in range(3):
        layer, theirs_at = f"layers.{index}", f"model.layers.{index}"
        attention, mlp = f"{theirs_at}.self_attn", f"{theirs_at}.mlp"
        for part in ("weight", "bias"):
            rows = [theirs[f"{attention}.{x}_proj.{part}"] for x in "qkv"]
            ours[f"{layer}.attention.qkv.{part}"] = mx.concatenate(rows)
        ours[f"{layer}.attention.out.weight"] = theirs[f"{attention}.o_proj.weight"]
        rows = [theirs[f"{mlp}.{x}_proj.weight"] for x in ("gate", "up")]
        ours[f"{layer}.mlp.gate_up.weight"] = mx.concatenate(rows)
        ours[f"{layer}.mlp.down.weight"] = theirs[f"{mlp}.down_proj.weight"]
        ours[f"{layer}.attention_norm.weight"] = theirs[f"{theirs_at}.input_layernorm.weight"]
        ours[f"{layer}.mlp_norm.weight"] = theirs[f"{theirs_at}.post_attention_layernorm.weight"]
    return ours


# how a prompt of 30 ids is fed, piece by piece
PIECES = {
    "at once": [30],
    "then one by one": [22, *[1] * 8],
    "one by one from the start": [1] * 30,
    "in chunks": [7, 16, 1, 6],
}


@pytest.mark.parametrize("pieces", PIECES.values(), ids=[name.replace(" ", "-") for name in PIECES])
def test_qwen2_equals_mlx_lms(pieces: list[int], pair: Pair, relative_error: ErrorOf) -> None:
    ids = mx.random.randint(0, 200, (2, 30), key=mx.random.key(5))
    ours, theirs = pair.ours.new_caches(), pair.new_caches()
    start = 0
    for length in pieces:
        piece = ids[:, start : start + length]
        found = pair.ours.logits(pair.ours(pair.ours.embedding(piece), ours))
        assert relative_error(found, pair.theirs(piece, theirs)) <= 2e-5, start
        start += length
    assert start == 30


# --- mlx-vlm's FastVLM ---


def reduced(peer: Callable[[str], ModuleType], config: Config) -> Any:
    """mlx-vlm's model in the goldens' size: what config.json cannot tell its VisionConfig is set on it."""
    configs = peer("mlx_vlm.models.fastvlm.config")
    configs.VisionConfig.layers = config["vision_config"]["layers"]
    configs.VisionConfig.embed_dims = config["vision_config"]["embed_dims"]
    configs.VisionConfig.mlp_ratios = config["vision_config"]["mlp_ratios"]
    parsed = configs.ModelConfig.from_dict(config)
    parsed.text_config = configs.TextConfig.from_dict(parsed.text_config)
    parsed.vision_config = configs.VisionConfig.from_dict(parsed.vision_config)
    return peer("mlx_vlm.models.fastvlm.fastvlm").Model(parsed)


def filled(model: Any, weights: Weights) -> Any:
    weights = model.language_model.sanitize(model.vision_tower.sanitize(model.sanitize(weights)))
    model.load_weights(list(weights.items()))
    model.eval()  # BatchNorm by its stored statistics
    return model


@pytest.fixture(scope="module")
def mlx_vlm(peer: Callable[[str], ModuleType]) -> Any:
    directory = golden("mlx-vlm-f32")
    config = json.loads((directory / "config.json").read_text())
    return filled(reduced(peer, config), stored(directory))


@pytest.fixture
def ours(vlm_of: Callable[[str], VLM]) -> VLM:
    return vlm_of("mlx-vlm-f32")


@pytest.mark.parametrize("picture", "ABC")
def test_features_equal_mlx_vlms(
    picture: str, ours: VLM, mlx_vlm: Any, pixels: dict[str, mx.array], relative_error: ErrorOf
) -> None:
    _, features, _ = mlx_vlm.vision_tower(pixels[picture])
    assert relative_error(ours.vision(pixels[picture]), features) <= 2e-5
    projected = mlx_vlm.mm_projector(features.flatten(1, 2))
    assert relative_error(ours.encode_image(pixels[picture]), projected) <= 2e-5


@pytest.mark.parametrize(("height", "width"), [(128, 192), (320, 128), (64, 448)])
def test_features_of_any_shape_equal_mlx_vlms(
    height: int, width: int, ours: VLM, mlx_vlm: Any, relative_error: ErrorOf
) -> None:
    pixels = mx.random.uniform(shape=(1, height, width, 3), key=mx.random.key(height))
    _, features, _ = mlx_vlm.vision_tower(pixels)
    assert features.shape[1:3] == (height // 64, width // 64)
    assert relative_error(ours.vision(pixels), features) <= 2e-5


def test_every_stage_equals_mlx_vlms(
    ours: VLM, mlx_vlm: Any, pixels: dict[str, mx.array], relative_error: ErrorOf
) -> None:
    _, features, states = mlx_vlm.vision_tower(pixels["B"], output_hidden_states=True)
    trace = list(ours.model.vision.trace(pixels["B"]))
    for (name, found), theirs in zip(trace, [*states, features], strict=True):
        assert relative_error(found, theirs) <= 2e-5, name


def their_logits(model: Any, prompt: Any) -> mx.array:
    """One picture at most: with two, mlx-vlm puts the second one row late."""
    ids = [id for part in prompt for id in (part.ids if isinstance(part, Text) else (-200,))]
    pictures = [part.pixels for part in prompt if not isinstance(part, Text)]
    pixels = mx.concatenate(pictures).transpose(0, 3, 1, 2) if pictures else None
    return model(mx.array([ids]), pixels, None).logits[0]


QUESTIONS = {
    "picture first": ("Describe the image.", "A"),
    "wide picture": ("Describe the image.", "B"),
    "picture in the middle": ("Look at this: <image> now count the dogs.", "C"),
    "no picture": ("What are these?", ""),
}


@pytest.mark.parametrize(
    ("text", "pictures"), QUESTIONS.values(), ids=[q.replace(" ", "-") for q in QUESTIONS]
)
def test_logits_equal_mlx_vlms(
    text: str, pictures: str, ours: VLM, mlx_vlm: Any, pixels: dict[str, mx.array], relative_error: ErrorOf
) -> None:
    prompt = ours.prompt(text, images=[pixels[name] for name in pictures])
    assert relative_error(ours.logits(prompt), their_logits(mlx_vlm, prompt)) <= 5e-5


@pytest.mark.parametrize("name", PACKINGS)
def test_logits_of_a_quantized_checkpoint_equal_mlx_vlms(
    name: str,
    peer: Callable[[str], ModuleType],
    vlm_of: Callable[[str], VLM],
    directory_of: Callable[[str], Any],
    pixels: dict[str, mx.array],
    relative_error: ErrorOf,
) -> None:
    config = json.loads((directory_of(name) / "config.json").read_text())
    weights = stored(directory_of(name))
    theirs = reduced(peer, config)

    def how(path: str, _: nn.Module) -> Any:  # as mlx-vlm decides when it loads
        return f"{path}.scales" in weights and config["quantization"].get(path, True)

    nn.quantize(
        theirs, config["quantization"]["group_size"], config["quantization"]["bits"], class_predicate=how
    )
    theirs, ours = filled(theirs, weights), vlm_of(name)
    prompt = ours.prompt("Describe the image.", images=[pixels["A"]])
    assert relative_error(ours.logits(prompt), their_logits(theirs, prompt)) <= 5e-5


# --- what we export for mlx-swift-lm and mlx-vlm ---


NEW = 8  # tokens


def their_greedy(model: Any, prompt: Any, size: int) -> list[int]:
    """Token after token, everything before it read anew; rows beyond `size` are padding."""
    said: list[int] = []
    for _ in range(NEW):
        asked = (*prompt, Text(tuple(said))) if said else prompt
        said.append(int(their_logits(model, asked)[-1, :size].argmax().item()))
    return said


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("name", [*LAYOUT_OF, "apple-train, converted", "tied", "tiny"])
def test_an_export_gives_our_logits_and_tokens_in_mlx_vlm(
    name: str,
    bits: int | None,
    peer: Callable[[str], ModuleType],
    directory_of: Callable[[str], Path],
    pixels: dict[str, mx.array],
    relative_error: ErrorOf,
    tmp_path: Path,
) -> None:
    source = hub.BUILT_IN.get(name) or directory_of(name)
    out = export(source, tmp_path / "out", bits=bits, dtype=mx.float32).destination
    config, weights = json.loads((out / "config.json").read_text()), stored(out)
    theirs = reduced(peer, config)
    if bits:

        def how(path: str, _: nn.Module) -> bool:
            return f"{path}.scales" in weights

        nn.quantize(theirs, config["quantization"]["group_size"], bits, class_predicate=how)
    theirs, ours = filled(theirs, weights), load(out, dtype="float32")
    prompt = ours.prompt("Describe the image.", images=[pixels["A"]])
    expected, found = ours.logits(prompt), their_logits(theirs, prompt)
    assert relative_error(found, expected) <= 5e-5
    assert mx.array_equal(found.argmax(-1), expected.argmax(-1))
    answer = ours.generate(prompt, max_tokens=NEW)

    assert their_greedy(theirs, prompt, ours.tokenizer.size)[: len(answer.ids)] == list(answer.ids)
