"""`convert`: a checkpoint in any layout to a new canonical directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from .. import __version__
from ..config import ModelConfig, from_json, is_canonical, read_json
from ..errors import CheckpointError
from ..files import atomic
from ..inputs.tokenizer import Tokenizer
from ..weights import checkpoint
from ..weights.checkpoint import CONFIG, FusedWeights
from . import card
from .quantize import Recipe, bits_per_weight, quantize
from .read.translate import translate
from .verify import Oracle, Verification, storing_limits
from .verify import verify as compare

UNVERIFIED = "UNVERIFIED.txt"


@dataclass(frozen=True)
class Converted:
    destination: Path
    layout: str
    config: ModelConfig
    bytes: int
    bits_per_weight: float
    remarks: tuple[str, ...]
    licence: str | None  # the notice to show, where a licence came along
    verification: Verification | None


def convert(
    source: Path,
    destination: Path,
    *,
    recipe: Recipe | None = None,
    group_size: int = 64,
    dtype: mx.Dtype | None = None,
    overwrite: bool = False,
    verify: bool = False,
    oracle: Oracle | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Converted:
    """Read, fuse, cast, quantize, write: one tensor in memory at a time, the result whole or absent.

    `dtype` None keeps the source's. The source is only read. A result that `verify` finds beyond its limits
    is kept; its card and the file UNVERIFIED.txt say so.
    """
    atomic.refuse(destination, overwrite)
    atomic.refuse_overlap(destination, source)
    if not source.is_dir():
        raise CheckpointError(f"{source}: not a directory; give a model directory or a hub id")
    tokenizer = Tokenizer.load(source)
    layout, config, weights = read(source, tokenizer)
    weights = checkpoint.cast(weights, dtype or checkpoint.stored_dtype(weights))
    remarks: tuple[str, ...] = ()
    if recipe is not None:
        quantized = quantize(config, weights, recipe, group_size)
        config, weights, remarks = quantized.config, quantized.weights, quantized.remarks
    total, bits = sum(array.nbytes for array in weights.values()), bits_per_weight(config, weights)
    facts = card.Facts(
        source=source.name,
        layout=layout,
        version=__version__,
        dtype=str(checkpoint.stored_dtype(weights)).removeprefix("mlx.core."),
        recipe=recipe.name if recipe else None,
        bytes=total,
        bits_per_weight=bits,
        remarks=remarks,
    )
    licences = card.licences(source)
    notice = card.notice(licences)
    verification: Verification | None = None

    def finish(folder: Path) -> None:
        nonlocal verification
        if verify:
            limits = storing_limits(facts.dtype, recipe)
            verification = compare(source, folder, config, tokenizer, limits, oracle)
            if verification.problem:
                (folder / UNVERIFIED).write_text(f"{verification.problem}\n", encoding="utf-8")
        (folder / "README.md").write_text(card.render(facts, notice, verification), encoding="utf-8")

    checkpoint.save(
        destination, config, weights, tokenizer, licences, finish, overwrite=overwrite, progress=progress
    )
    return Converted(destination, layout, config, total, bits, remarks, notice, verification)


def read(source: Path, tokenizer: Tokenizer) -> tuple[str, ModelConfig, FusedWeights]:
    """Layout, configuration and the run form's weights as stored; no tensor is read yet."""
    raw = read_json(source / CONFIG)
    if is_canonical(raw):
        config, weights = from_json(raw, source / CONFIG), FusedWeights(checkpoint.lazy_weights(source))
        checkpoint.check(config, weights, source)
        return "fastvlm-mlx", config, weights
    translated = translate(source, tokenizer)
    return translated.layout, translated.config, translated.weights
