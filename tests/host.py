"""Kernels' bodies are plain C++: compiled for the CPU, a test runs them thread by thread."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

_COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
_HOW = ("-std=c++17", "-O1", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC")


def compiled(source: str, path: Path) -> ctypes.CDLL:
    if _COMPILER is None:
        pytest.skip("no C++ compiler")
    path.write_text(source)
    built = path.with_suffix(".so")
    subprocess.run([_COMPILER, *_HOW, path, "-o", built], check=True)
    return ctypes.CDLL(str(built))
