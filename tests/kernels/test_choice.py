"""What is wrong is dropped, what is quicker is taken, and what was measured once is not measured again."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from fastvlm_mlx import kernels
from fastvlm_mlx.errors import ConfigError
from fastvlm_mlx.kernels import activation, choice, measure
from fastvlm_mlx.kernels.candidates import CPU, GPUS, Candidate
from fastvlm_mlx.kernels.depthwise import DepthwiseProblem
from fastvlm_mlx.models.vision import DepthwiseConv

LAYER = DepthwiseProblem(channels=4, kernel=3, stride=1, widening=1, rows=8, columns=8)


class Clock:
    """Time passes only where a candidate says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def taking(self, seconds: float, make: Callable[..., Any] = kernels.stock) -> Callable[..., Any]:
        def prepared(weight: mx.array, stride: int) -> Callable[[mx.array], mx.array]:
            convolve = make(weight, stride)

            def timed(x: mx.array) -> mx.array:
                self.now += seconds
                return convolve(x)

            return timed

        return prepared


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    return clock


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def plant(*candidates: Candidate) -> None:
        monkeypatch.setattr(DepthwiseProblem, "table", property(lambda _: candidates))

    return plant


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(choice.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv("FASTVLM_MLX_KERNELS", "tuned")
    monkeypatch.setattr(choice, "_known", {})
    return tmp_path


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were one."""
    monkeypatch.setattr(choice, "device", lambda: "metal")


def restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_known", {})


def wrong(weight: mx.array, stride: int) -> Callable[[mx.array], mx.array]:
    convolve = kernels.stock(weight, stride)
    return lambda x: convolve(x) * 1.001


def failing(weight: mx.array, stride: int) -> Callable[[mx.array], mx.array]:
    def convolve(x: mx.array) -> mx.array:
        raise RuntimeError("[metal::Device] Unable to build metal library from source")

    return convolve


def names(trials: list[measure.Trial]) -> dict[str, str]:
    return {trial.candidate.name: trial.why for trial in trials}


def test_the_quicker_of_two_right_ones_is_taken(clock: Clock, table: Callable[..., None]) -> None:
    table(
        Candidate("stock", clock.taking(2)),
        Candidate("a", clock.taking(1)),
        Candidate("b", clock.taking(1.5)),
    )
    tried = measure.trials(LAYER, CPU, mx.float32)
    assert [trial.seconds for trial in tried] == [2, 1, 1.5]
    assert measure.best(tried).name == "a"


def test_the_stock_one_stays_where_it_is_the_quickest(clock: Clock, table: Callable[..., None]) -> None:
    table(Candidate("stock", clock.taking(1)), Candidate("a", clock.taking(2)))
    assert measure.best(measure.trials(LAYER, CPU, mx.float32)).name == "stock"


def test_a_wrong_one_is_dropped_however_quick(clock: Clock, table: Callable[..., None]) -> None:
    table(Candidate("stock", clock.taking(2)), Candidate("wrong", clock.taking(0.1, wrong)))
    tried = measure.trials(LAYER, CPU, mx.float32)
    assert names(tried) == {"stock": "", "wrong": "wrong"}
    assert measure.best(tried).name == "stock"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_wrong(value: float, table: Callable[..., None]) -> None:
    def nothing(weight: mx.array, stride: int) -> Callable[[mx.array], mx.array]:
        return lambda x: x * value

    table(Candidate("stock", kernels.stock), Candidate("nothing", nothing))
    assert names(measure.trials(LAYER, CPU, mx.float32)) == {"stock": "", "nothing": "wrong"}


def test_another_shape_is_wrong(table: Callable[..., None]) -> None:
    table(Candidate("stock", kernels.stock), Candidate("less", lambda w, s: lambda x: x[:, 1:]))
    assert names(measure.trials(LAYER, CPU, mx.float32)) == {"stock": "", "less": "wrong"}


def test_one_that_raises_is_dropped_with_one_line(
    table: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    table(Candidate("stock", kernels.stock), Candidate("failing", failing))
    with caplog.at_level(logging.DEBUG):
        tried = measure.trials(LAYER, CPU, mx.float32)
    assert names(tried) == {"stock": "", "failing": "failed"}
    assert [(r.levelname, "Unable to build" in r.message) for r in caplog.records] == [("DEBUG", True)]


def test_one_that_fails_at_full_size_alone_is_dropped(table: Callable[..., None]) -> None:
    def weak(weight: mx.array, stride: int) -> Callable[[mx.array], mx.array]:
        convolve, fails = kernels.stock(weight, stride), failing(weight, stride)
        return lambda x: convolve(x) if x.shape[1] < LAYER.rows else fails(x)

    table(Candidate("stock", kernels.stock), Candidate("weak", weak))
    assert names(measure.trials(LAYER, CPU, mx.float32)) == {"stock": "", "weak": "failed"}


def test_the_hopelessly_slow_are_not_timed_again(clock: Clock, table: Callable[..., None]) -> None:
    table(Candidate("stock", clock.taking(100)), Candidate("a", clock.taking(1)))
    measure.trials(LAYER, CPU, mx.float32, rounds=5)
    assert clock.now == 3 * 100 + 7 * 1  # the check, the warm-up and one round; all rounds


def test_every_candidate_for_this_device_is_right() -> None:
    problems = (LAYER, DepthwiseProblem(3, 7, 2, 2, 9, 13), activation.GeluProblem(50_000))
    for problem in (*problems, kernels.AttentionProblem(2, 32, 40)):
        assert set(names(measure.trials(problem, choice.device(), mx.float32, 1)).values()) == {""}, problem


def test_a_cpu_measures_nothing_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "device", lambda: CPU)
    monkeypatch.setattr(measure, "trials", None)
    for problem, expected in (
        (LAYER, "bands of 4"),
        (replace(LAYER, channels=768), "toeplitz 4x4"),
        (activation.GeluProblem(10**6), "rational"),
        (kernels.AttentionProblem(24, 32, 1024), "powers"),
        (kernels.AttentionProblem(8, 32, 16), "stock"),
    ):
        assert choice.choose(problem, mx.float32).name == expected
    assert choice.choose(LAYER, mx.float16).name == "stock"


def test_a_cpu_keeps_to_what_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "device", lambda: CPU)
    banded = next(candidate for candidate in LAYER.table if candidate.name == "bands of 8")
    assert choice.keep(LAYER, mx.float32, banded)
    restarted(monkeypatch)
    assert choice.choose(LAYER, mx.float32) is banded
    assert choice.choose(DepthwiseProblem(8, 3, 1, 1, 8, 8), mx.float32).name == "bands of 4"


@pytest.mark.parametrize("where", GPUS)
def test_a_gpu_takes_mlx_own_operations_until_tune_was_run(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No kernel of ours ran on one, so none runs unasked, and nothing is measured."""
    monkeypatch.setattr(choice, "device", lambda: where)
    monkeypatch.setattr(measure, "trials", None)
    for problem in (LAYER, activation.GeluProblem(10**6), kernels.AttentionProblem(24, 32, 1024)):
        for dtype in (mx.float16, mx.bfloat16, mx.float32):
            found = choice.choose(problem, dtype)
            assert found is next(candidate for candidate in problem.table if where in candidate.devices)
            assert not found.source, "a kernel of ours"


@pytest.mark.usefixtures("on_a_gpu")
def test_what_tune_kept_is_read_by_later_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = next(candidate for candidate in LAYER.table if candidate.source)
    assert choice.keep(LAYER, mx.float16, ours)
    assert choice.choose(LAYER, mx.float16) is ours
    restarted(monkeypatch)
    assert choice.choose(LAYER, mx.float16) is ours


def test_another_type_or_layer_is_another_choice(
    on_a_gpu: None, clock: Clock, table: Callable[..., None]
) -> None:
    a = Candidate("a", clock.taking(0.001))
    table(Candidate("stock", clock.taking(0.0001)), a)
    choice.keep(LAYER, mx.float16, a)
    assert choice.choose(LAYER, mx.float16) is a
    assert choice.choose(LAYER, mx.bfloat16).name == "stock"


def test_a_choice_of_a_kernel_that_changed_is_ignored(
    on_a_gpu: None, clock: Clock, table: Callable[..., None]
) -> None:
    choice.keep(LAYER, mx.float32, Candidate("a", kernels.stock, source="x = 1;"))
    table(Candidate("stock", clock.taking(0.001)), Candidate("a", clock.taking(0.002), source="x = 2;"))
    assert choice.choose(LAYER, mx.float32).name == "stock"


def test_stock_wins_over_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    choice.keep(LAYER, mx.float32, LAYER.table[1])
    assert choice.choose(LAYER, mx.float32) is LAYER.table[1]
    monkeypatch.setenv("FASTVLM_MLX_KERNELS", "stock")
    assert choice.choose(LAYER, mx.float32).name == "stock"
    assert (
        choice.choose(activation.GeluProblem(10**6), mx.float32)
        is activation.TABLE[0 if choice.device() in GPUS else 1]
    )


def test_other_words_than_stock_and_tuned_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVLM_MLX_KERNELS", "fast")
    with pytest.raises(ConfigError, match=r"'fast'.*tuned, stock"):
        choice.choose(LAYER, mx.float32)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"a": 3}', '{"a": [1]}', '{"a": {"b": {}}}', "\x00", "[" * 100_000]
)
def test_a_damaged_file_is_ignored_and_replaced(
    content: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "kernels.json").write_text(content)
    monkeypatch.setattr(choice, "device", lambda: CPU)
    assert choice.choose(LAYER, mx.float32).name == "bands of 4"
    assert choice.keep(LAYER, mx.float32, LAYER.table[0])
    restarted(monkeypatch)
    assert choice.choose(LAYER, mx.float32).name == "stock"


def test_a_name_that_is_no_candidate_is_ignored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "device", lambda: CPU)
    choice.keep(LAYER, mx.float32, Candidate("of another version", kernels.stock))
    restarted(monkeypatch)
    assert choice.choose(LAYER, mx.float32).name == "bands of 4"


def test_a_file_that_cannot_be_written_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").touch()
    for place in (folder / "file" / "below", Path("/dev/null/cache")):
        monkeypatch.setenv(choice.FOLDER_VARIABLE, str(place))
        restarted(monkeypatch)
        assert not choice.keep(LAYER, mx.float32, LAYER.table[0])
        assert choice.choose(LAYER, mx.float32).name == "stock"  # for this process all the same


def test_nothing_is_kept_where_the_variable_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.FOLDER_VARIABLE, "")
    assert choice.path() is None
    assert not choice.keep(LAYER, mx.float32, LAYER.table[0])
    assert not choice.forget()


@pytest.mark.parametrize(("platform", "usual"), [("linux", ".cache"), ("darwin", "Library/Caches")])
def test_the_file_is_in_the_users_cache(platform: str, usual: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(choice.FOLDER_VARIABLE)
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setattr(choice.sys, "platform", platform)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert choice.path() == Path("/home/someone", usual, "fastvlm-mlx/kernels.json")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert choice.path() == Path("/elsewhere/fastvlm-mlx/kernels.json")


def test_forgetting_brings_the_default_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "device", lambda: CPU)
    choice.keep(LAYER, mx.float32, LAYER.table[0])
    assert choice.forget()
    assert not choice.forget()
    assert choice.choose(LAYER, mx.float32).name == "bands of 4"


def test_a_layer_asks_when_it_first_runs() -> None:
    layer = DepthwiseConv(6, 7, stride=2, widening=2)
    with choice.watch() as seen:
        layer(mx.zeros((1, 10, 12, 6)))
        layer(mx.zeros((1, 4, 4, 6)))
    assert list(seen.values()) == [DepthwiseProblem(6, 7, 2, 2, 10, 12)]
