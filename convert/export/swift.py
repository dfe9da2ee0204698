"""`export --target swift`: the directory that mlx-swift-lm and mlx-vlm both load unchanged.

A source with norms and scales keeps them and has its training branches fused; the run form is taken apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ... import __version__
from ...config import ModelConfig, Quantization
from ...inputs.tokenizer import Tokenizer
from ...weights.checkpoint import CONFIG
from ..doctor.inspect import Report
from ..read.tensor_names import MLX_VLM
from . import app_card, steps, swift_files
from .check.entry import check
from .steps import HEAD, Exported

PROJECTION = 768  # the CLIP head's width in the released models: both consumers want it there
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Tensors:
    stored: dict[str, mx.array]  # by the consumers' names; no value is read or computed yet
    config: ModelConfig
    layout: str
    projection: int
    packing: Quantization | None


def tensors(source: Path, tokenizer: Tokenizer, bits: int | None, dtype: mx.Dtype) -> Tensors:
    with mx.stream(mx.cpu):  # where float64 is
        found = steps.source_of(source, tokenizer, app_card.TARGETS["swift"].reader)
        weights, packing = steps.packed(found, bits, dtype, source)
        head = mx.zeros((found.config.vision.feature_dim, PROJECTION)) if found.head is None else found.head
        stored = {MLX_VLM.stored_name(name): array for name, array in weights.items()}
        stored[f"{MLX_VLM.tower}{HEAD}"] = head.astype(dtype)
    return Tensors(stored, found.config, found.layout, head.shape[1], packing)


def export(
    source: Path,
    destination: Path,
    *,
    bits: int | None = None,
    dtype: mx.Dtype = mx.float16,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """One tensor in memory at a time, the result whole or absent. The source is only read."""
    steps.refuse(source, destination, bits, overwrite)
    tokenizer = Tokenizer.load(source)
    made = tensors(source, tokenizer, bits, dtype)
    config, layout = made.config, made.layout
    eos = steps.eos_of(config, tokenizer)
    texts = {
        CONFIG: swift_files.config(config, eos, made.projection, made.packing),
        GENERATION: {"eos_token_id": list(config.eos_token_ids)},
        "preprocessor_config.json": swift_files.preprocessor(config.image.size),
        "tokenizer_config.json": swift_files.tokenizer_config(
            tokenizer, config, tokenizer.decode([eos], skip_special=False)
        ),
    }

    def finish(folder: Path, notice: str | None) -> Report:
        report = check(folder)
        weights = app_card.kind(dtype, bits)
        facts = app_card.Facts(source.name, layout, __version__, config.text.hidden_size, weights)
        page = app_card.render(facts, app_card.TARGETS["swift"], report, notice)
        (folder / "README.md").write_text(page, encoding="utf-8")
        return report

    return steps.write(
        source, destination, tokenizer, texts, made.stored, finish, overwrite=overwrite, progress=progress
    )
