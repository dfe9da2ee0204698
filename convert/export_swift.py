"""`export --target swift`: the directory that mlx-swift-lm and mlx-vlm both load unchanged.

A source with norms and scales keeps them and has its training branches fused; the run form is taken apart.
Not covered: Apple's own app, which wants other names and a Core ML tower.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from .. import __version__, atomic, checkpoint
from ..checkpoint import CONFIG
from ..config import ModelConfig, Quantization, is_canonical, read_json
from ..errors import CheckpointError, ConfigError
from ..tokenizer import Tokenizer
from . import card, swift_card, swift_files
from .layouts import MLX_VLM
from .released import Released, of_raw, of_run
from .run import read
from .swift_check import Report, check
from .translate import read_source

BITS = (4, 8)
GROUP_SIZE = 64
HEAD = "head.proj"  # the CLIP head: no one runs it, and both consumers want it there
PROJECTION = 768  # its width in the released models
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Exported:
    destination: Path
    bytes: int
    report: Report
    licence: str | None


@dataclass(frozen=True)
class _Source:
    layout: str
    config: ModelConfig
    released: Released
    head: mx.array | None


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
    atomic.refuse(destination, overwrite)
    if bits not in (None, *BITS):
        raise ConfigError(f"no export in {bits} bits: mlx-swift-lm and mlx-vlm both read 4 and 8; choose one")
    atomic.refuse_overlap(destination, source)
    if not source.is_dir():
        raise CheckpointError(f"{source}: not a directory; give a model directory or a hub id")
    tokenizer = Tokenizer.load(source)
    with mx.stream(mx.cpu):  # where float64 is
        found = _read(source, tokenizer)
        weights, packing = _packed(found, bits, dtype, source)
        head = mx.zeros((found.config.vision.feature_dim, PROJECTION)) if found.head is None else found.head
        stored = {MLX_VLM.stored_name(name): array for name, array in weights.items()}
        stored[f"{MLX_VLM.tower}{HEAD}"] = head.astype(dtype)
    eos = _eos(found.config, tokenizer)
    texts = {
        CONFIG: swift_files.config(found.config, eos, head.shape[1], packing),
        GENERATION: {"eos_token_id": list(found.config.eos_token_ids)},
        "preprocessor_config.json": swift_files.preprocessor(found.config),
        "tokenizer_config.json": swift_files.tokenizer_config(
            tokenizer, found.config, tokenizer.decode([eos], skip_special=False)
        ),
    }
    total = sum(array.nbytes for array in stored.values())
    licences = card.licences(source)
    notice = card.notice(licences)
    report: Report | None = None
    with atomic.new_directory(destination, overwrite=overwrite, needs_bytes=total) as folder:
        tokenizer.save(folder)
        for name, body in texts.items():
            (folder / name).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        for name, content in licences.items():
            (folder / name).write_bytes(content)
        checkpoint.write_shards(folder, stored, progress)
        report = check(folder)
        facts = swift_card.Facts(
            source.name, found.layout, __version__, found.config.text.hidden_size, dtype, bits
        )
        page = swift_card.render(facts, report, notice)
        (folder / "README.md").write_text(page, encoding="utf-8")
        if not report.healthy:
            first = next(finding for finding in report.findings if finding.level == "problem")
            raise CheckpointError(f"{source}: the export would not load: {first.what}; {first.repair}")
    return Exported(destination, total, report, notice)


def _read(source: Path, tokenizer: Tokenizer) -> _Source:
    if is_canonical(read_json(source / CONFIG)):
        layout, config, run = read(source, tokenizer)
        return _Source(layout, config, of_run(run, config, source), None)
    whole = read_source(source, tokenizer)
    head = checkpoint.lazy_weights(source).get(f"{whole.layout.tower}{HEAD}")
    released = of_raw(whole.raw, whole.config, whole.packed)
    return _Source(whole.layout.name, whole.config, released, head)


def _packed(
    found: _Source, bits: int | None, dtype: mx.Dtype, source: Path
) -> tuple[dict[str, mx.array], Quantization | None]:
    """Every tensor in `dtype`, and the language model's matrices packed if asked for or already so."""
    floats = tuple(checkpoint.DTYPES.values())
    held = found.released.packed
    packing = _held(held, bits, source) if held else (Quantization(bits, GROUP_SIZE) if bits else None)
    weights: dict[str, mx.array] = {}
    for name, array in found.released.weights.items():
        array = array.astype(dtype) if array.dtype in floats else array
        path = name.rpartition(".")[0]
        if packing is None or held or not _packs(name, array):
            weights[name] = array
            continue
        if array.shape[1] % packing.group_size:
            raise ConfigError(
                f"{source}: {path} has {array.shape[1]} inputs, which {packing.group_size} does not "
                "divide; export without --bits"
            )
        parts = mx.quantize(array, packing.group_size, packing.bits)
        weights |= {
            f"{path}.{kind}": a for kind, a in zip(("weight", "scales", "biases"), parts, strict=True)
        }
    return weights, packing


def _held(held: Mapping[str, Quantization], bits: int | None, source: Path) -> Quantization:
    """How a packed source stays packed."""
    ways = set(held.values())
    packing = min(ways, key=str)
    if len(ways) > 1 or packing.group_size != GROUP_SIZE or packing.bits not in BITS:
        kinds = ", ".join(sorted(f"{way.bits} bits in groups of {way.group_size}" for way in ways))
        raise ConfigError(
            f"{source}: packed in {kinds}, and mlx-swift-lm and mlx-vlm both read 4 or 8 bits in groups of "
            f"{GROUP_SIZE}; export the checkpoint it was made from, with --bits"
        )
    if bits not in (None, packing.bits):
        raise ConfigError(
            f"{source}: packed in {packing.bits} bits already; leave --bits out to keep it so, or "
            "export the checkpoint it was made from"
        )
    return packing


def _packs(name: str, array: mx.array) -> bool:
    return name.startswith("language.") and name.endswith(".weight") and array.ndim == 2


def _eos(config: ModelConfig, tokenizer: Tokenizer) -> int:
    """The one that ends an answer; the others are in generation_config.json."""
    end = tokenizer.id_of("<|im_end|>")
    return config.eos_token_ids[-1] if end is None else end
