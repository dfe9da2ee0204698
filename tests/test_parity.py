"""Every checkpoint layout, and every way its files are found in the wild, gives the reference's numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import LAYOUT_OF, PACKINGS, VARIANTS, build, golden, stored

import fastvlm_mlx
from fastvlm_mlx import VLM, Picture, Prompt, Text, kernels
from fastvlm_mlx.convert.read.translate import translate
from fastvlm_mlx.errors import CheckpointError
from fastvlm_mlx.kernels import activation
from fastvlm_mlx.kernels.candidates import Candidate, Problem, able, device
from fastvlm_mlx.models.fastvlm import FastVLM
from fastvlm_mlx.weights import checkpoint

Array = np.ndarray
Numbers = dict[str, Array]
VLMOf = Callable[[str], VLM]
ErrorOf = Callable[[Any, Any], float]

NAMES = [*LAYOUT_OF, *VARIANTS]
GOLD_OF = dict.fromkeys(LAYOUT_OF, "untied") | {name: variant.gold for name, variant in VARIANTS.items()}
FLOAT32 = [name for name in NAMES if GOLD_OF[name] in ("untied", "tied")]
TIED = [name for name in NAMES if GOLD_OF[name] == "tied"]
TOWER, LOGITS = 2e-5, 5e-5

STAGE_OF = {
    "stem": "patch_embed",
    "stages.0.blocks": "network.0",
    "stages.1.downsample": "network.1",
    "stages.1.blocks": "network.2",
    "stages.2.downsample": "network.3",
    "stages.2.blocks": "network.4",
    "stages.3.downsample": "network.5",
    "stages.3.position": "network.6",
    "stages.3.blocks": "network.7",
    "stages.4.downsample": "network.8",
    "stages.4.position": "network.9",
    "stages.4.blocks": "network.10",
    "expand": "conv_exp",
}
ASKED = {  # run -> (the question as a user types it, its pictures, its rendered prompt in golden.json)
    "one.A": ("Describe the image.", "A", "one"),
    "one.B": ("Describe the image.", "B", "one"),
    "middle.A": ("Look at this: <image> now count the dogs.", "A", "middle"),
    "two.AC": ("What is the difference, and which is better?", "AC", "two"),
    "text": ("What are these? Répondez, 请回答 3+4=7!", "", "text"),
}


def each(names: Sequence[str], inputs: Sequence[str], one: str) -> list[tuple[str, str]]:
    """Golden checkpoints with every input. Variants, which differ in how files are written, with one."""
    return [(name, given) for name in names for given in (inputs if name in LAYOUT_OF else [one])]


@pytest.fixture(scope="module")
def prompt_of(pixels: dict[str, mx.array]) -> Callable[[VLM, str], Prompt]:
    def prompt(vlm: VLM, run: str) -> Prompt:
        text, pictures, _ = ASKED[run]
        return vlm.prompt(text, images=[pixels[name] for name in pictures])

    return prompt


class Qwen2InFloat64:
    """The decoder once more, in numpy, by the paper's formulas: what tied variants are held against."""

    def __init__(self, weights: dict[str, mx.array], tied: bool):
        self.weights = {k: np.array(v, np.float64) for k, v in weights.items() if "tower" not in k}
        self.embedding = self.weights["model.embed_tokens.weight"]
        self.head = self.embedding if tied else self.weights["lm_head.weight"]

    def logits(self, rows: Array, layers: int = 2, heads: int = 4, kv_heads: int = 2) -> Array:
        weights, (length, width) = self.weights, rows.shape
        dim = width // heads
        angles = np.arange(length)[:, None] * 1e6 ** (-np.arange(0, dim, 2) / dim)
        cos, sin = np.cos(angles), np.sin(angles)

        def norm(x: Array, name: str) -> Array:
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weights[f"{name}.weight"]

        def linear(x: Array, name: str) -> Array:
            return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

        def split(x: Array) -> Array:  # (L, heads · dim) -> (heads, L, dim)
            return x.reshape(length, -1, dim).transpose(1, 0, 2)

        def turned(x: Array) -> Array:
            first, second = x[..., : dim // 2], x[..., dim // 2 :]
            return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

        x = rows.astype(np.float64)
        for layer in (f"model.layers.{index}" for index in range(layers)):
            h = norm(x, f"{layer}.input_layernorm")
            q, k, v = (split(linear(h, f"{layer}.self_attn.{n}_proj")) for n in "qkv")
            k, v = (np.repeat(part, heads // kv_heads, axis=0) for part in (turned(k), v))
            scores = turned(q) @ k.transpose(0, 2, 1) / dim**0.5
            scores[:, np.triu(np.ones((length, length), bool), 1)] = -np.inf
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (scores / scores.sum(-1, keepdims=True)) @ v
            x = x + linear(mixed.transpose(1, 0, 2).reshape(length, width), f"{layer}.self_attn.o_proj")
            h = norm(x, f"{layer}.post_attention_layernorm")
            gate = linear(h, f"{layer}.mlp.gate_proj")
            x = x + linear(
                gate / (1 + np.exp(-gate)) * linear(h, f"{layer}.mlp.up_proj"), f"{layer}.mlp.down_proj"
            )
        return norm(x, "model.norm") @ self.head.T

    def greedy(self, rows: Array, tokens: int) -> list[int]:
        said: list[int] = []
        for _ in range(tokens):
            said.append(int(self.logits(rows)[-1, :483].argmax()))  # 483 tokens, 512 rows
            rows = np.concatenate([rows, self.embedding[said[-1:]]])
        return said


@pytest.fixture(scope="module")
def decoders() -> dict[str, Qwen2InFloat64]:
    weights = stored(golden("apple-fused"))
    return {gold: Qwen2InFloat64(weights, tied=gold == "tied") for gold in ("untied", "tied")}


@pytest.fixture(scope="module")
def tied_logits(decoders: dict[str, Qwen2InFloat64], numbers: Numbers) -> Numbers:
    return {run: decoders["tied"].logits(numbers[f"{run}.embeds"][0]) for run in ASKED}


@pytest.mark.parametrize("run", ASKED)
def test_the_float64_decoder_gives_the_references_logits(
    run: str, decoders: dict[str, Qwen2InFloat64], numbers: Numbers, relative_error: ErrorOf
) -> None:
    found = decoders["untied"].logits(numbers[f"{run}.embeds"][0])
    assert relative_error(found, numbers[f"{run}.logits"][0]) < LOGITS


# --- every golden checkpoint and every variant ---


@pytest.mark.parametrize("name", NAMES)
def test_layout_picture_size_head_and_prompt_ids_are_the_references(
    name: str, vlm_of: VLMOf, prompt_of: Callable[[VLM, str], Prompt], gold: dict[str, Any]
) -> None:
    vlm = vlm_of(name)
    assert vlm.layout == (LAYOUT_OF.get(name) or VARIANTS[name].layout)
    assert vlm.config.image.size == 256
    assert vlm.config.text.tied is (name in TIED)
    for run, (_, _, rendered) in ASKED.items():
        parts = [part.ids if isinstance(part, Text) else (-200,) for part in prompt_of(vlm, run)]
        assert [id for ids in parts for id in ids] == gold["ids"][rendered], run


@pytest.mark.parametrize("picture", "AB")
@pytest.mark.parametrize("name", LAYOUT_OF)
def test_every_vision_stage_equals_the_reference(
    name: str,
    picture: str,
    vlm_of: VLMOf,
    pixels: dict[str, mx.array],
    numbers: Numbers,
    relative_error: ErrorOf,
) -> None:
    trace = dict(vlm_of(name).model.vision.trace(pixels[picture]))
    assert list(trace) == list(STAGE_OF)
    errors = {
        stage: relative_error(x.transpose(0, 3, 1, 2), numbers[f"{picture}.{STAGE_OF[stage]}"])
        for stage, x in trace.items()
    }
    assert max(errors.values()) <= TOWER, errors


@pytest.mark.parametrize(("name", "picture"), each(FLOAT32, "ABC", "A"))
def test_features_and_projected_rows_equal_the_reference(
    name: str,
    picture: str,
    vlm_of: VLMOf,
    pixels: dict[str, mx.array],
    numbers: Numbers,
    relative_error: ErrorOf,
) -> None:
    vlm, x = vlm_of(name), pixels[picture]
    assert relative_error(vlm.vision(x).flatten(1, 2), numbers[f"{picture}.features"]) <= TOWER
    assert relative_error(vlm.encode_image(x), numbers[f"{picture}.projector"]) <= TOWER


@pytest.mark.parametrize("place", [0, 1, 2, 3], ids=lambda place: f"candidate {place}")
def test_features_equal_the_reference_whatever_is_chosen(
    place: int,
    directory_of: Callable[[str], Path],
    pixels: dict[str, mx.array],
    numbers: Numbers,
    relative_error: ErrorOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def chosen(problem: Problem, dtype: mx.Dtype) -> Candidate:
        there = able(problem, device(), dtype)
        return there[min(place, len(there) - 1)]

    for module in (kernels, activation):
        monkeypatch.setattr(module, "choose", chosen)
    vlm = fastvlm_mlx.load(directory_of("apple-fused"), dtype="float32")
    for picture in "ABC":
        features = vlm.vision(pixels[picture]).flatten(1, 2)
        assert relative_error(features, numbers[f"{picture}.features"]) <= TOWER, picture


@pytest.mark.parametrize(("name", "run"), each(FLOAT32, list(ASKED), "two.AC"))
def test_logits_equal_the_reference(
    name: str,
    run: str,
    vlm_of: VLMOf,
    prompt_of: Callable[[VLM, str], Prompt],
    numbers: Numbers,
    tied_logits: Numbers,
    relative_error: ErrorOf,
) -> None:
    vlm = vlm_of(name)
    expected = tied_logits[run] if name in TIED else numbers[f"{run}.logits"][0]
    found = vlm.logits(prompt_of(vlm, run))
    assert relative_error(found[:, :512], expected) <= LOGITS  # transformers pads to 576 rows


@pytest.mark.parametrize(
    ("name", "run"), each([name for name in FLOAT32 if name not in TIED], list(ASKED), "two.AC")
)
def test_greedy_tokens_are_the_references(
    name: str, run: str, vlm_of: VLMOf, prompt_of: Callable[[VLM, str], Prompt], gold: dict[str, Any]
) -> None:
    vlm = vlm_of(name)
    answer = vlm.generate(prompt_of(vlm, run), max_tokens=12)
    assert list(answer.ids) == gold["greedy"]["untied.fused32"][run]["tokens"]


@pytest.mark.parametrize("run", ASKED)
def test_greedy_tokens_of_a_tied_head_are_the_float64_decoders(
    run: str,
    vlm_of: VLMOf,
    prompt_of: Callable[[VLM, str], Prompt],
    decoders: dict[str, Qwen2InFloat64],
    numbers: Numbers,
) -> None:
    expected = decoders["tied"].greedy(numbers[f"{run}.embeds"][0], 6)
    stop = next((i for i, id in enumerate(expected) if id in (480, 482)), 6)
    for name in TIED if run == "two.AC" else TIED[:1]:
        vlm = vlm_of(name)
        assert list(vlm.generate(prompt_of(vlm, run), max_tokens=6).ids) == expected[:stop], name


@pytest.mark.parametrize("name", NAMES)
def test_a_converted_checkpoint_computes_what_its_source_does(
    name: str, vlm_of: VLMOf, prompt_of: Callable[[VLM, str], Prompt]
) -> None:
    source, converted = vlm_of(name), vlm_of(f"{name}, converted")
    assert (converted.layout, converted.config.image) == ("fastvlm-mlx", source.config.image)
    assert converted.config.eos_token_ids == source.config.eos_token_ids
    assert converted.tokenizer.encode("<|im_start|>naïve 🐕‍🦺") == source.tokenizer.encode(
        "<|im_start|>naïve 🐕‍🦺"
    )
    for run in ("one.B", "two.AC"):
        both = [vlm.logits(prompt_of(vlm, run)) for vlm in (source, converted)]
        assert mx.array_equal(*both), run


# --- batches ---


@pytest.mark.parametrize("name", LAYOUT_OF)
def test_a_batch_of_pictures_equals_one_by_one(
    name: str, vlm_of: VLMOf, pixels: dict[str, mx.array], relative_error: ErrorOf
) -> None:
    vlm, both = vlm_of(name), mx.concatenate([pixels["A"], pixels["C"]])
    for encode in (vlm.vision, vlm.encode_image):
        alone = mx.concatenate([encode(pixels["A"]), encode(pixels["C"])])
        assert relative_error(encode(both), alone) <= 5e-6


@pytest.mark.parametrize("name", LAYOUT_OF)
def test_embedded_rows_equal_the_references_batch(
    name: str, vlm_of: VLMOf, pixels: dict[str, mx.array], numbers: Numbers, relative_error: ErrorOf
) -> None:
    for row, picture in enumerate("AC"):
        ids = numbers["batch.ids"][row][numbers["batch.inmask"][row].astype(bool)].tolist()
        at = ids.index(-200)
        prompt = (Text(tuple(ids[:at])), Picture(pixels[picture]), Text(tuple(ids[at + 1 :])))
        expected = numbers["batch.embeds"][row][numbers["batch.mask"][row].astype(bool)]
        assert relative_error(vlm_of(name).model.embed(prompt)[0], expected) <= TOWER


def test_a_padded_batch_of_prompts_equals_one_by_one(
    vlm_of: VLMOf, numbers: Numbers, relative_error: ErrorOf
) -> None:
    language = vlm_of("apple-fused").model.language
    rows = mx.array(numbers["batch.embeds"])  # the first is padded on the right, which causal rows never see
    together = language.logits(language(rows, language.new_caches()))
    assert relative_error(together[0, :68], numbers["one.A.logits"][0]) <= LOGITS
    alone = language.logits(language(rows[1:], language.new_caches()))
    assert relative_error(together[1], alone[0]) <= LOGITS


# --- narrow types and quantized weights ---


@pytest.mark.parametrize("picture", "ABC")
def test_bf16_weights_give_the_references_features(
    picture: str, vlm_of: VLMOf, pixels: dict[str, mx.array], numbers: Numbers, relative_error: ErrorOf
) -> None:
    features = vlm_of("bf16-in-shards").vision(pixels[picture]).flatten(1, 2)
    assert relative_error(features, numbers[f"bf16w.{picture}.features"]) <= TOWER


def test_bf16_weights_give_the_references_projected_rows(
    vlm_of: VLMOf, pixels: dict[str, mx.array], numbers: Numbers, relative_error: ErrorOf
) -> None:
    rows = vlm_of("bf16-in-shards").encode_image(pixels["A"])
    assert relative_error(rows, numbers["bf16w.A.projector"]) <= TOWER


@pytest.mark.parametrize("run", ["one.A", "one.B", "two.AC", "text"])
def test_bf16_weights_give_the_references_logits(
    run: str,
    vlm_of: VLMOf,
    prompt_of: Callable[[VLM, str], Prompt],
    numbers: Numbers,
    gold: dict[str, Any],
    relative_error: ErrorOf,
) -> None:
    # Rounded weights make a less well conditioned function: the reference's own float32 is 2.2e-5 from its
    # float64 on two of these, so what was measured there is allowed on top.
    measured = gold["tolerance"]["untied"][f"{run}.logits"]
    allowed = LOGITS + measured["bf16w32_vs_bf16w64"] / measured["absmax"]
    vlm = vlm_of("bf16-in-shards")
    assert relative_error(vlm.logits(prompt_of(vlm, run)), numbers[f"bf16w.{run}.logits"][0]) <= allowed


@pytest.mark.parametrize("name", [name for name in NAMES if GOLD_OF[name] in ("fp16", "quantized")])
def test_narrow_weights_compute_as_the_float32_weights_they_stand_for(
    name: str,
    vlm_of: VLMOf,
    prompt_of: Callable[[VLM, str], Prompt],
    tmp_path: Any,
    relative_error: ErrorOf,
) -> None:
    variant = VARIANTS[name]
    if name in PACKINGS:
        twin = PACKINGS[name].dense_twin()
    else:
        twin = dataclasses.replace(
            variant,
            weights=lambda weights: {k: v.astype(mx.float32) for k, v in variant.weights(weights).items()},
        )
    dense = fastvlm_mlx.load(build(twin, tmp_path / "twin"), dtype="float32")
    vlm = vlm_of(name)
    for run in ASKED:
        expected = dense.logits(prompt_of(dense, run))
        assert relative_error(vlm.logits(prompt_of(vlm, run)), expected) <= 1e-5, run


def test_fp16_weights_stay_near_the_reference(
    vlm_of: VLMOf,
    prompt_of: Callable[[VLM, str], Prompt],
    numbers: Numbers,
    relative_error: ErrorOf,
) -> None:
    vlm = vlm_of("fp16")
    for run in ASKED:
        assert relative_error(vlm.logits(prompt_of(vlm, run)), numbers[f"{run}.logits"][0]) <= 0.05


@pytest.mark.parametrize("name", PACKINGS)
def test_packed_matrices_stay_packed_unless_joined_with_other_bits(name: str, directory_of: Any) -> None:
    packing, translated = PACKINGS[name], translate(directory_of(name))
    mixed = bool(packing.wide)
    expected = {
        "projector.fc1": packing.bits,
        "projector.fc2": packing.bits,
        "language.embedding": packing.bits,
        "language.head": packing.bits,
    }
    for layer in ("language.layers.0", "language.layers.1"):
        expected |= {f"{layer}.attention.qkv": packing.bits} if not mixed else {}
        expected |= {f"{layer}.attention.out": packing.bits, f"{layer}.mlp.gate_up": packing.bits}
        expected |= {f"{layer}.mlp.down": 8 if mixed else packing.bits}
    found = translated.config.quantization
    assert {path: how.bits for path, how in found.items()} == expected
    assert {how.group_size for how in found.values()} == {packing.group_size}


@pytest.mark.parametrize("name", PACKINGS)
def test_products_of_packed_matrices_equal_dense_ones(
    name: str,
    vlm_of: VLMOf,
    directory_of: Any,
    prompt_of: Callable[[VLM, str], Prompt],
    relative_error: ErrorOf,
) -> None:
    translated = translate(directory_of(name))
    model = FastVLM(translated.config)  # not through `load`, which unpacks on the CPU
    model.load_weights(list(checkpoint.cast(translated.weights, mx.float32).items()))
    vlm = vlm_of(name)
    prompt = prompt_of(vlm, "two.AC")
    found = model.language.logits(model.language(model.embed(prompt), model.language.new_caches()))
    assert relative_error(found[0], vlm.logits(prompt)) <= LOGITS


def test_an_export_for_apples_app_is_refused_with_the_repair() -> None:
    with pytest.raises(CheckpointError, match=r"vision tower is a Core ML package.*apple/FastVLM-0\.5B"):
        fastvlm_mlx.load(golden("apple-mlx-export-fp16"))
