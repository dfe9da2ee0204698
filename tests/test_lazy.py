"""A language model left to be read: the first picture is on its way before, and the same is said."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from command import MODEL, Run
from mlx.utils import tree_flatten
from pictures import TALL, WIDE

import fastvlm_mlx
from fastvlm_mlx import VLM, checkpoint, decoding, hub
from fastvlm_mlx.checkpoint import Loaded
from fastvlm_mlx.tokenizer import Tokenizer

VlmOf = Callable[[str], VLM]


def nbytes(vlm: VLM) -> int:
    return sum(array.nbytes for _, array in tree_flatten(vlm.model.language.parameters()))


@pytest.mark.parametrize("pictures", [[], [TALL], [TALL, TALL]], ids=len)
@pytest.mark.parametrize("name", ["apple-fused", "apple-train", "mlx-vlm-4bit"])
def test_the_answer_is_the_same(
    name: str, pictures: list[Path], vlm_of: VlmOf, directory_of: Callable[[str], Path]
) -> None:
    whole, lazy = vlm_of(name), fastvlm_mlx.load(directory_of(name), dtype="float32", lazy=True)
    expected = whole.generate(whole.prompt("What is this?", pictures), max_tokens=12)
    found = lazy.generate(lazy.prompt("What is this?", pictures), max_tokens=12)
    assert found.ids == expected.ids
    assert lazy.generate("And now?", max_tokens=4).ids == whole.generate("And now?", max_tokens=4).ids


def test_a_picture_is_begun_before_the_language_model_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    begun = decoding.begun

    def watched(layer: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
        y = begun(layer, x)
        held.append(mx.get_active_memory())
        return y

    monkeypatch.setattr(decoding, "begun", watched)
    vlm = fastvlm_mlx.load(MODEL, lazy=True)
    sizes = nbytes(vlm)
    vlm.generate(vlm.prompt("What is this?", [TALL]), max_tokens=2)
    vlm.generate(vlm.prompt("And this?", [TALL]), max_tokens=2)
    assert held[1] - held[0] >= sizes  # the second time it was there


def test_the_command_loads_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    load = checkpoint.load

    def noted(*arguments: Any, lazy: bool, **options: Any) -> Loaded:
        asked.append(lazy)
        return load(*arguments, lazy=lazy, **options)

    monkeypatch.setattr(checkpoint, "load", noted)
    done = run("generate", TALL, "-m", MODEL, "--max-tokens", 2, "--json")
    assert asked == [True]
    assert json.loads(done.out)["read_s"] >= 0


def test_a_picture_is_begun_before_the_tokenizer_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, begun, read = decoding.begun, threading.Event(), Tokenizer.load

    def noted(layer: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
        begun.set()
        return begin(layer, x)

    def slow(directory: Path) -> Tokenizer:
        assert begun.wait(20), "the tokenizer is waited for first"
        return read(directory)

    monkeypatch.setattr(decoding, "begun", noted)
    monkeypatch.setattr(checkpoint.Tokenizer, "load", slow)
    vlm = fastvlm_mlx.load("tiny", lazy=True)
    answer = vlm.generate(vlm.prompt("What is this?", [TALL]), max_tokens=2)
    assert answer.vision_s > 0


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[mx.array]:
    """Every batch of pixels that the tower is shown from now on."""
    begin, shown = decoding.begun, list[mx.array]()

    def noted(layer: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
        shown.append(x)
        return begin(layer, x)

    monkeypatch.setattr(decoding, "begun", noted)
    return shown


def test_what_was_begun_early_is_not_done_again(encoded: list[mx.array]) -> None:
    vlm = fastvlm_mlx.load("tiny", lazy=True)
    prompt = vlm.prompt("What is this?", [TALL])
    assert len(encoded) == 1
    vlm.generate(prompt, max_tokens=2)
    assert len(encoded) == 1


def test_what_was_seen_for_one_prompt_is_not_taken_for_another(encoded: list[mx.array]) -> None:
    vlm = fastvlm_mlx.load("tiny", lazy=True)
    vlm.prompt("What is this?", [TALL])
    vlm.generate(vlm.prompt("And this?", [WIDE]), max_tokens=2)
    assert len(encoded) == 2


@pytest.mark.parametrize("pictures", [[], [TALL]], ids=len)
def test_a_broken_tokenizer_is_said_all_the_same(pictures: list[Path], run: Run, tmp_path: Path) -> None:
    model = shutil.copytree(hub.BUILT_IN["tiny"], tmp_path / "model")
    (model / "tokenizer.json").write_text("{")
    told = run("generate", *pictures, "-m", model, "-p", "What?")
    assert told.code == 1
    assert "tokenizer.json" in told.err
    assert len(told.err.splitlines()) == 1
