"""What a measurement was taken on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from .. import __version__, blas
from ..inference.allocator import memory_bytes


@dataclass(frozen=True, slots=True)
class Machine:
    chip: str
    device: str  # that MLX computes on
    gpu_cores: int | None
    cpu_threads: int | None
    memory_bytes: int
    os: str
    python: str
    mlx: str
    fastvlm_mlx: str
    blas: str | None  # None where a GPU computes

    @property
    def words(self) -> str:
        cores = f", {self.gpu_cores} GPU cores" if self.gpu_cores else ""
        with_blas = f" with {self.blas}" if self.blas else ""
        return (
            f"{self.chip}{cores}, {self.cpu_threads} CPU threads, {self.memory_bytes / 2**30:.0f} GiB, "
            f"{self.os}, MLX {self.mlx} on the {self.device}{with_blas}, fastvlm-mlx {self.fastvlm_mlx}"
        )


def this_machine() -> Machine:
    on_mac = platform.system() == "Darwin"
    cores = (
        re.search(r'"gpu-core-count" = (\d+)', _said("ioreg", "-rc", "AGXAccelerator")) if on_mac else None
    )
    return Machine(
        chip=_said("sysctl", "-n", "machdep.cpu.brand_string").strip() if on_mac else _linux_chip(),
        device="gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu",
        gpu_cores=int(cores[1]) if cores else None,
        cpu_threads=os.cpu_count(),
        memory_bytes=memory_bytes(),
        os=f"macOS {platform.mac_ver()[0]}" if on_mac else _linux(),
        python=platform.python_version(),
        mlx=version("mlx"),
        fastvlm_mlx=__version__,
        blas=blas.in_use(),
    )


def _linux() -> str:
    release = ".".join(platform.release().split(".")[:2])
    return f"{platform.system()} {release} {platform.machine()}"


def _linux_chip() -> str:
    try:
        listed = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        listed = ""
    found = re.search(r"model name\s*: (.+)", listed)
    return found[1] if found else platform.machine()


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
