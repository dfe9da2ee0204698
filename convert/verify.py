"""What a conversion changed, measured: fusing against the unfused source, then rounding against the fused
result.

Over three drawn patterns and the pictures that come with the package, each with several questions, and one
question without a picture. Each side is computed in float32, one model in memory at a time.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .. import checkpoint
from ..config import is_canonical, read_json
from ..errors import CheckpointError
from ..image import preprocess
from ..models.fastvlm import FastVLM
from ..prompt import Picture, Prompt, assemble, render
from ..tokenizer import Tokenizer
from .reference import Reference
from .translate import Translated, from_source, read_source

QUESTIONS = (
    "Describe the image.",
    "What is written here?",
    "How many objects are there, and where?",
    "Look at this: <image> What stands out?",
)
TEXT_ONLY = "What is the capital of France? Answer in one word."
PICTURES = Path(__file__).parent.parent / "assets" / "pictures"  # as installed: fastvlm_mlx/convert
_LAST = 32  # positions of each prompt
_SIZE = 512  # pixels at most: enough to see a difference, and minutes cheaper on a CPU

Arrays = Sequence[npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a row may differ."""

    features: float
    logits: float | None
    kl: float
    top1: float  # at least


FUSING = Limits(features=1e-3, logits=1e-3, kl=1e-4, top1=0.99)
ROUNDING = {  # by the narrowest numbers of the result
    "float32": FUSING,
    "float16": Limits(features=2e-2, logits=None, kl=1e-2, top1=0.95),
    "bfloat16": Limits(features=2e-1, logits=None, kl=1e-1, top1=0.8),
    "8 bit": Limits(features=2e-1, logits=None, kl=1e-1, top1=0.8),
    "4 bit": Limits(features=1.0, logits=None, kl=2.0, top1=0.2),
}


@dataclass(frozen=True, slots=True)
class Difference:
    """Between two models' outputs over the same prompts."""

    what: str
    limits: Limits
    features: float  # largest difference / largest value
    logits: float
    kl: float  # mean over positions, in nats
    top1: float  # share of positions with the same most probable token
    positions: int

    @property
    def exceeded(self) -> tuple[str, ...]:
        limits = self.limits
        rows = (
            ("features", self.features, limits.features),
            ("logits", self.logits, limits.logits),
            ("KL divergence", self.kl, limits.kl),
        )
        found = [
            f"{name} {value:.1e} (limit {most:.0e})"
            for name, value, most in rows
            if most and not value <= most
        ]
        if not self.top1 >= limits.top1:
            found.append(f"same most probable token {self.top1:.1%} (at least {limits.top1:.0%})")
        return tuple(found)

    def cells(self) -> tuple[str, ...]:
        top1 = f"{self.top1:.2%} of {self.positions}"
        return (self.what, f"{self.features:.1e}", f"{self.logits:.1e}", f"{self.kl:.1e}", top1)


@dataclass(frozen=True, slots=True)
class Comparison:
    differences: tuple[Difference, ...]

    HEADS: ClassVar[tuple[str, ...]] = ("", "features", "logits", "KL, nats", "same most probable token")

    @property
    def problem(self) -> str | None:
        """The first row beyond its limits, None if none is."""
        for row in self.differences:
            if row.exceeded:
                return f"{row.what}: {', '.join(row.exceeded)}"
        return None


def compare(source: Path, result: Path) -> Comparison:
    """Where the source is in run form already, nothing was fused, and only rounding is compared."""
    tokenizer = Tokenizer.load(source)
    if is_canonical(read_json(source / checkpoint.CONFIG)):
        fused, rows = _loaded(source, tokenizer), []
    else:
        stored = read_source(source, tokenizer)
        size = stored.config.image.size
        apart = Reference(stored.raw, stored.config, stored.packed)
        before = _outputs(apart.features, lambda prompt: apart.logits(prompt, _LAST), size, tokenizer)
        del apart
        _require_finite(before, f"{source}", f"the weights are damaged, run `fastvlm-mlx doctor {source}`")
        fused = _outputs_of(_model(from_source(stored)), size, tokenizer)
        del stored
        rows = [_difference("fusing, against the unfused source", FUSING, before, fused)]
    _require_finite(fused, f"{source}", f"the weights are damaged, run `fastvlm-mlx doctor {source}`")
    after = _loaded(result, tokenizer)
    _require_finite(after, "the result", "its dtype is too narrow for these weights, try --dtype bfloat16")
    kind = _narrowest(result)
    rows.append(_difference(f"{kind}, against the fused result", ROUNDING[kind], fused, after))
    return Comparison(tuple(rows))


def _narrowest(result: Path) -> str:
    loaded = read_json(result / checkpoint.CONFIG)
    bits = [how["bits"] for how in loaded["quantization"].values()]
    if bits:
        return f"{min(bits)} bit"
    dtype = checkpoint.stored_dtype(checkpoint.lazy_weights(result))
    return next(name for name, known in checkpoint.DTYPES.items() if known == dtype)


@dataclass(frozen=True)
class _Outputs:
    features: Arrays
    logits: Arrays


def _loaded(directory: Path, tokenizer: Tokenizer) -> _Outputs:
    loaded = checkpoint.load(directory, mx.float32)
    return _outputs_of(loaded.model, loaded.config.image.size, tokenizer)


def _model(translated: Translated) -> FastVLM:
    config, weights = checkpoint.dequantized(translated.config, translated.weights)
    model = FastVLM(config)
    model.load_weights(list(checkpoint.cast(weights, mx.float32).items()))
    for array in checkpoint.parameters(model).values():
        mx.eval(array)
    return model


def _outputs_of(model: FastVLM, size: int, tokenizer: Tokenizer) -> _Outputs:
    def logits(prompt: Prompt) -> mx.array:
        hidden = model.language(model.embed(prompt), model.language.new_caches())[0]
        return model.language.logits(hidden[-_LAST:])

    return _outputs(model.vision, logits, size, tokenizer)


def _outputs(
    features: Callable[[mx.array], mx.array],
    logits: Callable[[Prompt], mx.array],
    size: int,
    tokenizer: Tokenizer,
) -> _Outputs:
    pictures = [mx.array(picture[None]) for picture in _pictures(min(size, _SIZE))]
    asked = [
        assemble(render(QUESTIONS[(number + more) % len(QUESTIONS)], 1), [Picture(picture)], tokenizer.encode)
        for number, picture in enumerate(pictures)
        for more in (0, 1)
    ]
    asked.append(assemble(render(TEXT_ONLY, 0), [], tokenizer.encode))
    found = _Outputs(
        [np.array(features(picture)) for picture in pictures],
        [np.array(logits(prompt)[:, : tokenizer.size]) for prompt in asked],
    )
    gc.collect()
    mx.clear_cache()
    return found


def _pictures(size: int) -> list[npt.NDArray[np.float32]]:
    """Smooth colors, a checkerboard and noise, then the package's pictures."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    smooth = np.stack([x, y, 1 - x * y], axis=-1)
    board = np.repeat((((x * 8).astype(int) + (y * 8).astype(int)) % 2)[..., None], 3, -1).astype(np.float32)
    noise = np.random.default_rng(0).random((size, size, 3), dtype=np.float32)
    return [smooth, board, noise, *(preprocess(path, size) for path in sorted(PICTURES.glob("*.png")))]


def _difference(what: str, limits: Limits, before: _Outputs, after: _Outputs) -> Difference:
    gap = peak = kl = agree = 0.0
    count = 0
    for a, b in zip(before.logits, after.logits, strict=True):
        gap, peak = max(gap, float(np.abs(a - b).max())), max(peak, float(np.abs(a).max()))
        p, q = _log_softmax(a), _log_softmax(b)
        kl += float((np.exp(p) * (p - q)).sum())
        agree += float((a.argmax(-1) == b.argmax(-1)).sum())
        count += len(a)
    pairs = zip(before.features, after.features, strict=True)
    features = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)
    return Difference(what, limits, features, gap / peak, kl / count, agree / count, count)


def _require_finite(outputs: _Outputs, whose: str, repair: str) -> None:
    for name, arrays in (("features", outputs.features), ("logits", outputs.logits)):
        if not all(bool(np.isfinite(array).all()) for array in arrays):
            raise CheckpointError(f"{whose}: {name} are not finite (NaN or infinite); {repair}")


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    exact: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return exact
