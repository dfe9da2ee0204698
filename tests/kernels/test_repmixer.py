"""Two convolutions in one kernel: its halves are plain C++, run thread by thread as a GPU's group would."""

import ctypes
from collections.abc import Callable
from functools import cache, partial

import mlx.core as mx
import numpy as np
import pytest
from host import compiled, handed

from fastvlm_mlx import kernels
from fastvlm_mlx.kernels import blocks, repmixer
from fastvlm_mlx.kernels.candidates import CPU, CUDA, GPUS, METAL, Candidate, able, device
from fastvlm_mlx.models.vision import RepMixerBlock

LANES, LINES = 4, 8
HOST = """
#include <cstddef>
#include <vector>
#include <cmath>
using std::size_t;
struct uint3 {{ unsigned x, y, z; }};
constexpr int TALL = {tile[0]}, WIDE = {tile[1]}, LANES = {lanes}, LINES = {lines};
using T = float;
#define GIVEN const T* x, const int* x_shape, const T* small, const T* bias, const T* large, \\
    const T* shift, T* sums, T* rows, int* written
static void first(uint3 group, uint3 inside, T* mid, GIVEN) {{ {where} {first} }}
static void second(uint3 group, uint3 inside, T* mid, GIVEN) {{ {where} {second} }}
extern "C" void launch(GIVEN, const unsigned* groups) {{
  for (unsigned c = 0; c < groups[2]; ++c)
    for (unsigned b = 0; b < groups[1]; ++b)
      for (unsigned a = 0; a < groups[0]; ++a) {{
        std::vector<T> mid((TALL + 6) * (WIDE + 6) * LANES, NAN);
        for (auto half : {{first, second}})
          for (unsigned line = 0; line < LINES; ++line)
            for (unsigned lane = 0; lane < LANES; ++lane)
              half({{a, b, c}}, {{lane, line, 0}}, mid.data(), x, x_shape, small, bias, large, shift,
                  sums, rows, written);
      }}
}}
"""
TILES = [(8, 8), (16, 8)]
SHAPES = [(1, 1, 1, 4), (2, 3, 5, 4), (1, 8, 8, 3), (3, 9, 13, 2), (1, 4, 17, 5), (1, 19, 23, 9)]
Arrays = tuple[np.ndarray, ...]
Launch = Callable[..., Arrays]


@pytest.fixture(scope="session")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Both outputs, and how often each place was written."""
    folder = tmp_path_factory.mktemp("mixing")
    counted = repmixer.SECOND.replace("rows[place] =", "++written[place], rows[place] =")
    assert counted != repmixer.SECOND

    @cache
    def library(tile: repmixer.Tile) -> ctypes.CDLL:
        parts = {"where": repmixer.WHERE, "first": repmixer.FIRST, "second": counted}
        source = HOST.format(tile=tile, lanes=LANES, lines=LINES, **parts)
        return compiled(source, folder / f"{tile[0]}x{tile[1]}.cpp")

    def launch(x: np.ndarray, small: np.ndarray, bias: np.ndarray, large: np.ndarray, shift: np.ndarray,
               tile: repmixer.Tile, more: tuple[int, int, int] = (0, 0, 0)) -> Arrays:  # fmt: skip
        near, far = (np.array(blocks.taps(mx.array(weight))) for weight in (small, large))
        outputs = tuple(np.full(x.shape, np.nan, np.float32) for _ in range(2))
        written = np.zeros(x.shape, np.intc)
        batch, height, width, channels = x.shape
        groups = (-(-channels // LANES), -(-width // tile[1]), batch * -(-height // tile[0]))
        counts = np.add(groups, more).astype(np.uintc)
        given = (x, np.array(x.shape, np.intc), near, bias, far, shift, *outputs, written, counts)
        library(tile).launch(*(array.ctypes.data_as(ctypes.c_void_p) for array in given))
        return *outputs, written

    return launch


def arrays(shape: tuple[int, ...]) -> Arrays:
    """x, then kernel and bias of each"""
    random, channels = np.random.default_rng(0), shape[-1]
    shapes = (shape, (channels, 3, 3, 1), (channels,), (channels, 7, 7, 1), (channels,))
    return tuple(random.standard_normal(one, dtype=np.float32) for one in shapes)


def expected(given: Arrays) -> Arrays:
    problem = repmixer.Mixing(given[0].shape[-1], *given[0].shape[1:3])
    return problem.expected(*(one.astype(np.float64) for one in given))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_output_is_written_once_and_right(
    shape: tuple[int, ...],
    tile: repmixer.Tile,
    on_host: Launch,
    relative_error: Callable[[np.ndarray, np.ndarray], float],
) -> None:
    given = arrays(shape)
    *found, written = on_host(*given, tile)
    assert (written == 1).all()
    for mine, wanted in zip(found, expected(given), strict=True):
        assert relative_error(mine, wanted) < 2e-6


@pytest.mark.parametrize("more", [(1, 0, 0), (0, 2, 0), (0, 0, 3)])
def test_groups_beyond_the_map_write_nothing(more: tuple[int, int, int], on_host: Launch) -> None:
    *_, written = on_host(*arrays((2, 9, 13, 3)), (8, 8), more)
    assert (written == 1).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_grid_is_of_whole_groups_that_cover_the_map(shape: tuple[int, ...]) -> None:
    for tile in TILES:
        threads, lines, groups = repmixer.grid(shape, tile)
        assert threads % repmixer._LANES == 0 == lines % repmixer._LINES
        assert 0 <= threads - shape[3] < repmixer._LANES
        assert 0 <= lines // repmixer._LINES * tile[1] - shape[2] < tile[1]
        assert 0 <= groups // shape[0] * tile[0] - shape[1] < tile[0]


def test_a_tile_fits_the_memory_that_a_group_shares() -> None:
    """32 KB on Apple's GPUs"""
    for candidate in repmixer.TABLE[1:]:
        tall, wide = candidate.make.keywords["tile"]
        size = max(dtype.size for dtype in candidate.dtypes)
        assert (tall + 6) * (wide + 6) * repmixer._LANES * size <= 32 * 1024, candidate.name
        assert tall % repmixer._LINES == 0


def test_a_cpu_has_no_choice() -> None:
    assert [c.name for c in able(repmixer.Mixing(4, 8, 8), CPU, mx.float32)] == ["apart"]


def test_a_block_computes_both_as_told_apart(
    relative_error: Callable[[np.ndarray, np.ndarray], float],
) -> None:
    given = arrays((2, 9, 13, 6))
    x, small, bias, large, shift = map(mx.array, given)
    for mine, wanted in zip(kernels.mixing(small, large)(x, bias, shift), expected(given), strict=True):
        assert relative_error(mine, wanted) < 2e-6


def test_a_block_sees_weights_that_came_later() -> None:
    block, x = RepMixerBlock(8, 2), mx.random.normal((1, 8, 8, 8), key=mx.random.key(0))
    mx.eval(before := block(x))
    block.mixer.weight = mx.random.normal(block.mixer.weight.shape, key=mx.random.key(1))
    assert not mx.allclose(before, once := block(x))
    block.ffn.depthwise.weight = mx.random.normal(block.ffn.depthwise.weight.shape, key=mx.random.key(2))
    assert not mx.allclose(once, block(x))


def test_the_gradient_is_that_of_both_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever computed them."""
    given = [mx.array(one) for one in arrays((1, 9, 13, 6))]
    cotangents = [mx.random.normal((1, 9, 13, 6), key=mx.random.key(n)) for n in range(2)]
    monkeypatch.setattr(repmixer, "convolve", lambda x, *_: (mx.zeros_like(x), mx.ones_like(x)))

    def both(make: Callable[..., repmixer.Mixer], *inputs: mx.array) -> repmixer.Pair:
        x, small, bias, large, shift = inputs
        return make(small, large)(x, bias, shift)

    found, wanted = (
        mx.vjp(partial(both, make), given, cotangents)
        for make in (partial(repmixer.together, tile=(8, 8)), repmixer.apart)
    )
    assert mx.array_equal(found[0][1], mx.ones_like(given[0]))
    for mine, plain in zip(found[1], wanted[1], strict=True):
        assert mx.allclose(mine, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", GPUS)
def test_each_backend_is_handed_the_whole_kernel(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = handed(where, [mx.zeros((2, 9, 13, 3))] * 2, monkeypatch)
    repmixer._kernel.cache_clear()
    x, bias = mx.zeros((2, 9, 13, 3), mx.float16), mx.zeros((3,), mx.float16)
    repmixer.convolve(x, (mx.zeros((9, 3)), bias), (mx.zeros((49, 3)), bias), (8, 8), where)
    repmixer._kernel.cache_clear()
    source = str(seen["source"])
    assert ("blockIdx" if where == CUDA else "threadgroup_position_in_grid") in source
    assert source.count("{") == source.count("}")
    shared, wait = source.index("T mid["), source.index("barrier" if where == METAL else "__syncthreads")
    assert shared < source.index("float near[9]") < wait < source.index("float found[")
    assert seen["output_shapes"] == [(2, 9, 13, 3)] * 2
    assert seen["grid"] == (32, 16, 4)
    assert seen["threadgroup"] == (32, 8, 1)
    assert dict(seen["template"]) == {"T": mx.float16, "TALL": 8, "WIDE": 8, "LANES": 32, "LINES": 8}  # type: ignore[call-overload]


@pytest.mark.skipif(device() != CPU, reason="has a GPU")
@pytest.mark.parametrize("where", GPUS)
def test_without_a_gpu_there_is_one_clear_failure(where: str) -> None:
    x, one = mx.zeros((1, 4, 4, 4)), mx.zeros((4,))
    with pytest.raises(RuntimeError, match="back-end"):
        repmixer.convolve(x, (mx.zeros((9, 4)), one), (mx.zeros((49, 4)), one), (8, 8), where)


def on_gpu() -> tuple[Candidate, ...]:
    return repmixer.TABLE[1:]


@pytest.mark.skipif(device() == CPU, reason="needs a GPU")
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("candidate", on_gpu(), ids=lambda candidate: candidate.name)
@pytest.mark.parametrize("shape", SHAPES)
def test_on_the_gpu_it_equals_the_plain_definition(
    shape: tuple[int, ...],
    candidate: Candidate,
    dtype: mx.Dtype,
    relative_error: Callable[[np.ndarray, np.ndarray], float],
) -> None:
    if dtype not in candidate.dtypes:
        pytest.skip("not of this type")
    x, small, bias, large, shift = (mx.array(one).astype(dtype) for one in arrays(shape))
    rounded = tuple(np.array(one.astype(mx.float32)) for one in (x, small, bias, large, shift))
    limit = {mx.float32: 2e-6, mx.float16: 2e-3, mx.bfloat16: 1.6e-2}[dtype]
    for mine, wanted in zip(candidate.make(small, large)(x, bias, shift), expected(rounded), strict=True):
        assert mine.dtype == dtype
        assert relative_error(np.array(mine.astype(mx.float32)), wanted) < limit


@pytest.mark.skipif(device() == CPU, reason="needs a GPU")
def test_on_the_gpu_its_gradient_is_that_of_both_apart() -> None:
    given = [mx.array(one) for one in arrays((1, 9, 13, 6))]
    cotangents = [mx.random.normal((1, 9, 13, 6)) for _ in range(2)]

    def through(candidate: Candidate) -> list[mx.array]:
        def both(
            x: mx.array, small: mx.array, bias: mx.array, large: mx.array, shift: mx.array
        ) -> repmixer.Pair:
            return candidate.make(small, large)(x, bias, shift)

        return mx.vjp(both, given, cotangents)[1]

    wanted = through(repmixer.TABLE[0])
    for candidate in on_gpu():
        if mx.float32 in candidate.dtypes:
            for mine, plain in zip(through(candidate), wanted, strict=True):
                assert mx.allclose(mine, plain, rtol=1e-4, atol=1e-4)
