"""Small pictures in many kinds of containers, and what was written of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from command import MODEL
from pictures import encoded
from PIL import Image

OPTIONS = ("-m", MODEL, "-n", 6, "--image-size", 64)


def drawn(seed: int) -> bytes:
    """A picture unlike the others, which the tests' model says something else about."""
    cells = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return encoded(Image.fromarray(np.kron(cells, np.ones((16, 16, 1), np.uint8))))


def album(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:04}.png").write_bytes(drawn(number))
    return folder


def shard(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def said(path: Path) -> dict[str, str]:
    return {record["key"]: record["caption"] for record in records(path)}


def lines(out: Path) -> list[dict[str, Any]]:
    """Everything that was ever written down, part by part."""
    parts = sorted(out.with_name(f"{out.name}.run").glob("part-*.jsonl"))
    return [record for part in parts for record in records(part)]
