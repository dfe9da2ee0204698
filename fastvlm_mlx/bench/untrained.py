"""A model of true size with random weights: times a machine without a download."""

from __future__ import annotations

import mlx.core as mx
from mlx.utils import tree_unflatten
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from ..checkpoint import Loaded, parameters
from ..config import ModelConfig
from ..errors import ConfigError
from ..models.fastvlm import FastVLM
from ..tokenizer import Tokenizer
from ..vlm import VLM
from . import cost

_SCALE = 0.02  # as Qwen2 is initialized


def build(config: ModelConfig, dtype: mx.Dtype) -> VLM:
    model = FastVLM(config)
    for name, array in parameters(model).items():
        filled = (_SCALE * mx.random.normal(array.shape)).astype(dtype)
        mx.eval(filled)
        model.update(tree_unflatten([(name, filled)]))
    return VLM(Loaded(model, config, _words(config.text.vocab_size), "random", dtype, {}))


def refuse_beyond(config: ModelConfig, name: str, size: int, batch: int, width: int, memory: int) -> None:
    """Before anything is allocated."""
    held = cost.held(config, size, positions=256, width=width)
    needed = held.tower + held.language + batch * (held.cache + held.activations)
    if needed <= memory:
        return
    parts = (held.tower, held.language, batch * held.cache, batch * held.activations)
    tower, language, cache, layer = (f"{count / 1e9:.2f}" for count in parts)
    raise ConfigError(
        f"{name} at {size} px takes {needed / 1e9:.2f} GB ({tower} tower + {language} language model + "
        f"{cache} keys and values + {layer} widest layer, {8 * width} bit) and this machine has "
        f"{memory / 1e9:.2f}; choose a smaller model, --sizes, --batch or --dtype"
    )


def _words(size: int) -> Tokenizer:
    """Every word is one token, as most are to Qwen2; which one makes no difference."""
    backend = Backend(models.WordLevel({"?": 0}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(size, None, None, backend, {})
