"""What one step learns from, as numpy arrays: made ahead by other processes, the same for the same step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int32]
NOTHING = -1  # no target here; no picture row here
_ALIKE = 1.25  # the longest of a group by its shortest


@dataclass(frozen=True)
class Share:
    """One of several processes that divide every batch between them."""

    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation: ids with a run of `NOTHING` where each picture's rows go, and what to learn to say.

    `pictures` are positions in the batch's pictures, in the order of the runs.
    """

    ids: tuple[int, ...]
    said: tuple[bool, ...]  # this id is the model's own words
    pictures: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """What a language model reads, side by side. Padded at the ends: attention looks only back."""

    ids: Integers  # (B, L), 0 under pictures
    pictures: Integers  # (B, L): which of all pictures' rows stands here, or NOTHING


@dataclass(frozen=True, slots=True)
class Texts:
    """Samples of about one length. What several begin with, up to a picture's end, is read once for all."""

    heads: Rows | None
    head_of: Integers  # (B,): how each sample begins
    tails: Rows
    positions: Integers  # (T,): flat positions in the tails whose next id is the model's
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
    for sample in sorted(samples, key=lambda sample: (_head_length(sample), len(sample.ids))):
        first = groups[-1][0] if groups else None
        if (
            first is None
            or _head_length(sample) != _head_length(first)
            or len(sample.ids) > _ALIKE * len(first.ids)
        ):
            groups.append([])
        groups[-1].append(sample)
    return Batch(pixels, {}, tuple(_texts(group, tokens) for group in groups))


def _head_length(sample: Sample) -> int:
    """Through the first picture, if the model has said nothing before."""
    if not sample.pictures:
        return 0
    start = sample.ids.index(NOTHING)
    end = next(place for place in range(start, len(sample.ids)) if sample.ids[place] != NOTHING)
    return 0 if any(sample.said[:end]) else end


def _texts(samples: Sequence[Sample], tokens: int) -> Texts:
    """Of samples whose heads are equally long."""
    cut = _head_length(samples[0])
    rows = [_rows(sample, tokens) for sample in samples]
    kinds: dict[bytes, int] = {}
    head_of = [kinds.setdefault(both[:, :cut].tobytes(), len(kinds)) for both in rows]
    heads = [rows[head_of.index(kind)][:, :cut] for kind in range(len(kinds))]
    length = max(len(sample.ids) for sample in samples) - 1 - cut  # the last id is only a target
    targets: list[npt.NDArray[np.int32]] = []
    positions: list[npt.NDArray[np.int64]] = []
    owners: list[npt.NDArray[np.int64]] = []
    for number, sample in enumerate(samples):
        said = np.flatnonzero(sample.said[cut + 1 :])
        positions.append(number * length + said)
        targets.append(np.array(sample.ids, np.int32)[cut + 1 + said])
        owners.append(np.full(len(said), number))
    flat = (np.concatenate(parts).astype(np.int32) for parts in (positions, targets, owners))
    return Texts(
        _stacked(heads, cut) if cut else None,
        np.array(head_of, np.int32),
        _stacked([both[:, cut:-1] for both in rows], length),
        *flat,
    )


def _rows(sample: Sample, tokens: int) -> Integers:
    """(2, L): ids, and rows of pictures"""
    ids = np.array(sample.ids, np.int32)
    pictures = np.full(len(ids), NOTHING, np.int32)
    own = [np.arange(picture * tokens, (picture + 1) * tokens) for picture in sample.pictures]
    pictures[ids == NOTHING] = np.concatenate(own) if own else []
    return np.stack([np.maximum(ids, 0), pictures])


def _stacked(rows: Sequence[Integers], length: int) -> Rows:
    padded = [
        np.pad(both, [(0, 0), (0, length - both.shape[1])], constant_values=((0, 0), (0, NOTHING)))
        for both in rows
    ]
    ids, pictures = np.stack(padded, axis=1)
    return Rows(np.where(pictures == NOTHING, np.maximum(ids, 0), 0), pictures)


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
