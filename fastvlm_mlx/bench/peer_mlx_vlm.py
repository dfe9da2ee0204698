"""mlx-vlm's FastVLM with a model's own weights, in our decoding loop, so that only the modules differ."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..config import ModelConfig, read_json
from ..convert.export.swift import export
from ..errors import ConfigError
from ..models.fastvlm import FastVLM
from ..vlm import VLM
from ..weights.checkpoint import Loaded, lazy_weights
from .peer import Peer, answer, versions

NAME = "mlx-vlm"
PACKAGES = ("mlx_lm", "mlx_vlm")
INSTALL = "pip install 'fastvlm-mlx[peers]'"
_ROOM = "mlx_vlm.models.fastvlm"


class _Tower(nn.Module):
    def __init__(self, tower: Any, dtype: mx.Dtype):
        super().__init__()
        self.tower = tower
        self._dtype = dtype

    def __call__(self, pixels: mx.array) -> mx.array:
        features: mx.array = self.tower(pixels.astype(self._dtype))[1]
        return features


class _Cache:
    def __init__(self, held: Any):
        self.held = held

    @property
    def arrays(self) -> list[mx.array]:
        return list(self.held.state)


class _Language(nn.Module):
    """Its Qwen2 as ours is called; one prompt at a time."""

    def __init__(self, language: Any):
        super().__init__()
        self.language = language

    def __call__(self, rows: mx.array, caches: Sequence[_Cache]) -> mx.array:
        hidden: mx.array = self.language.model(
            None, cache=[cache.held for cache in caches], input_embeddings=rows
        )
        return hidden

    def embedding(self, ids: mx.array) -> mx.array:
        rows: mx.array = self.language.model.embed_tokens(ids)
        return rows

    def logits(self, hidden: mx.array) -> mx.array:
        tied = self.language.config.tie_word_embeddings
        told: mx.array = (
            self.language.model.embed_tokens.as_linear(hidden) if tied else self.language.lm_head(hidden)
        )
        return told

    def new_caches(self) -> list[_Cache]:
        fresh = _module("mlx_lm.models.cache").KVCache
        return [_Cache(fresh()) for _ in self.language.layers]


def load(directory: Path, ours: VLM) -> Peer:
    """The same weights in mlx-vlm's modules, by way of an export that both read."""
    vlm = _loaded(directory, ours)
    return Peer(
        NAME,
        "mlx-vlm's modules in our decoding loop",
        vlm,
        lambda prompt: answer(vlm, prompt),
        versions=versions(PACKAGES),
    )


def _loaded(directory: Path, ours: VLM) -> VLM:
    with tempfile.TemporaryDirectory() as folder:
        exported = export(directory, Path(folder) / "export", dtype=ours.dtype).destination
        theirs = _filled(exported, ours.config)
        model = FastVLM(ours.config)  # lazy: what is replaced below is never made
        model["vision"] = _Tower(theirs.vision_tower, ours.dtype)
        model["projector"] = theirs.mm_projector
        model["language"] = _Language(theirs.language_model)
        mx.eval(theirs.parameters())  # before the files go
    return VLM(Loaded(model, ours.config, ours.tokenizer, NAME, ours.dtype, {}))


def _filled(directory: Path, ours: ModelConfig) -> Any:
    config, weights = read_json(directory / "config.json"), lazy_weights(directory)
    configs = _module(f"{_ROOM}.config")
    # What config.json cannot tell it.
    configs.VisionConfig.layers = list(ours.vision.layers)
    configs.VisionConfig.embed_dims = list(ours.vision.dims)
    parsed = configs.ModelConfig.from_dict(config)
    parsed.text_config = configs.TextConfig.from_dict(parsed.text_config)
    parsed.vision_config = configs.VisionConfig.from_dict(parsed.vision_config)
    model = _module(f"{_ROOM}.fastvlm").Model(parsed)
    if packing := config.get("quantization"):
        nn.quantize(
            model,
            packing["group_size"],
            packing["bits"],
            class_predicate=lambda path, _: f"{path}.scales" in weights,
        )
    weights = model.language_model.sanitize(model.vision_tower.sanitize(model.sanitize(weights)))
    model.load_weights(list(weights.items()))
    model.eval()  # BatchNorm by its stored statistics
    return model


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--against {NAME}: {name} cannot be imported ({error}); run pip install -U 'fastvlm-mlx[peers]'"
        ) from None
