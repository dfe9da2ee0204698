"""A user's conversations about pictures: read, checked and, step by step, made into batches."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..config import IMAGE_MARK, STRIDE, ImageConfig
from ..errors import ConfigError, DataError, ImageError, PromptError
from ..inputs import dataset
from ..inputs.dataset import Raw, Unreadable
from ..inputs.image import open_image, to_square
from ..inputs.prompt import chatml_turns
from ..inputs.tokenizer import Tokenizer
from .batches import Batch, Sample, Share, collate, conversation
from .recipe import Stage

# Once a process: a source is sent to workers anew with every step.
tokenizer_at = cache(Tokenizer.load)


@dataclass(frozen=True, slots=True)
class Dialogue:
    line: int  # in the file, from 1
    pieces: tuple[str, ...]  # as `prompt.dialogue` cuts it: every second one is the model's
    pictures: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Dialogues:
    path: Path
    digest: str  # of the file's bytes
    rows: tuple[Dialogue, ...]


def read(path: Path, folder: Path | None = None) -> Dialogues:
    """Every conversation, its pictures found on disk; their paths start from `folder`, else the file's.

    Of several answers to a question the most frequent is learned. Where LLaVA's form names no picture,
    there is none.
    """
    start = path.parent if folder is None else folder
    if not start.is_dir():
        raise DataError(f"{start}: no such folder of pictures; mend [data] of the recipe")
    find = cache(dataset.require_picture)

    def row(number: int, raw: Raw) -> Dialogue:
        turns = dataset.turns(raw)
        if turns:
            system, said = turns
        else:
            ((answer, _),) = Counter(dataset.answers(raw)).most_common(1)
            system, said = None, (dataset.question(raw), answer)
        if not all(text.strip() for text in said[1::2]):
            raise Unreadable("an answer is empty; remove the line")
        unsaid = "conversations" in raw and not any(name in raw for name in dataset.PICTURE)
        pictures = []
        for picture in () if unsaid else dataset.pictures(raw, start):
            file = find(picture)
            if file is None:
                raise Unreadable(f"no picture {picture}; `images` in [data] names the folder they are in")
            pictures.append(file)
        try:
            pieces = chatml_turns(said, len(pictures), system)
            "".join(pieces).encode()
        except PromptError as error:
            raise Unreadable(str(error)) from None
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            raise Unreadable(f"{half} is half a character; write valid Unicode") from None
        return Dialogue(number, tuple(pieces), tuple(pictures))

    return Dialogues(path, *dataset.read(path, row))


@cache
def _read(path: Path, folder: Path | None, digest: str) -> Dialogues:
    data = read(path, folder)
    if data.digest != digest:
        raise DataError(f"{path}: has changed since the run began; begin another run with it")
    return data


@dataclass(frozen=True)
class Conversations:
    """Each once an epoch, in an order of the epoch's own. The same seed and step give the same batch."""

    seed: int
    path: Path
    folder: Path | None
    digest: str
    tokenizer: Path  # the directory it is in
    image: ImageConfig
    context: int

    @property
    def data(self) -> Dialogues:
        return _read(self.path, self.folder, self.digest)

    def check(self, stage: Stage) -> None:
        """That every conversation fits into the context. A text has no more tokens than bytes."""
        tokens = self._tokens(stage)
        for row in self.data.rows:
            text = unicodedata.normalize("NFC", "".join(row.pieces))
            if len(text.encode()) + tokens * len(row.pictures) > self.context:
                self._sample(row, 0, tokens)

    def batch(self, stage: Stage, number: int, step: int, share: Share) -> Batch:
        """`number` is the stage's place in the recipe: every stage begins an epoch of its own."""
        rows = self.data.rows
        if stage.batch < share.ranks:
            raise ConfigError(f"stage {stage.name!r}: a batch of {stage.batch} for {share.ranks} processes")
        places = range(step * stage.batch + share.rank, (step + 1) * stage.batch, share.ranks)
        chosen = [rows[self._order(number, place // len(rows))[place % len(rows)]] for place in places]
        size, tokens = self._size(stage), self._tokens(stage)
        pixels = [self._pixels(row, picture, size) for row in chosen for picture in row.pictures]
        samples, seen = [], 0
        for row in chosen:
            samples.append(self._sample(row, seen, tokens))
            seen += len(row.pictures)
        stacked = np.stack(pixels) if pixels else np.zeros((0, size, size, 3), np.uint8)
        return collate(stacked, samples, tokens)

    def _order(self, number: int, epoch: int) -> list[int]:
        return _permutation(self.seed, number, epoch, len(self.data.rows))

    def _size(self, stage: Stage) -> int:
        return stage.image_size or self.image.size

    def _tokens(self, stage: Stage) -> int:
        return (self._size(stage) // STRIDE) ** 2

    def _pixels(self, row: Dialogue, picture: Path, size: int) -> npt.NDArray[np.uint8]:
        try:
            return np.asarray(to_square(open_image(picture), size, self.image.mode))
        except ImageError as error:
            raise dataset.line_error(self.path, row.line, str(error)) from None

    def _sample(self, row: Dialogue, first: int, tokens: int) -> Sample:
        """`first` of the batch's pictures is its own first one."""
        turns = [(piece, bool(number % 2)) for number, piece in enumerate(row.pieces)]
        pictures = range(first, first + len(row.pictures))
        sample = conversation(turns, pictures, tokens, tokenizer_at(self.tokenizer).encode, IMAGE_MARK)
        length = len(sample.ids) - 1  # the last is only said
        if length > self.context:
            raise dataset.line_error(
                self.path,
                row.line,
                f"takes {length} positions and the model reads {self.context}; shorten it, or let a stage's "
                f"image_size be smaller: a picture takes (size ÷ {STRIDE})²",
            )
        return sample


@cache
def _permutation(seed: int, number: int, epoch: int, count: int) -> list[int]:
    order: list[int] = np.random.default_rng([seed, number, epoch]).permutation(count).tolist()
    return order
