"""Kernels' bodies are plain C++: compiled for the CPU, a test runs them thread by thread."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import pytest

from fastvlm_mlx.kernels.candidates import METAL

_COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
_HOW = ("-std=c++17", "-O1", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC")


def compiled(source: str, path: Path) -> ctypes.CDLL:
    if _COMPILER is None:
        pytest.skip("no C++ compiler")
    path.write_text(source)
    built = path.with_suffix(".so")
    subprocess.run([_COMPILER, *_HOW, path, "-o", built], check=True)
    return ctypes.CDLL(str(built))


def handed(where: str, outputs: Sequence[mx.array], monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What a backend is given from now on to make a kernel and to run it."""
    seen: dict[str, object] = {}

    def made(**how: object) -> Callable[..., Sequence[mx.array]]:
        def called(**given: object) -> Sequence[mx.array]:
            seen.update(how | given)
            return outputs

        return called

    monkeypatch.setattr(mx.fast, "metal_kernel" if where == METAL else "cuda_kernel", made)
    return seen
