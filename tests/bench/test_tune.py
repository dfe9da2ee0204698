"""`tune` and `bench --kernels`: on a reduced model, so that a run is short."""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from command import Run

from fastvlm_mlx import kernels
from fastvlm_mlx.bench import kernels as trying
from fastvlm_mlx.config import VisionConfig
from fastvlm_mlx.kernels import activation, choice, measure
from fastvlm_mlx.kernels.attention import AttentionProblem
from fastvlm_mlx.kernels.candidates import CPU, Candidate, Problem, able, device
from fastvlm_mlx.kernels.depthwise import DepthwiseProblem


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(choice.FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "_known", {})
    return tmp_path / "cache"


@pytest.fixture
def model(directory_of: Callable[[str], Path]) -> Path:
    return directory_of("apple-fused")


def test_the_towers_own_layers_are_asked_at_their_own_shapes() -> None:
    asked = trying.problems(VisionConfig(), 1024, mx.float32)
    assert len(asked) == 17
    assert {problem for problem in asked if isinstance(problem, AttentionProblem)} == {
        AttentionProblem(24, 32, 1024),
        AttentionProblem(48, 32, 256),
    }
    assert DepthwiseProblem(96, 3, 2, 1, 512, 512) in asked  # the stem
    assert DepthwiseProblem(384, 7, 1, 1, 64, 64) in asked  # a ConvFFN
    assert DepthwiseProblem(192, 7, 2, 2, 128, 128) in asked  # a PatchEmbed
    assert DepthwiseProblem(1536, 3, 1, 2, 16, 16) in asked  # the last convolution


def test_the_table_says_what_was_chosen_and_what_was_dropped() -> None:
    stock, quick, wrong = (Candidate(name, kernels.stock) for name in ("stock", "quick", "wrong"))
    found = trying.Tried(
        DepthwiseProblem(4, 3, 1, 1, 8, 8),
        [
            measure.Trial(stock, 1e-7, 0.002),
            measure.Trial(quick, 2e-7, 0.001),
            measure.Trial(wrong, 0.5, None, "wrong"),
        ],
    )
    rows = trying.table([found], 64).rows
    assert [row[2:] for row in rows] == [
        ("stock", "1e-07", "2.0", "1.00", ""),
        ("quick", "2e-07", "1.0", "2.00", "chosen"),
        ("wrong", "5e-01", "", "wrong", ""),
    ]
    assert [row["chosen"] for row in trying.records([found], 64)] == [False, True, False]


def test_tune_keeps_what_it_found_and_forgets_it(run: Run, model: Path, folder: Path) -> None:
    told = run("tune", "-m", model, "--image-size", "64", "--runs", "1", "--dtype", "float32", "--json")
    assert told.code == 0, told.err
    rows = json.loads(told.out)["kernels"]
    chosen = {row["operation"]: row["candidate"] for row in rows if row["chosen"]}
    assert set(chosen) == {row["operation"] for row in rows}
    assert all(row["error"] < 1e-5 for row in rows if row["chosen"])
    (kept,) = json.loads((folder / "kernels.json").read_text()).values()
    assert {key: mark.split(" 0x")[0] for key, mark in kept.items()}.keys() == chosen.keys()
    assert str(folder / "kernels.json") in told.err

    assert "Deleted" in run("tune", "--forget").err
    assert not (folder / "kernels.json").exists()
    assert "no stored choices" in run("tune", "--forget").err


def test_bench_shows_the_table_and_keeps_nothing(run: Run, model: Path, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    told = run("bench", "-m", model, "--kernels", "--sizes", "64", "--runs", "1", "--json", file)
    assert told.code == 0, told.err
    assert "stock ÷ it" in told.out
    assert "chosen" in told.out
    assert {row["size"] for row in json.loads(file.read_text())["kernels"]} == {64}
    assert not folder.exists()


def test_a_place_that_cannot_be_written_is_said(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(choice.FOLDER_VARIABLE, str(tmp_path / "file"))
    told = run("tune", "-m", model, "--image-size", "64", "--runs", "1")
    assert told.code == 0
    assert "not stored, because" in told.err


def test_an_interrupted_tune_keeps_what_it_has(
    run: Run, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, seen = trying.tried, []

    def broken_off(problem: object, *rest: object) -> trying.Tried:
        seen.append(problem)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return whole(problem, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(trying, "tried", broken_off)
    told = run("tune", "-m", model, "--image-size", "64", "--runs", "1")
    assert told.code == 130
    assert "Interrupted" in told.out
    (kept,) = json.loads((folder / "kernels.json").read_text()).values()
    assert len(kept) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tune", "--forget", "--random", "0.5b"), "--forget measures nothing"),
        (("tune", "--random", "0.5b", "-m", "x"), "exclude each other"),
        (("tune", "--random", "3b"), "no model '3b'"),
        (("tune", "--image-size", "65"), "65"),
        (("bench", "--kernels", "--paper"), "drop --plan"),
        (("generate", "--kernels", "fast", "-p", "hello", "-m", "x"), "no kernels 'fast'"),
    ],
)
def test_what_makes_no_sense_gets_one_line(run: Run, words: tuple[str, ...], said: str) -> None:
    told = run(*words)
    assert told.code
    assert said in told.err
    assert len(told.err.splitlines()) == 1


def test_stock_kernels_are_mlx_own(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer without any of our kernels is the same one."""
    own: list[bool] = []
    chosen = choice.choose

    def watched(problem: Problem, dtype: mx.Dtype) -> Candidate:
        found = chosen(problem, dtype)
        own.append(found is able(problem, device(), dtype)[0])
        return found

    for module in (kernels, activation, choice):
        monkeypatch.setattr(module, "choose", watched)
    asked = ("generate", "-m", model, "-p", "What?", "-n", "4", "--dtype", "float32", "--image-size", "64")
    picture = Path(__file__).parent.parent / "golden/images/tall.png"
    tuned = run(*asked, picture)
    assert not all(own) or device() != CPU
    own.clear()
    stock = run(*asked, picture, "--kernels", "stock")
    assert own
    assert all(own)
    assert tuned.code == stock.code == 0, stock.err
    assert tuned.out == stock.out
