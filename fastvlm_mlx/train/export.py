"""A trained form as a checkpoint in the reference's layout, every branch kept: what `convert` reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..atomic import new_directory
from ..checkpoint import CONFIG
from ..config import ModelConfig
from ..convert.layouts import APPLE_LLAVA
from . import form

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def write(params: Mapping[str, mx.array], config: ModelConfig, tokenizer: Path, out: Path) -> None:
    """A new directory at `out`, in place of one that a former end of the same run left there."""
    stored: dict[str, mx.array] = {}
    for name in form.shapes(config):
        array = params[name]
        turned = array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
        stored[APPLE_LLAVA.stored_name(name)] = mx.contiguous(turned)
    with new_directory(out, overwrite=True) as folder:
        (folder / CONFIG).write_text(json.dumps(_config(config), indent=2) + "\n", encoding="utf-8")
        for name in _TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, folder / name)
        mx.save_safetensors(str(folder / "model.safetensors"), stored, {"format": "pt"})


def _config(config: ModelConfig) -> dict[str, Any]:
    """The keys that readers of this layout look at."""
    text, vision, size = config.text, config.vision, config.image.size
    mixers = [
        "attention" if stage >= vision.attention_from else "repmixer" for stage in range(len(vision.dims))
    ]
    return {
        "architectures": ["LlavaQwen2ForCausalLM"],
        "model_type": "llava_qwen2",
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "vocab_size": text.vocab_size,
        "tie_word_embeddings": text.tied,
        "rope_theta": text.rope_theta,
        "rms_norm_eps": text.norm_eps,
        "max_position_embeddings": text.context,
        "tokenizer_model_max_length": text.context,
        "eos_token_id": config.eos_token_ids[-1],
        "image_aspect_ratio": config.image.mode,
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": vision.feature_dim,
        "mm_vision_tower": f"mobileclip_l_{size}",
        "vision_config": {
            "layers": list(vision.layers),
            "embed_dims": list(vision.dims),
            "mlp_ratios": [vision.mlp_ratio] * len(vision.dims),
            "token_mixers": mixers,
            "image_size": size,
        },
    }
