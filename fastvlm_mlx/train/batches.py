"""What one step learns from, as numpy arrays: made ahead by other processes, the same for the same step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int32]
NOTHING = -1  # no target here; no picture row here
_ALIKE = 1.25  # the longest of a group by its shortest


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation: ids with a run of `NOTHING` where each picture's rows go, and what to learn to say.

    `pictures` are positions in the batch's pictures, in the order of the runs.
    """

    ids: tuple[int, ...]
    said: tuple[bool, ...]  # this id is the model's own words
    pictures: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Texts:
    """Samples of about one length. Padded at their ends: attention looks only back and never sees it."""

    ids: Integers  # (B, L), 0 under pictures
    rows: Integers  # (B, L): which of all pictures' rows stands here, or NOTHING
    positions: Integers  # (T,): flat positions whose next id is the model's
    targets: Integers  # (T,): that id
    owners: Integers  # (T,): the sample it belongs to


@dataclass(frozen=True, slots=True)
class Batch:
    pixels: npt.NDArray[np.uint8]  # (P, H, W, 3)
    cells: Mapping[str, Integers] = field(default_factory=dict)  # (P, h·w, slots)
    texts: tuple[Texts, ...] = ()


def collate(pixels: npt.NDArray[np.uint8], samples: Sequence[Sample], tokens: int) -> Batch:
    """`tokens` rows a picture."""
    groups: list[list[Sample]] = []
    for sample in sorted(samples, key=lambda sample: len(sample.ids)):
        if not groups or len(sample.ids) > _ALIKE * len(groups[-1][0].ids):
            groups.append([])
        groups[-1].append(sample)
    return Batch(pixels, {}, tuple(_texts(group, tokens) for group in groups))


def _texts(samples: Sequence[Sample], tokens: int) -> Texts:
    length = max(len(sample.ids) for sample in samples) - 1  # the last id is only a target
    ids = np.zeros((len(samples), length), np.int32)
    rows = np.full((len(samples), length), NOTHING, np.int32)
    positions: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for number, sample in enumerate(samples):
        full = np.array(sample.ids, np.int32)
        places = np.flatnonzero(full[:-1] == NOTHING)
        own = [np.arange(picture * tokens, (picture + 1) * tokens) for picture in sample.pictures]
        rows[number, places] = np.concatenate(own) if own else []
        ids[number, : len(full) - 1] = np.maximum(full[:-1], 0)
        said = np.flatnonzero(sample.said[1:])
        positions += (number * length + said).tolist()
        targets += full[1:][said].tolist()
        owners += [number] * len(said)
    return Texts(ids, rows, *(np.array(values, np.int32) for values in (positions, targets, owners)))


def conversation(
    turns: Sequence[tuple[str, bool]],
    pictures: Sequence[int],
    tokens: int,
    encode: Callable[[str], list[int]],
    mark: str,
) -> Sample:
    """Turns are (text, is it the model's); `mark` in a text is where the next picture goes.

    Text between marks is tokenized piece by piece, as for generation.
    """
    ids: list[int] = []
    said: list[bool] = []
    for text, own in turns:
        for number, piece in enumerate(text.split(mark)):
            if number:
                ids += [NOTHING] * tokens
                said += [False] * tokens
            new = encode(piece) if piece else []
            ids += new
            said += [own] * len(new)
    return Sample(tuple(ids), tuple(said), tuple(pictures))
