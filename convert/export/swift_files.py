"""The files beside the weights that mlx-swift-lm and mlx-vlm decode, as values."""

from __future__ import annotations

from typing import Any

from ...config import STRIDE, ModelConfig, Quantization
from ...inputs.prompt import DEFAULT_SYSTEM
from ...inputs.tokenizer import Tokenizer
from . import llava_config

IMAGE_INDEX = -200  # mlx-vlm silently drops the picture where it is not negative
PROCESSOR = "FastVLMProcessor"

# String content has its `<image>` inside; a list's pictures come first, each on a line of its own.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    f"{{{{ '<|im_start|>system\\n{DEFAULT_SYSTEM}<|im_end|>\\n' }}}}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def config(
    model: ModelConfig, eos_token: int, projection: int, packing: Quantization | None
) -> dict[str, Any]:
    body = llava_config.config(model, eos_token)
    body["image_token_index"] = IMAGE_INDEX
    body["vision_config"] |= _vision_config(model, projection)
    if packing:
        how = {"group_size": packing.group_size, "bits": packing.bits}
        body |= {"quantization": how, "quantization_config": how}
    return body


def _vision_config(model: ModelConfig, projection: int) -> dict[str, Any]:
    """What mlx-swift-lm reads besides."""
    vision = model.vision
    stages = range(len(vision.dims))
    return {
        "model_type": "llava_qwen2",
        "pos_embs_shapes": [[7, 7] if stage >= vision.attention_from else None for stage in stages],
        "downsamples": [True for _ in stages],
        "down_patch_size": 7,
        "down_stride": 2,
        "repmixer_kernel_size": 3,
        "layer_scale_init_value": 1e-5,
        "cls_ratio": 2.0,
        "num_classes": 1000,
        "hidden_size": 1024,
        "intermediate_size": vision.feature_dim,
        "projection_dim": projection,
        "patch_size": STRIDE,
    }


def preprocessor(size: int, processor: str = PROCESSOR) -> dict[str, Any]:
    return {
        "processor_class": processor,
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": size, "width": size},
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
        "resample": 3,
        "rescale_factor": 1 / 255,
    }


def tokenizer_config(
    tokenizer: Tokenizer, model: ModelConfig, eos_token: str, processor: str = PROCESSOR
) -> dict[str, Any]:
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": processor,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos_token,
        "pad_token": "<|endoftext|>" if tokenizer.id_of("<|endoftext|>") is not None else eos_token,
        "model_max_length": model.text.context,
        "padding_side": "right",
        "chat_template": CHAT_TEMPLATE,
    }
