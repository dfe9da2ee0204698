import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "tests" / "golden" / "images"


def run(example: str, *arguments: object) -> str:
    command = [sys.executable, "-W", "error", ROOT / "examples" / example, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def model(directory_of: Callable[[str], Path]) -> Path:
    return directory_of("apple-fused")


def test_ask(model: Path) -> None:
    assert run("ask.py", model, PICTURES / "tall.png", "What", "is", "this?").strip()


def test_compare(model: Path) -> None:
    arguments = (model, PICTURES / "tall.png", PICTURES / "gray.png")
    assert run("compare.py", *arguments) == run("compare.py", *arguments)


def test_talk(model: Path, tmp_path: Path) -> None:
    lines = run("talk.py", model, PICTURES / "tall.png", tmp_path / "talk").split(" cached]\n")
    assert lines[0].endswith(", 0")
    assert not lines[1].endswith(", 0")
    assert (tmp_path / "talk").stat().st_size > 0


def test_features(model: Path, tmp_path: Path) -> None:
    assert "tower (1, 4, 4, 256)" in run("features.py", model, PICTURES / "tall.png", tmp_path / "f.npz")
    assert np.load(tmp_path / "f.npz")["projected"].shape == (1, 16, 64)
