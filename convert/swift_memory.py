"""How much of a device's memory an exported model takes: an estimate from sizes, not a measurement."""

from __future__ import annotations

from ..config import STRIDE
from .inspection import Seen

POSITIONS = 1024  # one picture at 1024 px, a question and a long answer
ALIVE = 4  # of the tower's largest arrays at a time
# What iOS lets an app have is not published: half of the memory is often seen without the entitlement
# com.apple.developer.kernel.increased-memory-limit.
SHARE = 0.5
DEVICES = {"iPhone, 6 GB": 6e9, "iPhone, 8 GB": 8e9, "iPad, 8 GB": 8e9, "iPad, 16 GB": 16e9}


def facts(seen: Seen) -> dict[str, str]:
    weights = sum(info.nbytes for info in seen.stored.values())
    if seen.text is None or seen.vision is None or seen.size is None:
        return {}
    text, width = seen.text, 2  # bytes of a half; float32 exports take more
    cache = 2 * text.layers * text.kv_heads * text.head_dim * POSITIONS * width
    tower = ALIVE * (seen.size // 4) ** 2 * seen.vision.dims[0] * seen.vision.mlp_ratio * width
    total = weights + cache + tower
    lines = {
        "memory": f"about {total / 1e9:.2f} GB: weights {weights / 1e9:.2f}, "
        f"{POSITIONS} positions {cache / 1e9:.2f}, "
        f"picture of {seen.size} px ({(seen.size // STRIDE) ** 2} tokens) {tower / 1e9:.2f}"
    }
    for device, memory in DEVICES.items():
        verdict = "fits" if total <= SHARE * memory else "too large without the increased-memory entitlement"
        lines[device] = verdict if total <= memory else "too large"
    return lines
