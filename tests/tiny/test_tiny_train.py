"""The loop: stages, saving, resuming, several processes, the log and its picture."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import speck
from PIL import Image

import fastvlm_mlx
from tiny import recipe as recipes
from tiny.train import run

RECIPE = f"""
name = "speck"
seed = 3
save_every = 2
log_every = 1

{speck.MODEL}
[[stages]]
name = "cells"
kind = "cells"
steps = 4
batch = 2
rate = 1e-3
train = ["vision\\\\.", "cells\\\\."]
statistics = "batch"

[[stages]]
name = "answers"
kind = "answers"
steps = 3
batch = 2
questions = 2
rate = 1e-3
train = ["projector\\\\.", "language\\\\."]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "speck.toml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def losses(out: Path) -> list[tuple[str, int, float]]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["stage"], row["step"], row["loss"]) for row in rows]


def weights(out: Path) -> dict[str, mx.array]:
    return mx.load(str(out / "model" / "model.safetensors"))  # type: ignore[return-value]


def newest(out: Path) -> dict[str, mx.array]:
    state = max((out / "states").iterdir())
    return mx.load(str(state / "params.safetensors"))  # type: ignore[return-value]


def test_a_run_ends_with_a_model_that_answers(recipe: Path, tmp_path: Path) -> None:
    said = run(recipes.read(recipe), tmp_path / "run")
    assert str(tmp_path / "run" / "model") in said
    vlm = fastvlm_mlx.load(tmp_path / "run" / "model")
    picture = mx.zeros((256, 256, 3))
    assert vlm.generate(vlm.prompt("What is it?", [picture]), max_tokens=3).image_tokens == 16
    with Image.open(tmp_path / "run" / "curve.png") as curve:
        assert curve.getextrema() != ((255, 255),) * 3  # something is drawn


def test_a_killed_run_comes_to_the_same_losses(recipe: Path, tmp_path: Path) -> None:
    run(recipes.read(recipe), tmp_path / "whole")
    command = [sys.executable, "-m", "tiny.train", str(recipe), "-o", str(tmp_path / "killed")]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    log = tmp_path / "killed" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text(encoding="utf-8").count("\n") >= 3):
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    run(recipes.read(recipe), tmp_path / "killed")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    for name, array in weights(tmp_path / "whole").items():
        assert mx.array_equal(array, weights(tmp_path / "killed")[name]), name


def test_a_run_stops_in_time_and_goes_on(recipe: Path, tmp_path: Path) -> None:
    planned = recipes.read(recipe)
    assert "goes on from there" in run(planned, tmp_path / "run", minutes=1e-5)
    assert len(losses(tmp_path / "run")) == 1
    run(planned, tmp_path / "run")
    assert [(stage, step) for stage, step, _ in losses(tmp_path / "run")] == [
        *(("cells", step) for step in range(1, 5)),
        *(("answers", step) for step in range(1, 4)),
    ]


def test_stages_move_only_what_they_name(recipe: Path, tmp_path: Path) -> None:
    planned = recipes.read(recipe)
    run(dataclasses.replace(planned, stages=planned.stages[:1]), tmp_path / "run")
    before = newest(tmp_path / "run")
    run(planned, tmp_path / "run")  # stages may be added to a run
    after = newest(tmp_path / "run")
    moved = {name.partition(".")[0] for name in before if not mx.array_equal(before[name], after[name])}
    assert moved == {"projector", "language"}


APART = """
[[stages]]
name = "symbols"
kind = "symbols"
steps = 24
batch = 2
questions = 2
rate = 1e-2
train = ["symbols\\\\.", "language\\\\."]

[[stages]]
name = "projector"
kind = "projector"
steps = 30
batch = 4
rate = 1e-2
train = ["projector\\\\."]
"""


def test_a_language_model_learns_from_symbols_and_a_projector_to_say_them(
    recipe: Path, tmp_path: Path
) -> None:
    recipe.write_text(RECIPE[: RECIPE.index("[[stages]]")] + APART, encoding="utf-8")
    planned = recipes.read(recipe)
    run(dataclasses.replace(planned, stages=planned.stages[:1]), tmp_path / "run")
    before = newest(tmp_path / "run")
    run(planned, tmp_path / "run")
    after = newest(tmp_path / "run")
    moved = {name for name in before if not mx.array_equal(before[name], after[name])}
    assert {name.partition(".")[0] for name in moved} == {"projector"}
    told = losses(tmp_path / "run")
    for stage in ("symbols", "projector"):
        each = [loss for name, _, loss in told if name == stage]
        assert np.mean(each[-3:]) < 0.8 * each[0]  # questions differ, so one step says little


def test_batch_statistics_are_learned_where_asked_for(recipe: Path, tmp_path: Path) -> None:
    run(recipes.read(recipe), tmp_path / "run")
    found = weights(tmp_path / "run")
    tower = "model.vision_tower.vision_tower.model"
    variance = found[f"{tower}.patch_embed.0.rbr_conv.0.bn.running_var"]
    assert not mx.allclose(variance, mx.ones(variance.shape))


def test_two_processes_share_the_work(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "tiny.train", str(recipe), "-o", str(out), "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(losses(out)) == 7
    run(recipes.read(recipe), tmp_path / "alone")
    first, alone = losses(out)[0][2], losses(tmp_path / "alone")[0][2]
    assert first == pytest.approx(alone, rel=0.3)  # means of halves, not the mean of the whole


def test_another_recipe_does_not_continue_a_run(recipe: Path, tmp_path: Path) -> None:
    run(recipes.read(recipe), tmp_path / "run", minutes=1e-5)
    recipe.write_text(RECIPE.replace("seed = 3", "seed = 4"), encoding="utf-8")
    with pytest.raises(fastvlm_mlx.ConfigError, match="another recipe"):
        run(recipes.read(recipe), tmp_path / "run")
