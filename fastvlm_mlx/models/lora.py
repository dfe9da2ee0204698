"""LoRA adapters: a pair of thin matrices beside each weight matrix; only the pairs are trained.

An adapter directory holds adapter_config.json, and adapters.safetensors with `PATH.lora_a` (inputs, rank) and
`PATH.lora_b` (rank, outputs) for each matrix of the run form, so that q, k and v share one pair.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..config import read_json
from ..errors import CheckpointError, ConfigError
from ..files.atomic import ADAPTER_CONFIG, new_directory
from ..files.strict import parse
from ..weights import tensorfile
from .fastvlm import FastVLM

WEIGHTS = "adapters.safetensors"
FORMAT = "fastvlm-mlx-adapter"
FORMAT_VERSION = 1
_PARTS = ("lora_a", "lora_b")


@dataclass(frozen=True, slots=True)
class LoRASettings:
    rank: int = 8
    alpha: float = 16.0
    patterns: tuple[str, ...] = (r"language\.layers\.\d+\.(attention|mlp)\.",)
    dropout: float = 0.0  # on the input of A, during training

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"rank {self.rank}, alpha {self.alpha} and dropout {self.dropout}: rank must be at least 1, "
                "alpha above 0, dropout from 0 to below 1"
            )
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"{pattern!r} is no regular expression ({error})") from None

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class Adapter:
    base: str  # the name of the model it was trained for
    settings: LoRASettings
    weights: Mapping[str, mx.array]

    @property
    def paths(self) -> list[str]:
        return sorted({name.rpartition(".")[0] for name in self.weights})

    def delta(self, path: str) -> mx.array:
        """The update of a matrix (outputs, inputs), in float32."""
        a, b = (self.weights[f"{path}.{part}"].astype(mx.float32) for part in _PARTS)
        return self.settings.scale * (a @ b).T


class LoRALinear(nn.Module):
    """y = x Wᵀ + bias + scale · (x A) B, in W's type. W's own tensors, packed or not, keep their names."""

    def __init__(self, base: nn.Linear | nn.QuantizedLinear, settings: LoRASettings):
        super().__init__()
        for name, array in base.parameters().items():
            self[name] = array
        self._packing = (base.group_size, base.bits) if isinstance(base, nn.QuantizedLinear) else None
        self._scale = settings.scale
        self._dropout = nn.Dropout(settings.dropout)
        inputs, outputs = _width(base)
        self.lora_a = mx.zeros((inputs, settings.rank))
        self.lora_b = mx.zeros((settings.rank, outputs))

    def __call__(self, x: mx.array) -> mx.array:
        return self.onto(self.bias, x) if "bias" in self else self._product(x) + self._beside(x)

    def onto(self, sums: mx.array, x: mx.array) -> mx.array:
        """y + sums in the place of the bias; without a pair, what the base alone gives, to the bit"""
        y = sums + self._product(x) if self._packing else mx.addmm(sums, x, self.weight.T)
        return y + self._beside(x)

    def _beside(self, x: mx.array) -> mx.array:
        return (self._scale * (self._dropout(x) @ self.lora_a) @ self.lora_b).astype(x.dtype)

    def _product(self, x: mx.array) -> mx.array:
        if not self._packing:
            return x @ self.weight.T
        size, bits = self._packing
        return mx.quantized_matmul(
            x, self.weight, self.scales, self.biases, transpose=True, group_size=size, bits=bits
        )


def attach(model: FastVLM, settings: LoRASettings, key: mx.array) -> None:
    """Add fresh pairs to the matrices that the patterns match. B is zero, so outputs do not change yet."""
    matrices = _matrices(model)
    paths = [path for path in matrices if any(re.match(pattern, path) for pattern in settings.patterns)]
    if not paths:
        raise ConfigError(
            f"lora: no matrix of the model matches patterns = {list(settings.patterns)}; mend the recipe "
            f"(names are such as {next(iter(matrices))!r})"
        )
    _wrap(model, paths, settings)
    weights = {}
    for path, each in zip(paths, mx.random.split(key, len(paths)), strict=True):
        inputs = matrices[path][0]
        bound = inputs**-0.5
        weights[f"{path}.lora_a"] = mx.random.uniform(-bound, bound, (inputs, settings.rank), key=each)
    model.update(tree_unflatten(list(weights.items())))


def apply(model: FastVLM, adapter: Adapter, paths: Iterable[str]) -> None:
    """Add a trained adapter to these matrices, without merging it."""
    chosen = set(paths)
    _wrap(model, sorted(chosen), dataclasses.replace(adapter.settings, dropout=0.0))
    weights = {name: array for name, array in adapter.weights.items() if name.rpartition(".")[0] in chosen}
    model.update(tree_unflatten(list(weights.items())))


def parameters(model: FastVLM) -> dict[str, mx.array]:
    """The adapter's parameters of a model."""
    flat: list[tuple[str, Any]] = tree_flatten(model.parameters())  # type: ignore[assignment]
    return {name: array for name, array in flat if name.rpartition(".")[2] in _PARTS}


def check(adapter: Adapter, model: FastVLM) -> None:
    """Raise unless the adapter's matrices are the model's."""
    matrices = _matrices(model)
    for path in adapter.paths:
        wanted = tuple(adapter.weights[f"{path}.{part}"].shape[n] for n, part in enumerate(_PARTS))
        if matrices.get(path) != wanted:
            has = "has none of that name" if path not in matrices else "has {}→{}".format(*matrices[path])
            raise CheckpointError(
                f"the adapter widens {path} of {wanted[0]}→{wanted[1]}, and the model {has}; it was trained "
                f"for {adapter.base}, give that model"
            )


def read(directory: Path) -> Adapter:
    file = directory / ADAPTER_CONFIG
    if not file.exists():
        raise CheckpointError(
            f"{directory}: no adapter, which holds {ADAPTER_CONFIG}; give the folder that training wrote, "
            "OUT/adapter"
        )
    raw = read_json(file)
    if (raw.get("format"), raw.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise CheckpointError(
            f"{file}: format {raw.get('format')!r}, version {raw.get('format_version')!r}, and {FORMAT!r}, "
            f"version {FORMAT_VERSION}, is read here; train it with `fastvlm-mlx train`"
        )
    body = {key: value for key, value in raw.items() if key not in ("format", "format_version", "base")}
    settings = parse(LoRASettings, body, file, repair="write the adapter again")
    weights = tensorfile.lazy_arrays(directory / WEIGHTS)
    adapter = Adapter(str(raw.get("base", "a model that is not named")), settings, weights)
    pairs = {f"{path}.{part}" for path in adapter.paths for part in _PARTS}
    odd, missing = sorted(weights.keys() - pairs), sorted(pairs - weights.keys())
    if odd or missing or not weights:
        wrong = f"{odd[0]} is no part of an adapter" if odd else f"{(*missing, 'everything')[0]} is missing"
        raise CheckpointError(f"{directory / WEIGHTS}: {wrong}; write the adapter again")
    for name, array in weights.items():
        if array.ndim != 2 or array.shape[1 if name.endswith(_PARTS[0]) else 0] != settings.rank:
            raise CheckpointError(
                f"{directory / WEIGHTS}: {name} has shape {tuple(array.shape)}, and {ADAPTER_CONFIG} says "
                f"rank {settings.rank}; write the adapter again"
            )
    return adapter


def write(destination: Path, adapter: Adapter) -> None:
    """Write the adapter directory, replacing an older adapter there."""
    settings = dataclasses.asdict(adapter.settings)
    body = {"format": FORMAT, "format_version": FORMAT_VERSION, "base": adapter.base, **settings}
    with new_directory(destination, overwrite=True) as folder:
        (folder / ADAPTER_CONFIG).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        mx.save_safetensors(str(folder / WEIGHTS), dict(adapter.weights), {"format": "mlx"})


def _matrices(model: FastVLM) -> dict[str, tuple[int, int]]:
    """The inputs and outputs of every matrix, by path."""
    kinds = (nn.Linear, nn.QuantizedLinear)
    found = {path: _width(module) for path, module in model.named_modules() if isinstance(module, kinds)}
    return dict(sorted(found.items()))


def _width(matrix: nn.Linear | nn.QuantizedLinear) -> tuple[int, int]:
    outputs, inputs = matrix.weight.shape
    return (inputs * 32 // matrix.bits if isinstance(matrix, nn.QuantizedLinear) else inputs), outputs


def _wrap(model: FastVLM, paths: Iterable[str], settings: LoRASettings) -> None:
    modules = dict(model.named_modules())
    wide = [(path, LoRALinear(modules[path], settings)) for path in paths]
    model.update_modules(tree_unflatten(wide))
