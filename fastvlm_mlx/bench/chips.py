"""What Apple's chips can do at most, and so the least that a stage can take on them.

A chip's row is its largest GPU. Teraflops are Apple's where Apple published them, else worked out: cores ×
128 lanes × 2 × clock, with clocks as third parties read them, the higher where they differ, so that a lower
bound stays one. Half precision runs at the rate of single on these GPUs. Bandwidth is Apple's for M chips
but the first, else worked out from the memory's rate and 8 bytes a transfer (16 for the M1).
Not covered: the Neural Engine, which MLX does not use.
"""

from __future__ import annotations

from dataclasses import dataclass

from .cost import Total, weight_bytes

_LANES = 128


@dataclass(frozen=True, slots=True)
class Chip:
    name: str
    cores: int  # of the largest GPU
    tflops: float
    tflops_source: str
    gb_s: float
    gb_s_source: str

    def with_cores(self, cores: int) -> float:
        """Teraflops of a GPU with so many cores."""
        return self.tflops * cores / self.cores


def _published(name: str, cores: int, tflops: float, gb_s: float, memory: str = "Apple") -> Chip:
    return Chip(name, cores, tflops, "Apple", gb_s, memory)


def _derived(name: str, cores: int, ghz: float, gb_s: float, memory: str = "Apple") -> Chip:
    tflops = cores * _LANES * 2 * ghz / 1e3
    return Chip(name, cores, round(tflops, 2), f"{cores} cores × 128 × 2 × {ghz} GHz", gb_s, memory)


_LPDDR5 = "64 bit of LPDDR5-6400"
_LPDDR5X = "64 bit of LPDDR5X-7500"
_ROWS = (
    _derived("Apple A17 Pro", 6, 1.398, 51.2, _LPDDR5),
    _derived("Apple A18", 5, 1.49, 60.0, _LPDDR5X),
    _derived("Apple A18 Pro", 6, 1.49, 60.0, _LPDDR5X),
    _published("Apple M1", 8, 2.6, 68.3, "128 bit of LPDDR4X-4266"),
    _published("Apple M1 Pro", 16, 5.2, 200),
    _published("Apple M1 Max", 32, 10.4, 400),
    _published("Apple M1 Ultra", 64, 21, 800),
    _published("Apple M2", 10, 3.6, 100),
    _derived("Apple M2 Pro", 19, 1.398, 200),
    _derived("Apple M2 Max", 38, 1.398, 400),
    _derived("Apple M2 Ultra", 76, 1.398, 800),
    _derived("Apple M3", 10, 1.398, 100),
    _derived("Apple M3 Pro", 18, 1.398, 150),
    _derived("Apple M3 Max", 40, 1.398, 400),
    _derived("Apple M3 Ultra", 80, 1.398, 819),
    _derived("Apple M4", 10, 1.578, 120),
    _derived("Apple M4 Pro", 20, 1.578, 273),
    _derived("Apple M4 Max", 40, 1.578, 546),
)
CHIPS = {chip.name: chip for chip in _ROWS}


@dataclass(frozen=True, slots=True)
class Bound:
    compute_s: float
    memory_s: float

    @property
    def s(self) -> float:
        return max(self.compute_s, self.memory_s)


def roofline(cost: Total, chip: Chip, width: int = 2) -> Bound:
    """No program can be faster: every multiply-add at full rate; weights, keys and values read once.

    Activations are left out of the bytes, since they may stay in caches. `width` is the bytes of a float.
    """
    moved = weight_bytes(cost, width) + cost.cached * width
    return Bound(2 * cost.macs / (chip.tflops * 1e12), moved / (chip.gb_s * 1e9))
