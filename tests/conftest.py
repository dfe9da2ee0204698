"""What several tests share: the command, golden numbers, loaded models, how far apart two arrays are."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("MLX_ENABLE_TF32", "0")  # float32 goldens ask for float32 products on every device
os.environ["FASTVLM_MLX_CACHE"] = ""  # what was measured on this machine decides no test

import fastvlm_mlx  # isort: skip  - prefers OpenBLAS before mlx loads
import checkpoints
import mlx.core as mx
import numpy as np
import pytest
from command import Ran, Run
from safetensors.numpy import load_file

from fastvlm_mlx import blas, cli
from fastvlm_mlx.convert.run import convert
from fastvlm_mlx.kernels import choice
from fastvlm_mlx.models.vision import FastViTHD

pytest.register_assert_rewrite("refusals", "talks")
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start without it

NUMBERS = checkpoints.GOLDEN / "numbers"


@pytest.fixture(scope="session")
def relative_error() -> Callable[[Any, Any], float]:
    """Largest absolute error over the largest absolute value."""

    def error(found: Any, expected: Any) -> float:
        found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
        assert found.shape == expected.shape, f"{found.shape} is not {expected.shape}"
        return float(np.abs(found - expected).max() / np.abs(expected).max())

    return error


@pytest.fixture(scope="session")
def gold() -> dict[str, Any]:
    """golden.json: prompts, ids, greedy tokens, tolerances."""
    return json.loads((NUMBERS / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def numbers() -> dict[str, np.ndarray]:
    """The tower's and the model's golden arrays, by name."""
    return load_file(NUMBERS / "vision.safetensors") | load_file(NUMBERS / "untied.safetensors")


@pytest.fixture(scope="session")
def unit() -> dict[str, np.ndarray]:
    return load_file(NUMBERS / "unit.safetensors")


@pytest.fixture(scope="session")
def pixels(numbers: dict[str, np.ndarray]) -> dict[str, mx.array]:
    """Pictures A (256×256), B (192×320) and C as (1, H, W, 3)."""
    return {name: mx.array(numbers[f"pixels.{name}"].transpose(0, 2, 3, 1)) for name in "ABC"}


@pytest.fixture(scope="session")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a golden checkpoint or a variant, written on first use; of "NAME, converted" too."""

    @cache
    def directory(name: str) -> Path:
        source, _, converted = name.partition(", ")
        if converted:
            destination = tmp_path_factory.mktemp("converted") / source
            return convert(directory(source), destination, dtype=mx.float32).destination
        if name not in checkpoints.VARIANTS:
            return checkpoints.golden(name)
        return checkpoints.build(checkpoints.VARIANTS[name], tmp_path_factory.mktemp("variant") / name)

    return directory


@pytest.fixture(scope="session")
def vlm_of(directory_of: Callable[[str], Path]) -> Callable[[str], fastvlm_mlx.VLM]:
    """The same, loaded to compute in float32."""

    @cache
    def vlm(name: str) -> fastvlm_mlx.VLM:
        return fastvlm_mlx.load(directory_of(name), dtype="float32")

    return vlm


@pytest.fixture(scope="module")
def pictures() -> list[fastvlm_mlx.Picture]:
    """Noise, four times."""
    random = np.random.default_rng(11)
    return [fastvlm_mlx.Picture(mx.array(random.random((1, 128, 128, 3), np.float32))) for _ in range(4)]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures the tower saw, at each of its calls; several cores would divide them."""
    monkeypatch.setattr(blas, "threads", lambda: 1)
    seen: list[int] = []
    run = FastViTHD.__call__

    def counted(self: FastViTHD, pixels: mx.array) -> mx.array:
        seen.append(pixels.shape[0])
        return run(self, pixels)

    monkeypatch.setattr(FastViTHD, "__call__", counted)
    return seen


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The installed command's entry, in this process."""
    for name in (cli.MODEL_VARIABLE, "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(choice, "_mode", None)  # put back afterwards, as options set it
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "argv", ["fastvlm-mlx", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return Ran(left.value.code, *capfd.readouterr())

    return run
