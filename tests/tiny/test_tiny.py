"""The model that comes with the package: what it can do, and that it looks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fastvlm_mlx
from fastvlm_mlx.convert.doctor.checks import examine
from fastvlm_mlx.evaluate import data as datasets
from fastvlm_mlx.evaluate.metrics import METRICS
from fastvlm_mlx.weights import hub
from tiny import album

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "examples" / "pictures" / "shapes.png"
SCENES, SEED = 60, 2027


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> datasets.DataSet:
    out = tmp_path_factory.mktemp("scenes") / "held-out"
    album.write(out, SCENES, SEED, "test", 3)
    return datasets.locate_pictures(datasets.read(out / "data.jsonl", None))


def score(name: str, data: datasets.DataSet) -> float:
    vlm = fastvlm_mlx.load(name)
    prompts = [vlm.prompt(row.question, row.pictures) for row in data.rows]
    said = [answer.text for answer in vlm.answers(prompts, batch=32, max_tokens=64)]
    exact = METRICS["exact"]
    return 100 * sum(map(exact, said, (row.answers for row in data.rows))) / len(said)


@pytest.fixture(scope="module")
def sighted(held_out: datasets.DataSet) -> float:
    return score("tiny", held_out)


def test_it_answers_about_what_it_never_saw(sighted: float) -> None:
    assert sighted >= 90


def test_about_another_picture_it_is_wrong(held_out: datasets.DataSet, sighted: float) -> None:
    assert score("tiny", datasets.shuffle_pictures(held_out)) <= sighted - 40


def test_in_four_bits_it_answers_alike(held_out: datasets.DataSet, sighted: float) -> None:
    assert score("tiny-4bit", held_out) >= sighted - 4  # of 180 questions; the card has 6,000


@pytest.mark.parametrize("name", hub.BUILT_IN)
def test_its_folder_is_healthy(name: str) -> None:
    report = examine(hub.BUILT_IN[name])
    assert report.healthy, report


def test_both_forms_fit_into_twelve_megabytes() -> None:
    files = [file for folder in hub.BUILT_IN.values() for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 12e6


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastvlm_mlx", "generate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)


def test_without_a_model_it_answers_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTVLM_MLX_MODEL", raising=False)
    done = ask(str(SHAPES), "-p", "Describe the picture.")
    assert done.returncode == 0
    assert done.stdout.strip()
    assert done.stderr.count("built-in model") == 1
    assert "--model 0.5b" in done.stderr


def test_asked_for_by_name_it_says_nothing_of_itself() -> None:
    done = ask(str(SHAPES), "-m", "tiny", "-p", "Describe the picture.", "--json")
    assert json.loads(done.stdout)["model"] == "tiny"
    assert done.stderr == ""
