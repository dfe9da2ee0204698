"""Variants of the golden checkpoints, written as others would have written them.

Everything here is independent of `fastvlm_mlx.convert`: names are derived by rules of their own, so that a
mistake in the converter's tables cannot hide in the tests.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

Config = dict[str, Any]
Weights = dict[str, mx.array]

GOLDEN = Path(__file__).parent / "golden"
LAYOUT_OF = {
    "apple-fused": "apple-llava",
    "apple-train": "apple-llava",
    "hf-timm-unfused": "hf-timm",
    "mlx-vlm-f32": "mlx-vlm",
}
APPLE_TOWER = "model.vision_tower.vision_tower.model."
TIMM_TOWER = "model.vision_tower.timm_model."
MLX_TOWER = "vision_tower.vision_model."


@dataclass(frozen=True)
class Variant:
    """A golden checkpoint with something changed. `gold` says which numbers it should give."""

    source: str
    gold: str = "untied"  # untied | tied | bf16 | fp16 | quantized
    config: Callable[[Config], Config] = lambda config: config
    weights: Callable[[Weights], Weights] = lambda weights: weights
    files: Callable[[Path], None] = lambda directory: None
    shards: int = 1

    @property
    def layout(self) -> str:
        return LAYOUT_OF[self.source]


def golden(name: str) -> Path:
    return GOLDEN / "checkpoints" / name / "untied"


def stored(directory: Path) -> Weights:
    weights: Weights = {}
    for file in sorted(directory.glob("*.safetensors")):
        weights |= mx.load(str(file))  # type: ignore[arg-type]
    return weights


def build(variant: Variant, directory: Path) -> Path:
    source = golden(variant.source)
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    file = directory / "config.json"
    file.write_text(json.dumps(variant.config(json.loads(file.read_text())), indent=1))
    write_weights(directory, variant.weights(stored(source)), variant.shards)
    variant.files(directory)
    return directory


def write_weights(directory: Path, weights: Weights, shards: int = 1) -> None:
    if shards == 1:
        mx.save_safetensors(str(directory / "model.safetensors"), weights)
        return
    weight_map: dict[str, str] = {}
    for number in range(shards):  # neighbours land in different files: q, k and v too
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {key: weights[key] for key in sorted(weights)[number::shards]}
        mx.save_safetensors(str(directory / name), part, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {
        "metadata": {"total_size": sum(array.nbytes for array in weights.values())},
        "weight_map": weight_map,
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


# --- config.json ---


def saying(**changes: Any) -> Callable[[Config], Config]:
    """Top-level keys set; ... takes one away."""

    def edit(config: Config) -> Config:
        return {key: value for key, value in (config | changes).items() if value is not ...}

    return edit


def text_saying(edit_text: Callable[[Config], Config], **top: Any) -> Callable[[Config], Config]:
    def edit(config: Config) -> Config:
        return saying(text_config=edit_text(config["text_config"]), **top)(config)

    return edit


def as_transformers_4(config: Config) -> Config:
    text = saying(rope_parameters=..., layer_types=..., rope_theta=1e6, torch_dtype="float32")(
        config["text_config"]
    )
    vision = config["vision_config"] | {"torch_dtype": "float32"}
    vision["model_args"] = vision["model_args"] | {"inference_mode": True}
    nested = {"text_config": text, "vision_config": vision, "transformers_version": "4.57.1"}
    return saying(dtype=..., torch_dtype="float32", **nested)(config)


# --- weights ---


def without_head(weights: Weights) -> Weights:
    return {key: array for key, array in weights.items() if "lm_head" not in key}


def rounded_to(dtype: mx.Dtype) -> Callable[[Weights], Weights]:
    def edit(weights: Weights) -> Weights:
        return {k: v.astype(dtype) if v.dtype == mx.float32 else v for k, v in weights.items()}

    return edit


def mlx_vlm_name(key: str) -> str | None:
    """Apple's name of a fused checkpoint as mlx-vlm's own sanitizing gives it."""
    if key.endswith("num_batches_tracked"):
        return None
    if key.startswith(APPLE_TOWER):
        return MLX_TOWER + key.removeprefix(APPLE_TOWER).replace("patch_embed", "patch_embed.blocks")
    if "mm_projector" in key:
        return key.removeprefix("model.")
    return f"language_model.{key}"


def mlx_vlm_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if "layer_scale" in key:
        return (1, 1, shape[0])
    return (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape


_TIMM_WORDS = (
    (r"^patch_embed\.(\d+)", r"stem.\1"),
    (r"^conv_exp", "final_conv"),
    (r"\.se\.reduce\.", ".se.fc1."),
    (r"\.se\.expand\.", ".se.fc2."),
    (r"\.convffn\.", ".mlp."),
    (r"\.lkb_reparam\.", ".reparam_conv."),
    (r"\.lkb_origin\.", ".large_conv."),
    (r"\.rbr_conv\.", ".conv_kxk."),
    (r"\.rbr_scale\.", ".conv_scale."),
    (r"\.rbr_skip\.", ".identity."),
    (r"\.pe\.", ".pos_enc."),
    (r"\.(layer_scale(?:_[12])?)$", r".\1.gamma"),
)
_TIMM_STAGES = {0: (0, "blocks"), 2: (1, "blocks"), 4: (2, "blocks"), 7: (3, "blocks"), 10: (4, "blocks")}
_TIMM_STAGES |= {1: (1, "downsample"), 3: (2, "downsample"), 5: (3, "downsample"), 8: (4, "downsample")}
_TIMM_STAGES |= {6: (3, "pos_emb"), 9: (4, "pos_emb")}


def timm_name(key: str) -> str | None:
    """Apple's name as the transformers port (`fast_vlm` over timm's `fastvit_mci3`) has it."""
    if key.startswith("model.mm_projector."):
        number = {"0": "linear_1", "2": "linear_2"}[key.split(".")[2]]
        return f"model.multi_modal_projector.{number}.{key.split('.')[3]}"
    if not key.startswith(APPLE_TOWER):
        return key if key.startswith("lm_head") else key.replace("model.", "model.language_model.", 1)
    name = key.removeprefix(APPLE_TOWER)
    if name.startswith("head."):
        return None  # the wrapper has no classifier
    if match := re.match(r"network\.(\d+)\.", name):
        stage, kind = _TIMM_STAGES[int(match[1])]
        name = f"stages.{stage}.{kind}.{name[match.end() :]}"
    for word, other in _TIMM_WORDS:
        name = re.sub(word, other, name)
    return TIMM_TOWER + name


def timm_fused(weights: Weights) -> Weights:
    """What timm's `reparameterize_model` leaves: the same decoder, the fused tower's tensors."""
    tower = {timm_name(k): v for k, v in stored(golden("apple-fused")).items() if k.startswith(APPLE_TOWER)}
    rest = {k: v for k, v in weights.items() if not k.startswith(TIMM_TOWER)}
    return rest | {name: array for name, array in tower.items() if name is not None}


# --- quantized as mlx-lm and mlx-vlm do: every Linear and Embedding outside the tower ---


@dataclass(frozen=True)
class Packing:
    bits: int
    group_size: int = 64
    wide: tuple[str, ...] = ()  # name endings kept at 8 bits

    def bits_of(self, path: str) -> int:
        return 8 if path.endswith(self.wide) and self.wide else self.bits

    def config(self, config: Config) -> Config:
        said: Config = {"group_size": self.group_size, "bits": self.bits}
        names = (key.removesuffix(".weight") for key in stored(golden("mlx-vlm-f32")))
        wide = {n: {"group_size": self.group_size, "bits": 8} for n in names if self.bits_of(n) != self.bits}
        return config | {"quantization": said | wide, "quantization_config": said | wide}

    def weights(self, weights: Weights) -> Weights:
        packed: Weights = {}
        for key, array in weights.items():
            path = key.removesuffix(".weight")
            if array.ndim == 2 and path != key and not key.startswith(MLX_TOWER):
                parts = mx.quantize(array, self.group_size, self.bits_of(path))
                packed |= {
                    f"{path}.{part}": a for part, a in zip(("weight", "scales", "biases"), parts, strict=True)
                }
            else:
                packed[key] = array
        return packed

    def variant(self) -> Variant:
        return Variant("mlx-vlm-f32", "quantized", self.config, self.weights)

    def dense_twin(self) -> Variant:
        return Variant(
            "mlx-vlm-f32", "quantized", weights=lambda weights: self.unpacked(self.weights(weights))
        )

    def unpacked(self, weights: Weights) -> Weights:
        """The float weights again, by hand: low bits first, value = scale · integer + bias."""
        dense: Weights = {}
        for key, array in weights.items():
            path, _, part = key.rpartition(".")
            if f"{path}.scales" not in weights or part == "bias":
                dense[key] = array
            elif part == "weight":
                bits, scales, biases = (
                    self.bits_of(path),
                    weights[f"{path}.scales"],
                    weights[f"{path}.biases"],
                )
                shifts = mx.arange(0, 32, bits, dtype=mx.uint32)
                integers = ((array[..., None] >> shifts) & (2**bits - 1)).reshape(
                    *scales.shape, self.group_size
                )
                dense[key] = (integers * scales[..., None] + biases[..., None]).flatten(-2)
        return dense


# --- other files ---


def losing(*names: str) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return edit


def tokenizer_in_parts(directory: Path) -> None:
    """vocab.json and merges.txt only, as Apple releases it."""
    (directory / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"):
        shutil.copy(golden("apple-fused") / name, directory / name)


PACKINGS = {
    "mlx-vlm-4bit": Packing(4),
    "mlx-vlm-8bit": Packing(8),
    "mlx-vlm-4bit-groups-of-32": Packing(4, 32),
    "mlx-vlm-mixed-bits": Packing(4, wide=("v_proj", "down_proj")),
}
_STRANGE = mx.full((512, 64), 0.5)
VARIANTS: dict[str, Variant] = {
    # tie_word_embeddings, as found in the wild
    "tied": Variant("apple-fused", "tied", saying(tie_word_embeddings=True), without_head),
    "tied-with-a-stored-head": Variant(
        "apple-fused", "tied", saying(tie_word_embeddings=True), lambda w: w | {"lm_head.weight": _STRANGE}
    ),
    "untied-said-without-a-head": Variant("apple-fused", "tied", weights=without_head),
    "nothing-said-with-a-head": Variant("apple-fused", config=saying(tie_word_embeddings=...)),
    "nothing-said-without-a-head": Variant(
        "apple-fused", "tied", saying(tie_word_embeddings=...), without_head
    ),
    "mlx-vlm-nothing-said-with-a-head": Variant("mlx-vlm-f32", config=saying(tie_word_embeddings=...)),
    "mlx-vlm-tied": Variant("mlx-vlm-f32", "tied", saying(tie_word_embeddings=True), without_head),
    "hf-tied-inside": Variant(
        "hf-timm-unfused", "tied", text_saying(saying(tie_word_embeddings=True)), without_head
    ),
    "hf-tied-inside-with-a-stored-head": Variant(
        "hf-timm-unfused",
        "tied",
        text_saying(saying(tie_word_embeddings=True)),
        lambda w: w | {"lm_head.weight": mx.full((576, 64), 0.5)},
    ),
    # transformers
    "hf-fused": Variant("hf-timm-unfused", weights=timm_fused),
    "hf-of-transformers-4": Variant("hf-timm-unfused", config=as_transformers_4, weights=timm_fused),
    "hf-tokenizer-in-parts": Variant("hf-timm-unfused", files=tokenizer_in_parts),
    # thin or odd configurations
    "vision-config-empty": Variant("apple-fused", config=saying(vision_config={})),
    "vision-config-missing": Variant("mlx-vlm-f32", config=saying(vision_config=...)),
    "no-preprocessor-config": Variant("mlx-vlm-f32", files=losing("preprocessor_config.json")),
    "model-type-fastvlm": Variant("mlx-vlm-f32", config=saying(model_type="fastvlm")),
    # narrow types and shards
    "bf16-in-shards": Variant("apple-fused", "bf16", weights=rounded_to(mx.bfloat16), shards=3),
    "fp16": Variant("apple-fused", "fp16", weights=rounded_to(mx.float16)),
} | {name: packing.variant() for name, packing in PACKINGS.items()}
