"""The training form: branches, BatchNorm and layer scales, as a flat dict of raw weights.

There is one tower to read, the run form. While BatchNorm uses stored statistics, the training form is the
run form with weights computed from the branches, so `fuse` is part of the graph and gradients flow through
it: what is trained is what will run. Statistics of a batch need every branch apart: that is
`convert.fuse.reference`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import mlx.core as mx
from mlx.utils import tree_unflatten

from ..config import ModelConfig
from ..convert.fuse.fuse import fuse
from ..convert.read.tensor_names import RawWeights
from ..convert.read.tensor_shapes import Shapes, raw_form
from ..models.fastvlm import FastVLM
from ..weights.checkpoint import parameters

_BRANCHED = re.compile(r"\.(stem\.\w+|downsample\.\w+|mixer|position|expand\.depthwise)$")
_POOLS = "vision.multi_scale.pools."
_KEYS = re.compile(r"language\..*\.attention\.k\.weight$")
EMBEDDING_SCALE = 0.1  # of fresh ids: a tied head then starts with logits near 1


def shapes(config: ModelConfig) -> Shapes:
    """Every raw tensor with every branch, as the reference trains it."""
    places = {name.rpartition(".")[0] for name in parameters(FastVLM(config))}
    branched: Shapes = {f"{place}.kxk": () for place in places if _BRANCHED.search(place)}
    found = raw_form(config.vision, config.vision.feature_dim, config.text, branched)
    if config.text.tied:
        found.pop("language.head.weight", None)
    return {
        name: (shape[0], 1, 1, shape[1]) if name.endswith(".conv.weight") and len(shape) == 2 else shape
        for name, shape in found.items()
    }


def initial(config: ModelConfig, key: mx.array, *, layer_scale: float) -> RawWeights:
    """Fresh weights: matrices by their fan-in, norms that change nothing."""
    table = shapes(config)
    pools = {name: shape for name, shape in table.items() if name.startswith(_POOLS)}
    drawn = sorted(table.items() - pools.items())  # alike with pools and without
    keys = mx.random.split(key, len(drawn))
    fresh = {name: _start(name, shape, keys[index], layer_scale) for index, (name, shape) in enumerate(drawn)}
    fresh |= {name: mx.full(shape, shape[1] ** -2.0) for name, shape in pools.items()}  # averages, at first
    return RawWeights(
        fresh | {name: _like_queries(name, fresh, config) for name in fresh if _KEYS.match(name)}
    )


def _like_queries(name: str, fresh: Mapping[str, mx.array], config: ModelConfig) -> mx.array:
    """Keys that begin as the queries of their group's first head: like then attends to like."""
    text = config.text
    queries = fresh[name.replace(".k.", ".q.")].reshape(text.kv_heads, -1, text.head_dim, text.hidden_size)
    return queries[:, 0].flatten(0, 1)


def _start(name: str, shape: tuple[int, ...], key: mx.array, layer_scale: float) -> mx.array:
    owner, _, kind = name.rpartition(".")
    if kind.startswith("layer_scale"):
        return mx.full(shape, layer_scale)
    if kind in ("bias", "running_mean"):
        return mx.zeros(shape)
    if len(shape) == 1:
        return mx.ones(shape)
    if owner == "language.embedding":
        return EMBEDDING_SCALE * mx.random.normal(shape, key=key)
    fan_in = math.prod(shape[1:])
    scale = fan_in**-0.5
    if owner.endswith(("attention.out", "mlp.down")):  # at first every layer hears the words themselves
        scale *= EMBEDDING_SCALE
    return scale * mx.random.normal(shape, key=key)


def run_form(model: FastVLM, raw: Mapping[str, mx.array], config: ModelConfig) -> None:
    """Put the fused weights into the model; under `mx.grad`, as functions of the raw ones."""
    fused, _ = fuse(RawWeights(dict(raw)), config.vision, config.text, {}, mx.float32)
    model.update(tree_unflatten(list(fused.items())))
