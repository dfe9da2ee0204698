"""Which kernels OpenBLAS runs: the newest that the processor has, unless a variable says otherwise."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from command import MODEL, Run
from PIL import Image

from fastvlm_mlx import blas
from fastvlm_mlx.bench.machine import this_machine

AVX = "fpu sse sse2 ssse3 sse4_1 sse4_2 avx"
AVX2 = f"{AVX} avx2 bmi1 bmi2 fma"
XEON = f"{AVX2} avx512f avx512dq avx512cd avx512bw avx512vl avx512_bf16 amx_tile"
KNIGHTS_LANDING = f"{AVX2} avx512f avx512pf avx512er avx512cd"
GRAVITON_2, GRAVITON_4 = "fp asimd aes crc32 atomics asimddp", "fp asimd aes crc32 atomics asimddp sve sve2"

needs_openblas = pytest.mark.skipif(not blas.is_openblas(), reason="OpenBLAS does not run")
on_the_cpu = pytest.mark.skipif(mx.default_device() == mx.Device(mx.gpu), reason="a GPU computes")


def listing(flags: str) -> str:
    """As Linux lists two processors."""
    if "asimd" in flags:
        one = f"BogoMIPS\t: 243.75\nFeatures\t: {flags}\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"
    else:
        one = f"model name\t: Some Processor\nflags\t\t: {flags}\nvmx flags\t: vnmi ept avx512f\nbugs\t\t:\n"
    return "".join(f"processor\t: {number}\n{one}\n" for number in range(2))


@pytest.mark.parametrize(
    ("flags", "chosen", "better"),
    [
        (XEON, "Prescott", "SkylakeX"),
        (XEON, "Haswell", "SkylakeX"),
        (XEON, "SkylakeX", None),
        (XEON, "Cooperlake", None),
        (XEON, "SapphireRapids", None),
        (KNIGHTS_LANDING, "Prescott", "Haswell"),
        (AVX2, "Prescott", "Haswell"),
        (AVX2, "Barcelona", "Haswell"),
        (AVX2, "Sandybridge", "Haswell"),
        (AVX2, "Zen", None),
        (AVX2, "Haswell", None),
        (AVX2, "SkylakeX", None),
        (AVX, "Nehalem", "Sandybridge"),
        (AVX, "Bulldozer", None),
        ("fpu sse sse2", "Core2", None),
        (GRAVITON_2, "armv8", None),
        (GRAVITON_2, "neoversen1", None),
        (GRAVITON_4, "armv8", "ARMV8SVE"),
        (GRAVITON_4, "neoversev1", None),
        (XEON, "Zen9", None),
        (XEON, "", None),
        ("", "Prescott", None),
    ],
)
def test_older_kernels_than_the_processor_has_give_way(
    flags: str, chosen: str, better: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(listing(flags))
    monkeypatch.setattr(blas, "CPUINFO", str(tmp_path / "cpuinfo"))
    assert blas.processor_flags() == set(flags.split())
    assert blas.newer_kernels(chosen, blas.processor_flags()) == better


def test_a_processor_that_nothing_is_known_about_keeps_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "CPUINFO", "/nowhere/cpuinfo")
    assert blas.processor_flags() == frozenset()
    assert blas.newer_kernels("Prescott", blas.processor_flags()) is None


# The module by itself, before MLX is loaded, where what OpenBLAS chooses counts as old.
LOADS = """
import importlib.util, json, os, sys
source, right = sys.argv[1:]
spec = importlib.util.spec_from_file_location("blas", source)
blas = importlib.util.module_from_spec(spec)
spec.loader.exec_module(blas)
blas.LIBRARIES = [name for name in blas.LIBRARIES if "openblas" in name]
own = os.environ.get("OWN", "").lower()
blas.GENERATIONS = (blas._generation("", "Sandybridge", "sandybridge"), blas._generation("", own, own))
if right == "wrong":
    blas.multiplies_correctly = lambda library: False
assert blas.prefer_fast_blas()
print(json.dumps([blas.kernels(), blas.description(), os.environ.get(blas.CORETYPE)]))
"""


def loaded_with(own: str, products: str = "right", **more: str) -> tuple[str, str, str | None]:
    environment = {k: v for k, v in os.environ.items() if k != blas.CORETYPE} | {"OWN": own} | more
    command = [sys.executable, "-c", LOADS, str(blas.__file__), products]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))


@pytest.fixture(scope="module")
def own() -> str:
    """The kernels that OpenBLAS takes by itself."""
    kernels = loaded_with("")[0]
    if blas.newer_kernels("Prescott", blas.processor_flags()) is None or kernels == "Sandybridge":
        pytest.skip("no x86 processor newer than Sandybridge")
    return kernels


@needs_openblas
def test_openblas_is_loaded_again_with_newer_kernels(own: str) -> None:
    kernels, description, variable = loaded_with(own)
    assert kernels == "Sandybridge"
    assert description.endswith("with Sandybridge kernels")
    assert variable is None  # for numpy and other processes nothing changes


@needs_openblas
def test_a_variable_that_is_set_is_respected(own: str) -> None:
    assert loaded_with("prescott", OPENBLAS_CORETYPE="Prescott")[::2] == ("Prescott", "Prescott")


@needs_openblas
def test_newer_kernels_that_multiply_wrongly_are_given_up(own: str) -> None:
    assert loaded_with(own, "wrong")[::2] == (own, None)


class Library:
    """OpenBLAS, wrong in one value of one form of product"""

    def __init__(self, forms: tuple[int, int], rows: int):
        self._wrong = (*forms, rows)

    def cblas_sgemm(self, *arguments: object) -> None:
        blas._loaded[0].cblas_sgemm(*arguments)
        if arguments[1:4] == self._wrong:
            result = arguments[-2]
            result[len(result) // 2] += 1  # type: ignore[arg-type, index]


@needs_openblas
@pytest.mark.parametrize("rows", [rows for rows, _, _ in blas._PRODUCTS])
@pytest.mark.parametrize("forms", [(111, 111), (111, 112), (112, 111), (112, 112)])
def test_one_wrong_value_is_found(forms: tuple[int, int], rows: int) -> None:
    assert blas.multiplies_correctly()
    assert not blas.multiplies_correctly(Library(forms, rows))  # type: ignore[arg-type]


def test_a_library_without_products_is_not_trusted() -> None:
    assert not blas.multiplies_correctly(object())  # type: ignore[arg-type]


class Mkl:
    """As much of MKL as is used"""

    def __init__(self) -> None:
        self.threads = 4

    def MKL_Get_Max_Threads(self) -> int:
        return self.threads

    def MKL_Set_Num_Threads(self, number: int) -> None:
        self.threads = number

    def MKL_Get_Version_String(self, text: ctypes.Array[ctypes.c_char], _: int) -> None:
        text.value = b"Intel(R) oneAPI Math Kernel Library Version 2026.2-Product Build 20260915 for 64"


@pytest.mark.skipif(sys.platform == "darwin", reason="Accelerate is used")
@pytest.mark.parametrize(
    ("mapped", "kernels"),
    [
        (("core", "rt", "vml_avx512", "avx512"), " with avx512 kernels"),
        (("vml_def", "def"), " with def kernels"),
    ],
)
def test_mkl_is_described_and_divides(
    mapped: tuple[str, ...], kernels: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = [f"7f00-7f01 r-xp 0000 fe:00 12 /opt/lib/libmkl_{name}.so.3\n" for name in mapped]
    (tmp_path / "maps").write_text("".join(lines))
    monkeypatch.setattr(blas, "MAPS", str(tmp_path / "maps"))
    monkeypatch.setattr(blas, "_loaded", [Mkl()])
    assert blas.description() == f"MKL 2026.2{kernels}"
    assert blas.outdated() is None
    assert not blas.is_openblas()
    with blas.single():
        assert blas.threads() == 1
    assert blas.threads() == 4


@on_the_cpu
def test_measurements_and_stats_name_the_blas(run: Run, tmp_path: Path) -> None:
    assert f"on the cpu with {blas.description()}, " in this_machine().words
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    done = run("generate", tmp_path / "black.png", "-m", MODEL, "--max-tokens", 1, "--stats")
    assert f"blas     {blas.description()}" in done.err


@on_the_cpu
@pytest.mark.parametrize(
    ("broken", "level", "what"),
    [
        ({}, "ok", blas.description()),
        (
            {"kernels": lambda: "Prescott", "processor_flags": lambda: {*XEON.split()}},
            "note",
            "newer",
        ),
        ({"multiplies_correctly": lambda: False}, "problem", "wrong"),
        ({"loaded": lambda: False, "_loaded": []}, "note", "many times faster"),
    ],
    ids=["the newest", "old", "wrong", "none"],
)
@needs_openblas
def test_doctor_judges_the_blas(
    run: Run, broken: dict[str, Callable[[], object]], level: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, stand_in in broken.items():
        monkeypatch.setattr(blas, name, stand_in)
    done = run("doctor", MODEL, "--quick", "--json")
    finding = next(one for one in json.loads(done.out)["findings"] if one["subject"] == "BLAS")
    assert finding["level"] == level
    assert what in finding["what"]
    assert bool(finding["repair"]) == (level != "ok")
    assert done.code == (level == "problem")
