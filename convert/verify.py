"""`convert --verify`: the result against its source, in two steps, each with limits.

*Fusing*: the fused source against the unfused one, which `fuse.reference` runs from the raw tensors without
any of the fusing code. *Storing*: the result as it was written, in its types and perhaps quantized, against
the fused source. All are computed in float32 and one model is in memory at a time, so verifying takes memory
for the whole model in float32. A source in our own form is fused already: only the second step applies.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..config import ModelConfig, is_canonical, read_json
from ..errors import CheckpointError
from ..inputs.image import preprocess
from ..inputs.prompt import Picture, Prompt, Text, assemble, render
from ..inputs.tokenizer import Tokenizer
from ..weights import checkpoint
from .fuse import reference
from .quantize import Recipe
from .read.translate import read_source

PHOTOS = Path(__file__).parent.parent / "assets" / "pictures"
QUESTIONS = (
    "Describe the image.",
    "What is written here?",
    "How many objects are there, and where?",
    "Look at this: <image> What stands out?",
)
TEXT_ONLY = "What is the capital of France? Answer in one word."
LAST = 32  # positions of a prompt whose logits are compared
FUSING = "fusing against the unfused source"
STORING = "quantization and dtype against the float result"
ORACLE = "transformers against the fused source"
Limits = Mapping[str, float]
# Sums in another order differ by 1e-6 to 2e-5, a wrong fusing rule by 1e-3 and more.
EXACT: Limits = {"features": 1e-4, "logits": 1e-4}
ROUNDED: Mapping[str, Limits] = {
    "float32": EXACT,
    "float16": {"features": 0.02, "KL": 0.01},
    "bfloat16": {"features": 0.2, "KL": 0.1},
}
# Several times what a trained model loses; `eval` says what the loss costs in answers.
QUANTIZED: Mapping[int, Limits] = {8: {"features": 0.2, "KL": 0.1}, 4: {"features": 0.75, "KL": 0.5}}


@dataclass(frozen=True, slots=True)
class Comparison:
    name: str
    features: float  # largest difference over the largest value
    logits: float  # the same
    kl: float  # mean over positions, in nats
    top1: float  # share of positions whose most probable token is the same
    positions: int
    limits: Limits

    def __str__(self) -> str:
        return (
            f"features {self.features:.1e}, logits {self.logits:.1e}, KL {self.kl:.1e} nats, the same first "
            f"choice at {self.top1:.2%} of {self.positions} positions; limits: {_listed(self.limits)}"
        )

    def exceeded(self) -> Limits:
        """The measures beyond their limits, with their values."""
        found = {"features": self.features, "logits": self.logits, "KL": self.kl}
        return {what: found[what] for what, limit in self.limits.items() if not found[what] <= limit}


@dataclass(frozen=True, slots=True)
class Verification:
    comparisons: tuple[Comparison, ...]

    def rows(self) -> tuple[tuple[str, str], ...]:
        return tuple((found.name, str(found)) for found in self.comparisons)

    @property
    def problem(self) -> str | None:
        """One line that says which comparison is beyond its limits."""
        for found in self.comparisons:
            if exceeded := found.exceeded():
                limits = _listed({what: found.limits[what] for what in exceeded})
                return f"not verified: {found.name} gives {_listed(exceeded)}, beyond the limits ({limits})"
        return None


@dataclass(frozen=True)
class Outputs:
    features: Sequence[np.ndarray]
    logits: Sequence[np.ndarray]


@dataclass(frozen=True)
class Cases:
    """Pictures and prompts about them, the same for every model that is compared."""

    pictures: Sequence[Picture]
    prompts: Sequence[Prompt]
    vocabulary: int


Oracle = Callable[[Path, Cases], Outputs]  # another program's, for the source


def verify(
    source: Path,
    result: Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    limits: Limits,
    oracle: Oracle | None = None,
) -> Verification:
    """`config` is the result's; `limits` are those of storing it. With an oracle, a third comparison."""
    cases = _cases(config, tokenizer)
    fused = _fused_outputs(source, cases)
    _refuse_broken(fused, f"{source}", f"the weights are damaged, run `fastvlm-mlx doctor {source}`")
    comparisons = []
    if oracle:
        comparisons.append(_compare(ORACLE, oracle(source, cases), fused, EXACT))
    if not is_canonical(read_json(source / checkpoint.CONFIG)):
        comparisons.append(_compare(FUSING, _unfused_outputs(source, tokenizer, cases), fused, EXACT))
    stored = _fused_outputs(result, cases)
    _refuse_broken(stored, "the result", "its dtype is too narrow for these weights, try --dtype bfloat16")
    return Verification((*comparisons, _compare(STORING, fused, stored, limits)))


def storing_limits(dtype: str, recipe: Recipe | None) -> Limits:
    """What rounding to a type, and quantization by a recipe, may change."""
    limits = dict(ROUNDED[dtype])
    if recipe:
        quantized = QUANTIZED[min(bits for _, bits in recipe.rows if bits)]
        limits["KL"] = quantized["KL"]
        limits.pop("logits", None)
        if recipe.bits("vision."):
            limits["features"] = quantized["features"]
    return limits


def _compare(name: str, before: Outputs, after: Outputs, limits: Limits) -> Comparison:
    gap = peak = kl = agree = 0.0
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
    return Comparison(name, features, gap / peak, kl / count, agree / count, count, limits)


def _fused_outputs(directory: Path, cases: Cases) -> Outputs:
    model = checkpoint.load(directory, mx.float32).model
    features = {picture: model.vision(picture.pixels) for picture in cases.pictures}
    rows = {picture: model.projector(found.flatten(1, 2))[0] for picture, found in features.items()}
    logits = []
    for prompt in cases.prompts:
        hidden = model.language(model.embed(prompt, rows), model.language.new_caches())[0]
        logits.append(np.array(model.language.logits(hidden[-LAST:])[:, : cases.vocabulary]))
    outputs = Outputs([np.array(found) for found in features.values()], logits)
    del model, features, rows
    _free()
    return outputs


def _unfused_outputs(directory: Path, tokenizer: Tokenizer, cases: Cases) -> Outputs:
    source = read_source(directory, tokenizer)
    config, raw = source.config, reference.dense(source.raw, source.packed)
    del source  # its tensors are freed as those in float32 are made
    features = {picture: reference.features_of(raw, config, picture.pixels) for picture in cases.pictures}
    rows = {picture: reference.projected(raw, found)[0] for picture, found in features.items()}
    logits = []
    for prompt in cases.prompts:
        parts = [
            raw["language.embedding.weight"][mx.array(part.ids)] if isinstance(part, Text) else rows[part]
            for part in prompt
        ]
        hidden = reference.hidden(raw, config.text, mx.concatenate(parts))
        found = reference.logits(raw, config.text, hidden[-LAST:])
        logits.append(np.array(found[:, : cases.vocabulary]))
    outputs = Outputs([np.array(found) for found in features.values()], logits)
    del raw, features, rows
    _free()
    return outputs


def _free() -> None:
    gc.collect()
    mx.clear_cache()


def _refuse_broken(outputs: Outputs, whose: str, repair: str) -> None:
    for name, arrays in (("features", outputs.features), ("logits", outputs.logits)):
        if not all(bool(np.isfinite(array).all()) for array in arrays):
            raise CheckpointError(f"{whose}: {name} are not finite (NaN or infinite); {repair}")


def _cases(config: ModelConfig, tokenizer: Tokenizer) -> Cases:
    """Every question about every real picture, one about every pattern, and one without a picture."""
    size = min(config.image.size, 512)  # enough to see a difference, and minutes cheaper on a CPU
    photos = [_picture(preprocess(path, size)) for path in sorted(PHOTOS.glob("*.png"))]
    patterns = [_picture(pattern) for pattern in _patterns(size)]
    asked = [(question, [picture]) for picture in photos for question in QUESTIONS]
    asked += [(QUESTIONS[0], [pattern]) for pattern in patterns]
    asked.append((TEXT_ONLY, []))
    prompts = [assemble(render(text, len(shown)), shown, tokenizer.encode) for text, shown in asked]
    return Cases([*photos, *patterns], prompts, tokenizer.size)


def _picture(pixels: np.ndarray) -> Picture:
    return Picture(mx.array(pixels)[None])


def _patterns(size: int) -> list[np.ndarray]:
    """Smooth colors, a checkerboard and noise: fixed, and unlike each other."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    smooth = np.stack([x, y, 1 - x * y], axis=-1)
    board = np.repeat((((x * 8).astype(int) + (y * 8).astype(int)) % 2)[..., None], 3, -1).astype(np.float32)
    noise = np.random.default_rng(0).random((size, size, 3), dtype=np.float32)
    return [smooth, board, noise]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _listed(values: Limits) -> str:
    return ", ".join(f"{what} {value:.1e}" for what, value in values.items())
