"""What exports for apps have in common: the source taken apart, the decoder packed, the directory written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...config import ModelConfig, Quantization, is_canonical, read_json
from ...errors import CheckpointError, ConfigError
from ...files import atomic
from ...inputs.tokenizer import Tokenizer
from ...weights import checkpoint
from ...weights.checkpoint import CONFIG
from .. import card
from ..doctor.inspect import Report
from ..fuse.released import Released, of_raw, of_run
from ..read.translate import read_source
from ..run import read

BITS = (4, 8)
GROUP_SIZE = 64
HEAD = "head.proj"  # the CLIP head: no one runs it


@dataclass(frozen=True)
class Exported:
    destination: Path
    bytes: int
    report: Report
    licence: str | None


@dataclass(frozen=True)
class Source:
    layout: str
    config: ModelConfig
    released: Released
    head: mx.array | None


def refuse(source: Path, destination: Path, bits: int | None, overwrite: bool) -> None:
    """What can be told before anything is read."""
    atomic.refuse(destination, overwrite)
    if bits not in (None, *BITS):
        raise ConfigError(
            f"no export in {bits} bits: the Swift programs and mlx-vlm read 4 and 8; choose one"
        )
    atomic.refuse_overlap(destination, source)
    if not source.is_dir():
        raise CheckpointError(f"{source}: not a directory; give a model directory or a hub id")


def write(
    source: Path,
    destination: Path,
    tokenizer: Tokenizer,
    texts: Mapping[str, Mapping[str, Any]],
    stored: dict[str, mx.array],
    finish: Callable[[Path, str | None], Report],
    *,
    needs_bytes: int = 0,
    overwrite: bool,
    progress: Callable[[int, int], None],
) -> Exported:
    """One tensor in memory at a time, the result whole or absent. `stored` is emptied.

    `finish` adds what is left, given the licence's notice, and says whether the directory would load.
    """
    total = sum(array.nbytes for array in stored.values())
    licences = card.licences(source)
    notice = card.notice(licences)
    with atomic.new_directory(destination, overwrite=overwrite, needs_bytes=total + needs_bytes) as folder:
        tokenizer.save(folder)
        for name, body in texts.items():
            (folder / name).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        for name, content in licences.items():
            (folder / name).write_bytes(content)
        checkpoint.write_shards(folder, stored, progress)
        report = finish(folder, notice)
        require_healthy(report, source)
        written = bytes_of(folder)
    return Exported(destination, written, report, notice)


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def require_healthy(report: Report, source: Path) -> None:
    if not report.healthy:
        first = next(finding for finding in report.findings if finding.level == "problem")
        raise CheckpointError(f"{source}: the export would not load: {first.what}; {first.repair}")


def source_of(source: Path, tokenizer: Tokenizer, reader: str) -> Source:
    """Taken apart for programs, `reader`, that know the released models and nothing else."""
    if is_canonical(read_json(source / CONFIG)):
        layout, config, run = read(source, tokenizer)
        _refuse_multi_scale(config, source, reader)
        return Source(layout, config, of_run(run, config, source), None)
    whole = read_source(source, tokenizer)
    _refuse_multi_scale(whole.config, source, reader)
    head = checkpoint.lazy_weights(source).get(f"{whole.layout.tower}{HEAD}")
    released = of_raw(whole.raw, whole.config, whole.packed)
    return Source(whole.layout.name, whole.config, released, head)


def _refuse_multi_scale(config: ModelConfig, source: Path, reader: str) -> None:
    if scales := config.vision.multi_scale:
        raise ConfigError(
            f"{source}: {reader} cannot hold multi-scale features ({scales.listed}); run the model with "
            "fastvlm-mlx, or export its tower with --target coreml"
        )


def packed(
    found: Source, bits: int | None, dtype: mx.Dtype, source: Path
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


def eos_of(config: ModelConfig, tokenizer: Tokenizer) -> int:
    """The one that ends an answer; the others are in generation_config.json."""
    end = tokenizer.id_of("<|im_end|>")
    return config.eos_token_ids[-1] if end is None else end
