"""The kernel for GPUs: its body is plain C++ as well, so a compiler for the CPU runs it thread by thread."""

import ctypes
from collections.abc import Callable
from functools import cache
from itertools import product

import mlx.core as mx
import numpy as np
import pytest
from host import compiled, handed

from fastvlm_mlx.kernels import blocks
from fastvlm_mlx.kernels.candidates import CPU, CUDA, GPUS, device
from fastvlm_mlx.kernels.depthwise import TABLE, DepthwiseProblem, registers

HOST = """
#include <cstddef>
using std::size_t;
struct uint3 {{ unsigned x, y, z; }};
constexpr int KERNEL = {kernel}, STRIDE = {stride}, ROWS = {block[0]}, COLUMNS = {block[1]};
using T = float;
static void thread(uint3 position, const T* x, const int* x_shape, const T* taps, const int* taps_shape,
    T* out, int* written) {{
{body}
}}
extern "C" void launch(const T* x, const int* x_shape, const T* taps, const int* taps_shape, T* out,
    int* written, const unsigned* grid) {{
  for (unsigned c = 0; c < grid[2]; ++c)
    for (unsigned b = 0; b < grid[1]; ++b)
      for (unsigned a = 0; a < grid[0]; ++a)
        thread({{a, b, c}}, x, x_shape, taps, taps_shape, out, written);
}}
"""
BLOCKS = [(2, 4), (4, 4)]
LAYERS = [(3, 1, 1), (3, 2, 1), (7, 1, 1), (7, 2, 2), (3, 1, 2)]  # kernel, stride, widening: the tower's
SHAPES = [(1, 1, 1, 4), (2, 3, 5, 4), (1, 8, 8, 3), (3, 9, 13, 2), (1, 4, 17, 5)]

Launch = Callable[..., tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="session")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Run a grid of threads; the outputs, and how often each was written."""
    folder = tmp_path_factory.mktemp("blocks")
    counted = blocks.BODY.replace(
        "out[line * outputs + output] =", "++written[line * outputs + output], out[line * outputs + output] ="
    )
    assert counted != blocks.BODY

    @cache
    def library(kernel: int, stride: int, block: blocks.Block) -> ctypes.CDLL:
        source = HOST.format(kernel=kernel, stride=stride, block=block, body=counted)
        return compiled(source, folder / f"{kernel}-{stride}-{block[0]}-{block[1]}.cpp")

    def launch(
        problem: DepthwiseProblem,
        x: np.ndarray,
        weight: np.ndarray,
        block: blocks.Block,
        grid: tuple[int, int, int],
    ) -> tuple[np.ndarray, np.ndarray]:
        taps = np.array(blocks.taps(mx.array(weight)))
        rows, columns = (-(-side // problem.stride) for side in x.shape[1:3])
        out = np.full((x.shape[0], rows, columns, weight.shape[0]), np.nan, np.float32)
        written = np.zeros(out.shape, np.intc)
        numbers = [np.array(shape, np.intc) for shape in (x.shape, taps.shape)]
        pointers = (x, numbers[0], taps, numbers[1], out, written, np.array(grid, np.uintc))
        launched = library(problem.kernel, problem.stride, block).launch
        launched(*(array.ctypes.data_as(ctypes.c_void_p) for array in pointers))
        return out, written

    return launch


def arrays(problem: DepthwiseProblem, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    size = problem.kernel
    weight = random.standard_normal((problem.widening * shape[-1], size, size, 1), dtype=np.float32)
    return random.standard_normal(shape, dtype=np.float32), weight


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_output_is_written_once_and_right(
    layer: tuple[int, int, int],
    block: blocks.Block,
    on_host: Launch,
    relative_error: Callable[[np.ndarray, np.ndarray], float],
) -> None:
    for shape in SHAPES:
        problem = DepthwiseProblem(shape[-1], *layer, *shape[1:3])
        x, weight = arrays(problem, shape)
        expected = problem.expected(x.astype(np.float64), weight.astype(np.float64))
        grid = blocks.grid(shape[0], *expected.shape[1:], block)
        out, written = on_host(problem, x, weight, block, grid)
        assert (written == 1).all(), shape
        assert relative_error(out, expected) < 2e-6, shape


def test_threads_beyond_the_grid_write_nothing(on_host: Launch) -> None:
    """CUDA rounds a grid up to whole groups."""
    problem = DepthwiseProblem(3, 7, 2, 2, 9, 13)
    x, weight = arrays(problem, (2, 9, 13, 3))
    exact = blocks.grid(2, 5, 7, 6, (2, 4))
    rounded = tuple(-(-count // group) * group for count, group in zip(exact, blocks._GROUP, strict=True))
    rounded = (*rounded[:2], rounded[2] + 3)
    assert rounded != exact
    _, written = on_host(problem, x, weight, (2, 4), rounded)
    assert (written == 1).all()


@pytest.mark.parametrize("block", [*BLOCKS, (1, 1), (3, 5)])
def test_the_grid_covers_every_output_once(block: blocks.Block) -> None:
    for batch, rows, columns, outputs in [(1, 1, 1, 1), (2, 5, 7, 6), (3, 8, 8, 4), (1, 9, 4, 96)]:
        across, down = blocks.grid(batch, rows, columns, outputs, block)[1:]
        assert blocks.grid(batch, rows, columns, outputs, block)[0] == outputs
        assert (across - 1) * block[1] < columns <= across * block[1]
        assert (down // batch - 1) * block[0] < rows <= down // batch * block[0]
        assert down % batch == 0


def test_what_neighbouring_threads_read_lies_side_by_side() -> None:
    weight = mx.arange(2 * 3 * 9).reshape(6, 3, 3, 1)
    taps = blocks.taps(weight)
    assert taps.shape == (9, 6)
    assert taps[5].tolist() == weight[:, 1, 2, 0].tolist()


@pytest.mark.skipif(device() != CPU, reason="has a GPU")
@pytest.mark.parametrize("where", GPUS)
def test_without_a_gpu_there_is_one_clear_failure(where: str) -> None:
    with pytest.raises(RuntimeError, match="back-end"):
        blocks.convolve(mx.zeros((1, 4, 4, 4)), mx.zeros((9, 4)), 3, 1, (4, 4), where)


@pytest.mark.skipif(device() == CPU, reason="needs a GPU")
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("layer", LAYERS)
def test_on_the_gpu_it_equals_the_plain_definition(
    layer: tuple[int, int, int],
    dtype: mx.Dtype,
    relative_error: Callable[[np.ndarray, np.ndarray], float],
) -> None:
    limit = {mx.float32: 2e-6, mx.float16: 1e-3, mx.bfloat16: 8e-3}[dtype]
    for shape, block in product(SHAPES, BLOCKS):
        problem = DepthwiseProblem(shape[-1], *layer, *shape[1:3])
        x, weight = (mx.array(one).astype(dtype) for one in arrays(problem, shape))
        found = registers(weight, problem.stride, block)(x)
        assert found.dtype == dtype
        expected = problem.expected(*(np.array(one.astype(mx.float32), np.float64) for one in (x, weight)))
        error = relative_error(np.array(found.astype(mx.float32)), expected)
        assert error < limit, (shape, block)


@pytest.mark.skipif(device() == CPU, reason="needs a GPU")
def test_on_the_gpu_its_gradient_is_mlx_own() -> None:
    x, weight = mx.random.normal((1, 9, 8, 16)), mx.random.normal((32, 7, 7, 1))
    cotangent = mx.random.normal((1, 5, 4, 32))
    found, wanted = (
        mx.vjp(lambda x, weight, make=make: make(weight, 2)(x), [x, weight], [cotangent])[1]
        for make in (registers, TABLE[0].make)
    )
    for mine, plain in zip(found, wanted, strict=True):
        assert mx.allclose(mine, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", GPUS)
def test_each_backend_is_handed_the_whole_kernel(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = handed(where, [mx.zeros((2, 5, 7, 6))], monkeypatch)
    blocks._kernel.cache_clear()
    x = mx.zeros((2, 9, 13, 3), mx.float16)
    blocks.convolve(x, mx.zeros((49, 6), mx.float16), 7, 2, (4, 4), where)
    blocks._kernel.cache_clear()
    source = str(seen["source"])
    assert ("blockIdx" if where == CUDA else "thread_position_in_grid") in source
    assert source.count("{") == source.count("}")
    assert seen["output_shapes"] == [(2, 5, 7, 6)]
    assert seen["output_dtypes"] == [mx.float16]
    assert seen["grid"] == (6, 2, 4)
    assert seen["template"] == [("T", mx.float16), ("KERNEL", 7), ("STRIDE", 2), ("ROWS", 4), ("COLUMNS", 4)]
