"""What a checkpoint's raw tensors should be: the run form's parameters taken apart again.

A place is taken apart only as far as this checkpoint has branches there, so training and fused forms, and
mixtures of both, are held to the same table. Names and shapes only; `fuse` says what the branches mean.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...config import (
    BITS,
    GROUP_SIZES,
    STAGES,
    ModelConfig,
    MultiScaleConfig,
    Quantization,
    TextConfig,
    VisionConfig,
)
from ...models.fastvlm import FastVLM
from ...weights.checkpoint import parameters

Shapes = dict[str, tuple[int, ...]]  # NHWC

_BRANCHES = ("kxk", "scale", "skip", "large", "small", "conv", "mixer", "norm", "layer_scale")


def tower(found: Shapes, multi_scale: MultiScaleConfig | None = None) -> VisionConfig | None:
    """What most tensors say, so that a damaged one is reported rather than believed.

    Which stages stand beside the features they do not say.
    """
    if not any(name.startswith("vision.") for name in found):
        return None
    depths, mixing = [0] * STAGES, [Counter[str | None]() for _ in range(STAGES)]
    votes: dict[str, Counter[int]] = {}
    for name, shape in found.items():
        if match := re.match(r"vision\.stages\.([0-4])\.blocks\.(\d+)\.(attention|mixer|ffn\.\w+)?", name):
            stage, block, part = int(match[1]), int(match[2]), match[3]
            depths[stage] = max(depths[stage], block + 1)
            mixing[stage][part] += 1
            name = f"{stage}.{part}"
        if shape:
            votes.setdefault(name, Counter())[shape[0]] += 1

    def most(name: str, otherwise: int) -> int:
        return max(1, votes[name].most_common(1)[0][0]) if name in votes else otherwise

    dims: list[int] = []
    for stage in range(STAGES):
        dims.append(most(f"{stage}.ffn.depthwise", 2 * dims[-1] if dims else 96))
    narrow = most("vision.expand.squeeze.bias", most("vision.expand.squeeze.weight", 2 * dims[-1] // 16))
    return VisionConfig(
        tuple(max(1, depth) for depth in depths),
        tuple(dims),
        max(1, most("0.ffn.fc1", 4 * dims[0]) // dims[0]),
        next((n for n, parts in enumerate(mixing) if parts["attention"] > parts["mixer"]), STAGES),
        squeeze=max(1, 2 * dims[-1] // max(1, narrow)),
        multi_scale=multi_scale,
    )


def raw_form(vision: VisionConfig | None, features: int, text: TextConfig, found: Shapes) -> Shapes:
    """By raw name. Without a tower, `features` is the width that the projector expects of one."""
    some_tower = vision or VisionConfig((1,) * STAGES, (features // 2,) * STAGES)
    narrow = text.kv_heads * text.head_dim
    joined = {
        "qkv": {"q": text.hidden_size, "k": narrow, "v": narrow},
        "gate_up": dict.fromkeys(("gate", "up"), text.intermediate_size),
    }
    parts = {name[: dot.start()] for name in found for dot in re.finditer(r"\.|$", name)}
    shapes: Shapes = {}
    for name, array in parameters(FastVLM(ModelConfig(some_tower, text))).items():
        base, _, kind = name.rpartition(".")
        if not name.startswith("vision."):
            path, _, last = base.rpartition(".")
            for piece, rows in joined.get(last, {last: array.shape[0]}).items():
                shapes[f"{path}.{piece}.{kind}"] = (rows, *array.shape[1:])
        elif vision and kind == "weight":
            shapes |= _apart(base, array.shape, parts)
    return shapes


def _apart(base: str, shape: tuple[int, ...], parts: set[str]) -> Shapes:
    width = shape[0]
    above, _, last = base.rpartition(".")
    block = above.removesuffix(".attention")
    if last == "qkv":  # the norm is inside it, and its bias made of the norm's
        return {f"{base}.weight": shape} | _affine(f"{block}.norm", shape[1])
    if last == "proj":
        return _affine(base, *shape) | {f"{block}.layer_scale_{n}": (width,) for n in (1, 2)}
    if base.endswith("ffn.depthwise"):
        return _folded(base, *shape)
    if above == "vision.multi_scale.pools":
        return {f"{base}.weight": shape}
    scale: Shapes = {f"{block}.layer_scale": (width,)} if last == "mixer" else {}
    if f"{base}.weight" in parts or not any(f"{base}.{branch}" in parts for branch in _BRANCHES):
        return scale | _affine(base, *shape)
    if last == "position":
        return _affine(f"{base}.conv", *shape)
    if base.endswith("downsample.depthwise"):
        return _folded(f"{base}.large", *shape) | _folded(f"{base}.small", width, 3, 3, 1)
    if last == "mixer":
        scale |= {f"{base}.layer_scale": (width,)} | _norm(f"{base}.norm.skip", width)
        return scale | _mobile_one(f"{base}.mixer", shape, parts, scale=True, skip=True)
    return _mobile_one(base, shape, parts, scale=base == "vision.expand.depthwise", skip=last == "pointwise")


def _mobile_one(name: str, shape: tuple[int, ...], parts: set[str], *, scale: bool, skip: bool) -> Shapes:
    count = next(n for n in range(1, len(parts) + 2) if f"{name}.kxk.{n}" not in parts)
    shapes = _folded(f"{name}.scale", shape[0], 1, 1, shape[-1]) if scale else {}
    for branch in range(count):
        shapes |= _folded(f"{name}.kxk.{branch}", *shape)
    return shapes | (_norm(f"{name}.skip", shape[0]) if skip else {})


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


def _affine(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _folded(name: str, *shape: int) -> Shapes:
    return {f"{name}.conv.weight": shape} | _norm(f"{name}.bn", shape[0])


def pack(expected: Shapes, found: Shapes, said: Mapping[str, Any]) -> dict[str, Quantization]:
    """What is stored quantized, by path; in `expected` its shapes take the place of the dense ones.

    How it was packed is read off the shapes; where those make no sense, `said` in config.json counts.
    """
    packed: dict[str, Quantization] = {}
    for base in [name.removesuffix(".scales") for name in found if name.endswith(".scales")]:
        if base == "language.head":  # also when tied, for the report's sake
            expected.setdefault(f"{base}.weight", expected["language.embedding.weight"])
        dense, groups = expected.get(f"{base}.weight", ()), found[f"{base}.scales"][-1:]
        if len(dense) != 2 or groups in ((), (0,)):
            continue
        rows, width = dense
        bits, group = sum(found.get(f"{base}.weight", ())[-1:]) * 32 // width, width // groups[0]
        if bits not in BITS or group not in GROUP_SIZES:
            bits, group = said.get("bits", 4), said.get("group_size", 64)
        packed[base] = Quantization(bits, group)
        expected[f"{base}.weight"] = (rows, width * bits // 32)
        sides = [side for side in ("scales", "biases") if f"{base}.{side}" in found]  # else: another mode
        expected |= {f"{base}.{side}": (rows, width // group) for side in sides}
    return packed


@dataclass(frozen=True)
class Differences:
    """By raw name, sorted."""

    missing: list[str]
    extra: list[str]
    wrong: list[str]  # shapes


def differences(found: Shapes, expected: Shapes, *, tied: bool) -> Differences:
    """A tied model's stored head is no difference: the reference ignores it too."""
    extra = found.keys() - expected.keys()
    return Differences(
        missing=sorted(expected.keys() - found.keys()),
        extra=sorted(name for name in extra if not (tied and name.startswith("language.head."))),
        wrong=sorted(
            name for name in found.keys() & expected.keys() if not _fits(name, found[name], expected[name])
        ),
    )


def _fits(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """A matrix may be stored as a 1×1 convolution, and a scale in any orientation."""
    if len(expected) == 2 or name.rpartition(".")[2].startswith("layer_scale"):
        return [n for n in found if n != 1] == [n for n in expected if n != 1]
    return found == expected
