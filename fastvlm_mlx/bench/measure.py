"""Where the time to the first token goes: the events of the one decoding loop, and a clock around them."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Protocol

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from PIL import Image

from ..inference import generate
from ..inference.decoding import Finished, Prefilled, Token
from ..inputs import image
from ..inputs.prompt import Picture, Prompt
from ..inputs.tiling import Grid, ImageOptions
from ..vlm import VLM

SIDES = 1920, 1080  # of the picture that is asked about
QUESTION = "Describe the image."
TOLERANCE = 0.03  # of the time to the first token: what its parts may leave out
PARTS = ("read_s", "preprocess_s", "prompt_s", "vision_s", "projector_s", "prefill_s", "first_token_s")


@dataclass(frozen=True, slots=True)
class Case:
    size: int
    batch: int
    asks: bool = True  # False: the picture alone, as the paper counts
    image_mode: str | None = None  # None: the model's
    grid: Grid | None = None
    max_tiles: int | None = None

    def options(self, mode: str = "pad") -> ImageOptions:
        """`mode` is the model's."""
        return ImageOptions(self.size, self.image_mode or mode, self.grid, self.max_tiles)


@dataclass(frozen=True, slots=True)
class Run:
    """One batch of questions, from encoded pictures to the last token."""

    read_s: float  # pictures decoded
    preprocess_s: float  # padded, resized, made floats
    prompt_s: float  # text tokenized, pixels handed to MLX
    vision_s: float  # tower alone
    projector_s: float
    prefill_s: float  # the first token chosen
    first_token_s: float  # and told, the next one set going
    ttft_s: float  # by a clock of its own, around all of the above
    decode_s: float  # all tokens after the first
    image_tokens: int  # of one prompt, as are the next two
    text_tokens: int
    tokens: int
    peak_bytes: int  # by MLX

    @property
    def parts_s(self) -> float:
        return sum(getattr(self, part) for part in PARTS)

    @property
    def unaccounted(self) -> float:
        """The share of the time to the first token that no part has."""
        return (self.ttft_s - self.parts_s) / self.ttft_s


TIMES = tuple(field.name for field in fields(Run) if field.name.endswith("_s"))


def measure(vlm: VLM, picture: bytes, case: Case, tokens: int) -> Run:
    began = time.perf_counter()
    opened = [image.open_image(picture) for _ in range(case.batch)]
    read = time.perf_counter()
    options = case.options(vlm.config.image.mode)
    pixels = [image.preprocess_all(one, options) for one in opened]
    prepared = time.perf_counter()
    prompts = [_prompt(vlm, one, case.asks) for one in pixels]
    asked = time.perf_counter()
    seen: tuple[Prefilled, float] | None = None
    first: float | None = None
    told = generate.stream_batch(
        vlm.model,
        vlm.tokenizer,
        prompts,
        stop_ids=(),  # so that every run decodes as many
        context=vlm.config.text.context,
        max_tokens=tokens,
    )
    for _, event in told:
        match event:
            case Prefilled() if seen is None:
                seen = event, time.perf_counter()
            case Token() if first is None:
                first = time.perf_counter()
            case Finished():
                last = event
    assert seen is not None  # a stream begins with it
    assert first is not None  # tokens are 2 or more
    prefilled, at = seen
    return Run(
        read_s=read - began,
        preprocess_s=prepared - read,
        prompt_s=asked - prepared,
        vision_s=prefilled.vision_s - prefilled.projector_s,
        projector_s=prefilled.projector_s,
        prefill_s=prefilled.prefill_s,
        first_token_s=first - at,
        ttft_s=first - began,
        decode_s=last.decode_s,
        image_tokens=prefilled.image_tokens,
        text_tokens=prefilled.text_tokens,
        tokens=last.tokens,
        peak_bytes=last.peak_bytes,
    )


def _prompt(vlm: VLM, pieces: Sequence[npt.NDArray[np.float32]], asks: bool) -> Prompt:
    prompt = vlm.prompt(QUESTION, [tuple(vlm.picture(piece) for piece in pieces)])
    return prompt if asks else tuple(part for part in prompt if isinstance(part, Picture))


class Foreign(Protocol):
    """Another program, with a loop of its own."""

    def measure(self, encoded: bytes, case: Case, tokens: int) -> Run: ...


Timed = VLM | Foreign
Turn = tuple[Timed, Case]


def interleaved(turns: Sequence[Turn], runs: int, tokens: int) -> Iterator[tuple[int, Run | None]]:
    """Which turn, and how it went: every one once unmeasured (None), then all of them `runs` times over."""
    encoded = picture()
    for number in range(runs + 1):
        for index, (one, case) in enumerate(turns):
            run = (
                measure(one, encoded, case, tokens)
                if isinstance(one, VLM)
                else one.measure(encoded, case, tokens)
            )
            mx.clear_cache()
            yield index, run if number else None


@cache
def picture() -> bytes:
    """A JPEG of 1920×1080, as a camera's small picture: soft colours and some noise, always the same."""
    width, height = SIDES
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / (40 + 9 * k)) + np.cos(columns / (60 + 7 * k)) for k in range(3)]
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    values = np.clip(128 + 50 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)
    held = io.BytesIO()
    Image.fromarray(values).save(held, "JPEG", quality=90)
    return held.getvalue()
