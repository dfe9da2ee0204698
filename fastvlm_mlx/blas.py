"""Linux without a GPU: MKL or OpenBLAS replaces the reference BLAS that MLX's wheel bundles.

Loaded with global visibility before ``mlx.core``, its ``sgemm`` takes the place of the bundled one and is
many times faster. An OpenBLAS older than the processor falls back to old kernels; it is then loaded again
with `CORETYPE` set. Nothing depends on either being there.
"""

import ctypes
import os
import sys
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, product
from operator import mul
from typing import NamedTuple

# MKL first: who has it beside this package has installed it on purpose.
LIBRARIES = (
    *(f"{sys.prefix}/lib/libmkl_rt.so.{version}" for version in (3, 2)),
    *("libopenblas.so.0", "libopenblas.so"),
)
CORETYPE = "OPENBLAS_CORETYPE"  # OpenBLAS reads it once, while it is being loaded
CPUINFO, MAPS = "/proc/cpuinfo", "/proc/self/maps"
_loaded: list[ctypes.CDLL] = []
_MALLOC = ((-4, 0), (-1, 2**31 - 1), (-2, 2**28))  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD


class Generation(NamedTuple):  # importing dataclasses takes as long as loading OpenBLAS
    """Kernels of OpenBLAS for one generation of processors."""

    flags: frozenset[str]  # what a processor must have, as CPUINFO spells it
    kernels: str  # the value of CORETYPE that takes them
    names: frozenset[str]  # what OpenBLAS calls them and equally fast ones, in lower case


def _generation(flags: str, kernels: str, names: str) -> Generation:
    return Generation(frozenset(flags.split()), kernels, frozenset(names.split()))


# The newest first. No build accepts SapphireRapids as a value; its float32 kernels are SkylakeX's.
GENERATIONS = (
    _generation(
        "avx512f avx512bw avx512cd avx512dq avx512vl", "SkylakeX", "skylakex cooperlake sapphirerapids"
    ),
    _generation("avx2 fma", "Haswell", "haswell zen excavator"),
    _generation("avx", "Sandybridge", "sandybridge bulldozer piledriver steamroller"),
    _generation(
        "sse2",
        "Prescott",
        "prescott atom core2 penryn dunnington nehalem opteron opteron_sse3 barcelona nano bobcat",
    ),
    _generation("sve", "ARMV8SVE", "armv8sve neoversev1 neoversev2 neoversen2 a64fx"),
    _generation(
        "asimd",
        "ARMV8",
        "armv8 cortexa53 cortexa55 cortexa57 cortexa72 cortexa73 falkor thunderx thunderx2t99 "
        "thunderx3t110 tsv110 emag8180 neoversen1",
    ),
)
# Rows, inner and columns of a product. OpenBLAS has kernels of their own for products below 10⁶, and none
# of these sides is a multiple of a kernel's.
_PRODUCTS = ((129, 67, 131), (33, 29, 35))
_DIGITS = [float(at * at * 7 % 211 % 19 - 9) for at in range(256)]
_ROW_MAJOR, _AS_IS, _TRANSPOSED = 101, 111, 112  # cblas.h


def prefer_fast_blas() -> bool:
    """Load MKL or OpenBLAS if this is Linux and MLX is not loaded yet; say whether it took place."""
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return False
    for name in LIBRARIES:
        try:
            _loaded.append(_load(name))
        except OSError:
            continue
        return True
    return False


def loaded() -> bool:
    """Whether MKL or OpenBLAS took the place of MLX's own."""
    return bool(_loaded)


def library() -> str | None:
    """What the dynamic loader knows it by, None if MLX's own is used."""
    return _loaded[0]._name if _loaded else None


def is_openblas() -> bool:
    return _function("openblas_get_config") is not None


def description() -> str:
    """The BLAS of the CPU and its kernels, for people: "OpenBLAS 0.3.21 with Zen kernels"."""
    if sys.platform == "darwin":
        return "Accelerate"
    if not _loaded:
        return "MLX's own BLAS"
    if is_openblas():
        name, _, rest = _text(_loaded[0], "openblas_get_config").partition(" ")  # old ones do not tell
        version = rest.split()[0] if name == "OpenBLAS" and rest else ""
    else:
        version = _mkl_version()
    name = "OpenBLAS" if is_openblas() else "MKL"
    return f"{name} {version}".rstrip() + (f" with {kernels()} kernels" if kernels() else "")


def in_use() -> str | None:
    """`description` where MLX computes on the CPU; None on a GPU."""
    import mlx.core as mx

    return description() if mx.default_device() == mx.Device(mx.cpu) else None


def kernels() -> str:
    """The name of the kernels that run; empty if unknown, as MKL's are before its first product."""
    if is_openblas():
        return _text(_loaded[0], "openblas_get_corename")
    return _mkl_kernels() if _loaded else ""


def newer_kernels(name: str, flags: frozenset[str]) -> str | None:
    """The value of CORETYPE for newer kernels than `name` that a processor with these flags can run.

    None if there are none, or if `name` is not in the table: it may be newer than the table.
    """
    own = next((age for age, one in enumerate(GENERATIONS) if name.lower() in one.names), 0)
    return next((one.kernels for one in GENERATIONS[:own] if one.flags <= flags), None)


def processor_flags() -> frozenset[str]:
    """What the first processor can do, in Linux's words; empty if unknown."""
    try:
        with open(CPUINFO, encoding="utf-8", errors="replace") as lines:
            found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return frozenset()
    return frozenset(found.partition(":")[2].split())


def outdated() -> str | None:
    """The value of CORETYPE for newer kernels than those that run, None if they are the newest."""
    return newer_kernels(kernels(), processor_flags())


def multiplies_correctly(library: ctypes.CDLL | None = None) -> bool:
    """Whether products of whole numbers are exact, in every form that MLX asks for. Takes milliseconds."""
    sgemm = getattr(library or _loaded[0], "cblas_sgemm", None)
    return sgemm is not None and all(_is_exact(sgemm, *sides) for sides in _PRODUCTS)


def _load(name: str) -> ctypes.CDLL:
    """The library with the newest kernels that the processor can run, unless CORETYPE is set."""
    library = ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
    newer = newer_kernels(_text(library, "openblas_get_corename"), processor_flags())
    if newer is None or CORETYPE in os.environ:
        return library
    _unload(library)
    os.environ[CORETYPE] = newer
    try:
        library = ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
    finally:
        del os.environ[CORETYPE]  # numpy has an OpenBLAS of its own, which chooses for itself
    if multiplies_correctly(library):
        return library
    _unload(library)
    return ctypes.CDLL(name, ctypes.RTLD_GLOBAL)


def _unload(library: ctypes.CDLL) -> None:
    """The library stays where something else has loaded it, too; then its kernels stay as well."""
    ctypes.CDLL(None).dlclose(ctypes.c_void_p(library._handle))


def _text(library: ctypes.CDLL, function: str) -> str:
    """What a function without arguments returns; empty if the library has no such function."""
    call = getattr(library, function, None)
    if call is None:
        return ""
    call.restype = ctypes.c_char_p
    return (call() or b"").decode(errors="replace")


def _function(*names: str) -> "ctypes._NamedFuncPointer | None":
    """The first that the loaded library has."""
    found = (getattr(library, name, None) for library in _loaded[:1] for name in names)
    return next((function for function in found if function is not None), None)


def _mkl_version() -> str:
    text = ctypes.create_string_buffer(256)
    _loaded[0].MKL_Get_Version_String(text, len(text))
    return text.value.decode(errors="replace").partition("Version ")[2].partition("-")[0]


def _mkl_kernels() -> str:
    """MKL loads a library for the processor, such as libmkl_avx512.so.3."""
    with open(MAPS, encoding="utf-8", errors="replace") as lines:
        names = {line.rpartition("/libmkl_")[2].partition(".so")[0] for line in lines if "/libmkl_" in line}
    return next((name for name in sorted(names) if name.startswith(("avx", "mc3", "def"))), "")


def _is_exact(sgemm: "ctypes._NamedFuncPointer", rows: int, inner: int, columns: int) -> bool:
    """Multiply left · (right · vector) in float64, which is quicker than every value of left · right.

    The numbers are whole and small enough that float32 holds every sum exactly, in any order.
    """
    left = [_DIGITS[row * 7 % 61 :][:inner] for row in range(rows)]
    right = [_DIGITS[row * 11 % 67 :][:columns] for row in range(inner)]
    vector = [float(at % 13 + 1) for at in range(columns)]
    halfway = [sum(map(mul, row, vector)) for row in right]
    expected = [sum(map(mul, row, halfway)) for row in left]
    lefts = ((_AS_IS, _floats(left), inner), (_TRANSPOSED, _floats(zip(*left, strict=True)), rows))
    rights = ((_AS_IS, _floats(right), columns), (_TRANSPOSED, _floats(zip(*right, strict=True)), inner))
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    for (left_form, a, a_width), (right_form, b, b_width) in product(lefts, rights):
        result = (ctypes.c_float * (rows * columns))()
        sgemm(
            *(_ROW_MAJOR, left_form, right_form, rows, columns, inner),
            *(one, a, a_width, b, b_width, zero, result, columns),
        )
        values = result[:]
        starts = range(0, rows * columns, columns)
        if [sum(map(mul, values[start : start + columns], vector)) for start in starts] != expected:
            return False
    return True


def _floats(matrix: Iterable[Iterable[float]]) -> "ctypes.Array[ctypes.c_float]":
    flat = array("f", chain.from_iterable(matrix))
    return (ctypes.c_float * len(flat)).from_buffer(flat)


def threads() -> int:
    """Among how many BLAS divides a product; 1 if unknown."""
    count = _function("openblas_get_num_threads", "MKL_Get_Max_Threads")
    return int(count()) if count else 1


@contextmanager
def single() -> Iterator[None]:
    """Every product in the thread that asks for it."""
    before = threads()
    if before > 1:
        _divide(1)
    try:
        yield
    finally:
        if before > 1:
            _divide(before)


def _divide(number: int) -> None:
    divide = _function("openblas_set_num_threads", "MKL_Set_Num_Threads")
    assert divide is not None  # `threads` is 1 where there is none
    divide(number)


def keep_freed_memory() -> None:
    """glibc hands large freed blocks back to the kernel and faults them in anew, page by page, for the next
    array: slower than the arithmetic on them. What is freed is kept, for jobs that repeat the same shapes."""
    if sys.platform == "linux":
        tune = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if tune is not None:
            for option, value in _MALLOC:
                tune(option, value)
