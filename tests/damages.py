"""What can be wrong with a checkpoint's directory, done to a copy of one."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

Damage = Callable[[Path], None]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def edited(file: str, **changes: Any) -> Damage:
    """Set keys of a JSON file; None removes one. `a__b` is b inside a."""

    def damage(directory: Path) -> None:
        path = directory / file
        whole = json.loads(path.read_text()) if path.exists() else {}
        for key, value in changes.items():
            *way, last = key.split("__")
            inner = whole
            for step in way:
                inner = inner[step]
            if value is None:
                inner.pop(last)
            else:
                inner[last] = value
        path.write_text(json.dumps(whole))

    return damage


def config(**changes: Any) -> Damage:
    return edited("config.json", **changes)


def removed(*names: str) -> Damage:
    def damage(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return damage


def written(name: str, text: str = "") -> Damage:
    def damage(directory: Path) -> None:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)

    return damage


def tensors(change: Callable[[dict[str, mx.array]], object]) -> Damage:
    """Write the weights again, changed, and drop the index."""

    def damage(directory: Path) -> None:
        arrays = mx.load(str(directory / WEIGHTS))
        assert isinstance(arrays, dict)
        mx.eval(arrays)
        change(arrays)
        (directory / WEIGHTS).unlink()
        (directory / INDEX).unlink(missing_ok=True)
        mx.save_safetensors(str(directory / WEIGHTS), arrays)

    return damage


def dropped(*parts: str) -> Damage:
    return tensors(lambda a: [a.pop(n) for n in list(a) if any(part in n for part in parts)])


def added(**new: mx.array) -> Damage:
    return tensors(lambda a: a.update({name.replace("__", "."): array for name, array in new.items()}))


def stored(name: str, array: mx.array) -> Damage:
    return tensors(lambda a: a.update({name: array}))


def spoiled(name: str, value: float) -> Damage:
    def change(arrays: dict[str, mx.array]) -> None:
        arrays[name] = mx.where(
            mx.arange(arrays[name].size).reshape(arrays[name].shape) == 0, value, arrays[name]
        )

    return tensors(change)


def sharded(absent: bool) -> Damage:
    def damage(directory: Path) -> None:
        names = list(mx.load(str(directory / WEIGHTS)))
        other = dict.fromkeys(names[1::2], "model-2.safetensors")
        index = {
            "weight_map": dict.fromkeys(names, WEIGHTS) | (other if absent else {"gone.weight": WEIGHTS})
        }
        (directory / INDEX).write_text(json.dumps(index))

    return damage


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(directory: Path) -> None:
        data = (directory / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        head = json.loads(data[8 : 8 + length])
        change(head)
        text = json.dumps(head).encode()
        (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return damage


def shifted(head: dict[str, Any]) -> None:
    entry = next(value for key, value in head.items() if key != "__metadata__")
    entry["data_offsets"] = [n + 4 for n in entry["data_offsets"]]


def torn(directory: Path) -> None:
    data = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(data[:-1000])


def twice(directory: Path) -> None:
    name = "model.norm.weight"
    mx.save_safetensors(str(directory / "model-extra.safetensors"), {name: mx.ones((64,))})


def as_torch_only(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")


def quantized(arrays: dict[str, mx.array], *bases: str, mode: str = "affine") -> None:
    for base in bases:
        parts = mx.quantize(arrays.pop(f"{base}.weight"), group_size=32, bits=4, mode=mode)
        names = ("weight", "scales", "biases")
        arrays.update({f"{base}.{part}": array for part, array in zip(names, parts, strict=False)})


def quantized_to(*bases: str, mode: str = "affine") -> Damage:
    def damage(directory: Path) -> None:
        tensors(lambda a: quantized(a, *bases, mode=mode))(directory)
        config(quantization={"bits": 4, "group_size": 32, "mode": mode})(directory)

    return damage


def tied_with(same: bool) -> Damage:
    def damage(directory: Path) -> None:
        config(tie_word_embeddings=True)(directory)
        if same:
            tensors(lambda a: a.update({"lm_head.weight": a["model.embed_tokens.weight"]}))(directory)

    return damage


def both(*damages: Damage) -> Damage:
    def damage(directory: Path) -> None:
        for one in damages:
            one(directory)

    return damage
