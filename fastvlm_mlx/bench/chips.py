"""What Apple's chips can do at most, and so the least time that work can take on them.

A row is the chip's largest GPU. Teraflops are Apple's where Apple published them, else from one of two
tables: Hugging Face's (huggingface.co/hardware) or HMC's (hmc-tech.com/gpu), or worked out as cores × 128
lanes × 2 × clock with the clock that AppleGPUInfo (github.com/philipturner/applegpuinfo) or HMC gives; the
highest where they differ, so that a lower bound stays one. Half precision runs at the rate of single XX"""

from __future__ import annotations

from dataclasses import dataclass

_LANES = 128


@dataclass(frozen=True, slots=True)
class Chip:
    name: str
    cores: int  # of the largest GPU
    tflops: float
    source: str  # of the teraflops
    gb_s: float | None  # by Apple

    def with_cores(self, cores: int | None) -> float:
        """Teraflops of a GPU with so many cores."""
        return self.tflops * (cores or self.cores) / self.cores


def _clocked(name: str, cores: int, ghz: float, who: str, gb_s: float | None) -> Chip:
    tflops = cores * _LANES * 2 * ghz / 1e3
    return Chip(name, cores, round(tflops, 2), f"{cores} cores × 128 × 2 × {ghz} GHz ({who})", gb_s)


_HUB = "Hugging Face"
_CLOCKS = "AppleGPUInfo"
_ROWS = (
    _clocked("Apple A17 Pro", 6, 1.398, "HMC", None),
    _clocked("Apple A18", 5, 1.45, "HMC", None),
    _clocked("Apple A18 Pro", 6, 1.45, "the A18's, HMC", None),
    Chip("Apple M1", 8, 2.6, "Apple", 68.25),
    Chip("Apple M1 Pro", 16, 5.2, "Apple", 200),
    Chip("Apple M1 Max", 32, 10.4, "Apple", 400),
    Chip("Apple M1 Ultra", 64, 21, _HUB, 800),
    Chip("Apple M2", 10, 3.6, _HUB, 100),
    _clocked("Apple M2 Pro", 19, 1.398, _CLOCKS, 200),
    _clocked("Apple M2 Max", 38, 1.398, _CLOCKS, 400),
    _clocked("Apple M2 Ultra", 76, 1.398, _CLOCKS, 800),
    Chip("Apple M3", 10, 4.1, _HUB, 100),
    Chip("Apple M3 Pro", 18, 7.4, _HUB, 150),
    _clocked("Apple M3 Max", 40, 1.398, _CLOCKS, 400),
    _clocked("Apple M3 Ultra", 80, 1.398, "the M3 Max's", 819),
    Chip("Apple M4", 10, 4.6, _HUB, 120),
    Chip("Apple M4 Pro", 20, 9.2, _HUB, 273),
    Chip("Apple M4 Max", 40, 18.4, _HUB, 546),
)
CHIPS = {chip.name: chip for chip in _ROWS}


@dataclass(frozen=True, slots=True)
class Work:
    macs: int
    bytes: int  # that must be read: weights, keys and values; activations may stay in caches

    def __add__(self, other: Work) -> Work:
        return Work(self.macs + other.macs, self.bytes + other.bytes)


def least_s(work: Work, chip: Chip, cores: int | None = None) -> float:
    """No program can be faster; by arithmetic alone where the bandwidth is unknown."""
    computing = 2 * work.macs / (chip.with_cores(cores) * 1e12)
    return max(computing, work.bytes / (chip.gb_s * 1e9)) if chip.gb_s else computing
