"""A prompt is a sequence of parts, text ids and pictures, in the order the model reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, cycle, zip_longest

import mlx.core as mx
import numpy as np

from ..config import IMAGE_MARK, STRIDE
from ..errors import PromptError

DEFAULT_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True, slots=True)
class Text:
    ids: tuple[int, ...]

    @property
    def positions(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Picture:
    pixels: mx.array  # (1, H, W, 3) in [0, 1], sides multiples of 64

    def __post_init__(self) -> None:
        mx.eval(self.pixels)  # a prompt may be answered in another thread than the one that made it

    @cached_property
    def key(self) -> bytes:
        """The same for the same pixels, so for one content prepared in one way."""
        held = np.ascontiguousarray(np.array(self.pixels.astype(mx.float32), copy=False))
        digest = hashlib.sha256(f"{held.shape} {self.pixels.dtype}".encode())
        digest.update(held.data)
        return digest.digest()

    @property
    def positions(self) -> int:
        return (self.pixels.shape[1] // STRIDE) * (self.pixels.shape[2] // STRIDE)


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a video, each in its pieces (one, but for tiles), and when they are shown."""

    times_s: tuple[float, ...]
    frames: tuple[tuple[Picture, ...], ...]
    damaged: int = 0  # packets that could not be decoded

    @property
    def marks(self) -> str:
        """A line for each frame, as `stamps` writes its time: `[0:04] <image>`."""
        lines = zip(timestamps(self.times_s), self.frames, strict=True)
        return "\n".join(f"{stamp} {IMAGE_MARK * len(pieces)}" for stamp, pieces in lines)


Part = Text | Picture
Prompt = tuple[Part, ...]


def positions(prompt: Prompt) -> int:
    """How many positions of the context the prompt takes."""
    return sum(part.positions for part in prompt)


def render(text: str, pictures: int, system: str | None = None) -> str:
    """One turn of ChatML with `<image>` where each picture goes; without marks, pictures come first.

    >>> render("Describe.", 1)[-55:]
    'user\\n<image>\\nDescribe.<|im_end|>\\n<|im_start|>assistant\\n'

    `system` None is the reference's sentence; an empty one leaves the system turn out.
    """
    return chatml_turns([text], pictures, system)[0]


def chatml_turns(said: Sequence[str], pictures: int, system: str | None = None) -> list[str]:
    """What user and assistant said in turn, in ChatML, cut where the speaker changes.

    >>> dialogue(["What?", "A cat."], 0, system="")
    ['<|im_start|>user\\nWhat?<|im_end|>\\n<|im_start|>assistant\\n', 'A cat.<|im_end|>']

    Every second piece is what the model says, and nothing else is.
    """
    asked, answered = list(said[::2]), said[1::2]
    if not all(text.strip() for text in asked):
        raise PromptError('the prompt is empty; ask something, for example --prompt "Describe the image."')
    marks = sum(text.count(IMAGE_MARK) for text in asked)
    if marks == 0:
        asked[0] = f"{IMAGE_MARK}\n" * pictures + asked[0]
    else:
        _check_marks(marks, pictures)
    if any(IMAGE_MARK in text for text in answered):
        raise PromptError(f"an answer holds {IMAGE_MARK}; pictures go into the user's text")
    before = system_turn(system)
    pieces: list[str] = []
    for question, answer in zip_longest(asked, answered):
        pieces.append(f"{before}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
        before = "\n"
        if answer is not None:
            pieces.append(f"{answer}<|im_end|>")
    return pieces


def _check_marks(marks: int, pictures: int) -> None:
    if marks != pictures:
        raise PromptError(
            f"the prompt marks {marks} place(s) with {IMAGE_MARK} and {pictures} picture(s) were given; "
            "give one picture for each mark, or leave the marks out to put the pictures first"
        )


def insert_marks(text: str, shown: Sequence[str]) -> str:
    """The text with what stands for each picture: a mark for each of its pieces, or the lines of a `Clip`.

    >>> placed("Describe.", ["<image><image><image>", "<image>"])
    '<image><image><image>\\n<image>\\nDescribe.'
    >>> placed("Is <image> in it?", ["[0:00] <image>"])
    'Is [0:00] <image> in it?'
    """
    if not text.strip() or all(marks == IMAGE_MARK for marks in shown):
        return text
    if IMAGE_MARK not in text:
        return "".join(f"{marks}\n" for marks in shown) + text
    first, *others = text.split(IMAGE_MARK)
    _check_marks(len(others), len(shown))
    return first + "".join(marks + rest for marks, rest in zip(shown, others, strict=True))


def marked(text: str, shown: Sequence[Clip | tuple[Picture, ...]]) -> tuple[str, tuple[Picture, ...]]:
    """The text with the marks of videos and of pictures in pieces, and all their pictures in that order."""
    marks = [one.marks if isinstance(one, Clip) else IMAGE_MARK * len(one) for one in shown]
    pieces = [chain.from_iterable(one.frames) if isinstance(one, Clip) else one for one in shown]
    return insert_marks(text, marks), tuple(chain.from_iterable(pieces))


def timestamps(times_s: Sequence[float]) -> list[str]:
    """Times as the model reads them: whole seconds, and tenths or more where those would be the same.

    >>> stamps([0.0, 4.9, 3725.0])
    ['[0:00]', '[0:04]', '[1:02:05]']
    >>> stamps([0.0, 0.5])
    ['[0:00.0]', '[0:00.5]']
    """
    written: list[str] = []
    for digits in range(4):
        written = [_timestamp(time_s, digits) for time_s in times_s]
        if len(set(written)) == len(written):
            break
    return written


def _timestamp(time_s: float, digits: int) -> str:
    units = int(time_s * 10**digits + 1e-6)  # what has not begun is not named
    seconds, rest = divmod(units, 10**digits)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"[{clock}:{seconds:02}{f'.{rest:0{digits}}' if digits else ''}]"


def system_turn(system: str | None = None) -> str:
    """The system turn, which comes before all others.

    >>> opening("Be brief.")
    '<|im_start|>system\\nBe brief.<|im_end|>\\n'
    """
    system = DEFAULT_SYSTEM if system is None else system
    if IMAGE_MARK in system:
        raise PromptError(f"the system prompt holds {IMAGE_MARK}; pictures go into the user's text")
    return f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""


def conversation(said: Sequence[str]) -> str:
    """What user and assistant said in turn, the user last, as one text for `render`.

    >>> conversation(["What is it?", "A cat.", "Which colour?"])
    'What is it?<|im_end|>\\n<|im_start|>assistant\\nA cat.<|im_end|>\\n<|im_start|>user\\nWhich colour?'
    """
    later = zip(cycle(("assistant", "user")), said[1:], strict=False)
    return said[0] + "".join(f"<|im_end|>\n<|im_start|>{who}\n{text}" for who, text in later)


def assemble(rendered: str, pictures: Sequence[Picture], encode: Callable[[str], list[int]]) -> Prompt:
    """Put pictures where the marks are; the text between them is tokenized piece by piece."""
    pieces = rendered.split(IMAGE_MARK)
    parts: list[Part] = []
    for piece, picture in zip(pieces, [*pictures, None], strict=True):
        if piece:
            parts.append(Text(tuple(encode(piece))))
        if picture is not None:
            parts.append(picture)
    return tuple(parts)
