"""What a FastVLM costs by arithmetic alone: multiply-adds, weights and values moved, of every stage.

    total(vision(VisionConfig(), 1024)["stages.2.blocks"].values()).macs

Stages have the names of `FastViTHD.trace`. Not counted: activations, norms, softmax, additions, averages;
the golden counts of tests/golden/real leave them out too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..config import STRIDE, ModelConfig, Pool, Quantization, TextConfig, VisionConfig

Ops = tuple["Op", ...]
_RGB = 3


@dataclass(frozen=True, slots=True)
class Op:
    """`matrix` weights may be quantized, `vector` ones (biases, norms, depthwise kernels) never are."""

    kind: str
    macs: int = 0
    matrix: int = 0
    vector: int = 0
    moved: int = 0  # values read and written, were nothing kept in registers from one op to the next
    cached: int = 0  # keys and values read and written

    @property
    def weights(self) -> int:
        return self.matrix + self.vector


@dataclass(frozen=True, slots=True)
class Total:
    macs: int
    matrix: int
    vector: int
    moved: int
    cached: int

    @property
    def weights(self) -> int:
        return self.matrix + self.vector


def total(ops: Iterable[Op]) -> Total:
    held = tuple(ops)
    fields = ("macs", "matrix", "vector", "moved", "cached")
    return Total(*(sum(getattr(op, name) for op in held) for name in fields))


def weight_bytes(cost: Total, width: int, quantization: Quantization | None = None) -> int:
    """`width` is the bytes of a float; a group of quantized weights has a scale and a bias."""
    if quantization is None:
        return cost.weights * width
    groups = cost.matrix // quantization.group_size
    return cost.matrix * quantization.bits // 8 + 2 * width * groups + cost.vector * width


# --- the tower ---


def vision(config: VisionConfig, size: int) -> dict[str, Ops]:
    """Of one square picture."""
    side, dims = size // 4, config.dims
    stages: dict[str, Ops] = {"stem": _stem(dims[0], side)}
    for index, dim in enumerate(dims):
        attends = index >= config.attention_from
        if index:
            side //= 2
            stages[f"stages.{index}.downsample"] = _downsample(dims[index - 1], dim, side)
        if attends:
            stages[f"stages.{index}.position"] = (_depthwise(side, dim, 7),)
        block = _attention_block if attends else _mixer_block
        stages[f"stages.{index}.blocks"] = block(config, dim, side) * config.layers[index]
    stages["expand"] = _expand(config, side)
    if config.multi_scale:
        learned = config.multi_scale.pooling == "depthwise"
        pools = (_pool(pool, side, learned) for pool in config.pools)
        stages["multi_scale"] = *pools, Op("concatenation", moved=2 * side**2 * config.feature_dim)
    return stages


def tokens(size: int) -> int:
    return (size // STRIDE) ** 2


def _stem(dim: int, side: int) -> Ops:
    pixels = (4 * side) ** 2 * _RGB
    middle = (2 * side) ** 2
    first = Op("dense", middle * 9 * _RGB * dim, 9 * _RGB * dim, dim, pixels + middle * dim)
    return replace(first, matrix=0, vector=first.weights), *_narrowing(dim, dim, 3, side)


def _downsample(dim_in: int, dim_out: int, side: int) -> Ops:
    return _narrowing(dim_in, dim_out, 7, side)


def _narrowing(dim_in: int, dim_out: int, kernel: int, side: int) -> Ops:
    """A depthwise convolution of stride 2, then a 1×1."""
    convolution = _depthwise(side, dim_out, kernel)
    read = (2 * side) ** 2 * dim_in
    return replace(convolution, moved=read + side**2 * dim_out), _linear(side**2, dim_out, dim_out)


def _mixer_block(config: VisionConfig, dim: int, side: int) -> Ops:
    return _depthwise(side, dim, 3), *_ffn(config, dim, side)


def _attention_block(config: VisionConfig, dim: int, side: int) -> Ops:
    rows = side**2
    return (
        _linear(rows, dim, 3 * dim, kind="linear"),
        Op("attention", macs=2 * rows * rows * dim, moved=4 * rows * dim),
        _linear(rows, dim, dim, kind="linear"),
        *_ffn(config, dim, side),
    )


def _ffn(config: VisionConfig, dim: int, side: int) -> Ops:
    wide = config.mlp_ratio * dim
    convolution = _depthwise(side, dim, 7, bias=False)
    return convolution, _linear(side**2, dim, wide), _linear(side**2, wide, dim)


def _expand(config: VisionConfig, side: int) -> Ops:
    dim, narrow = config.expanded_dim, config.expanded_dim // config.squeeze
    convolution = _depthwise(side, dim, 3)
    return convolution, _linear(1, dim, narrow), _linear(1, narrow, dim)


def _pool(pool: Pool, side: int, learned: bool) -> Op:
    """To a map of `side`: every value is read once, and weighed where the weights are learned."""
    kept = side**2 * pool.dim
    read = kept * pool.factor**2
    if not learned:
        return Op("pooling", moved=read + kept)
    return Op("depthwise", read, vector=pool.dim * pool.factor**2, moved=read + kept)


def _depthwise(side: int, channels: int, kernel: int, *, bias: bool = True) -> Op:
    values, weights = side**2 * channels, channels * kernel**2
    return Op("depthwise", values * kernel**2, vector=weights + bias * channels, moved=2 * values)


def _linear(rows: int, dim_in: int, dim_out: int, *, bias: bool = True, kind: str = "dense") -> Op:
    weights = dim_in * dim_out
    return Op(kind, rows * weights, weights, bias * dim_out, rows * (dim_in + dim_out))


# --- projector and language model ---


def projector(config: ModelConfig, rows: int) -> Ops:
    dim = config.text.hidden_size
    return _linear(rows, config.vision.feature_dim, dim), _linear(rows, dim, dim)


def language(config: TextConfig, length: int, seen: int = 0) -> Ops:
    """`length` positions after `seen` others, and logits for the last of them.

    Decoding a token is a length of 1. The embedding is a look-up: its rows are read, no more.
    """
    ends = _vocabulary(config)
    rows = Op("embedding", moved=2 * length * config.hidden_size)
    final = Op("norm", vector=config.hidden_size)
    return (rows, *_layer(config, length, seen) * config.layers, final, ends)


def _layer(config: TextConfig, length: int, seen: int) -> Ops:
    dim, q, kv = config.hidden_size, config.heads * config.head_dim, config.kv_heads * config.head_dim
    pairs = length * seen + length * (length + 1) // 2  # each position looks at itself and those before
    return (
        Op("norm", vector=2 * dim),
        _linear(length, dim, q + 2 * kv),
        Op("attention", 2 * pairs * q, moved=2 * length * q, cached=2 * (seen + length) * kv),
        _linear(length, q, dim, bias=False),
        _linear(length, dim, 2 * config.intermediate_size, bias=False),
        _linear(length, config.intermediate_size, dim, bias=False),
    )


def _vocabulary(config: TextConfig) -> Op:
    return _linear(1, config.hidden_size, config.vocab_size, bias=False)


# --- what stays in memory ---


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that a model takes while it answers about one picture."""

    tower: int  # and projector
    language: int
    cache: int
    activations: int  # the tower's widest layer, read and written; or that of the language model

    @property
    def bytes(self) -> int:
        return self.tower + self.language + self.cache + self.activations


def held(
    config: ModelConfig,
    size: int,
    positions: int,
    width: int = 2,
    quantization: Quantization | None = None,
    chunk: int = 512,
) -> Held:
    """`positions` of text and answer come after the picture's; the language model alone is quantized."""
    length = tokens(size) + positions
    stages = [*vision(config.vision, size).values(), projector(config, tokens(size))]
    tower = total(op for stage in stages for op in stage)
    text = total(language(config.text, 1))
    kept = config.text.hidden_size * config.text.vocab_size * (not config.text.tied)  # the embedding itself
    text = replace(text, matrix=text.matrix + kept)
    reading = language(config.text, min(length, chunk))
    widest = max(op.moved for stage in (*stages, reading) for op in stage)
    return Held(
        tower=tower.weights * width,
        language=weight_bytes(text, width, quantization),
        cache=cache_bytes(config.text, length, width),
        activations=widest * width,
    )


def packed_as(config: ModelConfig) -> Quantization | None:
    """The fewest bits that a matrix has: a bound must not be too high."""
    return min(config.quantization.values(), key=lambda how: how.bits, default=None)


def cache_bytes(config: TextConfig, positions: int, width: int) -> int:
    return 2 * config.layers * positions * config.kv_heads * config.head_dim * width
