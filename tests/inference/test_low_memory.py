"""With low memory the same is said, and the model is never held whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from command import COMMAND, MODEL, Run, completed
from pictures import TALL
from pictures import WIDE as ACROSS

import fastvlm_mlx
from fastvlm_mlx import VLM, Clip, ConfigError, ImageOptions, Picture, PromptError, Session
from fastvlm_mlx.config import ModelConfig, TextConfig, VisionConfig
from fastvlm_mlx.models import lora
from fastvlm_mlx.models.fastvlm import FastVLM
from fastvlm_mlx.weights import checkpoint

VlmOf = Callable[[str], VLM]


def picture(seed: int, *sides: int) -> Picture:
    return Picture(mx.array(np.random.default_rng(seed).random((1, *sides, 3), np.float32)))


SHOWN: dict[str, dict[str, Any]] = {
    "nothing": {"images": []},
    "one picture": {"images": [TALL]},
    "several of several sizes": {
        "images": [picture(1, 64, 64), TALL, picture(2, 128, 64), picture(1, 64, 64)]
    },
    "tiles": {"images": [ACROSS], "options": ImageOptions(64, "tiles", (3, 2))},
    "frames": {"images": [Clip((0.0, 1.5), ((picture(3, 64, 64),), (picture(4, 64, 64),)))]},
}


@pytest.mark.parametrize("shown", SHOWN.values(), ids=[name.replace(" ", "-") for name in SHOWN])
@pytest.mark.parametrize("name", ["apple-fused", "mlx-vlm-4bit"])
def test_the_answer_is_the_same(
    name: str, shown: dict[str, Any], vlm_of: VlmOf, directory_of: Callable[[str], Path]
) -> None:
    whole, low = vlm_of(name), fastvlm_mlx.load(directory_of(name), dtype="float32", low_memory=True)
    expected = whole.generate(whole.prompt("What is this?", **shown), max_tokens=12)
    found = low.generate(low.prompt("What is this?", **shown), max_tokens=12)
    assert found.ids == expected.ids
    assert (found.vision_s > 0) == bool(shown["images"])


def test_pictures_are_seen_before_the_first_answer_alone() -> None:
    low = fastvlm_mlx.load(MODEL, low_memory=True)
    shown = low.prompt("What is this?", [TALL])
    first = low.generate(shown, max_tokens=4)
    assert len(first.ids) == 4
    assert len(low.generate("And now?", max_tokens=4).ids) == 4
    with pytest.raises(PromptError, match="load the model again"):
        low.generate(shown)
    with pytest.raises(PromptError, match="load the model again"):
        low.encode_image(mx.zeros((64, 64, 3)))


def test_what_would_need_the_tower_again_is_refused() -> None:
    low, other = fastvlm_mlx.load(MODEL, low_memory=True), fastvlm_mlx.load(MODEL)
    with pytest.raises(ConfigError, match="low_memory"):
        Session(low)
    with pytest.raises(ConfigError, match="low_memory"):
        next(low.answers(["What?"]))
    with pytest.raises(ConfigError, match="draft model"):
        low.generate("What?", draft=other)


def test_the_command_takes_it_with_an_adapter(run: Run, vlm_of: VlmOf, tmp_path: Path) -> None:
    width, path = vlm_of("apple-fused").config.text.hidden_size, "language.layers.0.attention.out"
    thin = {"lora_a": mx.random.normal((width, 8)), "lora_b": mx.random.normal((8, width))}
    weights = {f"{path}.{part}": array for part, array in thin.items()}
    lora.write(tmp_path / "adapter", lora.Adapter("it", lora.LoRASettings(), weights))
    asked = ("generate", TALL, "-m", MODEL, "-n", 12)
    expected = run(*asked, "--adapter-path", tmp_path / "adapter")
    assert expected.code == 0
    assert expected.out != run(*asked).out
    assert run(*asked, "--adapter-path", tmp_path / "adapter", "--low-memory") == expected


@pytest.mark.parametrize("other", [("--draft-model", MODEL), ("--shard",)], ids=lambda other: other[0])
def test_the_command_refuses_what_is_held_beside_it(run: Run, other: Sequence[object]) -> None:
    done = run("generate", TALL, "-m", MODEL, "--low-memory", *other)
    assert done.code == 1
    assert done.out == ""
    assert len(done.err.splitlines()) == 1


# --- memory, in processes of their own ---

BESIDE = 16e6  # bytes of activations, keys and values, and what else comes and goes


@pytest.fixture(scope="module")
def large(vlm_of: VlmOf, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    """A model large enough to see where it is; the bytes of its tower and projector, and of the rest."""
    small = vlm_of("apple-fused")
    tower = VisionConfig((1,) * 5, (64, 128, 256, 512, 1024))
    text = TextConfig(512, 8, 8, 2, 2048, small.config.text.vocab_size, tied=True)
    config = ModelConfig(tower, text, small.config.image, small.config.eos_token_ids)
    weights = checkpoint.parameters(FastVLM(config))
    size = {name: array.nbytes for name, array in weights.items()}
    directory = tmp_path_factory.mktemp("large") / "model"
    checkpoint.save(directory, config, checkpoint.FusedWeights(weights), small.tokenizer, {})
    rest = sum(count for name, count in size.items() if name.startswith("language."))
    return directory, sum(size.values()) - rest, rest


def test_the_model_is_never_held_whole(large: tuple[Path, int, int]) -> None:
    directory, tower, rest = large
    assert min(tower, rest) > 4 * BESIDE
    whole, low = (told(directory, TALL, ACROSS, "--image-size", 64, *how) for how in ((), ("--low-memory",)))
    assert low["text"] == whole["text"]
    assert whole["peak_bytes"] > tower + rest
    assert low["peak_bytes"] < max(tower, rest) + BESIDE
    assert whole["resident_bytes"] - low["resident_bytes"] > min(tower, rest) - BESIDE


def told(model: Path, *arguments: object) -> dict[str, Any]:
    ran = completed((*COMMAND, "generate"), *arguments, "-m", model, "-n", 4, "--json")
    assert ran.code == 0, ran.err
    answer: dict[str, Any] = json.loads(ran.out)
    return answer
