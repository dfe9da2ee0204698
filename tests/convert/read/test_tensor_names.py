"""The tables of names: whole, unambiguous, and right for the tensor lists of the released sizes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import checkpoints
import mlx.core as mx
import pytest
from checkpoints import APPLE_TOWER, GOLDEN, PACKINGS, mlx_vlm_name, mlx_vlm_shape, timm_name

from fastvlm_mlx.config import VisionConfig
from fastvlm_mlx.convert.read.tensor_names import (
    APPLE_APP,
    APPLE_LLAVA,
    HF_TIMM,
    LAYOUTS,
    MLX_VLM,
    Layout,
    detect,
    matched,
    rename,
)
from fastvlm_mlx.convert.read.translate import from_stored
from fastvlm_mlx.errors import CheckpointError
from fastvlm_mlx.inputs.tokenizer import Tokenizer
from fastvlm_mlx.models.fastvlm import FastVLM
from fastvlm_mlx.weights import checkpoint

Shapes = dict[str, tuple[int, ...]]
HERE = Path("somewhere")
SIZES = ("0.5b", "1.5b", "7b")
INVENTORY = json.loads((GOLDEN / "real" / "inventory.json").read_text())["models"]


def listed(name: str) -> Shapes:
    tensors = json.loads((GOLDEN / "real" / f"tensors_{name}.json").read_text())["tensors"]
    return {key: tuple(shape) for key, shape in tensors.items()}


def apple(size: str) -> Shapes:
    return listed(size)


def apple_train(size: str) -> Shapes:
    rest = {key: shape for key, shape in listed(size).items() if not key.startswith(APPLE_TOWER)}
    return rest | {APPLE_TOWER + key: shape for key, shape in listed("vision_train_form").items()}


def timm(shapes: Shapes) -> Shapes:
    return {name: shape for key, shape in shapes.items() if (name := timm_name(key))}


def mlx_vlm(size: str) -> Shapes:
    return {
        name: mlx_vlm_shape(key, shape) for key, shape in apple(size).items() if (name := mlx_vlm_name(key))
    }


def packed(shapes: Shapes, bits: int, group: int = 64) -> Shapes:
    """Every matrix outside the tower as `nn.quantize` stores it."""
    result: Shapes = {}
    for key, shape in shapes.items():
        result[key] = shape
        if len(shape) == 2 and key.endswith(".weight") and not key.startswith("vision_tower."):
            rows, width = shape
            result[key] = (rows, width * bits // 32)
            path = key.removesuffix(".weight")
            result |= {f"{path}.{part}": (rows, width // group) for part in ("scales", "biases")}
    return result


def lazy(shapes: Shapes) -> dict[str, mx.array]:
    """Tensors of these shapes whose bytes are never made."""
    dense = {key.removesuffix(".scales") for key in shapes if key.endswith(".scales")}

    def dtype(key: str) -> mx.Dtype:
        if key.endswith("num_batches_tracked"):
            return mx.int64
        return mx.uint32 if key.removesuffix(".weight") in dense and key.endswith(".weight") else mx.bfloat16

    return {key: mx.zeros(shape, dtype(key)) for key, shape in shapes.items()}


@dataclass(frozen=True)
class Case:
    layout: Layout
    size: str
    shapes: Shapes
    bits: int | None = None

    def config(self) -> dict[str, Any]:
        text = INVENTORY[self.size]["config"] | {"rope_theta": 1e6, "tie_word_embeddings": False}
        return {"model_type": "llava_qwen2", "mm_vision_tower": "mobileclip_l_1024"} | text


CASES = {
    **{f"apple-llava {size}": Case(APPLE_LLAVA, size, apple(size)) for size in SIZES},
    **{f"mlx-vlm {size}": Case(MLX_VLM, size, mlx_vlm(size)) for size in SIZES},
    **{f"hf-timm {size}": Case(HF_TIMM, size, timm(apple(size))) for size in SIZES},
    "apple-llava training form": Case(APPLE_LLAVA, "0.5b", apple_train("0.5b")),
    "hf-timm training form": Case(HF_TIMM, "0.5b", timm(apple_train("0.5b"))),
    "mlx-vlm 4 bits": Case(MLX_VLM, "7b", packed(mlx_vlm("7b"), 4), bits=4),
    "mlx-vlm 8 bits": Case(MLX_VLM, "0.5b", packed(mlx_vlm("0.5b"), 8), bits=8),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(checkpoints.golden("apple-fused"))


# --- the released sizes ---


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_released_tensors_map_onto_the_model_name_by_name_and_shape_by_shape(
    name: str, tied: bool, tokenizer: Tokenizer
) -> None:
    case = CASES[name]
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    shapes = {key: shape for key, shape in case.shapes.items() if not (tied and "lm_head" in key)}
    translated = from_stored(case.layout, lazy(shapes), case.config(), HERE, tokenizer)
    found = {key: tuple(array.shape) for key, array in translated.weights.items()}
    model = checkpoint.parameters(FastVLM(translated.config))
    assert found == {key: tuple(array.shape) for key, array in model.items()}
    assert translated.config.text.tied is tied
    assert translated.config.vision == VisionConfig()
    assert {how.bits for how in translated.config.quantization.values()} == ({case.bits} - {None})
    assert mx.get_peak_memory() - before < 2**20  # names and shapes alone: no tensor was made


@pytest.mark.parametrize("size", SIZES)
def test_decoder_and_projector_keep_every_parameter(size: str, tokenizer: Tokenizer) -> None:
    case, counts = CASES[f"apple-llava {size}"], INVENTORY[size]
    weights = from_stored(case.layout, lazy(case.shapes), case.config(), HERE, tokenizer).weights

    def total(prefix: str) -> int:
        return sum(array.size for key, array in weights.items() if key.startswith(prefix))

    assert total("projector.") == counts["projector_params"]
    assert total("language.embedding.") == counts["embed_tokens"]
    assert total("language.head.") == counts["lm_head"]
    decoder = counts["decoder_layers_and_norm"] + counts["embed_tokens"] + counts["lm_head"]
    assert total("language.") == decoder


def test_lists_for_other_layouts_are_as_others_count_them() -> None:
    tied = {key for key in mlx_vlm("0.5b") if "lm_head" not in key}
    assert (len(tied), len(mlx_vlm("7b"))) == (879, 928)


@pytest.mark.parametrize("source", checkpoints.LAYOUT_OF)
def test_rules_of_the_tests_give_the_golden_names(source: str) -> None:
    """The renaming that these lists were made with is what other projects' code wrote into the goldens."""
    shapes = {
        name: {key: tuple(array.shape) for key, array in checkpoints.stored(checkpoints.golden(name)).items()}
        for name in (source, "apple-fused", "apple-train")
    }
    expected = {
        "apple-fused": shapes["apple-fused"],
        "apple-train": shapes["apple-train"],
        "hf-timm-unfused": timm(shapes["apple-train"]),
        "mlx-vlm-f32": {
            name: mlx_vlm_shape(key, shape)
            for key, shape in shapes["apple-fused"].items()
            if (name := mlx_vlm_name(key))
        },
    }[source]
    assert shapes[source].keys() == expected.keys()
    padded = (
        "lm_head.weight",
        "model.language_model.embed_tokens.weight",
    )  # transformers pads the vocabulary
    differing = {key for key, shape in expected.items() if shapes[source][key] != shape}
    assert differing == (set(padded) if source == "hf-timm-unfused" else set())


# --- the tables ---

KEYS: dict[str, set[str]] = {
    "apple-llava": apple("0.5b").keys() | apple_train("0.5b").keys(),
    "hf-timm": timm(apple("0.5b")).keys() | timm(apple_train("0.5b")).keys(),
    "mlx-vlm": mlx_vlm("0.5b").keys() | packed(mlx_vlm("0.5b"), 4).keys(),
    "apple-app": set(checkpoints.stored(checkpoints.golden("apple-mlx-export-fp16"))),
}

# Rows for what no known checkpoint stores: target -> why they may stand. The tower's rows come from one
# generator for every stage and layout, and a tensor that only they take is refused later, by `Raw.finish`.
_BRANCHES = r"(kxk|scale|skip)\."
UNSTORED = {
    rf"stem\.\w+\.{_BRANCHES}": "the stem's blocks have no scale branch, and a skip only in the 1×1",
    rf"downsample\.pointwise\.{_BRANCHES}": "a 1×1 block has no scale branch",
    rf"expand\.depthwise\.{_BRANCHES}": "it widens, so there is no skip",
    r"blocks\.\{i\}\.mixer\.norm\.(kxk\.|scale\.|\{wb\})": "the norm branch is a skip alone",
    r"blocks\.\{i\}\.mixer\.mixer\.\{wb\}": "a mixer whose inner block alone was fused",
    r"stages\.[012]\.blocks\.\{i\}\.(attention\.|norm\.|layer_scale_)": "these stages mix by convolution",
    r"stages\.[34]\.blocks\.\{i\}\.(mixer\.|layer_scale$)": "these stages mix by attention",
    r"stages\.[12]\.position\.": "timm can put one before any stage",
}
UNSTORED_BY = {
    "apple-llava": {r"multi_scale\.": "our own training alone stores it"},
    "mlx-vlm": {
        r"\.(kxk|scale|skip|large|small)\.|position\.conv\.|mixer\.layer_scale": "the fused form only"
    },
    "hf-timm": {r"^drop .*head": "the wrapper has no classifier"},
}
DROPS = {r"^drop .*(inv_freq|num_batches_tracked)": "constants and counters of old releases"}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_row_takes_a_stored_tensor_or_is_justified(layout: Layout) -> None:
    reasons = UNSTORED | UNSTORED_BY.get(layout.name, {}) | DROPS
    unexplained = [
        (source, target)
        for source, target in unused_rows(layout)
        if not any(re.search(pattern, target or f"drop {source}") for pattern in reasons)
    ]
    assert not unexplained


@cache
def unused_rows(layout: Layout) -> list[tuple[str, str | None]]:
    used = {next(row for row in layout.rows if matched(row[0], key) is not None) for key in KEYS[layout.name]}
    return [row for row in layout.rows if row not in used]


def test_every_justification_is_needed() -> None:
    targets = {
        layout.name: [target or f"drop {source}" for source, target in unused_rows(layout)]
        for layout in LAYOUTS
    }
    for pattern in UNSTORED | DROPS:
        assert any(re.search(pattern, target) for found in targets.values() for target in found), pattern
    for name, reasons in UNSTORED_BY.items():
        for pattern in reasons:
            assert any(re.search(pattern, target) for target in targets[name]), pattern


@pytest.mark.parametrize(
    ("template", "name", "found"),
    [
        ("a.b", "a.b", {}),
        ("a.b", "a.bc", None),
        ("a.{i}.b.{wb}", "a.12.b.bias", {"i": "12", "wb": "bias"}),
        ("a.{i}.b.{wb}", "a.x.b.bias", None),
        ("a.{i}.b.{wb}", "a.1.c.b.bias", None),
        ("a.{i}.b.{wb}", "a.1.b.biases", None),
        ("a.{i}.b.{wb}", "a..b.bias", None),
        ("a.{i}.scale_{n}", "a.0.scale_2", {"i": "0", "n": "2"}),
        ("a.{i}.scale_{n}", "a.0.scale_", None),
        ("a.{any}.end", "a.b.c.end", {"any": "b.c"}),
        ("a.{any}.end", "a.end", None),
        ("a.{any}.end", "a..end", None),
        ("{any}", "a.b", {"any": "a.b"}),
    ],
)
def test_a_template_takes_whole_names(template: str, name: str, found: dict[str, str] | None) -> None:
    assert matched(template, name) == found


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_no_two_stored_tensors_get_one_name(layout: Layout) -> None:
    names = [name for key in KEYS[layout.name] if (name := layout.raw_name(key)) is not None]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_stored_name_undoes_raw_name(layout: Layout) -> None:
    for key in KEYS[layout.name]:
        if (name := layout.raw_name(key)) is not None:
            assert layout.stored_name(name) == key


@pytest.mark.parametrize("layout", [APPLE_LLAVA, HF_TIMM], ids=lambda layout: layout.name)
@pytest.mark.parametrize("shapes", [apple("0.5b"), apple_train("0.5b")], ids=["fused", "training"])
def test_counters_are_dropped(layout: Layout, shapes: Shapes) -> None:
    shapes = timm(shapes) if layout is HF_TIMM else shapes
    raw = rename(layout, lazy(shapes), HERE)
    counters = {key for key in shapes if key.endswith("num_batches_tracked")}
    assert len(counters) >= 44
    assert not any(array.dtype == mx.int64 for array in raw.values())
    dropped = {key for key in shapes if layout.raw_name(key) is None}
    assert dropped - counters == ({f"{APPLE_TOWER}head.proj"} if layout is APPLE_LLAVA else set())


@pytest.mark.parametrize(
    "key",
    [
        f"{APPLE_TOWER}network.11.proj.weight",
        f"{APPLE_TOWER}network.0.0.convffn.fc3.weight",
        "model.layers.x.mlp.up_proj.weight",
        "model.mm_projector.4.weight",
        "lm_head.weight.extra",
    ],
)
def test_a_key_without_a_rule_is_an_error_that_names_it(key: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(repr(key))) as caught:
        rename(APPLE_LLAVA, {key: mx.zeros(1)}, HERE)
    assert "doctor" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("network.0.0.token_mixer.proj.bias", (96,)),
        ("network.0.0.token_mixer.norm.rbr_scale.bn.weight", (96,)),
        ("network.7.0.token_mixer.reparam_conv.weight", (768, 1, 3, 3)),
        ("network.10.0.layer_scale", (1536, 1, 1)),
        ("patch_embed.0.rbr_skip.weight", (96,)),
        ("conv_exp.rbr_scale.conv.weight", (3072, 1, 1, 1)),
    ],
)
def test_a_tensor_that_has_a_row_but_no_place_is_an_error_that_names_it(
    key: str, shape: tuple[int, ...], tokenizer: Tokenizer
) -> None:
    case, key = CASES["apple-llava 0.5b"], APPLE_TOWER + key
    with pytest.raises(CheckpointError, match=re.escape(repr(key))):
        from_stored(case.layout, lazy(case.shapes | {key: shape}), case.config(), HERE, tokenizer)


@pytest.mark.parametrize("name", ["apple-llava 0.5b", "hf-timm 0.5b", "mlx-vlm 0.5b"])
def test_any_missing_tensor_is_an_error_that_names_it_as_stored(name: str, tokenizer: Tokenizer) -> None:
    case = CASES[name]
    keys = [key for key in case.shapes if case.layout.raw_name(key) is not None and "lm_head" not in key]
    for key in keys[:: len(keys) // 40]:
        shapes = {other: shape for other, shape in case.shapes.items() if other != key}
        with pytest.raises(CheckpointError) as caught:
            from_stored(case.layout, lazy(shapes), case.config(), HERE, tokenizer)
        assert repr(key) in str(caught.value) or "language model is missing" in str(caught.value)


# --- detection ---


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_each_layout_is_detected_by_its_names(layout: Layout) -> None:
    assert detect(KEYS[layout.name], HERE) is layout


@pytest.mark.parametrize(
    "pair",
    [(a, b) for a in LAYOUTS for b in LAYOUTS if a.name < b.name],
    ids=lambda pair: " + ".join(layout.name for layout in pair),
)
def test_a_mixture_is_refused_and_both_layouts_named(pair: tuple[Layout, Layout]) -> None:
    a, b = pair
    with pytest.raises(CheckpointError) as caught:
        detect(KEYS[a.name] | KEYS[b.name], HERE)
    assert a.name in str(caught.value)
    assert b.name in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["model.layers.0.mlp.up_proj.weight", "model.norm.weight"], "language model alone"),
        (["language_model.model.norm.weight"], "language model alone"),
        (["encoder.conv.weight"], r"not a layout known here.*'encoder\.conv\.weight'"),
        ([], "not a layout known here"),
    ],
)
def test_what_is_no_fastvlm_is_refused(keys: Iterable[str], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        detect(keys, HERE)


@pytest.mark.parametrize("prefix", ["tower", "projector"])
def test_a_checkpoint_without_its_other_half_is_still_its_layout(prefix: str) -> None:
    for layout in (APPLE_LLAVA, HF_TIMM, MLX_VLM):
        keys = {key for key in KEYS[layout.name] if not key.startswith(getattr(layout, prefix))}
        assert detect(keys, HERE) is layout


def test_a_tower_that_is_missing_is_said_to_be(tokenizer: Tokenizer) -> None:
    case = CASES["apple-llava 0.5b"]
    shapes = {key: shape for key, shape in case.shapes.items() if not key.startswith(APPLE_TOWER)}
    with pytest.raises(CheckpointError, match=r"vision tower is missing.*apple/FastVLM-0\.5B"):
        from_stored(case.layout, lazy(shapes), case.config(), HERE, tokenizer)
    case = Case(APPLE_APP, "0.5b", {key: (1, 1) for key in KEYS["apple-app"]})
    with pytest.raises(CheckpointError, match=r"Core ML package"):
        from_stored(case.layout, lazy(case.shapes), case.config(), HERE, tokenizer)


@pytest.mark.parametrize("name", PACKINGS)
def test_other_quantization_modes_are_refused(name: str, tokenizer: Tokenizer, directory_of: Any) -> None:
    directory = directory_of(name)
    weights = {k: v for k, v in checkpoints.stored(directory).items() if not k.endswith(".biases")}
    config = json.loads((directory / "config.json").read_text())
    config["quantization"]["mode"] = "mxfp4"
    with pytest.raises(CheckpointError, match=r"mode 'mxfp4', and only 'affine'.*quantize the original"):
        from_stored(MLX_VLM, weights, config, directory, tokenizer)
