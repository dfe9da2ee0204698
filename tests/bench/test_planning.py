"""`bench --plan`: what is measured, what is on the front, what is recommended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Run

from fastvlm_mlx.bench import planning, variants
from fastvlm_mlx.bench.machine import this_machine
from fastvlm_mlx.bench.planning import Choice, Measured, Point, measured, on_front, recommended
from fastvlm_mlx.config import ModelConfig, TextConfig, VisionConfig
from fastvlm_mlx.errors import ConfigError
from fastvlm_mlx.inputs import image

SIZES = (256, 512, 1024)
SLOWNESS = {"0.5b": 1.0, "1.5b": 2.0, "7b": 8.0}


def times(choice: Choice) -> Measured:
    """A machine of which 1024 px take the smallest model 1.6 s."""
    vision = (choice.size / 1024) ** 2
    prefill = SLOWNESS[choice.variant] * (0.1 + 0.5 * vision) / (2 if choice.bits else 1)
    return vision, prefill, vision + prefill


def found(budget_s: float, memory: float = 1e12) -> list[tuple[Choice, Point | None]]:
    every = planning.choices(list(SLOWNESS), [None, 4], SIZES, 2)
    return list(measured(every, budget_s, memory, times))


def test_what_cannot_be_in_time_or_in_memory_is_not_measured() -> None:
    rows = found(1.0, memory=5e9)
    skipped = {(choice.variant, choice.bits, choice.size) for choice, point in rows if point is None}
    assert ("7b", None, 256) in skipped  # 15 GB
    assert ("7b", 4, 256) not in skipped  # 4.7 GB
    assert ("1.5b", None, 1024) in skipped  # the smaller model was too slow there
    assert ("0.5b", None, 1024) not in skipped  # nothing smaller was: it had to be measured
    assert all(choice.bytes <= 5e9 for choice, point in rows if point)


def test_nothing_in_time_is_left_out() -> None:
    every = planning.choices(list(SLOWNESS), [None, 4], SIZES, 2)
    within = {choice for choice in every if times(choice)[2] <= 0.9}
    assert within == {choice for choice, point in found(0.9) if point and point.ttft_s <= 0.9}


def test_the_picture_comes_before_the_language_model_up_to_the_size_of_training() -> None:
    points = [point for _, point in found(1e9) if point]

    def best(budget_s: float) -> tuple[str, int | None, int]:
        point = recommended(points, budget_s)
        assert point is not None
        return point.choice.variant, point.choice.bits, point.choice.size

    assert best(1.59) == ("0.5b", 4, 1024)
    assert best(1.65) == ("1.5b", 4, 1024)  # rather than the smaller model in floats
    assert best(1e9) == ("7b", None, 1024)  # the most bits
    assert best(0.9) == ("1.5b", None, 512)
    assert recommended(points, 0.01) is None


def test_the_front_holds_what_nothing_beats() -> None:
    points = [point for _, point in found(1e9) if point]
    front = [point for point in points if on_front(point, points)]
    for point in points:
        beaten = any(
            other.ttft_s < point.ttft_s and other.choice.no_less_than(point.choice) for other in points
        )
        assert beaten != (point in front)
    assert {point.choice.bits for point in front} == {4}  # as good, and faster
    assert len(front) == len(SLOWNESS) * len(SIZES)


def test_accuracy_is_told_where_it_was_published() -> None:
    points = {
        (point.choice.variant, point.choice.bits, point.choice.size): point
        for _, point in found(1e9)
        if point
    }
    assert points["0.5b", None, 1024].accuracy == pytest.approx(64.92)
    assert points["0.5b", None, 512].accuracy is None
    assert points["0.5b", 4, 1024].accuracy is None


def test_the_table_says_of_every_choice_why() -> None:
    table = planning.table(found(0.9, memory=5e9), 0.9, 5e9, this_machine())
    assert len(table.rows) == 18
    assert {row[-1] for row in table.rows} == {
        *("recommended", "in time", "too slow"),
        *("too large", "slower than one too slow"),
    }
    assert "7b, 4 bit, 256 px" not in table.notes[0]
    assert "512 px" in table.notes[0]
    assert "nothing; give more" in planning.table(found(0.01), 0.01, 1e12, this_machine()).notes[0]


def test_pictures_that_no_context_holds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"16384 px make 65536 positions.*room for 32448"):
        planning.choices(["0.5b"], [None], (256, 16384), 2)


def test_interrupted_a_plan_keeps_what_was_measured(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Choice] = []

    def stopped(choice: Choice) -> Measured:
        calls.append(choice)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return times(choice)

    whole = planning.measured
    monkeypatch.setattr(planning, "measured", lambda *given: whole(*given[:3], stopped))
    done = run("bench", "--plan", "--ttft", "60s", "--json", tmp_path / "p.json")
    assert done.code == 130
    body = json.loads((tmp_path / "p.json").read_text())
    assert not body["complete"]
    assert [(row["variant"], row["size"], row["measured"] is None) for row in body["plan"]] == [
        ("0.5b", 256, False),
        ("0.5b", 512, False),
    ]


def test_a_plan_is_measured_told_and_drawn(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, width in (("0.5b", 32), ("1.5b", 64), ("7b", 96)):
        text = TextConfig(width, 1, 2, 2, 2 * width, 512, tied=True)
        small = ModelConfig(VisionConfig((1, 1, 1, 1, 1), (8, 16, 32, 64, 128)), text)
        monkeypatch.setitem(variants.VARIANTS, name, small)
    files = ("--json", tmp_path / "p.json", "--markdown", tmp_path / "p.md", "--plot", tmp_path / "p.png")
    done = run("bench", "--plan", "--ttft", "60s", "--sizes", "64,128", "--runs", 1, *files)
    assert (done.code, done.err) == (0, "")
    body = json.loads((tmp_path / "p.json").read_text())
    assert body["complete"]
    assert [(row["variant"], row["size"]) for row in body["plan"]] == [
        (name, size) for name in ("0.5b", "1.5b", "7b") for size in (64, 128)
    ]
    assert body["recommended"]["choice"] == {"variant": "7b", "bits": None, "size": 128} | {
        "bytes": body["plan"][-1]["bytes"]
    }
    assert "Recommended for 60000 ms" in (tmp_path / "p.md").read_text()
    assert image.open_image(tmp_path / "p.png").size == (1200, 675)
    alone = run("bench", "--plan", "--ttft", "1us", "--random", "0.5b")
    assert alone.code == 1
