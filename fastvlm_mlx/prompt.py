"""A prompt is a sequence of parts, text ids and pictures, in the order the model reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from .config import IMAGE_MARK, STRIDE
from .errors import PromptError

DEFAULT_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True, slots=True)
class Text:
    ids: tuple[int, ...]

    @property
    def positions(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    pixels: mx.array  # (1, H, W, 3) in [0, 1], sides multiples of 64

    @property
    def positions(self) -> int:
        return (self.pixels.shape[1] // STRIDE) * (self.pixels.shape[2] // STRIDE)


Part = Text | Picture
Prompt = tuple[Part, ...]


def positions(prompt: Prompt) -> int:
    """How many positions of the context the prompt takes."""
    return sum(part.positions for part in prompt)


def render(text: str, pictures: int, system: str | None = None) -> str:
    """One turn of ChatML with `<image>` where each picture goes; without marks, pictures come first.

    >>> render("Describe.", 1)[-57:]
    'user\\n<image>\\nDescribe.<|im_end|>\\n<|im_start|>assistant\\n'

    `system` None is the reference's sentence; an empty one leaves the system turn out.
    """
    if not text.strip():
        raise PromptError('the prompt is empty; ask something, for example --prompt "Describe the image."')
    marks = text.count(IMAGE_MARK)
    if marks == 0:
        text = f"{IMAGE_MARK}\n" * pictures + text
    elif marks != pictures:
        raise PromptError(
            f"the prompt marks {marks} place(s) with {IMAGE_MARK} and {pictures} picture(s) were given; "
            "give one picture for each mark, or leave the marks out to put the pictures first"
        )
    system = DEFAULT_SYSTEM if system is None else system
    if IMAGE_MARK in system:
        raise PromptError(f"the system prompt holds {IMAGE_MARK}; pictures go into the user's text")
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{head}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def assemble(rendered: str, pictures: Sequence[mx.array], encode: Callable[[str], list[int]]) -> Prompt:
    """Put pictures where the marks are; the text between them is tokenized piece by piece."""
    pieces = rendered.split(IMAGE_MARK)
    parts: list[Part] = []
    for piece, pixels in zip(pieces, [*pictures, None], strict=True):
        if piece:
            parts.append(Text(tuple(encode(piece))))
        if pixels is not None:
            parts.append(Picture(pixels))
    return tuple(parts)
