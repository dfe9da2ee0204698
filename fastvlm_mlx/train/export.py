"""A trained form as a checkpoint in the reference's layout, every branch kept: what `convert` reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from ..config import ModelConfig
from ..convert.export import llava_config
from ..convert.read.tensor_names import APPLE_LLAVA
from ..files.atomic import new_directory
from ..weights.checkpoint import CONFIG
from . import form

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def write(params: Mapping[str, mx.array], config: ModelConfig, tokenizer: Path, out: Path) -> None:
    """A new directory at `out`, in place of one that a former end of the same run left there."""
    stored: dict[str, mx.array] = {}
    for name in form.shapes(config):
        array = params[name]
        turned = array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
        stored[APPLE_LLAVA.stored_name(name)] = mx.contiguous(turned)
    body = llava_config.config(config, config.eos_token_ids[-1])
    with new_directory(out, overwrite=True) as folder:
        (folder / CONFIG).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        for name in _TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, folder / name)
        mx.save_safetensors(str(folder / "model.safetensors"), stored, {"format": "pt"})
