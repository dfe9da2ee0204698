"""How much of a device's memory a model takes in an app: an estimate from sizes, not a measurement.

`export --check` asks with the bytes of an export that is there, `bench` with what one of the released models
would take.
"""

from __future__ import annotations

from dataclasses import dataclass

from ....config import STRIDE, TextConfig, VisionConfig
from ...doctor.inspect import Seen

POSITIONS = 1024  # one picture at 1024 px, a question and a long answer
ALIVE = 4  # of the tower's largest arrays at a time
# What iOS lets an app have is not published: half of the memory is often seen without the entitlement
# com.apple.developer.kernel.increased-memory-limit.
SHARE = 0.5
DEVICES = {"iPhone, 6 GB": 6e9, "iPhone, 8 GB": 8e9, "iPad, 8 GB": 8e9, "iPad, 16 GB": 16e9}
ENTITLED = "with entitlement"
_WIDTH = 2  # bytes of a half; float32 exports take more


@dataclass(frozen=True, slots=True)
class Need:
    weights: int
    cache: int
    picture: int

    @property
    def bytes(self) -> int:
        return self.weights + self.cache + self.picture

    @property
    def verdicts(self) -> dict[str, str]:
        """By device."""
        return {device: self._verdict(memory) for device, memory in DEVICES.items()}

    def _verdict(self, memory: float) -> str:
        if self.bytes <= SHARE * memory:
            return "fits"
        return ENTITLED if self.bytes <= memory else "too large"


def need(weights: int, vision: VisionConfig, text: TextConfig, size: int) -> Need:
    """Of weights of so many bytes, while they answer about a picture of `size` px."""
    cache = 2 * text.layers * text.kv_heads * text.head_dim * POSITIONS * _WIDTH
    largest = (size // 4) ** 2 * vision.dims[0] * vision.mlp_ratio * _WIDTH  # inside the first ConvFFN
    return Need(weights, cache, ALIVE * largest)


def facts(seen: Seen) -> dict[str, str]:
    if seen.text is None or seen.vision is None or seen.size is None:
        return {}
    weights = sum(info.nbytes for info in seen.stored.values())
    found = need(weights, seen.vision, seen.text, seen.size)
    told = {
        "memory": f"about {found.bytes / 1e9:.2f} GB: weights {found.weights / 1e9:.2f}, "
        f"{POSITIONS} positions {found.cache / 1e9:.2f}, "
        f"picture of {seen.size} px ({(seen.size // STRIDE) ** 2} tokens) {found.picture / 1e9:.2f}"
    }
    plainly = {ENTITLED: "too large without the increased-memory entitlement"}
    return told | {device: plainly.get(said, said) for device, said in found.verdicts.items()}
