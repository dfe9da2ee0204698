"""What a conversion changed, measured: features, logits, KL divergence, the first choice."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from .. import checkpoint
from ..errors import CheckpointError
from ..prompt import Picture, Text, assemble, render

QUESTIONS = (
    "Describe the image.",
    "What is written here?",
    "How many objects are there, and where?",
    "Look at this: <image> What stands out?",
)
TEXT_ONLY = "What is the capital of France? Answer in one word."


@dataclass(frozen=True, slots=True)
class Comparison:
    """Over a fixed set of pictures and questions, source against result, both computed in float32."""

    features: float  # largest difference over the largest value
    logits: float
    kl: float  # mean over positions, in nats
    top1: float  # share of positions whose most probable token is the same
    positions: int

    def rows(self) -> tuple[tuple[str, str], ...]:
        return (
            ("features, largest difference / largest value", f"{self.features:.2e}"),
            ("logits, largest difference / largest value", f"{self.logits:.2e}"),
            ("KL divergence, mean over positions (nats)", f"{self.kl:.2e}"),
            ("same most probable token", f"{self.top1:.2%} of {self.positions} positions"),
        )


def compare(source: Path, result: Path) -> Comparison:
    """One model in memory at a time."""
    before = _outputs(source)
    _refuse_broken(before, f"{source}", f"the weights are damaged, run `fastvlm-mlx doctor {source}`")
    after = _outputs(result)
    _refuse_broken(after, "the result", "its dtype is too narrow for these weights, try --dtype bfloat16")
    gap = kl = agree = 0.0
    peak = 0.0
    count = 0
    for a, b in zip(before.logits, after.logits, strict=True):
        gap, peak = max(gap, float(np.abs(a - b).max())), max(peak, float(np.abs(a).max()))
        p, q = _log_softmax(a), _log_softmax(b)
        kl += float((np.exp(p) * (p - q)).sum())
        agree += float((a.argmax(-1) == b.argmax(-1)).sum())
        count += len(a)
    features = max(
        float(np.abs(a - b).max() / np.abs(a).max())
        for a, b in zip(before.features, after.features, strict=True)
    )
    return Comparison(features, gap / peak, kl / count, agree / count, count)


@dataclass(frozen=True)
class _Outputs:
    features: Sequence[np.ndarray]
    logits: Sequence[np.ndarray]


def _outputs(directory: Path) -> _Outputs:
    loaded = checkpoint.load(directory, mx.float32)
    model, tokenizer = loaded.model, loaded.tokenizer
    size = min(loaded.config.image.size, 512)  # enough to see a difference, and minutes cheaper on a CPU
    pictures = [mx.array(picture)[None] for picture in _pictures(size)]
    features = [np.array(model.vision(picture)) for picture in pictures]
    prompts = [
        assemble(render(question, 1), [Picture(pictures[index % len(pictures)])], tokenizer.encode)
        for index, question in enumerate(QUESTIONS)
    ]
    prompts.append(assemble(render(TEXT_ONLY, 0), [], tokenizer.encode))
    logits = []
    for prompt in prompts:
        hidden = model.language(model.embed(prompt), model.language.new_caches())[0]
        wanted = hidden if isinstance(prompt[-1], Text) and len(prompt) == 1 else hidden[-32:]
        logits.append(np.array(model.language.logits(wanted)[:, : tokenizer.size]))
    del model, loaded
    gc.collect()
    mx.clear_cache()
    return _Outputs(features, logits)


def _refuse_broken(outputs: _Outputs, whose: str, repair: str) -> None:
    for name, arrays in (("features", outputs.features), ("logits", outputs.logits)):
        if not all(bool(np.isfinite(array).all()) for array in arrays):
            raise CheckpointError(f"{whose}: {name} are not finite (NaN or infinite); {repair}")


def _pictures(size: int) -> list[np.ndarray]:
    """Smooth colours, a checkerboard and noise: fixed, and unlike each other."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    smooth = np.stack([x, y, 1 - x * y], axis=-1)
    board = np.repeat((((x * 8).astype(int) + (y * 8).astype(int)) % 2)[..., None], 3, -1).astype(np.float32)
    noise = np.random.default_rng(0).random((size, size, 3), dtype=np.float32)
    return [smooth, board, noise]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
