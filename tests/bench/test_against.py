"""Rival encoders: their true sizes, their token counts, and what is told of the comparison."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from command import MODEL, Run
from mlx.utils import tree_flatten

from fastvlm_mlx.bench import against, rivals, untrained
from fastvlm_mlx.bench.against import CLAIMS, OURS, Contender, Pair
from fastvlm_mlx.bench.measure import Case, measure, picture
from fastvlm_mlx.bench.rivals import RIVALS, AnyRes, ConvNeXt, ConvNeXtConfig, FastViT, ViT, ViTConfig
from fastvlm_mlx.config import ModelConfig, TextConfig, VisionConfig

TINY = ModelConfig(
    VisionConfig((1, 1, 1, 1, 1), (8, 16, 32, 64, 128)), TextConfig(64, 2, 4, 2, 96, 512, tied=True)
)
SMALL = {  # the same architectures, narrow
    "vit-l-14@336": (lambda: ViT(ViTConfig(2, 32, 2, 48)), 32),
    "siglip-so400m@384": (lambda: ViT(ViTConfig(2, 32, 2, 48)), 32),
    "convnext-l": (lambda: ConvNeXt(ConvNeXtConfig((1, 1, 2, 1), (8, 16, 24, 32))), 32),
    "convnext-xxl": (lambda: ConvNeXt(ConvNeXtConfig((1, 1, 2, 1), (8, 16, 24, 32))), 32),
    "fastvit": (lambda: FastViT(VisionConfig((1, 1, 1, 1, 1), (8, 16, 32, 64, 128), mlp_ratio=3)), 128),
    "llava-onevision": (lambda: AnyRes(ViT(ViTConfig(1, 32, 2, 48))), 32),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = {name: replace(RIVALS[name], encoder=encoder, dim=dim) for name, (encoder, dim) in SMALL.items()}
    for name, rival in narrow.items():
        monkeypatch.setitem(RIVALS, name, rival)


@pytest.mark.parametrize(
    ("name", "millions"),  # as published, with heads and class tokens that are left out here
    [
        ("vit-l-14@336", 304),
        ("siglip-so400m@384", 428),
        ("convnext-l", 198),
        ("convnext-xxl", 846),
        ("fastvit", 35.7),
        ("llava-onevision", 428),
    ],
)
def test_encoders_have_true_sizes(name: str, millions: float) -> None:
    arrays = tree_flatten(RIVALS[name].encoder().parameters())  # lazy: nothing is allocated
    assert sum(array.size for _, array in arrays) / 1e6 == pytest.approx(millions, rel=0.04)


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [
        ("vit-l-14@336", 384, 576),  # read at 336
        ("vit-l-14@336", 768, 2304),
        ("vit-l-14@336", 1024, 4096),
        ("siglip-so400m@384", 384, 729),
        ("convnext-l", 768, 576),
        ("convnext-xxl", 512, 256),
        ("fastvit", 256, 64),
        ("fastvit", 768, 576),
        ("llava-onevision", 1152, 7290),
    ],
)
def test_token_counts_are_the_published_ones(name: str, size: int, tokens: int) -> None:
    assert RIVALS[name].tokens(size) == tokens


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.usefixtures("small")
def test_an_encoder_makes_as_many_tokens_as_it_says(name: str) -> None:
    rival = RIVALS[name]
    encoder = rival.encoder()
    untrained.fill(encoder, mx.float32)
    size = max(rival.multiple, 128)
    side = rival.side(size)
    features = encoder(mx.random.uniform(shape=(1, side, side, 3)))
    assert features.flatten(1, 2).shape == (1, rival.tokens(size), rival.dim)
    assert bool(mx.isfinite(features).all())


def test_a_transformer_block_is_what_mlx_makes_of_the_same_weights() -> None:
    block = rivals.ViTBlock(ViTConfig(1, 32, 2, 48))
    untrained.fill(block, mx.float32)
    stock = nn.TransformerEncoderLayer(32, 2, 48, norm_first=True, activation=nn.gelu)
    stock.attention = nn.MultiHeadAttention(32, 2, bias=True)
    for name, (weight, bias) in zip(
        ("query_proj", "key_proj", "value_proj"),
        zip(mx.split(block.qkv.weight, 3), mx.split(block.qkv.bias, 3), strict=True),
        strict=True,
    ):
        stock.attention[name].weight, stock.attention[name].bias = weight, bias
    stock.attention.out_proj = block.proj
    stock.ln1, stock.ln2, stock.linear1, stock.linear2 = block.norm1, block.norm2, block.fc1, block.fc2
    x = mx.random.normal((2, 9, 32))
    assert np.allclose(np.array(block(x)), np.array(stock(x, None)), atol=1e-5)


def test_tiles_are_cut_in_reading_order_and_the_whole_comes_last() -> None:
    class Means(nn.Module):
        def __call__(self, tiles: mx.array) -> mx.array:
            return tiles.mean((1, 2), keepdims=True)

    pixels = mx.zeros((1, 768, 768, 3))
    pixels[:, :384, 384:] = 4.0
    assert AnyRes(Means())(pixels)[0, :, 0, 0].tolist() == [0, 4, 0, 0, 1]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", RIVALS)
def test_a_contender_is_timed_by_the_same_loop_before_the_same_language_model(name: str) -> None:
    ours = untrained.build(TINY, mx.float32)
    theirs = Contender(ours, RIVALS[name])
    size = RIVALS[name].multiple
    run = measure(theirs, picture(), Case(size, 1, asks=False), 2)
    assert theirs.model.language is ours.model.language
    assert (run.image_tokens, run.text_tokens) == (RIVALS[name].tokens(size), 0)
    assert min(run.vision_s, run.projector_s, run.prefill_s) > 0


def test_claims_are_of_pairs_that_are_measured_by_default() -> None:
    for claim in CLAIMS:
        assert (claim.size, claim.their_size) in RIVALS[claim.rival].pairs
    of = {
        claim.rival: RIVALS[claim.rival].tokens(claim.their_size) / (claim.size // 64) ** 2
        for claim in CLAIMS
        if claim.of == "tokens"
    }
    assert of == {claim.rival: claim.claimed for claim in CLAIMS if claim.of == "tokens"}


def test_claims_stand_beside_what_was_measured() -> None:
    pair = Pair("vit-l-14@336", 768, 384, 144, 576, 0.1, 0.2, 0.1, 0.5)
    [told] = against.claim_table([pair]).rows
    assert told[1:4] == ("time", "3.2×", "3.50×")
    assert against.claim_table([replace(pair, size=512)]).rows == []


def test_weights_are_counted_before_anything_is_made() -> None:
    assert against.weight_bytes(["fastvit", "convnext-l"], 2) == pytest.approx(2 * 231e6, rel=0.01)


@pytest.mark.usefixtures("small")
def test_against_tells_both_sides_and_the_claims(run: Run, tmp_path: Path) -> None:
    files = ("--json", tmp_path / "a.json", "--markdown", tmp_path / "a.md")
    done = run("bench", "-m", MODEL, "--against", "fastvit, convnext-l", "--sizes", 64, "--runs", 2, *files)
    assert (done.code, done.err) == (0, "")
    body = json.loads((tmp_path / "a.json").read_text())
    assert [(row["rival"], row["their_tokens"], row["token"]) for row in body["against"]] == [
        ("fastvit", 4, 4),
        ("convnext-l", 4, 4),
    ]
    assert {name: len(runs) for name, runs in body["runs"].items()} == {
        f"{OURS} 64": 2,
        "fastvit 64": 2,
        "convnext-l 64": 2,
    }
    assert "theirs ÷ ours" in done.out


@pytest.mark.usefixtures("small", "interrupted")
def test_interrupted_what_was_measured_is_kept_and_marked(run: Run, tmp_path: Path) -> None:
    names = ("--against", "fastvit", "--sizes", 64, "--json", tmp_path / "a.json")
    done = run("bench", "-m", MODEL, *names)
    assert done.code == 130
    body = json.loads((tmp_path / "a.json").read_text())
    assert (body["complete"], body["against"]) == (False, [])
    assert [len(runs) for runs in body["runs"].values()] == [1, 0]


def test_rivals_that_do_not_fit_are_refused_before_they_are_made(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastvlm_mlx.inference import allocator

    monkeypatch.setattr(allocator, "memory_bytes", lambda: 4 * 10**9)
    monkeypatch.setattr(untrained, "build", None)
    done = run("bench", "--random", "0.5b", "--against", "convnext-xxl")
    assert done.code == 1
    assert "for the encoders), but this machine has 4.00" in done.err
