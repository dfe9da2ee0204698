"""Full-size checkpoints of zeros, in Apple's layout: sparse files that take no disk until they are read."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
TOKENIZER = ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json")


def write(folder: Path, name: str, shard_bytes: int = 5 * 2**30) -> int:
    """A checkpoint of variant `name` (0.5b, 1.5b or 7b) with bfloat16 zeros; returns its bytes."""
    listed = json.loads((GOLDEN / "real" / f"tensors_{name}.json").read_text())["tensors"]
    sizes = json.loads((GOLDEN / "real" / "inventory.json").read_text())["models"][name]["config"]
    folder.mkdir(parents=True)
    shards: list[dict[str, list[int]]] = [{}]
    filled = total = 0
    for key, shape in listed.items():
        count = _bytes(key, shape)
        if filled + count > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][key] = shape
        filled += count
        total += count
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _sparse(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {
        "model_type": "llava_qwen2",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "mobileclip_l_1024",
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        **sizes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for file in TOKENIZER:
        (folder / file).write_bytes((GOLDEN / "checkpoints" / "apple-train" / "untied" / file).read_bytes())
    return total


def _bytes(key: str, shape: list[int]) -> int:
    return math.prod(shape) * (8 if key.endswith("num_batches_tracked") else 2)


def _sparse(path: Path, tensors: dict[str, list[int]]) -> None:
    header, place = {}, 0
    for key, shape in tensors.items():
        end = place + _bytes(key, shape)
        kind = "I64" if key.endswith("num_batches_tracked") else "BF16"
        header[key] = {"dtype": kind, "shape": shape, "data_offsets": [place, end]}
        place = end
    head = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + place)
