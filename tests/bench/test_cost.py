"""Arithmetic of costs against the reference's counts and the model's own parameters."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from checkpoints import GOLDEN
from mlx.utils import tree_flatten

from fastvlm_mlx.bench import cost
from fastvlm_mlx.bench.variants import VARIANTS
from fastvlm_mlx.config import MultiScaleConfig, Quantization, TextConfig, VisionConfig
from fastvlm_mlx.models.fastvlm import FastVLM

INVENTORY = json.loads((GOLDEN / "real" / "inventory.json").read_text())
MACS = INVENTORY["macs"]
STAGE_OF = {
    "patch_embed": "stem",
    "network.0": "stages.0.blocks",
    "network.1": "stages.1.downsample",
    "network.2": "stages.1.blocks",
    "network.3": "stages.2.downsample",
    "network.4": "stages.2.blocks",
    "network.5": "stages.3.downsample",
    "network.6": "stages.3.position",
    "network.7": "stages.3.blocks",
    "network.8": "stages.4.downsample",
    "network.9": "stages.4.position",
    "network.10": "stages.4.blocks",
    "conv_exp": "expand",
}
KIND_OF = {
    "conv_1x1_or_dense": "dense",
    "conv_dw": "depthwise",
    "linear": "linear",
    "attention_qk_av": "attention",
}
SMALL = TextConfig(64, 3, 4, 2, 96, 512, tied=True)


@pytest.mark.parametrize("size", MACS)
def test_multiply_adds_of_every_stage_are_the_reference_s(size: str) -> None:
    stages = cost.vision(VisionConfig(), int(size))
    golden = {STAGE_OF[name]: counts for name, counts in MACS[size]["by_module"].items()}
    assert stages.keys() == golden.keys()
    for name, ops in stages.items():
        found: Counter[str] = Counter()
        for op in ops:
            found[op.kind] += op.macs
        assert found == {KIND_OF[kind]: n for kind, n in golden[name].items() if kind in KIND_OF}, name
    assert cost.total(op for ops in stages.values() for op in ops).macs == MACS[size]["total"]


@pytest.mark.parametrize(("size", "tokens"), [(256, 16), (512, 64), (768, 144), (1024, 256), (1536, 576)])
def test_tokens_are_the_reference_s(size: int, tokens: int) -> None:
    assert cost.tokens(size) == tokens == MACS[str(size)]["tokens"]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("tied", [True, False])
def test_weights_of_every_part_are_the_model_s_parameters(name: str, tied: bool) -> None:
    config = VARIANTS[name]
    config = replace(config, text=replace(config.text, tied=tied))
    model = FastVLM(config)  # lazy: nothing is allocated

    def parameters(path: str) -> int:
        flat = tree_flatten(model.parameters())
        return sum(array.size for key, array in flat if key.startswith(path))

    for stage, ops in cost.vision(config.vision, 1024).items():
        assert cost.total(ops).weights == parameters(f"vision.{stage}."), stage
    assert cost.total(cost.projector(config, 256)).weights == parameters("projector.")
    apart = 0 if tied else parameters("language.embedding.")  # a look-up, where the head is another matrix
    assert cost.total(cost.language(config.text, 1)).weights == parameters("language.") - apart
    kept = cost.held(config, 1024, 100, width=1)
    assert kept.tower + kept.language == parameters("")


def test_several_scales_cost_their_learned_pools_and_a_wider_projector() -> None:
    plain = VARIANTS["0.5b"]
    stages = (2, 3, 4)
    costs = {}
    for pooling in ("average", "depthwise"):
        vision = replace(plain.vision, multi_scale=MultiScaleConfig(stages, pooling))
        config = replace(plain, vision=vision)
        flat = tree_flatten(FastVLM(config).parameters())
        found = cost.held(config, 1024, 100, width=1)
        assert found.tower + found.language == sum(array.size for _, array in flat)
        costs[pooling] = cost.total(cost.vision(vision, 1024)["multi_scale"])
        wider = sum(vision.dims[stage - 1] for stage in stages)
        more = cost.total(cost.projector(config, 256)).macs - cost.total(cost.projector(plain, 256)).macs
        assert more == 256 * wider * plain.text.hidden_size
    values = 192 * 128**2 + 384 * 64**2 + 768 * 32**2  # each of them is multiplied once
    assert (costs["average"].macs, costs["depthwise"].macs) == (0, values)
    assert (costs["average"].weights, costs["depthwise"].weights) == (0, 192 * 64 + 384 * 16 + 768 * 4)
    joined = 2 * 256 * (192 + 384 + 768 + 3072)  # read and written once more to stand together
    assert costs["average"].moved == values + 256 * (192 + 384 + 768) + joined


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_those_of_the_released_tensors(name: str) -> None:
    listed, text = INVENTORY["models"][name], VARIANTS[name].text
    found = (text.hidden_size, text.layers, text.heads, text.kv_heads, text.intermediate_size)
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    assert (*found, text.vocab_size) == tuple(
        listed["config"][key] for key in (*sizes, "intermediate_size", "vocab_size")
    )
    layers = cost.total(cost.language(replace(text, tied=True), 1)).weights - listed["embed_tokens"]
    assert layers == listed["decoder_layers_and_norm"]
    assert cost.total(cost.projector(VARIANTS[name], 1)).weights == listed["projector_params"]


def test_reading_in_chunks_costs_what_reading_at_once_does_but_for_the_head() -> None:
    whole = cost.total(cost.language(SMALL, 10)).macs
    parts = sum(cost.total(cost.language(SMALL, 2, seen)).macs for seen in range(0, 10, 2))
    assert parts - 4 * SMALL.hidden_size * SMALL.vocab_size == whole


def test_a_token_reads_every_weight_once_and_all_keys_and_values() -> None:
    one, later = (cost.total(cost.language(SMALL, 1, seen)) for seen in (0, 99))
    assert one.weights == later.weights
    assert later.cached == 100 * one.cached
    assert later.cached * 2 == cost.cache_bytes(SMALL, 100, width=2)
    attention = 2 * SMALL.layers * SMALL.heads * SMALL.head_dim
    assert later.macs - one.macs == 99 * attention


def test_quantized_weights_take_their_bits_a_scale_and_a_bias() -> None:
    import mlx.core as mx

    parts = mx.quantize(mx.zeros((512, 64), mx.float16), group_size=64, bits=4)
    matrix = cost.total((cost.Op("dense", matrix=512 * 64),))
    assert cost.weight_bytes(matrix, 2, Quantization(4, 64)) == sum(part.nbytes for part in parts)
    vector = cost.total((cost.Op("norm", vector=7),))
    assert cost.weight_bytes(vector, 2, Quantization(4, 64)) == 14
