"""A model of true size with random weights: times a machine without a download."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from ..config import ModelConfig, Quantization
from ..inputs.tokenizer import Tokenizer
from ..models.fastvlm import FastVLM
from ..vlm import VLM
from ..weights.checkpoint import Loaded, parameters

_SCALE = 0.02  # as Qwen2 is initialized
_GROUP = 64


def build(config: ModelConfig, dtype: mx.Dtype) -> VLM:
    model = FastVLM(config)
    fill(model, dtype)
    return VLM(Loaded(model, config, _words(config.text.vocab_size), "random", dtype, {}))


def fill(module: nn.Module, dtype: mx.Dtype) -> None:
    """One tensor at a time; packed weights take any bits, their scales and biases small floats."""
    for name, array in parameters(module).items():
        if array.dtype == mx.uint32:
            filled = mx.random.randint(0, 2**31 - 1, array.shape).astype(mx.uint32)
        else:
            filled = (_SCALE * mx.random.normal(array.shape)).astype(dtype)
        mx.eval(filled)
        module.update(tree_unflatten([(name, filled)]))


def packed(config: ModelConfig, bits: int) -> ModelConfig:
    """With every matrix of the language model in so many bits, where groups of 64 divide it."""
    how = Quantization(bits, _GROUP)
    matrices = {
        name: array
        for name, array in parameters(FastVLM(config)).items()
        if name.startswith("language.") and array.ndim == 2
    }
    fitting = [name for name, array in matrices.items() if array.shape[1] % _GROUP == 0]
    return replace(config, quantization=dict.fromkeys((n.removesuffix(".weight") for n in fitting), how))


def _words(size: int) -> Tokenizer:
    """Every word is one token, as most are to Qwen2; which one makes no difference."""
    backend = Backend(models.WordLevel({"?": 0}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(size, None, None, backend, {})
