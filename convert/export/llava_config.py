"""config.json in the reference's terms (`model_type: llava_qwen2`), which several programs read."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...config import ModelConfig


def config(model: ModelConfig, eos_token: int) -> dict[str, Any]:
    """The keys that all readers look at; each has more of its own."""
    text, vision, size = model.text, model.vision, model.image.size
    stages = range(len(vision.dims))
    more = {"multi_scale": dataclasses.asdict(vision.multi_scale)} if vision.multi_scale else {}
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
        "tokenizer_padding_side": "right",
        "eos_token_id": eos_token,
        "image_aspect_ratio": model.image.mode,
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": vision.feature_dim,
        "mm_vision_tower": f"mobileclip_l_{size}",
        "vision_config": {
            "layers": list(vision.layers),
            "embed_dims": list(vision.dims),
            "mlp_ratios": [vision.mlp_ratio for _ in stages],
            "token_mixers": [
                "attention" if stage >= vision.attention_from else "repmixer" for stage in stages
            ],
            "image_size": size,
            **more,
        },
    }
