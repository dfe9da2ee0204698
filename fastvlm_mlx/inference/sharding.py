"""Splits one language model over several processes: how many can share it, and how they share a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

from ..config import ModelConfig
from ..errors import ConfigError
from ..inputs.prompt import Part, Picture, Prompt, Text

Group = mx.distributed.Group


def counts(config: ModelConfig) -> list[int]:
    """The numbers of processes that can share the model."""
    return [count for count in range(1, config.text.kv_heads + 1) if not _indivisible(config, count)]


def check(config: ModelConfig, count: int, where: Path) -> None:
    if cut := _indivisible(config, count):
        possible = ", ".join(map(str, counts(config)))
        raise ConfigError(
            f"{where}: {count} processes cannot share {cut}; counts that work for this model: {possible}"
        )


def _indivisible(config: ModelConfig, count: int) -> str:
    """The part that `count` processes cannot divide evenly, "" if they can."""
    text = config.text
    if text.kv_heads % count:  # the heads are a multiple of these
        return f"{text.heads} heads with {text.kv_heads} of keys and values"
    if text.intermediate_size % count:
        return f"MLPs {text.intermediate_size} wide"
    widths = {".attention.out": text.heads * text.head_dim, ".mlp.down": text.intermediate_size}
    for path, how in config.quantization.items():
        for end, width in widths.items():  # their inputs are divided, and packed in groups
            if path.endswith(end) and width // count % how.group_size:
                return f"{path}, {width} wide and packed in groups of {how.group_size}"
    return ""


def share_prompt(prompt: Prompt, group: Group) -> Prompt:
    """The first rank's prompt, on every rank; the others pass an empty one."""
    numbers = [number for part in prompt for number in _describe(part)]
    length: int = _broadcast(mx.array([len(numbers)]), group).item()  # type: ignore[assignment]
    told = _broadcast(mx.array(numbers or [0] * length), group)
    pixels = (part.pixels for part in prompt if isinstance(part, Picture))
    return tuple(_parts(iter(told.tolist()), pixels, group))  # type: ignore[arg-type]


def _describe(part: Part) -> tuple[int, ...]:
    if isinstance(part, Text):
        return len(part.ids), *part.ids
    return -part.pixels.shape[1], part.pixels.shape[2]


def _parts(told: Iterator[int], pixels: Iterator[mx.array], group: Group) -> Iterator[Part]:
    for number in told:
        if number >= 0:
            yield Text(tuple(next(told) for _ in range(number)))
        else:
            held = next(pixels, None)
            nothing = mx.zeros((1, -number, next(told), 3))
            yield Picture(_broadcast(nothing if held is None else held.astype(mx.float32), group))


def _broadcast(array: mx.array, group: Group) -> mx.array:
    """The first rank's array, on every rank; the others pass zeros. Evaluated now, so that all send in one
    order."""
    everywhere = mx.distributed.all_sum(array, group=group)
    mx.eval(everywhere)
    return everywhere
