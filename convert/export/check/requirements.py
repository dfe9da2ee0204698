"""What programs need of an export, as data: one row per key and one per kind of tensor.

Read off their decoders. Swift's is strict: a key of another type, a tensor too many or too few is an error;
mlx-vlm takes more, and silently does something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ....config import STAGES
from ....files.atomic import TOWER_PACKAGE
from ...read.tensor_names import MLX_VLM
from ..swift_files import PROCESSOR


@dataclass(frozen=True, slots=True)
class Rule:
    says: str
    holds: Callable[[Any], bool]


def exactly(value: object, says: str = "") -> Rule:
    return Rule(says or repr(value), lambda found: found == value and type(found) is type(value))


def list_of(kind: type, count: int, what: str) -> Rule:
    def holds(found: Any) -> bool:
        return isinstance(found, list) and len(found) == count and all(type(one) is kind for one in found)

    return Rule(f"a list of {count} {what}", holds)


WHOLE = Rule("a whole number", lambda found: type(found) is int and found > 0)
NUMBER = Rule("a number", lambda found: type(found) in (int, float))
FLAG = Rule("true or false", lambda found: type(found) is bool)
TEXT = Rule("a text", lambda found: type(found) is str)
SIDE = Rule("'left' or 'right'", lambda found: found in ("left", "right"))
MODEL_TYPE = exactly("llava_qwen2")
ONE_ID = Rule("one token id, not a list", lambda found: type(found) is int and found >= 0)
NEGATIVE = Rule("-200 or absent", lambda found: found is None or (type(found) is int and found < 0))
PLAIN_ROPE = Rule("null or absent", lambda found: found is None)
SHAPES = Rule(
    f"a list of {STAGES}: null, or a kernel's two sides",
    lambda found: (
        isinstance(found, list)
        and len(found) == STAGES
        and all(one is None or (isinstance(one, list) and len(one) == 2) for one in found)
    ),
)

CONFIG, PREPROCESSOR, TOKENIZER = "config.json", "preprocessor_config.json", "tokenizer_config.json"
FILES = (CONFIG, PREPROCESSOR, TOKENIZER, "tokenizer.json")

Key = tuple[str, str, Rule]  # file, key, what belongs there

_DECODER: tuple[Key, ...] = (
    (CONFIG, "model_type", MODEL_TYPE),
    *(
        (CONFIG, key, WHOLE)
        for key in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
    ),
    *(
        (CONFIG, key, WHOLE)
        for key in ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    ),
    (CONFIG, "rms_norm_eps", NUMBER),
    (CONFIG, "rope_theta", NUMBER),
    (CONFIG, "rope_scaling", PLAIN_ROPE),
    (CONFIG, "tie_word_embeddings", FLAG),
)
_PICTURES: tuple[Key, ...] = (
    (PREPROCESSOR, "image_mean", exactly([0.0, 0.0, 0.0])),
    (PREPROCESSOR, "image_std", exactly([1.0, 1.0, 1.0])),
    (PREPROCESSOR, "crop_size.height", WHOLE),
    (PREPROCESSOR, "crop_size.width", WHOLE),
    (PREPROCESSOR, "size.shortest_edge", WHOLE),
    (TOKENIZER, "tokenizer_class", exactly("Qwen2Tokenizer")),
    (TOKENIZER, "clean_up_tokenization_spaces", exactly(False)),
    (TOKENIZER, "eos_token", TEXT),
)

# mlx-swift-lm and mlx-vlm
KEYS: tuple[Key, ...] = (
    *_DECODER,
    (CONFIG, "eos_token_id", ONE_ID),
    (CONFIG, "image_token_index", NEGATIVE),
    (CONFIG, "mm_projector_type", exactly("mlp2x_gelu")),
    (CONFIG, "mm_hidden_size", WHOLE),
    (CONFIG, "tokenizer_model_max_length", WHOLE),
    (CONFIG, "tokenizer_padding_side", SIDE),
    (CONFIG, "vision_config.model_type", MODEL_TYPE),
    (CONFIG, "vision_config.layers", list_of(int, STAGES, "whole numbers")),
    (CONFIG, "vision_config.embed_dims", list_of(int, STAGES, "whole numbers")),
    (CONFIG, "vision_config.mlp_ratios", list_of(int, STAGES, "whole numbers")),
    (CONFIG, "vision_config.token_mixers", list_of(str, STAGES, "names")),
    (CONFIG, "vision_config.downsamples", list_of(bool, STAGES, "flags")),
    (CONFIG, "vision_config.pos_embs_shapes", SHAPES),
    *((CONFIG, f"vision_config.{key}", WHOLE) for key in ("hidden_size", "image_size", "intermediate_size")),
    *((CONFIG, f"vision_config.{key}", WHOLE) for key in ("num_classes", "patch_size", "projection_dim")),
    (CONFIG, "vision_config.down_patch_size", exactly(7)),
    (CONFIG, "vision_config.down_stride", exactly(2)),
    (CONFIG, "vision_config.repmixer_kernel_size", exactly(3)),
    (CONFIG, "vision_config.cls_ratio", NUMBER),
    (CONFIG, "vision_config.layer_scale_init_value", NUMBER),
    (PREPROCESSOR, "processor_class", exactly(PROCESSOR)),
    *_PICTURES,
)

# Apple's FastVLM app
APP_FILES = (*FILES, TOWER_PACKAGE)
APP_KEYS: tuple[Key, ...] = (
    *_DECODER,
    (CONFIG, "mm_hidden_size", WHOLE),
    (CONFIG, "image_token_index", WHOLE),
    (PREPROCESSOR, "processor_class", exactly("LlavaProcessor")),
    *_PICTURES,
)

Shape = tuple[int | None, ...]  # None: any size

_V = MLX_VLM.tower.replace(".", r"\.")
_L = r"language_model\.model\.layers\.\d+\."
_VECTOR: Shape = (None,)
_MATRIX: Shape = (None, None)
_ONE: Shape = (None, 1, 1, None)
_STEP = _V + r"network\.(1|3|5|8)\.proj\."
_ANY = _V + r"network\.(0|2|4|7|10)\.\d+\."
_MIXING = _V + r"network\.(0|2|4)\.\d+\."
_ATTENDING = _V + r"network\.(7|10)\.\d+\."

# (name, shape): convolutions are (out, height, width, in / groups)
TENSORS: tuple[tuple[str, Shape], ...] = (
    (_V + r"patch_embed\.blocks\.0\.reparam_conv\.weight", (None, 3, 3, 3)),
    (_V + r"patch_embed\.blocks\.1\.reparam_conv\.weight", (None, 3, 3, 1)),
    (_V + r"patch_embed\.blocks\.2\.reparam_conv\.weight", _ONE),
    (_V + r"patch_embed\.blocks\.[0-2]\.reparam_conv\.bias", _VECTOR),
    (_STEP + r"0\.lkb_reparam\.weight", (None, 7, 7, 1)),
    (_STEP + r"1\.reparam_conv\.weight", _ONE),
    (_STEP + r"(0\.lkb_reparam|1\.reparam_conv)\.bias", _VECTOR),
    (_V + r"network\.(6|9)\.reparam_conv\.weight", (None, 7, 7, 1)),
    (_V + r"network\.(6|9)\.reparam_conv\.bias", _VECTOR),
    (_MIXING + r"token_mixer\.reparam_conv\.weight", (None, 3, 3, 1)),
    (_MIXING + r"token_mixer\.reparam_conv\.bias", _VECTOR),
    (_MIXING + r"layer_scale", (1, 1, None)),
    (_ATTENDING + r"norm\.(weight|bias)", _VECTOR),
    (_ATTENDING + r"token_mixer\.(qkv|proj)\.weight", _MATRIX),
    (_ATTENDING + r"token_mixer\.proj\.bias", _VECTOR),
    (_ATTENDING + r"layer_scale_[12]", (1, 1, None)),
    (_ANY + r"convffn\.conv\.conv\.weight", (None, 7, 7, 1)),
    (_ANY + r"convffn\.conv\.bn\.(weight|bias|running_mean|running_var)", _VECTOR),
    (_ANY + r"convffn\.fc[12]\.weight", _ONE),
    (_ANY + r"convffn\.fc[12]\.bias", _VECTOR),
    (_V + r"conv_exp\.reparam_conv\.weight", (None, 3, 3, 1)),
    (_V + r"conv_exp\.se\.(reduce|expand)\.weight", _ONE),
    (_V + r"conv_exp\.(reparam_conv|se\.(reduce|expand))\.bias", _VECTOR),
    (_V + r"head\.proj", _MATRIX),
    (r"mm_projector\.(0|2)\.weight", _MATRIX),
    (r"mm_projector\.(0|2)\.bias", _VECTOR),
    (r"language_model\.model\.norm\.weight", _VECTOR),
    (r"language_model\.model\.embed_tokens\.(weight|scales|biases)", _MATRIX),
    (r"language_model\.lm_head\.(weight|scales|biases)", _MATRIX),
    (_L + r"(input|post_attention)_layernorm\.weight", _VECTOR),
    (_L + r"self_attn\.[qkvo]_proj\.(weight|scales|biases)", _MATRIX),
    (_L + r"self_attn\.[qkv]_proj\.bias", _VECTOR),
    (_L + r"mlp\.(gate|up|down)_proj\.(weight|scales|biases)", _MATRIX),
)
