"""The canonical directory: config.json, model*.safetensors, tokenizer.json. Read, verified, written.

A directory in any other layout is translated in memory by `fastvlm_mlx.convert`, the one upward seam.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NewType

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..config import ModelConfig, Quantization, from_json, is_canonical, read_json
from ..errors import CheckpointError
from ..files.atomic import new_directory
from ..inference import sharding
from ..inputs.tokenizer import Tokenizer
from ..models import lora
from ..models.fastvlm import FastVLM
from . import tensorfile

FusedWeights = NewType("FusedWeights", dict[str, mx.array])

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 2**30
DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


@dataclass(frozen=True, slots=True)
class Loaded:
    model: FastVLM
    config: ModelConfig
    tokenizer: Tokenizer
    layout: str
    dtype: mx.Dtype
    quantization: Mapping[str, Quantization]  # as stored; `config` has it as computed
    low_memory: bool = False  # the language model is still on disk


def load(
    directory: Path,
    dtype: mx.Dtype | None = None,
    adapter: lora.Adapter | None = None,
    group: mx.distributed.Group | None = None,
    *,
    low_memory: bool = False,
) -> Loaded:
    """Load any known layout. `dtype` None computes in the stored type, on the CPU in float32.

    An adapter is added to dense matrices, where it costs nothing; beside packed ones it stays apart. Each
    process of a `group` keeps its part of the language model alone. `low_memory` leaves the language model on
    disk until the tower has been freed."""
    layout, stored, weights, tokenizer = read(directory)
    on_cpu = mx.default_device() != mx.Device(mx.gpu)
    dtype = dtype or (mx.float32 if on_cpu else stored_dtype(weights))
    # Packed matrices are far slower than dense ones on a CPU.
    config, weights = dequantize(stored, weights) if on_cpu else (stored, weights)
    if group is not None:
        sharding.check(config, group.size(), directory)
    model = FastVLM(config)
    apart: list[str] = []
    if adapter is not None:
        lora.check(adapter, model)
        apart = [path for path in adapter.paths if path in config.quantization]
        if apart and group is not None:
            raise CheckpointError(
                f"{directory}: an adapter beside packed matrices cannot be divided between processes; "
                "train with `fuse = true` and give the model that it writes"
            )
        dense = [path for path in adapter.paths if path not in config.quantization]
        sums = {
            f"{path}.weight": dequantize_matrix(config, weights, path) + adapter.delta(path) for path in dense
        }
        weights = FusedWeights({**weights, **sums})
    untouched = tokenizer is None and (adapter, group, config) == (None, None, stored)
    as_stored = untouched and all(array.dtype in (dtype, mx.uint32) for array in weights.values())
    model.load_weights(list(cast(weights, dtype).items()))
    if adapter is not None and apart:
        lora.apply(model, adapter, apart)
    if group is not None:
        model.shard(group)
    del weights  # what is made from them must not outlive it
    materialize(model, as_stored=as_stored, low_memory=low_memory, sharded=group is not None)
    tokenizer = tokenizer or Tokenizer.load(directory)
    return Loaded(model, config, tokenizer, layout, dtype, stored.quantization, low_memory)


def read(directory: Path) -> tuple[str, ModelConfig, FusedWeights, Tokenizer | None]:
    """Layout, configuration and lazy weights, names and shapes checked; the tokenizer where translating took
    one.

    The caller holds the only reference to the weights, so that each can be freed once it was used.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: not a directory; give a model directory or a hub id")
    raw = read_json(directory / CONFIG)
    if is_canonical(raw):
        config, weights = from_json(raw, directory / CONFIG), FusedWeights(lazy_weights(directory))
        check(config, weights, directory)
        return "fastvlm-mlx", config, weights, None
    from ..convert.read.translate import translate

    tokenizer = Tokenizer.load(directory)
    translated = translate(directory, tokenizer)
    return translated.layout, translated.config, translated.weights, tokenizer


def materialize(model: FastVLM, *, as_stored: bool, low_memory: bool, sharded: bool) -> None:
    """Read the weights: all at once where they are computed as they are stored, else one by one, so that no
    tensor stands in memory beside what it is made from for longer than that takes."""
    arrays = [
        array
        for name, array in parameters(model).items()
        if not (low_memory and name.startswith("language."))
    ]
    if as_stored:
        mx.async_eval(arrays)
    for array in arrays:
        mx.eval(array)
        if low_memory or sharded:
            mx.clear_cache()  # of whole matrices that a part was cut from


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that make up the model, by the index where there is one."""
    index = directory / INDEX
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: has no weight_map; download it again")
        files = [directory / name for name in sorted(set(map(str, weight_map.values())))]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise CheckpointError(
                f"{directory}: {INDEX} names {missing[0]}, which is not there "
                f"({len(missing)} of {len(files)} files missing); download it again"
            )
        return files
    files = sorted(directory.glob("model*.safetensors"))
    if not files:
        others = sorted(directory.glob("*.bin")) + sorted(directory.glob("*.pth"))
        why = f"only {others[0].name}; save it as safetensors first" if others else "download it again"
        raise CheckpointError(f"{directory}: no model*.safetensors file, {why}")
    return files


def lazy_weights(directory: Path) -> dict[str, mx.array]:
    """Every stored tensor by name; bytes are read on evaluation."""
    weights: dict[str, mx.array] = {}
    for file in weight_files(directory):
        arrays = tensorfile.lazy_arrays(file)
        twice = weights.keys() & arrays.keys()
        if twice:
            raise CheckpointError(
                f"{file}: holds {min(twice)!r}, and so does another file; remove one of them"
            )
        weights |= arrays
    return weights


def check(config: ModelConfig, weights: Mapping[str, mx.array], where: Path) -> None:
    """Names and shapes must be exactly the model's; nothing is read for it."""
    expected = {name: tuple(value.shape) for name, value in parameters(FastVLM(config)).items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing:
        raise CheckpointError(
            f"{where}: {len(missing)} tensor(s) missing, first {missing[0]!r}; the checkpoint is incomplete, "
            f"run `fastvlm-mlx doctor {where}`"
        )
    if extra:
        raise CheckpointError(
            f"{where}: {len(extra)} tensor(s) that no part of FastVLM uses, first {extra[0]!r}; "
            f"run `fastvlm-mlx doctor {where}`"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(
                f"{where}: {name!r} has shape {found[name]}, and config.json asks for {shape}; "
                f"run `fastvlm-mlx doctor {where}`"
            )


def parameters(model: nn.Module) -> dict[str, mx.array]:
    flat: list[tuple[str, mx.array]] = tree_flatten(model.parameters())  # type: ignore[assignment]
    return dict(flat)


def fingerprint(model: nn.Module) -> str:
    """A digest of every tensor's name, shape, type, and of the sums of its bits along rows and columns.

    Any value that changes changes two sums; reading all of a 0.5B takes a fraction of a second.
    """
    digest = hashlib.sha256()
    for name, array in sorted(parameters(model).items()):
        digest.update(repr((name, array.shape, str(array.dtype))).encode())
        bits = array.view(mx.uint16 if array.dtype.size == 2 else mx.uint32)  # sums are of 32 bits either way
        table = bits.reshape(-1, bits.shape[-1])
        for axis in (0, 1):
            digest.update(np.array(mx.sum(table, axis=axis)).tobytes())
    return digest.hexdigest()[:16]


def stored_dtype(weights: Mapping[str, mx.array]) -> mx.Dtype:
    """The type of the decoder's norms, which are never quantized."""
    return weights["language.norm.weight"].dtype


def cast(weights: FusedWeights, dtype: mx.Dtype) -> FusedWeights:
    """Floats to `dtype`; packed integers stay."""
    return FusedWeights({k: v.astype(dtype) if v.dtype in DTYPES.values() else v for k, v in weights.items()})


def dequantize(config: ModelConfig, weights: FusedWeights) -> tuple[ModelConfig, FusedWeights]:
    dense = dict(weights)
    for path in config.quantization:
        dense[f"{path}.weight"] = dequantize_matrix(config, weights, path)
        del dense[f"{path}.scales"], dense[f"{path}.biases"]
    return dataclasses.replace(config, quantization={}), FusedWeights(dense)


def dequantize_matrix(config: ModelConfig, weights: Mapping[str, mx.array], path: str) -> mx.array:
    """A matrix in float32, packed or not."""
    weight, how = weights[f"{path}.weight"], config.quantization.get(path)
    if how is None:
        return weight.astype(mx.float32)
    scales, biases = (weights[f"{path}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
    return mx.dequantize(weight, scales, biases, how.group_size, how.bits)


def replace_tensors(
    config: ModelConfig, weights: FusedWeights, changed: Mapping[str, mx.array]
) -> FusedWeights:
    """Tensors in place of those of the same names, in the types of those.

    What was packed is packed again, with the same bits, and rounded once more by that.
    """
    new = dict(weights)
    for name, array in changed.items():
        path, how = name.rpartition(".")[0], config.quantization.get(name.removesuffix(".weight"))
        if how is None:
            new[name] = array.astype(weights[name].dtype)
        else:
            dense = array.astype(weights[f"{path}.scales"].dtype)
            parts = mx.quantize(dense, how.group_size, how.bits)
            new |= {
                f"{path}.{part}": a for part, a in zip(("weight", "scales", "biases"), parts, strict=True)
            }
    return FusedWeights(new)


def save(
    destination: Path,
    config: ModelConfig,
    weights: FusedWeights,
    tokenizer: Tokenizer,
    extras: Mapping[str, bytes],
    finish: Callable[[Path], None] = lambda folder: None,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the canonical directory, one tensor in memory at a time. `weights` is emptied.

    `extras` are further files; `finish` sees the complete directory before it appears.
    """
    total = sum(array.nbytes for array in weights.values())
    with new_directory(destination, overwrite=overwrite, needs_bytes=total) as folder:
        (folder / CONFIG).write_text(config.to_json(), encoding="utf-8")
        tokenizer.save(folder)
        for name, content in extras.items():
            (folder / name).write_bytes(content)
        write_shards(folder, weights, progress)
        finish(folder)


def write_shards(folder: Path, weights: dict[str, mx.array], progress: Callable[[int, int], None]) -> None:
    """model.safetensors, or shards and their index. `weights` is emptied."""
    total = sum(array.nbytes for array in weights.values())
    shards = shard_names(weights)
    weight_map: dict[str, str] = {}
    done = 0

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    for number, names in enumerate(shards, 1):
        file = (
            "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        )
        tensorfile.write(folder / file, weights, names, {"format": "mlx"}, wrote)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def shard_names(weights: Mapping[str, mx.array], limit: int = SHARD_BYTES) -> list[list[str]]:
    """Names in order, in runs of at most `limit` bytes."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, array in weights.items():
        if shards[-1] and filled + array.nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += array.nbytes
    return shards
